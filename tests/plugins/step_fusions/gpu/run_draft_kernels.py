"""Compare the kernels that choose tokens on this machine's GPU with NumPy, directly and in a CUDA graph.

    python tests/plugins/step_fusions/gpu/run_draft_kernels.py LIBRARY

A second with a library of ``lineahead plugin build``. Needs cuda-python.
"""

import sys
from pathlib import Path

import numpy as np

from lineahead.plugins.tensorrt.choice import LibraryChoice, scores_of, tokens_of
from lineahead.plugins.tensorrt.cuda import CudaDevice
from lineahead.plugins.tensorrt.draft_kernels import LibraryDraftKernels


def there(device, array):
    """A copy on the device."""
    address = device.allocate(array.nbytes)
    device.upload(address, array)
    device.synchronize()
    return address


def here(device, address, shape, dtype):
    """A copy on the host."""
    array = np.empty(shape, dtype)
    device.download(array, address)
    return array


def run_both(device, work, clear):
    """Run, then record and replay; yields after each."""
    work()
    device.synchronize()
    yield
    launch = device.capture(work)
    clear()
    launch()
    device.synchronize()
    yield
    times = [device.milliseconds(launch) for _ in range(50)]
    print(f"  {sorted(times)[25] * 1000:.1f} us a launch", flush=True)


def wrong_tops(device, choice, random):
    """How often the best tokens are not those of a stable sort."""
    failures = 0
    for rows, width, count in ((1, 49152, 64), (5, 49152, 64), (16, 151936, 64), (3, 70, 64), (2, 1024, 7)):
        scores = random.normal(0, 5, (rows, width)).astype(np.float32)
        scores[0] = scores[0].round()  # many equals
        logits, keys = there(device, scores), there(device, np.zeros((rows, count), np.uint64))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]

        def top(at=(logits, keys), size=(rows, width, count)):
            choice.enqueue_top(*at, *size, device)

        for _ in run_both(device, top, lambda at=keys, size=rows * count * 8: device.zero(at, size)):
            found = here(device, keys, (rows, count), np.uint64)
            same = (tokens_of(found) == order).all()
            same &= (scores_of(found) == np.take_along_axis(scores, order, 1)).all()
            failures += not same
            print(f"top {count} of {rows} x {width}: {'right' if same else 'WRONG'}", flush=True)
    return failures


def main():
    """Every check; 1 when one fails."""
    device, kernels = CudaDevice(), LibraryDraftKernels(Path(sys.argv[1]))
    random, failures = np.random.default_rng(0), 0
    for rows, width, nodes in ((1, 8192, 8), (4, 8192, 8), (3, 49152, 5), (4, 7, 2), (2, 1025, 16)):
        scores = random.normal(size=(rows, width)).astype(np.float32)
        scores[0, width // 2 :] = scores[0].max() + 1  # equals: the first of them
        names = random.permutation(width).astype(np.int32)
        ids = np.arange(rows * nodes, dtype=np.int32).reshape(rows, nodes)
        places = [there(device, one) for one in (scores, names, ids, np.zeros(rows, np.int32))]
        expected = ids.copy()
        expected[:, nodes - 1] = names[scores.argmax(1)]

        def choose(places=places, rows=rows, width=width, nodes=nodes):
            sizes = {"rows": rows, "width": width, "nodes": nodes, "place": nodes - 1}
            kernels.choose(*places, **sizes, device=device)

        for _ in run_both(device, choose, lambda at=places[3], size=rows * 4: device.zero(at, size)):
            same = (here(device, places[2], ids.shape, np.int32) == expected).all()
            same &= (here(device, places[3], rows, np.int32) == expected[:, nodes - 1]).all()
            failures += not same
            print(f"choose {rows} x {width}, {nodes} nodes: {'right' if same else 'WRONG'}", flush=True)
    for rows, width, nodes in ((1, 576, 8), (4, 4096, 3), (3, 33, 1)):
        held = random.normal(size=(rows + 2, width)).astype(np.float32)
        start = there(device, held)
        sources = np.array([start + (rows + 1 - i) * width * 4 for i in range(rows)], np.uint64)
        expected = held[::-1][:rows].copy()
        if rows > 1:
            sources[1], expected[1] = 0, 0
        ids = np.arange(rows * nodes, dtype=np.int32).reshape(rows, nodes)
        places = [
            there(device, one) for one in (sources, ids, np.ones_like(expected), np.ones(rows, np.int32))
        ]

        def begin(places=places, rows=rows, width=width, nodes=nodes):
            kernels.begin(*places, rows=rows, width=width, nodes=nodes, device=device)

        for _ in run_both(device, begin, lambda at=places[2], size=expected.nbytes: device.zero(at, size)):
            same = (here(device, places[2], expected.shape, np.float32) == expected).all()
            same &= (here(device, places[3], rows, np.int32) == ids[:, 0]).all()
            failures += not same
            print(f"begin {rows} x {width}: {'right' if same else 'WRONG'}", flush=True)
    failures += wrong_tops(device, LibraryChoice(Path(sys.argv[1])), random)
    print("FAILED" if failures else "passed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

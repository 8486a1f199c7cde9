"""Time of a call as a model makes it: layers in a CUDA graph, state in place; and its floor in bytes."""

from typing import Any

import torch
from kernel_cases import SETTINGS, Size, make_case

SHAPES = {
    "135M hedgehog": ("softmax-hedgehog", {"heads": 9, "kv_heads": 3, "dim": 64, "value_dim": 64}),
    "7B hedgehog": ("softmax-hedgehog", {"heads": 32, "kv_heads": 32, "dim": 128, "value_dim": 128}),
    "7B identity": ("augmented", {"heads": 32, "kv_heads": 32, "dim": 128, "value_dim": 128}),
    "8B GQA hedgehog": ("softmax-hedgehog", {"heads": 32, "kv_heads": 8, "dim": 128, "value_dim": 128}),
}
LENGTH = 1000  # in a group's middle: nothing folds when grouped, one token a call when sliding
CACHE_BYTES = 200e6
STEP, STREAM = 1, 2  # Variant of csrc/cuda/call.h
RUNS = (  # nodes, slice, variant
    *((nodes, 0, STREAM) for nodes in (1, 2, 4, 8, 16, 32, 64)),
    *((1, value_slice, STREAM) for value_slice in (32, 64, 128)),
    *((nodes, 0, STEP) for nodes in (1, 16)),
)


def copy_bandwidth() -> float:
    """Bytes a second of a device-to-device copy, read and written."""
    source, target = (torch.empty(1 << 28, dtype=torch.int32, device="cuda") for _ in range(2))
    return 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), 10)


def median_seconds(work, repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def floor_bytes(ports, settings, folds: bool) -> int:
    """What one call must move: S in, and out if it changes; the window; the call's rows; the parameters."""

    def size(*names):
        return sum(ports[name].numel() * ports[name].element_size() for name in names)

    state = size("state", "norm") if settings.has_state else 0
    return (
        state * (2 if folds else 1)
        + size("window_key", "window_value", "query_map", "key_map", "conv")
        + 2 * size("query")
        + 3 * size("key")
    )


def launch_seconds(count: int = 64) -> float:
    """Seconds a launch of the least kernel, in a CUDA graph of `count` of them."""
    number, graph, stream = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            number.add_(1)
    return median_seconds(graph.replay, 20) / count


def seconds_each(kernels, calls, repeats: int) -> float:
    """Seconds a call, in a CUDA graph of all of them."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for call, *_ in calls:
            kernels.launch(call, stream.cuda_stream)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for call, *_ in calls:
                kernels.launch(call, torch.cuda.current_stream().cuda_stream)
    return median_seconds(graph.replay, repeats) / len(calls)


def time_call(kernels, settings, size, dtype, value_slice=0, variant=0):
    """Seconds a call, and its floor in bytes."""
    scale = 1.0 if settings.qk_norm else size.dim**-0.5
    first = make_case(settings, size, dtype=dtype, device="cuda", chain=True)
    first["accept_count"] = torch.full_like(first["accept_count"], min(1, size.pending))
    first = {name: x.nan_to_num(0) if x.is_floating_point() else x for name, x in first.items()}
    folds = settings.pattern == "sliding" and settings.has_state
    count = floor_bytes(first, settings, folds)
    layers = int(min(max(CACHE_BYTES // count, 8), 64))
    calls = []
    for _ in range(layers):
        ports = {name: x.clone() for name, x in first.items()}
        out = kernels.outputs(ports, in_place=True)
        calls.append((kernels.prepare(ports, out, settings, scale, value_slice, variant), ports, out))
    return seconds_each(kernels, calls, 20), count


def time_all(kernels) -> dict[str, Any]:
    """Print and return a table: microseconds a call, over its floor at the copy bandwidth, share of that."""
    bandwidth, empty = copy_bandwidth(), launch_seconds()
    rows = []
    print(f"\ncopy bandwidth {bandwidth / 1e12:.2f} TB/s; an empty launch {empty * 1e6:.2f} us")
    print(f"fp16, context {LENGTH}, us a call in a CUDA graph, state in place, layers that pass the cache")
    heading = ("batch", "T", "slice", "variant", "us", "floor us", "ratio", "of copy")
    print(f"{'shape':16s}" + "".join(f"{word:>9s}" for word in heading))
    for name, (kind, heads) in SHAPES.items():
        for batch in (1, 16):
            for nodes, value_slice, variant in RUNS:
                if value_slice > heads["value_dim"]:
                    continue
                size = Size(batch=batch, nodes=nodes, pending=nodes, length=(LENGTH,), **heads)
                try:
                    seconds, count = time_call(
                        kernels, SETTINGS[kind], size, torch.float16, value_slice, variant
                    )
                except RuntimeError as refusal:
                    print(f"{name:16s}{batch:9d}{nodes:9d}{value_slice or 'auto':>9}{variant:9d}  {refusal}")
                    continue
                floor = count / bandwidth
                numbers = (
                    f"{seconds * 1e6:9.2f}{floor * 1e6:9.2f}{seconds / floor:9.1f}{floor / seconds:9.0%}"
                )
                print(
                    f"{name:16s}{batch:9d}{nodes:9d}{value_slice or 'auto':>9}{variant:9d}{numbers}",
                    flush=True,
                )
                rows.append(
                    {"shape": name, "batch": batch, "nodes": nodes, "slice": value_slice, "variant": variant,
                     "seconds": seconds, "floor_seconds": floor, "floor_bytes": count}
                )  # fmt: skip
    return {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "copy_bytes_per_second": bandwidth, "empty_launch_seconds": empty, "dtype": "float16",
        "context": LENGTH, "calls": rows,
    }  # fmt: skip

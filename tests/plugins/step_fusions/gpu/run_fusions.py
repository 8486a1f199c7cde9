"""Compare the fused kernels on this machine's GPU with float64, replay them in a CUDA graph, and time them.

    python tests/plugins/step_fusions/gpu/run_fusions.py [--library FILE]

Seconds with a library at hand (`lineahead plugin build` makes one); without one they are compiled first.
Needs torch, and nvcc to compile.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
# Of one node: SmolLM2-135M and Llama-2-7B.
TIMED = [
    ("AddRMSNorm", 576, {"epsilon": 1e-5}),
    ("RotaryHeads", 15 * 64, {"heads": 9, "kv_heads": 3, "head_dim": 64}),
    ("GatedUnit", 2 * 1536, {"activation": "silu"}),
    ("AddRMSNorm", 4096, {"epsilon": 1e-5}),
    ("RotaryHeads", 96 * 128, {"heads": 32, "kv_heads": 32, "head_dim": 128}),
    ("GatedUnit", 2 * 11008, {"activation": "silu"}),
    ("RotaryTable", 1, {}),
]


def build(folder):
    major, minor = torch.cuda.get_device_capability()
    library, plugins = folder / "libfusions.so", ROOT / "plugins"
    sources = sorted((plugins / "step_fusions/csrc/cuda").glob("*.cu"))
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        f"-arch=sm_{major}{minor}",
        "-Xcompiler",
        "-fPIC",
        "-shared",
        "-o",
        library,
    ]
    command += [f"-I{plugins / 'augmented_attention/csrc/cuda'}", *sources]
    subprocess.run([str(one) for one in command], check=True)
    return library


def check_all(kernels):
    """Every case in every type, aligned and not; how many fail."""
    from fusion_cases import CASES, ROUNDOFF, expected, ports_of, results_like, worst_error

    failures, worst = 0, {}
    large = [(name, (4, 16, width), fields) for name, width, fields in TIMED if name != "RotaryTable"]
    for (name, shape, fields), dtype, shift in itertools.product([*CASES, *large], ROUNDOFF, (0, 1)):
        ports = ports_of(name, shape, fields=fields, dtype=dtype, device="cuda", shift=shift)
        wanted = expected(name, ports, fields)
        out = results_like(name, ports, wanted, shift)
        kernels(name, ports, out, fields, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        try:
            error = worst_error(out, wanted)
        except AssertionError as problem:
            error = float("inf")
            print(problem)
        worst[name, dtype] = max(worst.get((name, dtype), 0), error)
        if error > 1:
            failures += 1
            print(
                f"FAILED {name} {shape} {dtype} {fields} shift {shift}: {error:.2f} of what is allowed",
                flush=True,
            )
    for (name, dtype), error in worst.items():
        print(f"  {name:12s} {str(dtype)[6:]:9s} {error:.2f} of what rounding and float32 allow")
    return failures


def time_all(kernels, rows=1, calls=200):
    """Microseconds a call, `calls` of them in one CUDA graph; results after the replay are checked, too."""
    from fusion_cases import expected, ports_of, results_like, worst_error

    failures = 0
    for (name, width, fields), dtype in itertools.product(TIMED, (torch.float32, torch.float16)):
        shape = (1, rows) if name == "RotaryTable" else (1, rows, width)
        ports = ports_of(name, shape, fields=fields, dtype=dtype, device="cuda")
        wanted = expected(name, ports, fields)
        out = results_like(name, ports, wanted)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                kernels(name, ports, out, fields, torch.cuda.current_stream().cuda_stream)
        for x in out.values():
            x.fill_(torch.nan)
        times = []
        for _ in range(7):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) * 1000 / calls)
        good = worst_error(out, wanted) <= 1
        failures += not good
        median = sorted(times)[len(times) // 2]
        print(
            f"  {name:12s} {str(dtype)[6:]:8s} {rows} x {width}: {median:.2f} us{'' if good else '  FAILED'}",
            flush=True,
        )
    return failures


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path)
    arguments = parser.parse_args()
    sys.path[:0] = [str(HERE), str(ROOT / "tests/plugins/augmented_attention/gpu")]
    from run_kernels import import_package

    import_package()
    from fusion_call import FusedKernels

    kernels = FusedKernels((arguments.library or build(Path(tempfile.mkdtemp()))).resolve())
    failures = check_all(kernels)
    for rows in (1, 16):
        failures += time_all(kernels, rows)
    print("FAILED" if failures else "passed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

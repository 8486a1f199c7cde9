"""Build the CUDA kernels for this machine's GPU, compare them with step.step in float64, then time them.

    python tests/plugins/augmented_attention/gpu/run_kernels.py [--small] [--only PART] [--library FILE]

`--small` runs a few calls of every setting, for compute-sanitizer. PART is checks, drift, timing or
prefill (checks and timing of the prefill kernels).
Needs nvcc and torch.
"""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
SOURCES = ROOT / "plugins" / "augmented_attention" / "csrc" / "cuda"
DIMS, NODES = (32, 64, 80, 96, 128, 256), (1, 2, 5, 16, 17, 33, 64)
OFFSETS = (0, 1, 31, 62, 63, 64, 65, 127, 128)
HEADS = ((4, 4), (4, 2), (6, 2))


def import_package():
    """Make `lineahead` (whatever the folder is called) and the files beside this one importable."""
    sys.path.insert(0, str(HERE))
    if importlib.util.find_spec("lineahead") is None:
        folder = Path(tempfile.mkdtemp())
        (folder / "lineahead").symlink_to(ROOT)
        sys.path.insert(0, str(folder))


def build(folder: Path) -> Path:
    major, minor = torch.cuda.get_device_capability()
    library = folder / "liblineahead_kernels.so"
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        f"-arch=sm_{major}{minor}",
        "-Xcompiler",
        "-fPIC",
        "-shared",
        "-o",
        str(library),
        *map(str, (*SOURCES.glob("*.cu"), *SOURCES.glob("*.cpp"))),
    ]
    started = time.time()
    subprocess.run(command, check=True)
    print(f"built for sm_{major}{minor} in {time.time() - started:.0f} s", flush=True)
    return library


def check_all(kernels, small: bool, chosen: list[str]) -> int:
    """Every setting with every type, head size, node count and context length; returns how many failed."""
    from kernel_cases import SETTINGS, TOLERANCE, Size, check

    failures, worst, started, calls = 0, {}, time.time(), 0
    for seed, (name, dtype, dim) in enumerate(
        itertools.product(chosen or SETTINGS, TOLERANCE, (32, 64) if small else DIMS)
    ):
        for nodes in (1, 5, 17) if small else NODES:
            if small and (seed + nodes) % 3:
                continue
            heads, shared = HEADS[(seed + nodes) % 3]
            size = Size(
                batch=len(OFFSETS) if not small else 3,
                heads=heads,
                kv_heads=shared,
                dim=dim,
                value_dim=dim,
                nodes=nodes,
                pending=(0, 8, 3, 64)[(seed // 3 + nodes) % 4],
                length=OFFSETS if not small else (0, 63, 128),
            )
            options = {
                "in_place": calls % 2 == 0,
                "value_slice": (0, 0, 16, 32)[calls % 4],
                "chain": calls % 5 == 0,
                "variant": (0, 0, 1)[calls % 3],
                "index": (torch.int64, torch.int32)[calls % 3 == 1],
            }
            calls += 1
            try:
                error = check(kernels, SETTINGS[name], size, dtype=dtype, device="cuda", seed=seed, **options)
                worst[name, dtype] = max(worst.get((name, dtype), 0), error)
            except (AssertionError, RuntimeError) as problem:
                failures += 1
                if failures <= 12:
                    print(
                        f"FAILED {name} D={dim} T={nodes} {heads}/{shared} {options}: {problem}", flush=True
                    )
    print(
        f"\n{calls} calls, {failures} failed, {time.time() - started:.0f} s; largest relative output error:"
    )
    for name in chosen or SETTINGS:
        errors = (f"{str(t)[6:]} {worst.get((name, t), float('nan')):.1e}" for t in TOLERANCE)
        print(f"  {name:20s} " + "  ".join(errors), flush=True)
    return failures


def drift(kernels, steps: int) -> int:
    """Random acceptance for `steps` calls; the final state against the same calls in float64.

    float32 runs in the generic kernel, float16 in the streaming one; the exact calls get the rounded keys.
    """
    from kernel_cases import SETTINGS, TOLERANCE, Size, make_case

    from lineahead.plugins.augmented_attention.schema import INPUTS, STATE
    from lineahead.plugins.augmented_attention.step import step

    failures = 0
    names = ("augmented", "softmax-hedgehog", "grouped-softmax")
    for name, dtype in itertools.product(names, (torch.float32, torch.float16)):
        settings, size = SETTINGS[name], Size(dim=64, value_dim=64, nodes=4, pending=4, length=(0,))
        scale = 1.0 if settings.qk_norm else size.dim**-0.5
        mine = make_case(settings, size, dtype=dtype, device="cuda", chain=True)
        mine |= {
            key: torch.zeros_like(mine[key])
            for key in (*STATE, "length", "accept_count", "pending_key", "pending_value")
        }
        exact = {key: x.double() if x.is_floating_point() else x for key, x in mine.items()}
        generator = torch.Generator(device="cuda").manual_seed(1)
        largest = 0.0
        for i in range(steps):
            for key in ("query", "key", "value"):
                mine[key] = torch.randn(mine[key].shape, generator=generator, device="cuda").to(dtype)
                exact[key] = mine[key].double()
            counts = (
                torch.randint(0, 5, (size.batch,), generator=generator, device="cuda")
                if i
                else mine["accept_count"]
            )
            mine["accept_count"] = exact["accept_count"] = counts
            mine["accept_index"] = exact["accept_index"] = torch.arange(4, device="cuda").repeat(
                size.batch, 1
            )
            got = kernels.step(mine, settings, scale, in_place=True)
            want = step(*(exact[key] for key in INPUTS), settings=settings, scale=scale)
            largest = max(
                largest, ((got["output"] - want[0]).abs().max() / want[0].abs().max().clamp(min=1)).item()
            )
            mine["pending_key"], mine["pending_value"] = got["pending_key"], mine["value"]
            exact |= dict(zip(STATE, want[1:5], strict=True)) | {
                "pending_key": got["pending_key"].double(),
                "pending_value": exact["value"],
            }
            mine["length"] = exact["length"] = mine["length"] + counts
        state = ((mine["state"] - exact["state"]).abs().max() / exact["state"].abs().max()).item()
        bad = not (state <= 1e-5 and largest <= (1e-4 if dtype is torch.float32 else TOLERANCE[dtype]))
        failures += bad
        result = f"{mine['length'].tolist()} tokens: state {state:.1e}, output {largest:.1e}"
        print(
            f"  drift {name:18s} {str(dtype)[6:]} {steps} calls, {result}{'  FAILED' if bad else ''}",
            flush=True,
        )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=("checks", "drift", "timing", "prefill"))
    parser.add_argument("--setting", action="append", default=[], help="check this one (repeatable)")
    parser.add_argument("--library", type=Path)
    parser.add_argument("--json", type=Path, help="where to write the timings")
    arguments = parser.parse_args()
    import_package()
    from kernel_call import Kernels
    from kernel_timing import time_all
    from prefill_checks import check_prefill, read_text, time_prefill

    kernels = Kernels((arguments.library or build(Path(tempfile.mkdtemp()))).resolve())
    failures = 0
    if arguments.only in (None, "checks"):
        failures += check_all(kernels, arguments.small, arguments.setting)
    if arguments.only in (None, "drift"):
        failures += drift(kernels, 20 if arguments.small else 2000)
    if arguments.only in (None, "prefill"):
        failures += check_prefill(kernels, arguments.small)
        failures += read_text(kernels, 4 if arguments.small else 200)
    if arguments.only in (None, "timing", "prefill") and not arguments.small:
        timings = time_prefill(kernels) if arguments.only == "prefill" else time_all(kernels)
        if arguments.json:
            arguments.json.write_text(json.dumps(timings, indent=1) + "\n")
    print("FAILED" if failures else "passed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

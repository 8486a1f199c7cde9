"""Build the CUDA kernels whole and with each defect of the catalogue, and see every defect die on this GPU.

    python tests/mutants/run_kernel_mutants.py [--jobs 8] [--only TEXT]

Needs nvcc, torch and a GPU; about a minute of one processor a defect. Each library runs in its own process: a
defect may spoil a CUDA context. Ends with 1 when the whole kernels fail or a defect survives.
"""

import argparse
import concurrent.futures
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def import_package() -> None:
    """Make `lineahead` and the checks importable by the names that tests use."""
    sys.path.insert(0, str(ROOT / "tests/plugins/augmented_attention/gpu"))
    import run_kernels

    run_kernels.import_package()
    spec = importlib.util.spec_from_file_location("mutant_names", HERE / "conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def architecture() -> str:
    import torch

    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def run_one(mutant: tuple[str, ...], sm: str) -> tuple[str, str]:
    """Build one defect ('' for none) and ask its verdict."""
    from operator_kernel_build import damaged_sources

    name, kernel, *edit = mutant
    with tempfile.TemporaryDirectory() as folder:
        damaged_sources(Path(folder), *([tuple(edit)] if edit else []))
        library = Path(folder) / "liblineahead_kernels.so"
        sources = sorted(path.name for path in Path(folder).iterdir() if path.suffix in (".cu", ".cpp"))
        command = [
            "nvcc",
            "-std=c++17",
            "-O2",
            f"-arch={sm}",
            "-Xcompiler",
            "-fPIC",
            "-shared",
            "-o",
            library,
        ]
        subprocess.run([*command, *sources], cwd=folder, check=True)
        done = subprocess.run(
            [sys.executable, __file__, "--judge", library, str(kernel)],
            capture_output=True,
            text=True,
            timeout=120,
        )
    if done.returncode > 1:
        return name, f"ended with {done.returncode}: {done.stderr.strip()[-120:]}"
    return name, done.stdout.strip()


def judge(library: str, kernel: int) -> int:
    """Print what kills the library's kernel; nothing when it survives."""
    from mutant_kernel_verdict import verdict
    from operator_kernel_call import Kernels

    print(verdict(Kernels(Path(library)), kernel, device="cuda") or "")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--only", default="", help="defects whose name has this text")
    parser.add_argument("--judge", nargs=2, metavar=("LIBRARY", "KERNEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import_package()
    if arguments.judge:
        return judge(arguments.judge[0], int(arguments.judge[1]))
    from mutant_kernel_catalogue import KERNEL_MUTANTS, PREFILL, STEP, STREAM

    kernels = {STEP: "general", STREAM: "streaming", PREFILL: "prefill"}
    chosen = [("", kernel) for kernel in kernels] + [
        one for one in KERNEL_MUTANTS if arguments.only in one[0]
    ]
    sm, started, wrong = architecture(), time.time(), 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, (name, killer) in zip(
            chosen, pool.map(lambda one: run_one(one, sm), chosen), strict=True
        ):
            bad = bool(killer) if not name else not killer
            wrong += bad
            what = killer or ("passes" if not name else "SURVIVED")
            print(f"{kernels[mutant[1]]:10s} {name or 'whole':40s} {what}", flush=True)
    print(f"{len(chosen) - len(kernels)} defects, {wrong} wrong, {sm}, {time.time() - started:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

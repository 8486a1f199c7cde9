"""Fuzz one reader, or all in turn: ``python tests/fuzz/run.py NAME --seconds 600``.

It needs atheris (``pip install atheris``), which lets coverage guide the search. Each reader gets a process
of its own, because libFuzzer ends the process. A finding is written beside the corpus and ends the run.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))


def fuzz(name: str, seconds: int, limit: int, corpus: Path) -> None:
    """Run libFuzzer on a reader; does not return."""
    import atheris

    with atheris.instrument_imports(include=["lineahead"]):
        from targets import TARGETS

        from lineahead.errors import LineaheadError

        target = TARGETS[name]
        for place, seed in enumerate(target.seeds()):
            (corpus / f"seed-{place}").write_bytes(seed)
        with tempfile.TemporaryDirectory() as first:  # import what it needs, instrumented
            for seed in target.seeds():
                try:
                    target.run(seed, Path(first))
                except LineaheadError:
                    continue
    scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)

    def one(data: bytes) -> None:
        try:
            target.run(data, Path(scratch.name))
        except LineaheadError:
            return

    limits = [f"-max_total_time={seconds}", f"-timeout={limit}", "-rss_limit_mb=4096", "-max_len=16384"]
    output = [f"-artifact_prefix={corpus}/finding-", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *output], one)
    atheris.Fuzz()


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--limit", type=int, default=20, help="seconds that one input may take")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "lineahead-fuzz")
    given = parser.parse_args()
    if given.name != "all":
        corpus = given.corpus / given.name
        corpus.mkdir(parents=True, exist_ok=True)
        fuzz(given.name, given.seconds, given.limit, corpus)
    from targets import TARGETS

    worst = 0
    more = ["--seconds", str(given.seconds), "--limit", str(given.limit), "--corpus", str(given.corpus)]
    for name in TARGETS:
        command = [sys.executable, __file__, name, *more]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        told = ("Done", "stat::number_of_executed_units", "SUMMARY")
        lines = [one for one in done.stderr.splitlines() if one.startswith(told)]
        verdict = "no finding" if not done.returncode else f"FINDING (exit status {done.returncode})"
        print(name, verdict, *lines, sep=" | ", flush=True)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())

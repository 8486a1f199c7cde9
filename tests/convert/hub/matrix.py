"""The table of docs/hub.md: a published artifact in clean environments, one per transformers version.

    python tests/convert/hub/matrix.py ARTIFACT... [--version V]... [--folder DIR] [--table FILE]

Every artifact is pushed to a loopback Hub with `lineahead push`; every environment is a `python -m venv` with
one version of transformers and what pip adds to it, and loads the repository from that Hub by name. PyTorch
is not installed again: the environments see links to the packages of this one, and no other package of it.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
VERSIONS = ("5.0.0", "5.5.4", "5.10.4", "5.14.1", "5.17.0", "5.20.2", "5.22.2", "5.23.0", "5.24.0")
LINKED = (
    "torch",
    "torchgen",
    "functorch",
    "sympy",
    "mpmath",
    "networkx",
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "typing_extensions",
    "numpy",
    "numpy.libs",
    "setuptools",
)
CHECKS = (
    "load",
    "logits",
    "generate",
    "batch",
    "sample",
    "pipeline",
    "custom_generate",
    "prompt_lookup",
    "save",
    "bfloat16",
)


def linked(folder: Path) -> Path:
    """A folder of links to PyTorch and what it needs, with metadata, so that pip finds them installed."""
    site = Path(importlib.util.find_spec("torch").origin).parents[1]
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        dist = name.replace("-", "_")
        for path in [*site.glob(name), *site.glob(f"{name}.py"), *site.glob(f"{dist}-*.dist-info")]:
            link = folder / path.name
            if not link.exists():
                link.symlink_to(path)
    return folder


def environment(folder: Path, version: str) -> Path:
    """A clean environment with one transformers; its Python."""
    python = folder / version / "bin" / "python"
    done = folder / version / "done"
    if done.exists():
        return python
    venv.create(folder / version, with_pip=False, symlinks=True)
    site = next((folder / version / "lib").glob("python3*/site-packages"))
    (site / "linked.pth").write_text(f"{linked(folder / 'linked')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", f"transformers=={version}"], check=True)
    done.touch()
    return python


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def check(python: Path, home: Path, hub, repo: str, prompt: str) -> dict:
    """What one environment says of one repository."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "PYTHON", "TRANSFORMERS"))
    }
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / python.parts[-3])}
    home.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(HERE / "matrix_check.py"), repo, prompt]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        return {"load": {"error": lines[-1][:200]}}
    return json.loads(done.stdout.strip().splitlines()[-1])


def cell(value) -> str:
    if isinstance(value, dict):
        return "**no**"
    if isinstance(value, float):
        return f"{value:.0e}" if value < 0.1 else f"{value:g}"
    return "yes" if value else "no"


def table(rows: list[tuple[str, str, dict]]) -> str:
    head = ["artifact", "transformers", "huggingface_hub", *CHECKS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, version, found in rows:
        cells = [cell(found.get(one)) for one in CHECKS]
        lines.append("| " + " | ".join([name, version, found.get("hub", ""), *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--version", action="append", dest="versions", help=f"default: {' '.join(VERSIONS)}")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/matrix"), help="environments, kept for next time"
    )
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--prompt", default="Once upon a time there was a little cat. The little cat was")
    parser.add_argument("--license", help="of the original models, where their manifests do not know it")
    given = parser.parse_args()
    folder = given.folder.resolve()
    routes = load("hub_routes")
    hub = load("hub_server").Hub(part_bytes=1 << 26)
    rows = []
    try:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": routes.TOKEN, "HF_HUB_OFFLINE": "0"}
        for artifact in given.artifacts:
            push = [
                sys.executable,
                "-m",
                "lineahead.cli",
                "push",
                "--no-trial",
                str(artifact),
                f"me/{artifact.name}",
            ]
            subprocess.run(
                [*push, *(["--license", given.license] if given.license else [])], env=env, check=True
            )
        for version in given.versions or VERSIONS:
            python = environment(folder, version)
            for artifact in given.artifacts:
                found = check(
                    python, folder / "home" / artifact.name, hub, f"me/{artifact.name}", given.prompt
                )
                rows.append((artifact.name, version, found))
                print(json.dumps({"artifact": artifact.name, "version": version, **found}), flush=True)
    finally:
        hub.close()
    print(table(rows), file=sys.stderr)
    if given.table:
        given.table.write_text(table(rows), encoding="utf-8")
    return int(any(isinstance(value, dict) for *_, found in rows for value in found.values()))


if __name__ == "__main__":
    sys.exit(main())

"""The root-is-the-package layout has four ways to rot; each has a test. So has naming no machine."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {"tests", "build", "dist", "docs", "artifacts", "benchmarks"}
SOURCE_DATA = {".cu", ".cuh", ".cpp", ".h"}
# Written in two halves so that this file does not contain what it looks for.
FORBIDDEN = [
    "/work" + "/main",
    "/work" + "/shared",
    "/tmp" + "/w/",
    "/root" + "/",
    "/opt" + "/pypi",
    "/opt" + "/wheels",
    "files." + "pythonhosted.org",
    "pypi." + "org/simple",
    "-----BEGIN " + "PRIVATE KEY",
    "hf_" + "[A-Za-z0-9]{30}",
    "extra-index" + "-url",
]


def tracked():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


def shipped(parts):
    hidden = any(part.startswith((".", "__pycache__")) or part.endswith(".egg-info") for part in parts)
    return not hidden and parts[0] not in NOT_SHIPPED


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_package_list_matches_the_tree():
    listed = pyproject()["tool"]["setuptools"]["packages"]
    found = {"lineahead"}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if len(parts) > 1 and shipped(parts) and (path.name == "__init__.py" or path.suffix in SOURCE_DATA):
            found.add(".".join(("lineahead", *parts[:-1])))
    assert set(listed) == found
    assert listed == sorted(listed)


def test_every_folder_with_code_is_a_package():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if len(parts) > 1 and shipped(parts):
            assert (path.parent / "__init__.py").is_file(), path.parent


def test_tests_have_no_init_files():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_only_known_modules_at_the_root():
    """Every root *.py file lands in the wheel as lineahead/<file>."""
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "cli.py", "errors.py"}


def test_root_init_is_inert():
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_each_file_is_loaded_under_one_name():
    """The root ``__init__.py`` is exempt: pytest itself loads it a second time (see its docstring)."""
    import lineahead.cli
    import lineahead.runtime.doctor

    package_root = Path(lineahead.cli.__file__).parent
    names: dict[Path, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        relative = file.relative_to(package_root).parts if package_root in file.parents else ()
        if relative and relative != ("__init__.py",) and shipped(relative):
            names.setdefault(file, []).append(name)
    assert not {file: found for file, found in names.items() if len(found) > 1}


def torch_free_modules():
    """Everything that decoding needs; the eager backend alone may use torch, and Ray's router Ray."""
    files = [
        *(ROOT / "runtime").rglob("*.py"),
        *(ROOT / "recipes").rglob("*.py"),
        *ROOT.glob("plugins/*/schema.py"),
    ]
    names = [".".join(("lineahead", *path.relative_to(ROOT).with_suffix("").parts)) for path in files]
    names += ["lineahead.plugins.step_graph", "lineahead.cli", "lineahead.errors"]
    return sorted(
        name.removesuffix(".__init__")
        for name in names
        if not name.endswith(("backends.eager", "ray_app.prefix_router"))
    )


def test_the_runtime_imports_where_torch_cannot_be_imported():
    program = (
        "import importlib, sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'peft', 'accelerate'): sys.modules[name] = None\n"
        f"for name in {torch_free_modules()!r}: importlib.import_module(name)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_onnxruntime_is_in_no_base_dependency_and_flavours_never_meet():
    """Installed together, the CPU and GPU wheels overwrite each other's files without an error."""
    project = pyproject()["project"]
    assert not [one for one in project["dependencies"] if one.startswith("onnxruntime")]
    for name, extra in project["optional-dependencies"].items():
        flavours = {re.split(r"[\[>=<]", one)[0] for one in extra if one.startswith("onnxruntime")}
        assert len(flavours) <= 1, name


def test_recipes_and_sources_ship_as_package_data():
    data = pyproject()["tool"]["setuptools"]["package-data"]
    assert data["lineahead"] == ["py.typed"]
    assert "*.yaml" in data["lineahead.recipes"]
    assert {f"*{suffix}" for suffix in SOURCE_DATA} <= set(data["*"])


def test_no_tracked_file_names_a_machine_a_registry_or_a_secret():
    forbidden = re.compile("|".join(FORBIDDEN))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.is_file() and path.suffix not in {".safetensors", ".onnx", ".png"}
        for match in [forbidden.search(path.read_text(errors="replace"))]
        if match
    ]
    assert not found


def test_no_source_file_is_longer_than_it_should_be():
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked()
        if path.suffix == ".py" and path.is_file() and (count := path.read_text().count("\n")) > 400
    }
    assert not long


def test_license_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_exactly_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()

"""Write ``modeling_lineahead.py``: our own source files joined, so that artifacts load without it."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import iter_modules

import lineahead
from lineahead.errors import ExportError
from lineahead.plugins.augmented_attention.huggingface.modeling import CODE_FILE

ENTRY = "lineahead.plugins.augmented_attention.huggingface.modeling"
GENERATE = "lineahead.plugins.augmented_attention.huggingface.speculative_generate"
PACKAGE = "lineahead"
METHODS = "lineahead.plugins.augmented_attention.methods"
TABLES = ("FEATURE_MAPS", "LOCAL_KERNELS", "NORMALIZERS")
HEADER = '''"""Linear attention with a constant-size state, for transformers.

Made by lineahead {version} from its own source files (Apache-2.0); needs torch and transformers only.
Do not edit: convert again instead.
"""

'''
_NAMESPACE = 'NAMESPACE = "lineahead"'


@dataclass(kw_only=True)
class _Module:
    """One source file: its text without imports, and what it imports."""

    name: str
    body: str
    summary: str
    defines: list[str]
    external: list[ast.Import | ast.ImportFrom] = field(default_factory=list)
    internal: list[ast.ImportFrom] = field(default_factory=list)


def bundle(entry: str = ENTRY) -> str:
    """The text of the single file.

    Args:
        entry: module whose classes the artifact names; everything of this package that it imports is joined,
            in dependency order, so that each thing is written once. Methods with parts of their own follow.

    Raises:
        ExportError: when two files define the same name, or one uses an import form that cannot be joined.
    """
    modules: dict[str, _Module] = {}
    for name in (entry, *_methods_with_parts()):
        _collect(name, modules)
    owner: dict[str, str] = {}
    for module in modules.values():
        for name in module.defines:
            if name in owner:
                raise ExportError(
                    f"{name!r} is defined in {owner[name]} and in {module.name}",
                    hint="Rename one of them: they are joined in one file.",
                )
            owner[name] = module.name
    sections = [_section(module, modules) for module in modules.values()]
    text = "\n\n\n".join([_imports(list(modules.values())), *sections]) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    if text.count(_NAMESPACE) != 1:
        raise ExportError(f"{_NAMESPACE} must occur once in the joined files", hint="See attention.py.")
    text = text.replace(_NAMESPACE, f'NAMESPACE = "lineahead_{digest}"')
    return HEADER.format(version=lineahead.__version__) + text


def write(folder: Path) -> Path:
    """Write the bundle into `folder`; the file appears complete or not at all.

    Raises:
        ExportError: as :func:`bundle`.
    """
    target = folder / CODE_FILE
    partial = target.with_suffix(".partial")
    partial.write_text(bundle(), encoding="utf-8")
    partial.replace(target)
    return target


def write_generate(folder: Path) -> Path:
    """Write ``custom_generate/generate.py``: one file of ours, which imports nothing of this package."""
    source = _path(GENERATE)
    assert source is not None
    target = folder / "custom_generate" / "generate.py"
    target.parent.mkdir(exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target


def _methods_with_parts() -> Iterator[str]:
    """Files of ``methods/`` that enter something into a table of parts: no other file imports them."""
    folder = _path(METHODS)
    assert folder is not None
    for file in sorted(iter_modules([str(folder.parent)]), key=lambda file: file.name):
        name = f"{METHODS}.{file.name}"
        if any(alias.name in TABLES for node in _read(name).internal for alias in node.names):
            yield name


def _collect(name: str, modules: dict[str, _Module]) -> None:
    """Add module `name` and, before it, what it imports from this package."""
    if name in modules:
        return
    module = _read(name)
    for node in module.internal:
        for imported in _imported_modules(node):
            _collect(imported, modules)
    modules[name] = module


def _read(name: str) -> _Module:
    path = _path(name)
    assert path is not None
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    module = _Module(name=name, body="", summary=(ast.get_docstring(tree) or "").split("\n")[0], defines=[])
    drop: set[int] = set()
    for node in tree.body:
        if isinstance(node, ast.Expr) and node is tree.body[0]:
            drop |= _rows(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            ours = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE
            (module.internal if ours else module.external).append(node)  # type: ignore[arg-type]
            drop |= _rows(node)
        elif (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "__all__"
        ):
            drop |= _rows(node)
    _refuse_nested(tree, name)
    module.defines = list(_definitions(tree))
    module.body = "\n".join(line for row, line in enumerate(lines, 1) if row not in drop).strip("\n")
    return module


def _refuse_nested(tree: ast.Module, name: str) -> None:
    for node in ast.walk(tree):
        inner = isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tree.body
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        plain = any(one.split(".")[0] == PACKAGE for one in names)
        if plain or (inner and isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)):
            raise ExportError(
                f"{name}, line {getattr(node, 'lineno', 0)}: cannot join this import",
                hint="Use `from ... import` at the top.",
            )


def _definitions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (
                target.id
                for target in node.targets
                if isinstance(target, ast.Name) and target.id != "__all__"
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _section(module: _Module, modules: dict[str, _Module]) -> str:
    """The module's text, after a heading and names for what it imports as modules or under another name."""
    lines = [f"# {module.name.replace('.', '/')}: {module.summary}"]
    for node in module.internal:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            if submodule in modules and alias.name not in modules.get(str(node.module), module).defines:
                names = _public(submodule, modules)
                lines.append(
                    f"{alias.asname or alias.name} = SimpleNamespace({', '.join(f'{n}={n}' for n in names)})"
                )
            elif alias.asname is not None:
                lines.append(f"{alias.asname} = {alias.name}")
    return "\n".join(lines) + ("\n\n" + module.body if module.body else "")


def _public(name: str, modules: dict[str, _Module]) -> list[str]:
    """Names that a module offers: its own and those it imports from this package."""
    module = modules[name]
    imported = [alias.asname or alias.name for node in module.internal for alias in node.names]
    known = {one for other in modules.values() for one in other.defines}
    return [one for one in dict.fromkeys((*module.defines, *imported)) if one in known]


def _imports(modules: list[_Module]) -> str:
    """All imports from elsewhere, once."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {"types": {"SimpleNamespace"}}
    for module in modules:
        for node in module.external:
            for alias in node.names:
                text = alias.name + (f" as {alias.asname}" if alias.asname else "")
                if isinstance(node, ast.Import):
                    plain.add(text)
                else:
                    named.setdefault(str(node.module), set()).add(text)
    return "\n".join(
        [f"import {name}" for name in sorted(plain)]
        + [f"from {name} import {', '.join(sorted(what))}" for name, what in sorted(named.items())]
    )


def _imported_modules(node: ast.ImportFrom) -> list[str]:
    """Modules that a ``from lineahead... import ...`` needs: submodules if named, else the module itself."""
    base = str(node.module)
    parts = [f"{base}.{alias.name}" for alias in node.names]
    submodules = [part for part in parts if _path(part) is not None and not _is_attribute(base, part)]
    return submodules if len(submodules) == len(parts) else [*submodules, base]


def _is_attribute(base: str, part: str) -> bool:
    """Whether the package `base` itself defines or imports the last part of `part`."""
    path = _path(base)
    if path is None or path.name != "__init__.py":
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    return part.rsplit(".", 1)[1] in imported | set(_definitions(tree))


def _path(name: str) -> Path | None:
    """The file of a module, or None when there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _rows(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))

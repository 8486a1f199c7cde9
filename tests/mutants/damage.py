"""Loads the operator's modules from edited source, beside the shipped ones and without touching them."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "lineahead.plugins.augmented_attention"
FORMS = ("schema", "step", "parallel", "reference", "feature_maps", "module")
FORMS += ("bidirectional", "cross", "linformer", "roles")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One defect: in `file`, each `old` text (found exactly `times` times) becomes `new`.

    A mutant that `crashes` shows itself by an exception; any other must run, and give a wrong result.
    """

    name: str
    file: str
    old: str
    new: str
    times: int = 1
    crashes: bool = False


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name, path, edits):
        super().__init__(name, path)
        self.edits = edits

    def get_code(self, fullname):
        source = Path(self.path).read_text(encoding="utf-8")
        for mutant in self.edits:
            found = source.count(mutant.old)
            assert found == mutant.times, f"{mutant.name}: {found} of {mutant.times} places in {mutant.file}"
            source = source.replace(mutant.old, mutant.new)
        return compile(source, f"<{fullname}, damaged>" if self.edits else self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutants):
        self.mutants, self.applied = mutants, set()

    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(PACKAGE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or not spec.has_location:
            return spec
        edits = [
            m for m in self.mutants if Path(spec.origin).as_posix().endswith(f"augmented_attention/{m.file}")
        ]
        self.applied.update(m.name for m in edits)
        spec.loader = _Loader(fullname, spec.origin, edits)
        return spec


@contextlib.contextmanager
def _set_aside():
    """Hide the shipped modules of the operator, and bring them back afterwards."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith(PACKAGE)}
    parent = importlib.import_module(PACKAGE.rpartition(".")[0])
    attribute = getattr(parent, "augmented_attention", None)
    try:
        for name in kept:
            del sys.modules[name]
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]
        sys.modules.update(kept)
        if attribute is not None:
            parent.augmented_attention = attribute


def load(*mutants):
    """The operator's modules by name, with the mutants' edits in them.

    Raises:
        AssertionError: when an edit did not find its place.
    """
    finder = _Finder(mutants)
    with _set_aside():
        sys.meta_path.insert(0, finder)
        try:
            modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in FORMS}
        finally:
            sys.meta_path.remove(finder)
    missed = {m.name for m in mutants} - finder.applied
    assert not missed, f"no such file: {missed}"
    return modules

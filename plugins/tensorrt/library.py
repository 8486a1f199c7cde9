"""Finding the plugin library that engines are built with."""

import os
from pathlib import Path
from typing import Any

from lineahead.errors import ArtifactError
from lineahead.plugins.library import built
from lineahead.plugins.tensorrt.record import LIBRARY

VARIABLE = "LINEAHEAD_TENSORRT_PLUGINS"
PLACES = ("build", "build/plugins", "plugins/build")


def plugin_library(trt: Any, given: Path | None) -> Path:
    """The library: the one given, the one that the environment names, or one that was built here.

    Args:
        trt: TensorRT's module.
        given: a path, or None.

    Raises:
        ArtifactError: when there is none.
    """
    named = os.environ.get(VARIABLE)
    root = Path(__file__).resolve().parents[2]
    candidates = (
        [given] if given else [Path(named)] if named else [root / place / LIBRARY for place in PLACES]
    )
    cached = [] if given or named else built(str(trt.__version__))
    for path in (*candidates, *cached):
        if path.is_file():
            return path
    raise ArtifactError(
        f"no {LIBRARY} for TensorRT {trt.__version__}: looked for {', '.join(map(str, candidates))}",
        hint=f"Run `lineahead plugin build` (docs/plugin.md), or pass --plugins or set {VARIABLE}.",
    )

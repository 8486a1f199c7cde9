"""Every linear attention that has a name, and its settings. A new method is one file in this folder.

`PRESETS` holds the settings of every method, plain and augmented, by the name that ``--method`` and recipes
use. No torch.
"""

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from lineahead.errors import SettingsError
from lineahead.plugins.augmented_attention.methods.base import METHODS, Method
from lineahead.plugins.augmented_attention.schema import AttentionSettings

__all__ = ["METHODS", "PRESETS", "Method", "preset"]

for _file in sorted(iter_modules(__path__), key=lambda file: file.name):
    import_module(f"{__name__}.{_file.name}")

PRESETS: dict[str, AttentionSettings] = {
    name: settings for method in METHODS.values() for name, settings in method.presets().items()
}


def preset(name: str, **changes: Any) -> AttentionSettings:
    """The named preset, with some settings replaced.

    Raises:
        SettingsError: when no preset has that name, or its settings do not allow the changes.
    """
    if name not in PRESETS:
        raise SettingsError(f"unknown method {name!r}", hint=f"Choose one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[name], **changes)

"""Tables of named parts: one file a part, entered when its folder is imported. Standard library only.

Feature maps, local kernels, normalizers and methods are such tables, and nobody else lists their names.
Their files import torch inside the functions that need it, never at the top: names and facts are read where
torch is not installed.
"""

from typing import Protocol, TypeVar

from lineahead.errors import SettingsError


class Named(Protocol):
    """What a table holds."""

    @property
    def name(self) -> str:
        """What settings and files call it."""


Part = TypeVar("Part", bound=Named)


class Registry(dict[str, Part]):
    """Parts of one kind by name, in the order of their registration."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, part: Part) -> Part:
        """Enter `part` and return it.

        Raises:
            SettingsError: when the name is taken, or is ``none``, which settings use for absence.
        """
        if part.name in self or part.name == "none":
            raise SettingsError(f"{self.kind} {part.name!r} exists already", hint="Choose another name.")
        self[part.name] = part
        return part

    def named(self, name: str) -> Part:
        """The part called `name`.

        Raises:
            SettingsError: when there is none.
        """
        if name not in self:
            raise SettingsError(f"unknown {self.kind} {name!r}", hint=f"Choose one of: {', '.join(self)}.")
        return self[name]

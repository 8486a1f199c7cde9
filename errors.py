"""Every error this package raises on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager


class LineaheadError(Exception):
    """Base class: something the user can act on.

    Attributes:
        hint: one imperative sentence saying what to do next, or None.
        exit_code: process exit status when this error reaches the command line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep `hint` when an error crosses a process boundary."""
        return (_rebuild, (type(self), str(self), self.hint))


def _rebuild(cls: type[LineaheadError], message: str, hint: str | None) -> LineaheadError:
    return cls(message, hint=hint)


@contextmanager
def needs_package(what: str, cure: str, error: type[LineaheadError]) -> Iterator[None]:
    """Turn the import of a package that is not installed into an error with the cure.

    Args:
        what: the sentence, such as "plots need matplotlib".
        cure: what to do.
        error: the class to raise.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise error(what, hint=cure) from missing


class RecipeError(LineaheadError, ValueError):
    """A recipe file is malformed or asks for something impossible."""

    exit_code = 2


class SettingsError(RecipeError):
    """The operator's settings contradict each other."""


class CheckpointError(LineaheadError, ValueError):
    """A checkpoint, tokenizer or weight file is missing, damaged or unreadable."""

    exit_code = 3


class ArchitectureError(LineaheadError, NotImplementedError):
    """An architecture cannot be converted, exported or decoded as asked."""

    exit_code = 4


class ArtifactError(LineaheadError, ValueError):
    """An artifact folder lacks a file, or its parts do not belong together."""

    exit_code = 5


class ExportError(LineaheadError, RuntimeError):
    """An export failed."""

    exit_code = 6


class ParityError(ExportError):
    """Two forms of the same model disagree by more than the stated bound."""

    exit_code = 7


class InputError(LineaheadError, ValueError):
    """A prompt, file or option given by the user cannot be used."""

    exit_code = 8


class BackendError(LineaheadError, RuntimeError):
    """A runtime backend is not installed, not usable here, or failed."""

    exit_code = 9


class TrainingError(LineaheadError, RuntimeError):
    """Training cannot start, resume or go on."""

    exit_code = 10


class InterruptedTrainingError(TrainingError):
    """Training was asked to stop; its progress is saved."""


class StorageError(LineaheadError, OSError):
    """A file could not be written, or the disk is full."""

    exit_code = 11


class OverloadError(LineaheadError, RuntimeError):
    """The serving engine takes no more requests for now.

    Attributes:
        retry_after_s: seconds after which it is worth trying again.
    """

    exit_code = 12

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class HubError(LineaheadError, RuntimeError):
    """A Hub refused, cannot be reached, or holds something else than was expected."""

    exit_code = 13

"""What a forward pass hands to functions that transformers calls without it: a value while the pass runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Running(Generic[Value]):
    """The value of the running forward pass, per thread and task; None outside of one."""

    def __init__(self, name: str) -> None:
        """A new kind of value, called `name` where Python shows it."""
        self._current: ContextVar[Value | None] = ContextVar(name, default=None)

    def get(self) -> Value | None:
        """The value, or None."""
        return self._current.get()

    @contextmanager
    def holding(self, value: Value) -> Iterator[Value]:
        """Within it, :meth:`get` returns `value`; afterwards what it returned before."""
        token = self._current.set(value)
        try:
            yield value
        finally:
            self._current.reset(token)

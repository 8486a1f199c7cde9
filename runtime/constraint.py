"""What restricts a text token by token: a grammar, a schema."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Constraint(Protocol):
    """Follows one text; asked along the accepted path of a tree, so that speculation stays exact."""

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""

    def allowed(self, path: Sequence[int], vocab: int) -> npt.NDArray[np.bool_]:
        """Which tokens may follow the text and then `path`, ``[vocab]``.

        Args:
            path: allowed tokens that have not become text yet.
            vocab: width of the logits.
        """

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens have become text."""

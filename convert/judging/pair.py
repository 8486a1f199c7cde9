"""The original and the converted model as two ways to read a text."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.convert.training.vocabulary import Head, head_of
from lineahead.plugins.augmented_attention.huggingface.attention import teacher as softmax_mode


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One of the two models.

    Attributes:
        name: ``teacher`` or ``student``.
        model: its weights.
        softmax: whether they run in softmax mode.
    """

    name: str
    model: PreTrainedModel
    softmax: bool

    def mode(self) -> AbstractContextManager[None]:
        """Within it the model attends as this reader does."""
        return softmax_mode() if self.softmax else nullcontext()

    @torch.no_grad()
    def hidden(self, ids: Tensor) -> Tensor:
        """The last hidden states ``[N, E]`` of one text ``[N]``."""
        with self.mode():
            states = self.model.base_model(input_ids=ids[None].to(self.model.device), use_cache=False)
        found: Tensor = states.last_hidden_state[0]
        return found

    def head(self) -> Head:
        """From hidden states to logits."""
        return head_of(self.model)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Teacher and student.

    Attributes:
        student: a linear model.
        teacher: the original; None while the student's weights are unchanged, so that it is its own teacher.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel | None = None

    def readers(self) -> Iterator[Reader]:
        """The teacher, then the student."""
        yield Reader(name="teacher", model=self.teacher or self.student, softmax=True)
        yield Reader(name="student", model=self.student, softmax=False)

"""One sequence being decoded: its tokens, what has been fed, and when it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, LineaheadError
from lineahead.runtime.constraint import Constraint
from lineahead.runtime.sampling import Probabilities, SamplingParams, distribution, distribution_of_best
from lineahead.runtime.session import Hidden, StepOutput
from lineahead.runtime.tokenizer import TextStream
from lineahead.runtime.tree import Tree

Finish = Literal["eos", "stop", "length", "context", "cancelled", "timeout", "error"]


@dataclass(kw_only=True)
class Row:
    """A request in the batch.

    Attributes:
        request: its number.
        tokens: prompt and generated tokens; those from `fed` on have not been through the model.
        prompt: number of prompt tokens.
        params: how it is sampled.
        random: its random stream.
        eos: tokens that end it.
        limit: most tokens it may have, or None.
        text: its detokeniser, or None.
        fed: tokens that have been through the model (in the state, or accepted and committed by the next
            call).
        accept: rows of the previous call that became text.
        hidden: ``[E]`` hidden state of the last fed token, or where it is until the next call.
        source: what an encoder-decoder reads; `tokens` are then the decoder's.
        draft_nodes: most nodes proposed for it in a step; None for as many as the drafter has.
        bias: what is added to the logits of single tokens.
        constraint: what its text may be, or None for anything.
        logprobs: how many of the best tokens to report beside each token; None reports nothing.
        finish: why it ended, or None.
        error: what went wrong, when `finish` is ``error``.
    """

    request: int
    tokens: list[int]
    prompt: int
    params: SamplingParams
    random: np.random.Generator
    eos: frozenset[int] = frozenset()
    limit: int | None = None
    text: TextStream | None = None
    fed: int = 0
    accept: Sequence[int] = ()
    hidden: Hidden | None = None
    source: Sequence[int] = ()
    draft_nodes: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    logprobs: int | None = None
    finish: Finish | None = None
    error: LineaheadError | None = None

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt

    @property
    def useful_depth(self) -> int:
        """Longest path below the root that could all become text."""
        room = self.params.max_tokens - self.generated - 1
        return room if self.limit is None else min(room, self.limit - len(self.tokens) - 1)

    def emit(self, tokens: Sequence[int]) -> tuple[int, str]:
        """Append new tokens up to whatever ends the text.

        Returns:
            how many were kept, and the text that is now certain.
        """
        start, ends = len(self.tokens), frozenset[int]() if self.params.ignore_eos else self.eos
        released = ""
        for token in tokens:
            self.tokens.append(token)
            if token in ends:
                self.finish = "eos"
            elif self.generated >= self.params.max_tokens:
                self.finish = "length"
            elif self.limit is not None and len(self.tokens) >= self.limit:
                self.finish = "context"
            if self.text is not None and token not in ends and self.params.stop:
                released += self.text.push([token])
                if self.text.stopped:
                    self.finish = "stop"
            if self.finish:
                break
        kept = self.tokens[start:]
        if self.constraint is not None:
            self.constraint.advance([token for token in kept if token not in ends])
            if self.finish is None and self.constraint.complete:
                self.finish = "stop"
        if self.text is not None and not self.params.stop:
            released += self.text.push(kept[:-1] if self.finish == "eos" else kept)
        if self.text is not None and self.finish:
            released += self.text.finish()
            if self.text.stopped:
                self.finish = "stop"
        return len(kept), released


@dataclass(kw_only=True)
class RowScores:
    """The logits of one row's tree in a step's output, as the row's request changes them.

    Changes are: end-of-sequence forbidden where it is too early, biases, and what a constraint forbids.

    Attributes:
        output: of the step.
        batch_row: the row's place in the batch.
        row: the sequence.
        tree: its proposal; node i's result is i.
    """

    output: StepOutput
    batch_row: int
    row: Row
    tree: Tree
    _changed: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def _too_early(self, node: int) -> bool:
        row = self.row
        if not row.params.min_tokens or row.params.ignore_eos:
            return False
        return row.generated + self.tree.depths[node] < row.params.min_tokens

    def _plain(self, node: int) -> bool:
        return not self.row.bias and self.row.constraint is None and not self._too_early(node)

    def argmax(self, node: int) -> int:
        """Best next token after `node`.

        Raises:
            BackendError: when the logits are not numbers, or every token is forbidden.
        """
        if self._plain(node):
            return self.output.argmax(self.batch_row, node)
        self.output.argmax(self.batch_row, node)
        scores = self.logits(node)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            raise BackendError("every next token is forbidden", hint="Loosen logit_bias or the format.")
        return best

    def distribution(self, node: int, params: SamplingParams) -> Probabilities:
        """Probabilities ``[V]`` after `node`; of the best tokens alone where the backend chooses them."""
        if self._plain(node) and params.top_k and not params.greedy:
            found = self.output.best(self.batch_row, node, params.top_k)
            if found is not None:
                return distribution_of_best(*found, params)
        return distribution(self.logits(node), params)

    def logits(self, node: int) -> npt.NDArray[np.float32]:
        """Logits ``[V]`` after `node`."""
        scores = self.output.scores(self.batch_row, node)
        if self._plain(node):
            return scores
        if node not in self._changed:
            self._changed[node] = self._change(node, scores.copy())
        return self._changed[node]

    def _change(self, node: int, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        for token, bias in self.row.bias.items():
            scores[token] += bias
        if self._too_early(node):
            scores[sorted(self.row.eos)] = -np.inf
        if self.row.constraint is not None:
            scores[~self.row.constraint.allowed(self.tree.path(node), len(scores))] = -np.inf
        return scores

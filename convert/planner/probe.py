"""Perplexity of a converted model under any choice of softmax layers; what each layer is worth alone."""

import logging
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lineahead.convert.planner.predict import Worth
from lineahead.convert.training.leading import windows
from lineahead.convert.training.vocabulary import chunk_rows, head_of
from lineahead.plugins.augmented_attention.huggingface.attention import softmax_at

logger = logging.getLogger(__name__)
Report = Callable[[str, int, int], None]


class Probe:
    """Mean nats per token of a model on a fixed text, with chosen layers in softmax mode.

    The text is short and every choice reads all of it, so that differences between choices are far smaller
    than the uncertainty of each figure.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, *, context: int, batch: int = 1, leading: int | None = None
    ) -> None:
        """Cut the text into windows.

        Args:
            model: a linear model.
            ids: token ids ``[N]`` with N at least `context`.
            context: tokens per window.
            batch: windows per pass.
            leading: what every window begins with, in place of its first token.
        """
        self._model, self._head = model, head_of(model)
        self._windows = windows(ids, context, leading).to(model.device)
        self._batch = batch

    @property
    def tokens(self) -> int:
        """How many tokens are scored: all but each window's first."""
        return self._windows.numel() - len(self._windows)

    @torch.no_grad()
    def nats(self, softmax: Collection[int]) -> float:
        """Mean cross entropy in nats per token with the layers `softmax` as the original has them."""
        total = 0.0
        with softmax_at(softmax):
            for rows in self._windows.split(self._batch):
                hidden = self._model.base_model(input_ids=rows, use_cache=False).last_hidden_state
                total += self._score(hidden[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        return total / self.tokens

    def _score(self, hidden: Tensor, targets: Tensor) -> float:
        size = chunk_rows(self._head, hidden)
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        return math.fsum(float(functional.cross_entropy(self._head(h), t, reduction="sum")) for h, t in parts)


def measure_worth(
    probe: Probe, layers: Sequence[int], report: Report = lambda name, done, total: None
) -> Worth:
    """What each layer's softmax attention is worth, seen from both ends.

    Args:
        probe: of the model.
        layers: the indices of its converted layers.
        report: called with a name, what is done, and how much there is in all.

    Returns:
        Two passes a layer: all linear but this one, and none linear but this one.
    """
    total, everything = 2 * len(layers) + 2, set(layers)
    done = 0

    def nats(softmax: Collection[int]) -> float:
        nonlocal done
        found = probe.nats(softmax)
        done += 1
        report("probes", done, total)
        return found

    linear, softmax = nats(()), nats(everything)
    gains = {layer: linear - nats({layer}) for layer in layers}
    costs = {layer: nats(everything - {layer}) - softmax for layer in layers}
    return Worth(linear=linear, softmax=softmax, gains=gains, costs=costs)

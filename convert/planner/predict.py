"""Perplexity of a plan from single-layer probes, and the choice of layers under a budget. Without torch."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lineahead.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Nats per token, measured.

    Attributes:
        linear: with all layers linear.
        softmax: with none.
        gains: by layer, how much is gained over `linear` when this layer alone is softmax.
        costs: by layer, how much is lost from `softmax` when this layer alone is linear.
    """

    linear: float
    softmax: float
    gains: Mapping[int, float]
    costs: Mapping[int, float]

    @property
    def shares(self) -> dict[int, float]:
        """Each layer's share of the whole loss, ``linear - softmax``; they sum to one.

        The mean of both ends' shares: a layer's gain is measured where the others are all linear, its cost
        where none is, and a plan lies between. Layers that seem to do harm count as worth nothing.
        """
        parts = [_shares(self.gains), _shares(self.costs)]
        return {layer: sum(part[layer] for part in parts) / len(parts) for layer in self.gains}

    def perplexity(self, softmax: Collection[int]) -> float:
        """Prediction for a model with these layers softmax: exact at both ends, additive between."""
        shares = self.shares
        kept = sum(shares[layer] for layer in softmax)
        return math.exp(self.linear - kept * (self.linear - self.softmax))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of decoding state, in float32, of one layer.

    Attributes:
        linear: converted, whatever the context.
        per_token: by which its KV cache grows if it stays softmax.
    """

    linear: int
    per_token: int


def state_bytes(memory: Mapping[int, Memory], softmax: Collection[int], context: int) -> int:
    """Bytes of one sequence's state after `context` tokens when the layers `softmax` are kept."""
    return sum(one.per_token * context if layer in softmax else one.linear for layer, one in memory.items())


def choose(worth: Worth, *, keep: int) -> tuple[int, ...]:
    """The `keep` layers whose softmax attention is worth most, ascending.

    Raises:
        InputError: when there are not so many.
    """
    shares = worth.shares
    if not 0 <= keep <= len(shares):
        raise InputError(f"cannot keep {keep} of {len(shares)} converted layers", hint="Keep fewer layers.")
    ranked = sorted(shares, key=lambda layer: (-shares[layer], layer))
    return tuple(sorted(ranked[:keep]))


def choose_within(worth: Worth, memory: Mapping[int, Memory], *, limit: int, context: int) -> tuple[int, ...]:
    """The layers to keep so that the state stays within `limit` bytes at `context` tokens, best worth first.

    Layers are taken by worth per byte while they fit; where all cost the same this is the optimum.

    Raises:
        InputError: when not even the fully linear model fits.
    """
    least = state_bytes(memory, (), context)
    if least > limit:
        raise InputError(
            f"the fully linear model has {least} bytes of state, more than {limit}",
            hint=f"Allow at least {least} bytes.",
        )
    extra = {layer: one.per_token * context - one.linear for layer, one in memory.items()}
    shares, chosen = worth.shares, list[int]()
    left = limit - least
    for layer in sorted(extra, key=lambda one: (-shares[one] / max(extra[one], 1), one)):
        if extra[layer] <= left:
            chosen.append(layer)
            left -= max(extra[layer], 0)
    return tuple(sorted(chosen))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation of two lists of the same length, ties at their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def _shares(values: Mapping[int, float]) -> dict[int, float]:
    positive = {layer: max(value, 0.0) for layer, value in values.items()}
    total = math.fsum(positive.values())
    if not total:
        return dict.fromkeys(values, 1 / len(values))
    return {layer: value / total for layer, value in positive.items()}

"""Sampling parameters, truncated distributions in float64, and one random stream per request."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lineahead.errors import BackendError, InputError

BLOCK = 64
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is decoded.

    Attributes:
        temperature: 0 decodes greedily; otherwise logits are divided by it.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the smallest set of best tokens whose probability reaches p; 1 keeps all.
        seed: of the request's random stream; a request's text does not depend on what else is in the batch.
        max_tokens: most tokens to generate.
        min_tokens: end-of-sequence cannot be generated before this many tokens.
        stop: strings that end the text; they are cut off, with everything after them.
        ignore_eos: go on after an end-of-sequence token (benchmarks).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            InputError: naming the parameter.
        """
        rules = {
            "temperature": (0 <= self.temperature < np.inf, "a number from 0 (greedy) up"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "seed": (self.seed >= 0, "0 or more"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "from 0 to max_tokens"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of non-empty strings"),
        }
        for name, (valid, range_) in rules.items():
            if not valid:
                raise InputError(
                    f"{name}={getattr(self, name)!r} is out of range", hint=f"{name} is {range_}."
                )

    @property
    def greedy(self) -> bool:
        """Whether no random numbers are used."""
        return self.temperature == 0


def stream(params: SamplingParams, request: int) -> np.random.Generator:
    """The random stream of request number `request` under `params.seed`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(params.seed, spawn_key=(request,))))


def distribution(logits: npt.NDArray[np.floating], params: SamplingParams) -> Probabilities:
    """Probabilities ``[V]`` float64 after temperature, then top-k, then top-p; for target and draft alike.

    Args:
        logits: ``[V]``; minus infinity forbids a token.
        params: of the request. Temperature 0 gives all the mass to the best token.

    Raises:
        BackendError: when the logits are not numbers.
    """
    best = int(logits.argmax())
    require_number(logits[best])
    result = np.zeros(len(logits))
    if params.greedy:
        result[best] = 1.0
        return result
    kept = _best(logits, params.top_k) if 0 < params.top_k < len(logits) else None
    weights = _weights(logits if kept is None else logits[kept], logits[best], params)
    if kept is None:
        return weights
    result[kept] = weights
    return result


def distribution_of_best(
    tokens: npt.NDArray[np.int64], scores: npt.NDArray[np.floating], width: int, params: SamplingParams
) -> Probabilities:
    """:func:`distribution` from the ``params.top_k`` best tokens alone, to the last bit.

    Args:
        tokens: ``[top_k]``, best first; among equals, the first.
        scores: their logits.
        width: of the vocabulary.
        params: of the request, which samples.

    Raises:
        BackendError: when the logits are not numbers.
    """
    require_number(scores[0])
    order = np.argsort(tokens)
    result = np.zeros(width)
    result[tokens[order]] = _weights(scores[order], scores[0], params)
    return result


def require_number(best: np.floating) -> None:
    """Refuse a best logit that is not finite.

    Raises:
        BackendError: when it is not.
    """
    if not np.isfinite(best):
        raise BackendError(
            f"the model returned {best} as its best logit",
            hint="Check the weights: `lineahead verify` and `lineahead doctor`.",
        )


def _weights(scores: npt.NDArray[np.floating], best: np.floating, params: SamplingParams) -> Probabilities:
    weights = np.exp((scores.astype(np.float64) - float(best)) / params.temperature)
    weights /= weights.sum()
    return _nucleus(weights, params.top_p) if params.top_p < 1 else weights


def _candidates(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Indices of a small superset of the `count` largest values, in order.

    The count-th largest maximum of blocks is a lower bound of the count-th largest value, and cheaper to
    find.
    """
    blocks = len(values) // BLOCK
    if count > blocks:
        return np.arange(len(values))
    maxima = values[: blocks * BLOCK].reshape(blocks, BLOCK).max(1)
    return np.flatnonzero(values >= np.partition(maxima, blocks - count)[blocks - count])


def _best(values: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest values, ascending; among equals, the first."""
    found = _candidates(values, count)
    order = np.argsort(-values[found], kind="stable")[:count]
    return np.sort(found[order])


def _nucleus(weights: Probabilities, top_p: float) -> Probabilities:
    """Keep the smallest set of best tokens that reaches `top_p`, normalised.

    Tokens below (1 - p) / V weigh less than 1 - p together, so they are not even sorted (halved for
    rounding).
    """
    found = np.flatnonzero(weights >= 0.5 * (1 - top_p) / len(weights))
    kept = found[np.argsort(-weights[found], kind="stable")]
    reached = np.cumsum(weights[kept])
    kept = kept[: int(np.searchsorted(reached, top_p)) + 1]
    result = np.zeros_like(weights)
    result[kept] = weights[kept]
    return np.asarray(result / result.sum())


def draw(weights: Probabilities, uniform: float) -> int:
    """The token at `uniform` in [0, 1) of the cumulative distribution, in token order (inverse transform).

    Using one uniform number per token, in order, makes the text a function of the seed alone.
    """
    possible = np.flatnonzero(weights)
    reached = np.cumsum(weights[possible])
    place = int(np.searchsorted(reached, uniform * reached[-1], side="right"))
    return int(possible[min(place, len(possible) - 1)])

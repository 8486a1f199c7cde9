"""Log-probabilities of tokens that were chosen, for clients that ask for them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """One token of the text under the model's own distribution (temperature 1, nothing forbidden or biased).

    Attributes:
        token: the token.
        logprob: its natural log-probability.
        top: the best tokens and theirs, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: npt.NDArray[np.floating], token: int, top: int) -> TokenLogprobs:
    """Log-probabilities of `token` and of the `top` best.

    Args:
        logits: ``[V]``.
        token: the chosen one.
        top: how many of the best to list; 0 for none.
    """
    scores = logits.astype(np.float64)
    peak = float(scores.max())
    total = peak + float(np.log(np.exp(scores - peak).sum()))
    best = np.argpartition(-scores, min(top, len(scores) - 1))[:top] if top else np.zeros(0, np.int64)
    order = best[np.argsort(-scores[best], kind="stable")]
    return TokenLogprobs(
        token=token,
        logprob=float(scores[token]) - total,
        top=tuple((int(one), float(scores[one]) - total) for one in order),
    )

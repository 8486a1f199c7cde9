"""Is the state after rejections the state of the accepted text alone?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lineahead.runtime.drafters.recorded import RecordedDrafter
from lineahead.runtime.generate import Generator
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams, stream
from lineahead.runtime.session import Session
from lineahead.runtime.speculate import Decoder
from lineahead.runtime.verify import read

State = dict[str, npt.NDArray[np.generic]]
ALLOWANCE = 4.0
LEAST = 1e-6


@dataclass(frozen=True, kw_only=True)
class StateCheck:
    """A text decoded with trees, many of whose nodes were rejected, then read again from nothing.

    Attributes:
        tokens: length of the text.
        proposed: nodes that were proposed.
        rejected: of them.
        difference: largest difference of a state tensor, relative to its largest number.
        noise: the same between two readings of the text without speculation (token by token, in chunks).
        tensor: where the largest difference is.
        agrees: whether the difference is at most four times the noise, or 1e-6.
    """

    tokens: int
    proposed: int
    rejected: int
    difference: float
    noise: float
    tensor: str
    agrees: bool


def check_state(generator: Generator, prompt: list[int], text: list[int], *, seed: int) -> StateCheck:
    """Decode `text` speculatively and compare the state with one that was built from the text alone.

    Args:
        generator: a loaded model.
        prompt: its first tokens, at least one.
        text: prompt and plain continuation.
        seed: of the drafts' mistakes.
    """
    session = generator.session
    drafter = RecordedDrafter(
        {0: text},
        vocab_size=generator.artifact.vocab_size,
        depth=4,
        branches=3,
        hit_rate=0.7,
        seed=seed,
    )
    params = SamplingParams(max_tokens=len(text), ignore_eos=True)
    row = Row(request=0, tokens=list(prompt), prompt=len(prompt), params=params, random=stream(params, 0))
    decoder = Decoder(session, drafter)
    decoder.admit([row])
    while len(row.tokens) < len(text):
        decoder.step()
    session.flush(np.array([row.accept], np.int64), np.array([len(row.accept)]))
    speculative, tokens = session.read_state(), row.tokens[: row.fed]
    single, chunked = _scratch(session, tokens, 1), _scratch(session, tokens, 64)
    differences = _differences(speculative, single)
    noise = max(_differences(chunked, single).values())
    tensor = max(differences, key=lambda name: differences[name])
    statistics = decoder.statistics
    return StateCheck(
        tokens=len(tokens),
        proposed=statistics.proposed,
        rejected=statistics.proposed - statistics.accepted,
        difference=differences[tensor],
        noise=noise,
        tensor=tensor,
        agrees=differences[tensor] <= max(ALLOWANCE * noise, LEAST),
    )


def _scratch(session: Session, tokens: list[int], chunk: int) -> State:
    """The state after reading `tokens` without speculation."""
    read(session, tokens, chunk)
    nodes = (len(tokens) - 1) % chunk + 1
    session.flush(np.arange(nodes)[None], np.array([nodes]))
    return session.read_state()


def _differences(one: State, other: State) -> dict[str, float]:
    """Largest difference of each tensor relative to its largest number; infinite where it is not a number."""
    found = {}
    for name, right in other.items():
        left = one[name].astype(np.float64)
        want = right.astype(np.float64)
        worst = float(np.abs(left - want).max(initial=0.0)) / max(float(np.abs(want).max(initial=0.0)), 1e-30)
        found[name] = worst if np.isfinite(worst) else float("inf")
    return found

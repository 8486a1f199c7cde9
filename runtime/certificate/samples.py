"""Is sampled text distributed as the target says? Exact probabilities of two tokens against many draws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lineahead.runtime.certificate.drawn import DrawnDrafter
from lineahead.runtime.certificate.goodness import GTest, g_test
from lineahead.runtime.drafters import Drafter
from lineahead.runtime.generate import Generator
from lineahead.runtime.row import Row
from lineahead.runtime.sampling import SamplingParams, distribution, stream
from lineahead.runtime.session import Floats, Session, StepInput
from lineahead.runtime.speculate import Decoder

Probabilities = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[np.generic]]
BATCH, LEVEL, TOP_K = 64, 1e-3, 6


@dataclass(frozen=True, kw_only=True)
class SampleCheck:
    """Two sampled tokens after one prompt, drafted by drawing from other distributions than the target's.

    Attributes:
        drafter: what drafted.
        temperature: of target and draft.
        top_k: likewise.
        acceptance: share of the drafted first tokens that were accepted; near 0 or 1 would prove little.
        test: emitted pairs against their exact probabilities.
        agrees: whether the test found no difference.
    """

    drafter: str
    temperature: float
    top_k: int
    acceptance: float
    test: GTest
    agrees: bool


def check_samples(
    generator: Generator,
    prompt: list[int],
    *,
    samples: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> list[SampleCheck]:
    """Sample two tokens after `prompt` many times with drawn drafts, as chains and as trees.

    The exact probability of a pair is p(a) p(b | a), read from the model without speculation. The draft
    distributions are the target's, flattened and perturbed, so that drafts get accepted and rejected.

    Args:
        generator: a loaded model.
        prompt: at least two tokens.
        samples: draws for each of the two shapes.
        seed: of the draws.
        progress: called with a name, draws done and in all.
    """
    params = SamplingParams(temperature=1.0, top_k=TOP_K, max_tokens=3, ignore_eos=True, seed=seed)
    session = generator.session
    state = _state_before(session, prompt)
    first = _next(session, state, prompt[-1:], 1)[0]
    weights = distribution(first, params)
    heads = [int(token) for token in np.flatnonzero(weights)]
    second = _next(session, state, [prompt[-1]], len(heads), heads)
    joint = np.stack([weights[a] * distribution(one, params) for a, one in zip(heads, second, strict=True)])
    noise = np.random.default_rng(seed)
    drafts = [_perturbed(first, noise), _perturbed(second.mean(0), noise)]
    found = []
    for branches in (1, 2):
        drafter = DrawnDrafter(drafts, branches=branches)
        counts, accepted = np.zeros(joint.shape, np.int64), 0
        for begin in range(0, samples, BATCH):
            progress(drafter.name, begin, samples)
            count = min(BATCH, samples - begin)
            pairs, hits = _draw(session, state, prompt, params, drafter, range(begin, begin + count))
            accepted += hits
            for a, b in pairs:
                if a in heads:
                    counts[heads.index(a), b] += 1
                else:  # an outcome that cannot be: any token of probability zero stands for it
                    counts[0, int(np.flatnonzero(joint[0] <= 0)[0])] += 1
        progress(drafter.name, samples, samples)
        test = g_test(counts.ravel(), joint.ravel(), level=LEVEL)
        found.append(
            SampleCheck(
                drafter=drafter.name,
                temperature=params.temperature,
                top_k=params.top_k,
                acceptance=accepted / samples,
                test=test,
                agrees=test.agrees,
            )
        )
    return found


def _perturbed(logits: Floats, noise: np.random.Generator) -> Floats:
    """Another distribution over mostly the same tokens."""
    kept = np.sort(logits)[-2 * TOP_K]
    spread = 0.6 * logits + 0.8 * noise.normal(size=logits.shape).astype(np.float32)
    return np.where(logits >= kept, spread, spread.min() - 1e3).astype(np.float32)


def _state_before(session: Session, prompt: list[int]) -> State:
    """The state of one row that holds the prompt without its last token."""
    from lineahead.runtime.verify import read

    read(session, prompt[:-1], 64)
    nodes = (len(prompt) - 2) % 64 + 1
    session.flush(np.arange(nodes)[None], np.array([nodes]))
    return session.read_state()


def _restore(session: Session, state: State, rows: int) -> None:
    session.write_state({name: np.repeat(array, rows, axis=0) for name, array in state.items()})


def _next(
    session: Session, state: State, chain: list[int], rows: int, last: list[int] | None = None
) -> Floats:
    """Logits ``[rows, V]`` after the state and `chain`, each row then going on with its token of `last`."""
    _restore(session, state, rows)
    ids = np.array([[*chain, *([last[i]] if last else [])] for i in range(rows)], np.int64)
    nodes = ids.shape[1]
    output = session.step(
        StepInput(
            input_ids=ids,
            ancestors=np.repeat(np.tri(nodes, dtype=np.bool_)[None], rows, 0),
            output_index=np.full((rows, 1), nodes - 1),
            accept_index=np.zeros((rows, 0), np.int64),
            accept_count=np.zeros(rows, np.int64),
        )
    )
    return output.logits[:, 0].copy()


def _draw(
    session: Session,
    state: State,
    prompt: list[int],
    params: SamplingParams,
    drafter: Drafter,
    numbers: range,
) -> tuple[list[tuple[int, int]], int]:
    """First two tokens of each request, and how many first tokens had been drafted."""
    _restore(session, state, len(numbers))
    rows = [
        Row(
            request=number,
            tokens=list(prompt),
            prompt=len(prompt),
            params=params,
            random=stream(params, number),
            fed=len(prompt) - 1,
        )
        for number in numbers
    ]
    decoder = Decoder(session, drafter, rows=rows)
    first = decoder.step()
    hits = sum(event.drafted[0] for event in first)
    for _ in decoder.run():
        pass
    return [(row.tokens[len(prompt)], row.tokens[len(prompt) + 1]) for row in rows], hits

"""Does speculation change the text? Decodes prompts plainly and with every drafter, and compares them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lineahead.errors import InputError
from lineahead.runtime.drafters import Drafter, LookupDrafter, NoDrafter
from lineahead.runtime.drafters.medusa import Shape
from lineahead.runtime.drafters.recorded import RecordedDrafter
from lineahead.runtime.generate import Generator, Prompt, open_drafter
from lineahead.runtime.reading import in_chunks
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.session import Floats, Session

Progress = Callable[[str, int, int], None]
Reference = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]
SHAKES, SHAKEN_TOKENS = 3, 8
ENDED = -1
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first token of one prompt that differs from plain decoding.

    Attributes:
        prompt: number of the prompt.
        position: number of the generated token.
        plain: the token of plain decoding; -1 where its text has ended.
        found: the token of speculative decoding, likewise.
        margin: logit of `plain` minus logit of `found` after the common text.
        noise: largest change of those logits, read token by token, when the decoding state is off by about
            one rounding a few tokens earlier. It does not depend on drafts: what drafting gets wrong cannot
            hide in it.
        near_tie: whether the margin is within twice the noise: rounding, not a defect. A seeded sampling run
            has no margin and counts as a defect.
    """

    prompt: int
    position: int
    plain: int
    found: int
    margin: float
    noise: float
    near_tie: bool


@dataclass(frozen=True, kw_only=True)
class Check:
    """All prompts with one drafter.

    Attributes:
        drafter: its name; ``original`` for the text of another program, which drafts nothing.
        batch: prompts decoded together.
        identical: whether every text equals plain decoding's.
        prompts: how many were compared.
        tokens: how many tokens were compared.
        tokens_per_step: yield of a verification, bonus token included.
        accepted: proposed tokens that were accepted; a check that accepts nothing proves little.
        divergences: first differences.
    """

    drafter: str
    batch: int
    identical: bool
    prompts: int
    tokens: int
    tokens_per_step: float
    accepted: int
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome.

    Attributes:
        identical: whether every check is.
        defects: divergences that are not near-ties.
        near_ties: the others.
        backend: what ran.
        checks: one per drafter.
    """

    identical: bool
    defects: int
    near_ties: int
    backend: dict[str, Any]
    checks: tuple[Check, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verify(
    generator: Generator,
    prompts: Sequence[Prompt],
    *,
    tokens: int = 256,
    batch: int = 4,
    params: SamplingParams | None = None,
    also: Mapping[str, Drafter] | None = None,
    original: Reference | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Report:
    """Compare plain decoding with chains, trees, lookup, the artifact's own heads, and a batch of rows.

    Chains and trees are made from the plain text itself, with wrong tokens mixed in, so that drafts of every
    length are accepted and rejected at every offset, whatever the trained heads are worth.

    Args:
        generator: a loaded model.
        prompts: texts or token lists.
        tokens: to generate for each (end-of-sequence does not stop it).
        batch: rows of the batched check.
        params: sampling instead of greedy decoding; with one seed the text must not change either.
        also: more drafters by name, such as a second model.
        original: writes greedy texts of the checkpoint that the artifact was made from, in another program;
            for artifacts in which no layer is converted.
        progress: called with the drafter's name and the prompts done and in all.

    Raises:
        InputError: when there are no prompts, one of them cannot be used, or `original` is to be sampled.
    """
    if original is not None and params is not None and not params.greedy:
        raise InputError("another program's sampled text is another text", hint="Compare at temperature 0.")
    if not prompts:
        raise InputError("no prompts to verify with", hint="Give a file with at least one prompt.")
    encoded = [generator.encode(prompt) for prompt in prompts]
    base = params or SamplingParams()
    wanted = SamplingParams(
        temperature=base.temperature,
        top_k=base.top_k,
        top_p=base.top_p,
        seed=base.seed,
        max_tokens=tokens,
        ignore_eos=True,
    )
    run = _Run(generator, encoded, wanted, progress)
    plain = run.decode("plain", [NoDrafter()] * len(encoded), 1)
    start = generator.artifact.start
    texts = [[*(start or prompt), *text] for prompt, text in zip(encoded, plain, strict=True)]
    kinds = _drafters(generator, texts, batch)
    kinds += [(name, 1, [drafter] * len(encoded)) for name, drafter in (also or {}).items()]
    checks = [run.compare(name, size, drafters, plain) for name, size, drafters in kinds]
    if original is not None:
        run.clear()
        checks.append(run.judge("original", 1, original(encoded, tokens), plain))
    found = [one for check in checks for one in check.divergences]
    return Report(
        identical=not found,
        defects=sum(not one.near_tie for one in found),
        near_ties=sum(one.near_tie for one in found),
        backend=asdict(generator.session.info),
        checks=tuple(checks),
    )


def _drafters(
    generator: Generator, texts: Sequence[Sequence[int]], batch: int
) -> list[tuple[str, int, list[Drafter]]]:
    """Name, batch size, and one drafter per batch of prompts."""
    vocab = generator.artifact.vocab_size

    def recorded(size: int, seed: int, **shape: Any) -> list[Drafter]:
        groups = [dict(enumerate(texts[i : i + size])) for i in range(0, len(texts), size)]
        return [
            RecordedDrafter(group, vocab_size=vocab, seed=seed + i, **shape) for i, group in enumerate(groups)
        ]

    def same(drafter: Drafter) -> list[Drafter]:
        return [drafter] * len(texts)

    found = [
        ("chain", 1, recorded(1, 0, depth=7, hit_rate=0.8)),
        ("tree", 1, recorded(1, 1000, depth=4, branches=3, hit_rate=0.8)),
        ("lookup", 1, same(LookupDrafter())),
    ]
    if (kind := generator.artifact.draft_kind) is not None:
        for shape in ("chain", "tree"):
            wanted: Shape = "chain" if shape == "chain" else "adaptive"
            found.append((f"{kind} {shape}", 1, same(open_drafter(generator.artifact, kind, shape=wanted))))
        session = generator.session
        if session.drafts:
            drafter = open_drafter(generator.artifact, kind, session=session)
            found.append((f"{kind} in the step", 1, same(drafter)))
        found.append(("auto", 1, same(open_drafter(generator.artifact, "auto", session=session))))
    if batch > 1 and len(texts) > 1:
        found.append(("tree, batched", batch, recorded(batch, 2000, depth=4, branches=2, hit_rate=0.7)))
    return found


class _Run:
    """Decodes the prompts again and again under the same parameters."""

    def __init__(
        self, generator: Generator, prompts: Sequence[list[int]], params: SamplingParams, progress: Progress
    ) -> None:
        self.generator, self.prompts, self.params, self.progress = generator, prompts, params, progress
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.accepted = self.row_steps = self.row_tokens = 0

    def decode(self, name: str, drafters: Sequence[Drafter], size: int) -> list[tuple[int, ...]]:
        """Texts of all prompts, `size` at a time."""
        self.clear()
        texts: list[tuple[int, ...]] = []
        for group, drafter in zip(range(0, len(self.prompts), size), drafters, strict=False):
            self.progress(name, group, len(self.prompts))
            members = range(group, min(group + size, len(self.prompts)))
            done = self.generator.generate(
                [self.prompts[i] for i in members],
                [replace(self.params, seed=self.params.seed + i) for i in members],
                drafter=drafter,
            )
            texts += [one.tokens for one in done]
            stats = self.generator.statistics
            self.accepted += stats.accepted
            self.row_steps += stats.row_steps
            self.row_tokens += stats.row_tokens
        self.progress(name, len(self.prompts), len(self.prompts))
        return texts

    def compare(
        self, name: str, size: int, drafters: Sequence[Drafter], plain: Sequence[tuple[int, ...]]
    ) -> Check:
        """Decode with drafters and look for first differences."""
        return self.judge(name, size, self.decode(name, drafters, size), plain)

    def judge(
        self, name: str, size: int, texts: Sequence[Sequence[int]], plain: Sequence[tuple[int, ...]]
    ) -> Check:
        """Look for the first difference of each text."""
        differences = []
        for i, (one, other) in enumerate(zip(plain, texts, strict=True)):
            position = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            if position is not None:
                differences.append(self._explain(i, position, one, other))
            elif len(one) != len(other):
                differences.append(_ended(i, one, other))
        return Check(
            drafter=name,
            batch=size,
            identical=not differences,
            prompts=len(texts),
            tokens=sum(map(len, plain)),
            tokens_per_step=self.row_tokens / max(self.row_steps, 1),
            accepted=self.accepted,
            divergences=tuple(differences),
        )

    def _explain(self, prompt: int, at: int, plain: Sequence[int], found: Sequence[int]) -> Divergence:
        """Teacher-force the common text in two ways, and compare margin and noise."""
        start, given = self.generator.artifact.start, self.prompts[prompt]
        text, source = [*(start or given), *plain[:at]], given if start else ()
        session = self.generator.session
        single = read(session, text, 1, source)
        margin = float(single[plain[at]] - single[found[at]])
        shaken = [_read_shaken(session, text, source, seed) for seed in range(SHAKES)]
        noise = max(float(np.abs(single - one).max()) for one in shaken)
        return Divergence(
            prompt=prompt,
            position=at,
            plain=plain[at],
            found=found[at],
            margin=margin,
            noise=noise,
            near_tie=self.params.greedy and abs(margin) <= 2 * noise,
        )


def _ended(prompt: int, plain: Sequence[int], found: Sequence[int]) -> Divergence:
    """One text goes on where the other has ended."""
    at = min(len(plain), len(found))
    return Divergence(
        prompt=prompt,
        position=at,
        plain=plain[at] if at < len(plain) else ENDED,
        found=found[at] if at < len(found) else ENDED,
        margin=0.0,
        noise=0.0,
        near_tie=False,
    )


def _read_shaken(session: Session, text: Sequence[int], source: Sequence[int], seed: int) -> Floats:
    """Logits ``[V]`` after `text`, read token by token with one rounding's disturbance of the state."""
    last = min(SHAKEN_TOKENS, len(text) - 1)
    if not last:
        return read(session, text, 1, source)
    read(session, text[:-last], 1, source)
    session.flush(np.zeros((1, 1), np.int64), np.ones(1, np.int64))
    random, rounding = np.random.default_rng(seed), ROUNDING.get(session.info.precision, 2.0**-22)
    state = session.read_state()
    for name, array in state.items():
        if np.issubdtype(array.dtype, np.floating):
            off = 1 + rounding * random.standard_normal(array.shape)
            state[name] = np.multiply(array, off).astype(array.dtype)
    session.write_state(state)
    return _read_on(session, text[-last:], 1)


def read(session: Session, text: Sequence[int], chunk: int, source: Sequence[int] = ()) -> Floats:
    """Logits ``[V]`` after `text`, read from an empty state in chunks.

    Args:
        session: its rows are replaced.
        text: at least one token.
        chunk: tokens per call.
        source: what an encoder-decoder reads beside it.
    """
    session.reset(1)
    if source:
        session.read({0: source})
    return _read_on(session, text, chunk)


def _read_on(session: Session, text: Sequence[int], chunk: int) -> Floats:
    """The same from the state that the session's one row has, with nothing pending."""
    logits = np.zeros(0, np.float32)
    for _, output in in_chunks(session, text, chunk):
        logits = output.logits[0, 0].copy()
    return logits

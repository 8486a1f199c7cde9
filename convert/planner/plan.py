"""A plan for an artifact: which layers to keep softmax, what that costs in memory, what it should give."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.evaluate import read_tokens
from lineahead.convert.pipeline import cache_row_bytes, layer_state_bytes
from lineahead.convert.planner.predict import Memory, Worth, choose, choose_within, spearman, state_bytes
from lineahead.convert.planner.probe import Probe, Report, measure_worth
from lineahead.convert.training.leading import leading_token
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.layers import LinearLayer
from lineahead.plugins.augmented_attention.huggingface.modeling import layers_of
from lineahead.recipes.files import write_text
from lineahead.recipes.kind import require_decoder

logger = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scored(_Record):
    """A plan that was both predicted and measured, before any training of it.

    Attributes:
        softmax: its layers.
        predicted: perplexity.
        measured: perplexity.
    """

    softmax: tuple[int, ...]
    predicted: float
    measured: float


class Plan(_Record):
    """What :func:`plan_layers` found.

    Attributes:
        softmax: the layers to keep.
        perplexity: predicted, on the probe's text, before training.
        linear: measured with all layers linear.
        teacher: measured with all layers softmax.
        shares: by layer, its share of the loss in nats between the two.
        state_bytes: of one sequence at `context` tokens.
        context: tokens of context, of the probe and of the memory.
        tokens: scored by every probe.
        scored: other plans, when asked for.
        rank_correlation: Spearman's, between predicted and measured perplexity of `scored`.
        worst_error: largest relative error of `scored`.
    """

    softmax: tuple[int, ...]
    perplexity: float
    linear: float
    teacher: float
    shares: dict[int, float]
    state_bytes: int
    context: int
    tokens: int
    scored: tuple[Scored, ...] = ()
    rank_correlation: float | None = None
    worst_error: float | None = None

    @property
    def flag(self) -> str:
        """What to give ``lineahead convert`` for it."""
        return "--keep-softmax " + (",".join(map(str, self.softmax)) if self.softmax else "none")


def plan_layers(
    artifact: Path,
    files: Sequence[Path],
    *,
    keep: int | None = None,
    limit: int | None = None,
    context: int = 1024,
    tokens: int = 4096,
    score: int = 0,
    device: str | None = None,
    report: Report = lambda name, done, total: None,
) -> Plan:
    """Probe every converted layer of an artifact and choose the ones to keep.

    Args:
        artifact: a converted decoder; after attention transfer the probes say more than before it.
        files: text, tried in order until there are `tokens`.
        keep: how many layers; exclusive with `limit`.
        limit: bytes of state per sequence at `context` tokens.
        context: tokens per window of the probe.
        tokens: how many are read.
        score: how many further plans to predict and measure: chosen ones of several sizes, and random ones.
        device: ``cpu`` or ``cuda``; the CPU when None.
        report: called with a name, what is done, and how much there is in all.

    Returns:
        The plan; its perplexities are those of models that are not trained further.

    Raises:
        InputError: when the text is too short, or the choice impossible.
        ArtifactError: when the folder is not an artifact of a decoder.
    """
    if (keep is None) == (limit is None):
        raise InputError("a plan has either a number of layers or a limit", hint="Give --keep or --state-mb.")
    require_decoder(artifact, "a plan of layers")
    model, tokenizer = load_artifact(artifact, device=device)
    layers = layers_of(model.config)
    memory = {layer.index: _memory(layer) for layer in layers}
    ids = read_tokens(files, tokenizer, tokens, context)
    probe = Probe(model, ids, context=context, leading=leading_token(tokenizer))
    worth = measure_worth(probe, sorted(memory), report)
    if keep is not None:
        chosen = choose(worth, keep=keep)
    else:
        chosen = choose_within(worth, memory, limit=limit or 0, context=context)
    scored = tuple(
        Scored(softmax=plan, predicted=worth.perplexity(plan), measured=float(np.exp(probe.nats(plan))))
        for plan in _others(worth, score)
    )
    pairs = [(one.predicted, one.measured) for one in scored]
    return Plan(
        softmax=chosen,
        perplexity=worth.perplexity(chosen),
        linear=float(np.exp(worth.linear)),
        teacher=float(np.exp(worth.softmax)),
        shares=worth.shares,
        state_bytes=state_bytes(memory, chosen, context),
        context=context,
        tokens=probe.tokens,
        scored=scored,
        rank_correlation=spearman(*zip(*pairs, strict=True)) if len(pairs) > 1 else None,
        worst_error=max((abs(said / found - 1) for said, found in pairs), default=None),
    )


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON.

    Raises:
        StorageError: when it cannot be written.
    """
    write_text(path, plan.model_dump_json(indent=2) + "\n")


def _memory(layer: LinearLayer) -> Memory:
    return Memory(linear=layer_state_bytes(layer), per_token=cache_row_bytes(layer.shape))


def _others(worth: Worth, count: int) -> list[tuple[int, ...]]:
    """`count` plans from an eighth to seven eighths of the layers: chosen and random ones in turn."""
    layers, random = sorted(worth.shares), np.random.default_rng(0)
    plans: list[tuple[int, ...]] = []
    for number in range(count):
        size = max(1, round(len(layers) * (1 + number // 2 * 2 % 7) / 8))
        if number % 2 == 0:
            plans.append(choose(worth, keep=size))
        else:
            plans.append(tuple(sorted(random.choice(layers, size, replace=False).tolist())))
    return plans

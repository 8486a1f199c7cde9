"""Training of a draft on the linear model's own text, from cached hidden states; Medusa heads here."""

import json
import logging
import math
import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lineahead.convert.checkpoint import load_artifact
from lineahead.convert.drafts.accuracy import Accuracy, frequent_tokens
from lineahead.convert.drafts.hidden import read_hidden, write_hidden
from lineahead.convert.drafts.medusa import MedusaConfig, MedusaHeads, head_rows, save_heads
from lineahead.convert.drafts.recurrent import save_recurrent
from lineahead.convert.drafts.self_data import sample_tokens
from lineahead.convert.drafts.stored import FOLDER
from lineahead.convert.drafts.train_recurrent import train_recurrent
from lineahead.convert.training import checkpoint
from lineahead.convert.training.data import Tokens
from lineahead.convert.training.devices import accelerate_on
from lineahead.convert.training.loop import rate_factor
from lineahead.convert.training.progress import Progress, stderr_progress
from lineahead.convert.training.weights import freeze, resolve_precision
from lineahead.errors import RecipeError, TrainingError
from lineahead.recipes.files import sha256, write_text
from lineahead.recipes.kind import require_decoder
from lineahead.recipes.manifest import Draft as Record
from lineahead.recipes.manifest import Manifest, read_manifest, write_manifest
from lineahead.recipes.schema import Draft, Recipe

logger = logging.getLogger(__name__)
IGNORED = -100


def train_draft(
    artifact: Path, recipe: Recipe, *, device: str | None = None, progress: Progress | None = None
) -> Manifest:
    """Let the artifact's model write text, cache its hidden states, train the heads, and write ``draft/``.

    Samples and hidden states are kept beside the artifact until the heads are done: a killed run goes on
        from them.

    Args:
        artifact: the artifact folder.
        recipe: with a ``draft`` section.
        device: ``cpu`` or ``cuda``; what accelerate finds when None.
        progress: where to report; a bar or lines on stderr when None.

    Returns:
        The new manifest.

    Raises:
        RecipeError: when the recipe has no ``draft`` section.
        TrainingError: when a loss is not finite.
    """
    require_decoder(artifact, "a draft")
    draft = recipe.draft
    if draft is None:
        raise RecipeError(f"recipe {recipe.name!r} has no draft section", hint="Add `draft: {}` to it.")
    progress = progress or stderr_progress()
    seed = recipe.seed if draft.seed is None else draft.seed
    place = accelerate_on(device).device
    work = _workspace(artifact, draft, seed)
    model, tokenizer = load_artifact(artifact)
    freeze(model, resolve_precision(recipe.precision, place))
    model.to(place)
    tokens = sample_tokens(
        model, tokenizer, draft.samples, seed=seed, folder=work / "samples", progress=progress, softmax=False
    )
    shards = write_hidden(
        model,
        tokens,
        sequence_length=draft.samples.sequence_length,
        batch_size=max(1, 4096 // draft.samples.sequence_length),
        folder=work / "hidden",
        progress=progress,
    )
    hidden, ids = read_hidden(shards)
    if draft.kind == "recurrent":
        made, accuracy = train_recurrent(model, hidden, ids, draft, seed=seed, progress=progress)
        save_recurrent(made, artifact)
        vocabulary = made.config.vocabulary
    else:
        heads, accuracy = train_heads(model, hidden, ids, draft, seed=seed, progress=progress)
        save_heads(heads, artifact)
        vocabulary = heads.config.vocabulary
    manifest = _record(artifact, draft, vocabulary, tokens, accuracy)
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _workspace(artifact: Path, draft: Draft, seed: int) -> Path:
    """The folder of samples and hidden states; emptied when they belong to other weights or settings."""
    folder = artifact.with_name(artifact.name + ".draft")
    made_from = {
        "samples": draft.samples.model_dump(mode="json"),
        "seed": seed,
        "weights": {path.name: sha256(path) for path in sorted(artifact.glob("*.safetensors"))},
    }
    digest, mark = checkpoint.digest(made_from), folder / "made_from.json"
    try:
        known = json.loads(mark.read_text(encoding="utf-8")) == digest
    except (OSError, ValueError):
        known = False
    if not known:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(mark, json.dumps(digest))
    return folder


def _record(artifact: Path, draft: Draft, vocabulary: int, tokens: Tokens, accuracy: Accuracy) -> Manifest:
    manifest = read_manifest(artifact)
    record = Record(
        folder=FOLDER,
        kind=draft.kind,
        heads=draft.heads,
        vocabulary=vocabulary,
        tokens=len(tokens.ids),
        data_hash=tokens.digest,
        top1=accuracy.top1,
        top5=accuracy.top5,
    )
    kept = tuple(export for export in manifest.exports if export.kind != "draft")
    manifest = manifest.model_copy(update={"drafts": (record,), "exports": kept})
    write_manifest(artifact, manifest)
    return manifest


def head_targets(tokens: Tensor, token_ids: Tensor, heads: int, vocab_size: int) -> Tensor:
    """For each position and head, the row of `token_ids` that holds token t + 2 + k: ``[N, L, K]``.

    -100 where the text is over or the token is not among them.
    """
    rows = torch.full((vocab_size,), IGNORED)
    rows[token_ids] = torch.arange(len(token_ids))
    known = rows[tokens]
    found = torch.full((*tokens.shape, heads), IGNORED)
    for k in range(heads):
        found[:, : -(2 + k), k] = known[:, 2 + k :]
    return found


def train_heads(
    model: PreTrainedModel, hidden: Tensor, tokens: Tensor, draft: Draft, *, seed: int, progress: Progress
) -> tuple[MedusaHeads, Accuracy]:
    """Train heads on cached hidden states with cross entropy.

    Args:
        model: whose LM head is shared.
        hidden: ``[N, L, E]`` float16.
        tokens: ``[N, L]`` int64.
        draft: heads, vocabulary, rates.
        seed: of the order.
        progress: where to report.

    Returns:
        The heads, and their accuracy on the last ``held_out`` of the sequences.

    Raises:
        TrainingError: when the text is too short or the loss is not finite.
    """
    sequences, length, width = hidden.shape
    if length < draft.heads + 2:
        raise TrainingError(
            f"sequences of {length} tokens are too short for {draft.heads} heads",
            hint="Raise draft.samples.sequence_length.",
        )
    vocab_size = model.get_output_embeddings().weight.shape[0]
    device = model.device
    token_ids = frequent_tokens(tokens, draft.vocabulary, vocab_size)
    config = MedusaConfig(
        heads=draft.heads, hidden_size=width, vocabulary=len(token_ids), top=min(draft.top, len(token_ids))
    )
    targets = head_targets(tokens, token_ids, draft.heads, vocab_size)
    held = max(1, round(sequences * draft.held_out))
    usable = slice(0, length - 1 - draft.heads)
    x, y = hidden[:, usable], targets[:, usable]
    heads = MedusaHeads(config, token_ids).to(device)
    rows, offsets = head_rows(model, token_ids)
    rows, offsets = rows.to(device), offsets.to(device)
    train = slice(0, max(1, sequences - held))
    _fit(heads, x[train].flatten(0, 1), y[train].flatten(0, 1), rows, offsets, draft, seed, progress)
    return heads, measure(heads, x[-held:].flatten(0, 1), y[-held:].flatten(0, 1), rows, offsets)


def _fit(
    heads: MedusaHeads,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    offsets: Tensor,
    draft: Draft,
    seed: int,
    progress: Progress,
) -> None:
    steps = max(1, draft.epochs * len(x) // draft.batch_size)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=draft.learning_rate, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(draft.epochs + 1)])
    progress.start("draft heads", steps * draft.batch_size)
    try:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = draft.learning_rate * rate_factor(step, steps, draft.warmup, "cosine")
            part = order[step * draft.batch_size : (step + 1) * draft.batch_size]
            optimizer.zero_grad(set_to_none=True)
            loss = _backward(heads, x[part].to(rows.device).float(), y[part].to(rows.device), rows, offsets)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"draft heads, step {step}: loss is not finite", hint="Lower draft.learning_rate."
                )
            optimizer.step()
            progress.advance(draft.batch_size, {"loss": loss})
    finally:
        progress.finish()


def _backward(heads: MedusaHeads, x: Tensor, y: Tensor, rows: Tensor, offsets: Tensor) -> float:
    """Gradients of the heads' mean cross entropy; one head's logits exist at a time."""
    features = heads.features(x)
    leaf = features.detach().requires_grad_(True)
    total = 0.0
    for k in range(y.shape[1]):
        logits = leaf[:, k] @ rows.t() + offsets
        loss = functional.cross_entropy(logits, y[:, k], ignore_index=IGNORED, reduction="sum")
        loss = loss / (y[:, k] != IGNORED).sum().clamp(min=1) / y.shape[1]
        loss.backward()
        total += float(loss.detach())
    features.backward(leaf.grad)
    return total


@torch.no_grad()
def measure(heads: MedusaHeads, x: Tensor, y: Tensor, rows: Tensor, offsets: Tensor) -> Accuracy:
    """Accuracy on ``x [N, E]`` with targets ``y [N, K]``; a token outside the vocabulary counts as missed."""
    hits = torch.zeros(2, y.shape[1])
    for part_x, part_y in zip(x.split(1024), y.split(1024), strict=True):
        features = heads.features(part_x.to(rows.device).float())
        best = (features @ rows.t() + offsets).topk(min(5, len(rows))).indices.cpu()
        hit = best == part_y[..., None]
        hits[0] += hit[..., 0].sum(0)
        hits[1] += hit.any(-1).sum(0)
    top1, top5 = (hits / max(len(x), 1)).tolist()
    return Accuracy(top1=tuple(top1), top5=tuple(top5))

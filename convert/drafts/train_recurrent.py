"""Training of the recurrent draft: steps ahead on cached hidden states, towards the model's distribution."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.convert.drafts.accuracy import Accuracy, frequent_tokens
from lineahead.convert.drafts.medusa import head_rows
from lineahead.convert.drafts.recurrent import RecurrentConfig, RecurrentDraft, embedding_table
from lineahead.convert.training.loop import rate_factor
from lineahead.convert.training.progress import Progress
from lineahead.errors import TrainingError
from lineahead.recipes.schema import Draft

DECAY = 0.85  # weight of a step relative to the one before it


def train_recurrent(
    model: PreTrainedModel, hidden: Tensor, tokens: Tensor, draft: Draft, *, seed: int, progress: Progress
) -> tuple[RecurrentDraft, Accuracy]:
    """Train a draft whose every step is fed with its own guess and the text's next token.

    The loss is the cross entropy with the model's distribution, over the draft's vocabulary, at the place
    that the step guesses: what the model itself would say, known from its hidden state there.

    Args:
        model: whose embeddings and LM head are shared.
        hidden: ``[N, L, E]`` float16.
        tokens: ``[N, L]`` int64.
        draft: shape and rates.
        seed: of the order and the initial weights.
        progress: where to report.

    Returns:
        The draft, and its accuracy by step on the last ``held_out`` of the sequences.

    Raises:
        TrainingError: when the text is too short or the loss is not finite.
    """
    sequences, length, width = hidden.shape
    if length < draft.heads + 3:
        raise TrainingError(
            f"sequences of {length} tokens are too short for {draft.heads} steps",
            hint="Raise draft.samples.sequence_length.",
        )
    table = embedding_table(model)
    token_ids = frequent_tokens(tokens, draft.vocabulary, model.get_output_embeddings().weight.shape[0])
    config = RecurrentConfig(
        hidden_size=width,
        width=draft.width or 8 * width // 3,
        blocks=draft.blocks,
        depth=draft.heads,
        vocabulary=len(token_ids),
        top=min(draft.top, len(token_ids)),
    )
    torch.manual_seed(seed)
    scale = float(hidden[: max(1, sequences // 16)].float().square().mean().sqrt())
    made = RecurrentDraft(config, token_ids, scale=scale).to(model.device)
    rows, offsets = (x.to(model.device) for x in head_rows(model, token_ids))
    held = max(1, round(sequences * draft.held_out))
    last = max(1, sequences - held)
    task = _Task(made, table, rows, offsets)
    _fit(task, hidden[:last], tokens[:last], draft, seed, progress)
    return made, _accuracy(task, hidden[-held:], tokens[-held:])


class _Task:
    """A draft with the model's tables on its device."""

    def __init__(self, draft: RecurrentDraft, table: Tensor, rows: Tensor, offsets: Tensor) -> None:
        self.draft, self.table, self.rows, self.offsets = draft, table, rows, offsets
        self.device = rows.device

    def log_probs(self, hidden: Tensor) -> Tensor:
        """``[..., E] -> [..., V']`` float32."""
        return (hidden.to(self.rows.dtype) @ self.rows.t() + self.offsets).float().log_softmax(-1)

    def guesses(self, hidden: Tensor, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Step k and its guesses ``[N, M, E]`` for the M places that have all steps' tokens."""
        steps = self.draft.config.depth
        places = hidden.shape[1] - 1 - steps
        guess = hidden[:, :places]
        for k in range(steps):
            guess = self.draft.advance(guess, self.table[tokens[:, 1 + k : 1 + k + places]].to(guess.dtype))
            yield k, guess

    def loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Weighted mean over the steps of the cross entropy with the model's distribution."""
        with torch.no_grad():
            wanted = self.log_probs(hidden).exp()
        total, weight = torch.zeros((), device=self.device), 0.0
        for k, guess in self.guesses(hidden, tokens):
            target = wanted[:, 1 + k : 1 + k + guess.shape[1]]
            total = total - DECAY**k * (target * self.log_probs(guess)).sum(-1).mean()
            weight += DECAY**k
        return total / weight


def _fit(task: _Task, hidden: Tensor, tokens: Tensor, draft: Draft, seed: int, progress: Progress) -> None:
    sequences, length = tokens.shape
    each = max(1, min(sequences, draft.batch_size // length))
    steps = max(1, draft.epochs * sequences // each)
    parameters = list(task.draft.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=draft.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(sequences, generator=generator) for _ in range(draft.epochs + 1)])
    narrow = task.device.type == "cuda"
    progress.start("recurrent draft", steps * each * length)
    try:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = draft.learning_rate * rate_factor(step, steps, draft.warmup, "cosine")
            part = order[step * each : (step + 1) * each]
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(task.device.type, torch.bfloat16, enabled=narrow):
                loss = task.loss(hidden[part].to(task.device).float(), tokens[part].to(task.device))
            loss.backward()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"recurrent draft, step {step}: loss is not finite", hint="Lower draft.learning_rate."
                )
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            progress.advance(each * length, {"loss": value})
    finally:
        progress.finish()


@torch.no_grad()
def _accuracy(task: _Task, hidden: Tensor, tokens: Tensor) -> Accuracy:
    """By step: how often the text's token is the best or among the best five."""
    hits = torch.zeros(2, task.draft.config.depth)
    count = 0
    for part, text in zip(hidden.split(8), tokens.split(8), strict=True):
        text = text.to(task.device)
        for k, guess in task.guesses(part.to(task.device).float(), text):
            best = task.log_probs(guess).topk(min(5, len(task.rows))).indices
            found = task.draft.token_ids[best] == text[:, 2 + k : 2 + k + guess.shape[1], None]
            hits[0, k] += found[..., 0].sum().cpu()
            hits[1, k] += found.any(-1).sum().cpu()
            count += found[..., 0].numel() if not k else 0
    top1, top5 = (hits / max(count, 1)).tolist()
    return Accuracy(top1=tuple(top1), top5=tuple(top5))

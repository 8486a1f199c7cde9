"""Losses over the vocabulary in chunks of rows, so that the logits of a whole batch never exist."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.errors import ArchitectureError

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of logits; a GPU wants fewer, larger products
Head = Callable[[Tensor], Tensor]


def head_of(model: PreTrainedModel) -> Head:
    """Hidden states ``[N, E]`` to float32 logits ``[N, V]`` as the model does it, checked against the model.

    Raises:
        ArchitectureError: when the model does something else to its logits.
    """
    projection = model.get_output_embeddings()
    config: Any = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    multiply = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = projection(hidden).float()
        if multiply is not None:
            logits = logits * multiply
        if divide is not None:
            logits = logits / divide
        return logits if cap is None else torch.tanh(logits / cap) * cap

    _check(model, head)
    return head


def _check(model: PreTrainedModel, head: Head) -> None:
    ids = (
        torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config(decoder=True).vocab_size
    )
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.float()
        found = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])[None]
    if (expected - found).abs().max() > 0.02 * expected.abs().max():
        raise ArchitectureError(
            f"{type(model).__name__} changes its logits after the LM head in a way that is not known here",
            hint="Use transfer stages only for this architecture.",
        )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the terms: KL(teacher, student) at a temperature, and cross entropy with the text."""

    kl: float
    ce: float
    temperature: float


def distillation_backward(
    rows: Tensor,
    head: Head,
    teacher_rows: Tensor | None,
    teacher_head: Head,
    targets: Tensor,
    weights: Weights,
    share: float,
) -> dict[str, float]:
    """Add the gradients of ``share * (kl * T^2 * KL + ce * CE)``, a mean over tokens, to what made `rows`.

    Args:
        rows: the student's last hidden states ``[M, E]``, with a graph.
        head: its LM head.
        teacher_rows: the teacher's, ``[M, E]``; None when ``kl`` is 0.
        teacher_head: the teacher's LM head.
        targets: the tokens ``[M]`` that they predict.
        weights: of the terms.
        share: multiplier of the loss.

    Returns:
        ``loss``, ``kl`` and ``ce``, the latter two in nats per token.

    Source: Hinton et al., 2015, arXiv:1503.02531, section 2 (the factor T^2).
    """
    leaf = rows.detach().requires_grad_(True)
    sums = torch.zeros(2, device=rows.device)
    count, size = len(targets), chunk_rows(head, leaf)
    for start in range(0, count, size):
        part = slice(start, start + size)
        logits = head(leaf[part])
        with torch.no_grad():
            wanted = None if teacher_rows is None else teacher_head(teacher_rows[part])
            losses, gradient = _losses(logits.detach(), wanted, targets[part], weights)
        logits.backward(gradient * (share / count))
        sums += losses
    assert leaf.grad is not None
    rows.backward(leaf.grad)
    kl, ce = (sums / count).tolist()
    total = weights.kl * weights.temperature**2 * kl + weights.ce * ce
    return {"loss": total, **({} if teacher_rows is None else {"kl": kl}), "ce": ce}


def _losses(
    logits: Tensor, wanted: Tensor | None, targets: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Sums of KL and cross entropy ``[2]``, and their weighted sum's gradient by ``logits [N, V]``.

    Written out, because autograd would keep four tensors of the logits' size:
    ``dKL / dlogits = (softmax(logits / T) - softmax(wanted / T)) / T``, and
    ``dCE / dlogits = softmax(logits) - 1[target]``.
    """
    heat = weights.temperature
    column = targets[:, None]
    given = logits.log_softmax(-1)
    ce = -given.gather(1, column).sum()
    gradient = given.exp()
    if wanted is None:
        kl = torch.zeros_like(ce)
        gradient.mul_(weights.ce)
    else:
        wanted = (wanted / heat).log_softmax(-1) if heat != 1 else wanted.log_softmax(-1)
        warm = (logits / heat).log_softmax(-1) if heat != 1 else given
        chances = wanted.exp()
        kl = (chances * (wanted - warm)).sum()
        towards = (warm.exp() if heat != 1 else gradient) - chances
        gradient = towards.mul_(weights.kl * heat) + (gradient.mul_(weights.ce) if weights.ce else 0.0)
    if weights.ce:
        gradient.scatter_add_(1, column, torch.full_like(column, -weights.ce, dtype=gradient.dtype))
    return torch.stack([kl, ce]), gradient


def chunk_rows(head: Head, rows: Tensor) -> int:
    """How many of the hidden states ``rows [N, E]`` to turn into logits at a time."""
    with torch.no_grad():
        vocabulary = head(rows[:1]).shape[-1]
    return max(1, CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES["cpu"]) // (4 * vocabulary))

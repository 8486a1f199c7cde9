"""What every kind of draft shares: which tokens it can propose, and how its accuracy is told."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How often the right token is the first, or among the first five, of each head, on held-out text."""

    top1: tuple[float, ...]
    top5: tuple[float, ...]


def frequent_tokens(tokens: Tensor, vocabulary: int, vocab_size: int) -> Tensor:
    """The ids of the `vocabulary` most frequent tokens (0: all), ascending; the lower id wins a tie."""
    if vocabulary in (0, vocab_size) or vocabulary > vocab_size:
        return torch.arange(vocab_size)
    counts = torch.bincount(tokens.flatten(), minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:vocabulary].sort().values

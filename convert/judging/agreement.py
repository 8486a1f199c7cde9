"""How often the converted model would say what the original says: on text, position by position."""

import torch
from torch import Tensor

from lineahead.convert.judging.pair import Pair
from lineahead.convert.training.leading import windows
from lineahead.convert.training.vocabulary import Head, chunk_rows
from lineahead.recipes.manifest import Agreement


def measure_agreement(
    pair: Pair, ids: Tensor, *, context: int, file: str, leading: int | None = None
) -> Agreement:
    """Compare both models' predictions after every token of a text.

    Args:
        pair: both models.
        ids: token ids ``[N]``, read in whole windows.
        context: tokens per window, at most N.
        file: the text's name, for the record.
        leading: what every window begins with, in place of its first token.

    Returns:
        The share of positions where both have the same likeliest token, and the mean of KL(teacher, student)
        in nats.
    """
    rows = windows(ids, context, leading)
    first, second = pair.readers()
    heads = first.head(), second.head()
    same, kl = 0, 0.0
    for row in rows:
        hidden = first.hidden(row), second.hidden(row)
        size = chunk_rows(heads[0], hidden[0])
        for theirs, ours in zip(hidden[0].split(size), hidden[1].split(size), strict=True):
            matches, nats = _compare(heads, theirs, ours)
            same, kl = same + matches, kl + nats
    count = rows.numel()
    return Agreement(file=file, context=context, tokens=count, top1=same / count, kl=kl / count)


@torch.no_grad()
def _compare(heads: tuple[Head, Head], theirs: Tensor, ours: Tensor) -> tuple[int, float]:
    wanted, found = heads[0](theirs).log_softmax(-1), heads[1](ours).log_softmax(-1)
    kl = (wanted.exp() * (wanted - found)).sum(-1)
    return int((wanted.argmax(-1) == found.argmax(-1)).sum()), float(kl.double().sum())

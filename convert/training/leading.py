"""The token that some models want before every text: without it Gemma 3 predicts it far worse."""

from typing import Any

from torch import Tensor


def leading_token(tokenizer: Any) -> int | None:
    """The BOS token where the tokenizer puts it before a text by itself (Llama 2, Gemma), None elsewhere."""
    found = tokenizer.bos_token_id
    return found if found is not None and tokenizer("")["input_ids"][:1] == [found] else None


def windows(ids: Tensor, context: int, token: int | None) -> Tensor:
    """Running text ``[N]`` as whole windows ``[N // context, context]``, each :func:`led`."""
    return led(ids[: len(ids) // context * context].reshape(-1, context), token)


def led(rows: Tensor, token: int | None) -> Tensor:
    """Rows ``[..., N]`` of running text, each with `token` in place of its first; as they are for None."""
    if token is None:
        return rows
    rows = rows.clone()
    rows[..., 0] = token
    return rows

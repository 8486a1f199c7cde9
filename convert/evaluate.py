"""Perplexity of teacher and student side by side, in the training form, without a cache."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lineahead.convert.training.leading import leading_token, led
from lineahead.convert.training.progress import Progress, Silent
from lineahead.convert.training.text import documents
from lineahead.convert.training.vocabulary import Head, chunk_rows, head_of
from lineahead.errors import ArchitectureError, InputError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher as softmax_mode
from lineahead.recipes.files import sha256
from lineahead.recipes.manifest import Evaluation

CHARACTERS = 16  # per token, at most: how much of a file is read
logger = logging.getLogger(__name__)


def evaluate(
    student: PreTrainedModel,
    tokenizer: Any,
    files: Sequence[Path],
    *,
    teacher: PreTrainedModel | None = None,
    names: Sequence[str] = ("teacher", "student"),
    context: Sequence[int] = (1024,),
    tokens: int = 16384,
    stride: int | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure perplexity and bits per byte of text files.

    Each file's first `tokens` tokens are read in windows of `context` tokens that begin every `stride`
    tokens; in every window but the first only the last `stride` tokens are scored. A window's first token
    is never scored; it is the BOS token for models whose texts begin with one.

    Args:
        student: a linear model.
        tokenizer: its tokenizer.
        files: text files.
        teacher: the softmax model; the student's own softmax mode when None, which is right while its
            pretrained weights are unchanged.
        names: which of ``teacher`` and ``student`` to measure.
        context: window lengths.
        tokens: tokens read per file.
        stride: between windows; the context when None.
        progress: where to report.

    Returns:
        One record per file and context.

    Raises:
        InputError: when a file is too short, or the context is longer than the position table.
    """
    progress = progress or Silent()
    found = []
    for path in files:
        text = _read(path, tokenizer, tokens)
        for length in context:
            _check_length(student, path, len(text.ids), length, stride)
            nats: dict[str, float] = {}
            counted = size = 0
            for name in names:
                model = teacher or student if name == "teacher" else student
                mode: AbstractContextManager[None] = softmax_mode() if name == "teacher" else nullcontext()
                progress.start(f"{path.name} {name}", len(text.ids))
                with mode:
                    nats[name], counted, size = _score(model, text, length, stride or length, progress)
                progress.finish()
            found.append(
                Evaluation(
                    file=path.name,
                    file_hash=sha256(path),
                    context=length,
                    stride=stride or length,
                    tokens=counted,
                    perplexity={name: math.exp(total / counted) for name, total in nats.items()},
                    bits_per_byte={name: total / math.log(2) / size for name, total in nats.items()},
                )
            )
    return found


def read_tokens(files: Sequence[Path], tokenizer: Any, count: int, least: int) -> Tensor:
    """The first `count` token ids ``[N]`` of text files, one file after the other.

    Raises:
        InputError: when there are fewer than `least`.
    """
    found = torch.cat([_read(path, tokenizer, count).ids for path in files])[:count]
    if len(found) < least:
        raise InputError(
            f"{len(found)} tokens of text are fewer than {least}",
            hint="Give more text, or a shorter context.",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Token ids ``[N]``, for each the bytes of the file before its end, and what windows begin with."""

    ids: Tensor
    ends: list[int]
    first: int | None


def _read(path: Path, tokenizer: Any, tokens: int) -> _Text:
    text = ("\n\n" if ".jsonl" in path.suffixes else "").join(documents(path))[: tokens * CHARACTERS]
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} cannot say which bytes a token covers",
            hint="Add the model's tokenizer.json.",
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends, done, size = [], 0, 0
    for _, end in found["offset_mapping"][:tokens]:
        size += len(text[done : max(done, end)].encode())
        done = max(done, end)
        ends.append(size)
    ids = torch.tensor(found["input_ids"][:tokens], dtype=torch.long)
    return _Text(ids=ids, ends=ends, first=leading_token(tokenizer))


def require_positions(context: int, limit: int | None) -> None:
    """Refuse a context beyond a position table; None where there is no limit.

    Raises:
        InputError: naming both lengths.
    """
    if limit is not None and context > limit:
        raise InputError(
            f"a context of {context} is longer than the position table of {limit}",
            hint=f"Use a context of at most {limit}.",
        )


def _check_length(model: PreTrainedModel, path: Path, count: int, context: int, stride: int | None) -> None:
    config: Any = model.config.get_text_config(decoder=True)
    require_positions(context, getattr(config, "max_position_embeddings", None))
    if count < context:
        raise InputError(
            f"{path}: {count} tokens are fewer than a context of {context}",
            hint="Use a longer file or a shorter context.",
        )
    if context < 2 or not 1 <= (stride or context) <= context:
        raise InputError(
            f"context={context}, stride={stride}: out of range",
            hint="The stride is between 1 and the context, the context at least 2.",
        )


def _windows(count: int, context: int, stride: int) -> Iterator[tuple[int, int]]:
    """(begin of the window, first scored position) for all whole windows."""
    for begin in range(0, count - context + 1, stride):
        yield begin, begin + 1 if begin == 0 else max(begin + 1, begin + context - stride)


@torch.no_grad()
def _score(
    model: PreTrainedModel, text: _Text, context: int, stride: int, progress: Progress
) -> tuple[float, int, int]:
    """Sum of nats, scored tokens, and their bytes."""
    total, counted, size = 0.0, 0, 0
    head = _head(model)
    for begin, first in _windows(len(text.ids), context, stride):
        window = led(text.ids[begin : begin + context], text.first).to(model.device)
        scored = window[first - begin :]
        if head is None:
            logits = model(input_ids=window[None], use_cache=False).logits[0, first - begin - 1 : -1].float()
            total += float(functional.cross_entropy(logits, scored, reduction="sum"))
        else:
            hidden = model.base_model(input_ids=window[None], use_cache=False).last_hidden_state[0]
            total += _nats(head, hidden[first - begin - 1 : -1], scored)
        counted += len(scored)
        size += text.ends[begin + context - 1] - text.ends[first - 1]
        progress.advance(stride, {"perplexity": math.exp(min(total / counted, 700))})
    return total, counted, size


def _head(model: PreTrainedModel) -> Head | None:
    try:
        return head_of(model)
    except ArchitectureError as error:
        logger.info("%s; evaluating with whole logits", error)
        return None


def _nats(head: Head, hidden: Tensor, targets: Tensor) -> float:
    rows = chunk_rows(head, hidden)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return sum(float(functional.cross_entropy(head(h), t, reduction="sum")) for h, t in parts)

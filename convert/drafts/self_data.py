"""Text that a model writes itself: the teacher for the student, the student for its draft heads."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lineahead.convert.training.data import Tokens
from lineahead.convert.training.progress import Progress
from lineahead.convert.training.text import documents, expand
from lineahead.errors import InputError
from lineahead.plugins.augmented_attention.huggingface.attention import teacher
from lineahead.plugins.augmented_attention.huggingface.fixed_layer import CACHE
from lineahead.recipes.files import replacing
from lineahead.recipes.schema import Samples


def sample_tokens(
    model: PreTrainedModel,
    tokenizer: Any,
    samples: Samples,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    softmax: bool,
) -> Tokens:
    """Sample texts, all of ``samples.sequence_length`` tokens: one that ends is followed by another.

    Batches are kept in `folder` as they are finished, so a killed run goes on where it was. Each batch's
    randomness comes from `seed` and its number alone.

    Args:
        model: a linear model in evaluation mode.
        tokenizer: its tokenizer.
        samples: how many, how long, from which prompts.
        seed: of the sampling.
        folder: where finished batches are.
        progress: where to report.
        softmax: whether the teacher writes (the model's softmax mode) or the linear model.

    Returns:
        A stream that is a whole number of samples.

    Raises:
        InputError: when there is nothing to start from.
        StorageError: when a batch cannot be written.
    """
    starts = _starts(tokenizer, samples)
    per_batch = samples.batch_size * samples.sequence_length
    batches = -(-samples.tokens // per_batch)
    folder.mkdir(parents=True, exist_ok=True)
    progress.start("sampling", batches * per_batch)
    parts: list[NDArray[np.int32]] = []
    try:
        for number in range(batches):
            path = folder / f"{number:05d}.npy"
            if not path.is_file():
                mode: AbstractContextManager[None] = teacher() if softmax else nullcontext()
                with mode:
                    rows = _sample(model, starts, samples, np.random.default_rng([seed, number]))
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, rows, allow_pickle=False)
            parts.append(np.load(path, allow_pickle=False))
            progress.advance(per_batch, {})
    finally:
        progress.finish()
    ids = np.concatenate([part.reshape(-1) for part in parts])
    return Tokens(ids=ids, source="the model's own samples")


def _starts(tokenizer: Any, samples: Samples) -> list[list[int]]:
    """What samples begin with: prompts, a chat model's empty user turn, or the beginning-of-text token."""
    if samples.prompts:
        texts = [text for path in expand(samples.prompts) for text in _prompts(path)]
        found = [_prompt_ids(tokenizer, text)[: samples.sequence_length // 2] for text in texts]
        return [ids for ids in found if ids]
    if getattr(tokenizer, "chat_template", None):
        mark = "\x00"
        turn = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
        ids = tokenizer(turn.split(mark)[0], add_special_tokens=False)["input_ids"]
        return [list(ids)]
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [[token]]
    raise InputError("the tokenizer has no token to begin a text with", hint="Give samples.prompts.")


def _prompts(path: Path) -> list[str]:
    if ".jsonl" in path.suffixes:
        return documents(path)
    return [line for text in documents(path) for line in text.splitlines() if line.strip()]


def _prompt_ids(tokenizer: Any, text: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(text)["input_ids"])


@torch.no_grad()
def _sample(
    model: PreTrainedModel, starts: Sequence[list[int]], samples: Samples, random: np.random.Generator
) -> NDArray[np.int32]:
    """One batch ``[batch_size, sequence_length]``; starts longer than the shortest are fed token by token."""
    copies = -(-samples.batch_size // len(starts))
    order = np.concatenate([random.permutation(len(starts)) for _ in range(copies)])
    chosen = [starts[int(i)] for i in order[: samples.batch_size]]
    device, length = model.device, samples.sequence_length
    generator = torch.Generator(device).manual_seed(int(random.integers(1 << 62)))
    given = torch.full((len(chosen), length), -1, dtype=torch.long)
    for row, tokens in enumerate(chosen):
        given[row, : len(tokens)] = torch.tensor(tokens[:length])
    given = given.to(device)
    shared = min(len(tokens) for tokens in chosen)
    ids, cache, feed = given[:, :shared], None, given[:, :shared]
    while ids.shape[1] < length:
        out = model(input_ids=feed, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        cache = out[CACHE]
        drawn = _draw(out.logits[:, -1].float() / samples.temperature, samples.top_p, generator)
        forced = given[:, ids.shape[1]]
        feed = torch.where(forced >= 0, forced, drawn)[:, None]
        ids = torch.cat([ids, feed], 1)
    return np.asarray(ids.cpu().numpy(), np.int32)


def _draw(logits: torch.Tensor, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token per row, from the nucleus of the 256 likeliest tokens."""
    best = logits.topk(min(256, logits.shape[-1]))
    chances = torch.exp(best.values - logits.logsumexp(-1, keepdim=True))
    before = chances.cumsum(-1) - chances
    kept = torch.where(before < top_p, chances, torch.zeros(()).to(chances))
    return best.indices.gather(1, torch.multinomial(kept, 1, generator=generator))[:, 0]

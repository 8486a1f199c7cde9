"""The hidden states that draft heads learn from: computed once, kept on disk in shards."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lineahead.convert.training.data import Tokens
from lineahead.convert.training.progress import Progress
from lineahead.errors import TrainingError
from lineahead.recipes.files import replacing


def write_hidden(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    sequence_length: int,
    batch_size: int,
    folder: Path,
    progress: Progress,
) -> list[Path]:
    """Run the linear model over its own text and keep the LM head's inputs; shards that exist are kept.

    Args:
        model: a linear model.
        tokens: its text, a whole number of sequences.
        sequence_length: L.
        batch_size: sequences per shard.
        folder: where the shards go.
        progress: where to report.

    Returns:
        The shards: ``hidden [n, L, E]`` float16 and ``tokens [n, L]`` int32 each.

    Raises:
        StorageError: when a shard cannot be written.
    """
    rows = torch.from_numpy(tokens.ids).view(-1, sequence_length)
    folder.mkdir(parents=True, exist_ok=True)
    progress.start("hidden states", rows.numel())
    paths = []
    try:
        for number, part in enumerate(rows.split(batch_size)):
            path = folder / f"{number:05d}.safetensors"
            if not path.is_file():
                with torch.no_grad():
                    ids = part.long().to(model.device)
                    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                with replacing(path) as temporary:
                    save_file({"hidden": hidden.half().cpu().contiguous(), "tokens": part.clone()}, temporary)
            paths.append(path)
            progress.advance(part.numel(), {})
    finally:
        progress.finish()
    return paths


def read_hidden(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """All shards: ``hidden [N, L, E]`` float16 and ``tokens [N, L]`` int64.

    Raises:
        TrainingError: when a shard is damaged.
    """
    parts = list(_shards(paths))
    return torch.cat([part["hidden"] for part in parts]), torch.cat([part["tokens"] for part in parts]).long()


def _shards(paths: list[Path]) -> Iterator[dict[str, Tensor]]:
    for path in paths:
        try:
            yield load_file(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path}: damaged: {error}", hint="Delete it and run again.") from error

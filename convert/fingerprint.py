"""What tells one artifact from another: hashes of its files, and logits of a fixed text."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lineahead.recipes.files import sha256
from lineahead.recipes.manifest import Logits

TOKENS = 96  # more than the windows of the shipped recipes, so that the state counts
TOP = 5
# Read when loading. What people edit (chat template, generation config) is left out.
FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.py",
    "custom_generate/*.py",
    "tokenizer.json",
)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that decide what an artifact says, by path in the folder."""
    found = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found}


def fingerprint(model: PreTrainedModel) -> Logits | None:
    """The largest logits at three places of a fixed text of 96 tokens, or fewer where the model takes fewer.

    Args:
        model: a decoder, in any mode; left as it was.

    Returns:
        None for encoders and encoder-decoders.
    """
    config: Any = model.config
    if config.is_encoder_decoder or not model.can_generate():
        return None
    text: Any = config.get_text_config(decoder=True)
    limit = min(TOKENS, getattr(text, "max_position_embeddings", None) or TOKENS)
    tokens = [(7919 * place + 13) % text.vocab_size for place in range(limit)]
    training, parameter = model.training, next(model.parameters())
    model.eval()
    with torch.inference_mode():
        logits = (
            model(input_ids=torch.tensor([tokens], device=parameter.device), use_cache=False)
            .logits[0]
            .float()
        )
    model.train(training)
    positions = tuple(sorted({limit // 3, 2 * limit // 3, limit - 1}))
    best = logits[list(positions)].topk(min(TOP, text.vocab_size))
    return Logits(
        tokens=tuple(tokens),
        positions=positions,
        ids=tuple(map(tuple, best.indices.tolist())),
        values=tuple(map(tuple, best.values.tolist())),
        dtype=str(parameter.dtype).removeprefix("torch."),
    )

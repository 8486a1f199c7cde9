"""Whether a checkpoint folder is complete and undamaged, asked before transformers reads it."""

from pathlib import Path
from typing import Any

from torch import nn

from lineahead.errors import CheckpointError
from lineahead.recipes.json_file import parse_object, read_object

AGAIN = "Download or copy the file again."
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
MAX_HEADER = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: when the file is missing or damaged.
    """
    folder = "Name a checkpoint folder in Hugging Face format."
    return read_object(path, error=CheckpointError, hint=AGAIN, missing=folder)


def weight_files(folder: Path) -> dict[str, Path]:
    """File of every tensor, after checking that all files are there and as long as their headers say.

    Raises:
        CheckpointError: naming the file (and tensor) that is missing, truncated or a pickle.
    """
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
            raise CheckpointError(f"{folder / INDEX}: damaged: no weight_map", hint=AGAIN)
        files = sorted({_inside(folder, file) for file in named.values()})
    else:
        files, named = sorted(folder.glob("*.safetensors")), {}
    if not files:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{folder / pickles[0]}: pickled weights are not read, because loading them can run code",
                hint="Save the checkpoint as safetensors: model.save_pretrained(folder).",
            )
        raise CheckpointError(f"{folder}: no *.safetensors file", hint="Copy the checkpoint's weights there.")
    found = {tensor: path for path in files for tensor in tensor_names(path)}
    missing = sorted(set(named) - set(found))
    if missing:
        raise CheckpointError(f"{folder / str(named[missing[0]])}: no tensor {missing[0]!r}", hint=AGAIN)
    return found


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{folder / INDEX}: names a file elsewhere: {name!r}", hint=AGAIN)
    return folder / name


def tensor_names(path: Path) -> list[str]:
    """Names in a safetensors file, after checking the length of the file against its header.

    Raises:
        CheckpointError: when it is missing, truncated or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{path}: truncated or damaged: {size} bytes, no header", hint=AGAIN)
            header = parse_object(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing", hint="Copy all files of the checkpoint.") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read: {error.strerror}", hint="Check its permissions."
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged header", hint=AGAIN) from error
    if end != size - 8 - length:
        raise CheckpointError(
            f"{path}: truncated or damaged: {size} bytes, but the header says {end + 8 + length}", hint=AGAIN
        )
    return list(entries)


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer: transformers would make up an empty one.

    Raises:
        CheckpointError: when no tokenizer file is there.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise CheckpointError(
            f"{folder}: no tokenizer (tokenizer.json)",
            hint="Copy the original model's tokenizer files there.",
        )


def check_finite(model: nn.Module, where: Path, files: dict[str, Path]) -> None:
    """Refuse NaN and infinity in a model's weights.

    Raises:
        CheckpointError: naming the tensor, and its file where `files` knows it.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise CheckpointError(
                f"{files.get(name, where)}: tensor {name!r} holds NaN or infinity",
                hint="Use an undamaged checkpoint.",
            )

"""Documents from text files, JSON lines and Hugging Face datasets."""

import glob
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lineahead.errors import InputError, needs_package
from lineahead.recipes.schema import Dataset

SECTION_CHARACTERS = 16384
TEXT_FIELDS = ("text", "prompt", "question", "content")


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files that the paths and glob patterns name, sorted within each pattern.

    Raises:
        InputError: when a pattern names no file.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
        if not found:
            raise InputError(
                f"{pattern}: no such file",
                hint="Give existing text files, or a glob pattern that matches some.",
            )
        paths.extend(path for path in found if path.is_file())
    return paths


def documents(path: Path) -> list[str]:
    """The documents of a file: one per JSON line, or sections of a text file cut at line ends.

    Sections are at most 16,384 characters long, so that a shuffle mixes a large file well.

    Args:
        path: ``.jsonl`` (with ``turns``, ``text``, ``prompt``, ``question`` or ``content``) or text,
            optionally ``.gz``.

    Raises:
        InputError: when the file cannot be read or has no text.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    try:
        with _open(path) as file:
            if suffixes[-1:] in ([".jsonl"], [".ndjson"]):
                found = [
                    json_text(line, f"{path}:{number}") for number, line in enumerate(file, 1) if line.strip()
                ]
            else:
                found = list(_sections(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot read it as UTF-8 text: {error}", hint="Give text or JSON-lines files."
        ) from error
    found = [text for text in found if text.strip()]
    if not found:
        raise InputError(f"{path}: no text in it", hint="Give a file with text.")
    return found


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def json_text(line: str, where: str) -> str:
    """The text of one JSON line: its first text field, or its turns joined by blank lines.

    Raises:
        InputError: naming the line.
    """
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON", hint="Write one JSON object per line.") from error
    if isinstance(row, dict):
        turns = row.get("turns")
        if isinstance(turns, list) and turns:
            return "\n\n".join(str(turn) for turn in turns)
        for field in TEXT_FIELDS:
            if isinstance(row.get(field), str):
                return str(row[field])
    raise InputError(
        f"{where}: none of turns, {', '.join(TEXT_FIELDS)}", hint="Put the text into a field `text`."
    )


def dataset_documents(dataset: Dataset, seed: int) -> Iterator[str]:
    """Documents of a Hugging Face dataset, streamed in an order shuffled by `seed`.

    Raises:
        InputError: when the `datasets` package is missing or the dataset cannot be read.
    """
    cure = 'Run `pip install "lineahead[train]"`.'
    with needs_package("data.dataset needs the `datasets` package", cure, InputError):
        import datasets
    try:
        rows = datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True)
        for row in rows.shuffle(seed=seed, buffer_size=1000):
            yield str(row[dataset.field])
    except KeyError as error:
        raise InputError(
            f"{dataset.name}: no column {dataset.field!r}", hint="Set data.dataset.field."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{dataset.name}: cannot read the dataset: {error}", hint="Check its name and the network."
        ) from error


def _sections(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= SECTION_CHARACTERS:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)

"""Prompts from files: lines, JSON lines, or the JSON array that ShareGPT comes as."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lineahead.errors import InputError
from lineahead.recipes.json_file import parse_object

HUMAN = ("human", "user")


def read_prompts(path: Path, count: int | None = None) -> list[str]:
    """The first `count` prompts of a file (all of them when None).

    A file is lines; or JSON lines with ``prompt``, ``text``, ``turns`` (MT-Bench, Spec-Bench: the first of
    them) or ``conversations`` (ShareGPT: what the human says first); or a JSON array of such objects.

    Raises:
        InputError: when the file is missing, damaged or has none.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", hint="Give --prompts a text or JSON-lines file.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read: {error}", hint="Give --prompts a file in UTF-8.") from error
    prompts = [found for found in _prompts(path, text) if found.strip()]
    if not prompts:
        raise InputError(
            f"{path}: no prompts",
            hint="One prompt per line, or JSON with 'prompt', 'turns' or 'conversations'.",
        )
    return prompts[:count]


def _prompts(path: Path, text: str) -> Iterator[str]:
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except (ValueError, RecursionError):
            records = None  # a list by its first character only: read as lines
        if isinstance(records, list) and all(isinstance(one, dict) for one in records):
            yield from map(_prompt_of, records)
            return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("{"):
            yield line
            continue
        try:
            yield _prompt_of(parse_object(line))
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: {error}", hint="Write one JSON object a line, or plain text."
            ) from error


def _prompt_of(record: dict[str, Any]) -> str:
    """The prompt in one object; empty when there is none."""
    turns, said = record.get("turns"), record.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else ""
    human = [
        one.get("value")
        for one in (said if isinstance(said, list) else ())
        if isinstance(one, dict) and one.get("from") in HUMAN
    ]
    found = record.get("prompt") or record.get("text") or first or (human[0] if human else "")
    return found if isinstance(found, str) else ""

"""Reading a JSON object from a file that may come from anywhere."""

import json
from pathlib import Path
from typing import Any

from lineahead.errors import LineaheadError

MAX_BYTES = 1 << 30


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ValueError: when it is not one, or is nested too deeply to be read.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def read_object(
    path: Path, *, error: type[LineaheadError], hint: str, missing: str | None = None
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        error: what to raise when it cannot be used.
        hint: the cure for a damaged file.
        missing: the cure for a missing one, `hint` by default.

    Raises:
        LineaheadError: of class `error`, when it is missing, unreadable, damaged or absurdly large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(f"{path}: damaged: {path.stat().st_size} bytes of JSON", hint=hint)
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{path} is missing", hint=missing or hint) from cause
    except OSError as cause:
        raise error(f"{path}: cannot read: {cause.strerror}", hint="Check its permissions.") from cause
    except LineaheadError:
        raise
    except ValueError as cause:
        raise error(f"{path}: damaged: {cause}", hint=hint) from cause

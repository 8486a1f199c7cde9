"""What every refusal must look like, and a file cut short."""

import pytest

from lineahead.convert.source import load_source
from lineahead.errors import LineaheadError


def refused(kind, *words, **options):
    """What `load_source` says about a reference: an error of `kind`, in one line that holds all `words`."""
    reference = options.pop("reference")
    with pytest.raises(LineaheadError) as caught:
        load_source(reference, **options)
    error, message = caught.value, str(caught.value)
    assert type(error) is kind, f"{type(error).__name__}: {message}"
    assert "\n" not in message
    assert len(message) < 400, message
    assert error.hint, message
    assert error.hint.endswith((".", "`.")), error.hint
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return message


def cut(path, size):
    data = path.read_bytes()
    path.write_bytes(data[: size if size >= 0 else len(data) + size])

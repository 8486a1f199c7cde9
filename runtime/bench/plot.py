"""matplotlib, for files only."""

from typing import Any

from lineahead.errors import InputError


def pyplot_on_files() -> Any:
    """``matplotlib.pyplot`` without a screen.

    Raises:
        InputError: when matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InputError(
            "plots need matplotlib", hint='Install it: pip install "lineahead[study]".'
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot

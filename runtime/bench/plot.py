"""matplotlib, for files only."""

from typing import Any

from lineahead.errors import InputError, needs_package


def pyplot_on_files() -> Any:
    """``matplotlib.pyplot`` without a screen.

    Raises:
        InputError: when matplotlib is not installed.
    """
    with needs_package("plots need matplotlib", 'Run `pip install "lineahead[study]"`.', InputError):
        import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot

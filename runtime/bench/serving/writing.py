"""The results as files: JSON for machines, Markdown for people, plots."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lineahead.recipes.files import replacing, write_text
from lineahead.runtime.bench.plot import pyplot_on_files
from lineahead.runtime.bench.serving.report import ServeReport
from lineahead.runtime.bench.serving.soak import Soak


def _load(point: dict[str, Any]) -> str:
    if point["load"] == "closed":
        return f"{point['offered']:g} client{'s' if point['offered'] > 1 else ''}"
    return f"{point['offered']:g}/s offered"


def _three(point: dict[str, Any], name: str, scale: float) -> str:
    found = [point[f"{name}_p{share}"] for share in (50, 90, 99)]
    return " / ".join("-" if one is None else f"{scale * one:.3g}" for one in found)


COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "load": _load,
    "req/s": lambda point: point["requests_per_s"],
    "goodput": lambda point: point["goodput_per_s"],
    "tok/s": lambda point: point["tok_per_s"],
    "TTFT p50 / p90 / p99, s": lambda point: _three(point, "ttft_s", 1),
    "TPOT p50 / p90 / p99, ms": lambda point: _three(point, "tpot_s", 1e3),
    "errors": lambda point: ", ".join(f"{n} {kind}" for kind, n in point["errors"].items()) or "none",
}


def rows(report: ServeReport) -> list[dict[str, Any]]:
    """The table's rows: one for every server and load."""
    return [
        {"server": name, **{title: cell(point) for title, cell in COLUMNS.items()}}
        for name, server in report.servers.items()
        for point in server["points"]
    ]


def markdown(report: ServeReport) -> str:
    """One table of all servers and loads."""
    settings = report.settings
    targets = settings["targets"]
    table = rows(report)
    lines = [
        f"{settings['requests']} requests a load (a quarter for one client), at most "
        f"{settings['max_tokens']} tokens, prompts of {', '.join(settings['prompts'])}; goodput: TTFT at "
        f"most {targets['ttft_s']:g} s and TPOT at most {1e3 * targets['tpot_s']:g} ms. "
        f"{report.machine['processor']}, {report.machine['cores']} cores, which the clients share.",
        "",
        f"| {' | '.join(table[0])} |",
        "|" + "---|" * len(table[0]),
        *(f"| {' | '.join(str(cell) for cell in row.values())} |" for row in table),
    ]
    return "\n".join(lines) + "\n"


def write_report(report: ServeReport, folder: Path) -> None:
    """Write ``serve.json``, ``serve.md`` and ``serve.png``.

    Raises:
        InputError: when matplotlib is not installed.
        StorageError: when a file cannot be written.
    """
    write_text(folder / "serve.json", json.dumps(report.as_dict(), indent=1) + "\n")
    write_text(folder / "serve.md", markdown(report))
    _plot(report, folder / "serve.png")


def write_soak(found: Soak, folder: Path) -> None:
    """Write ``soak.json`` and ``soak.png``; raises as :func:`write_report`."""
    write_text(folder / "soak.json", json.dumps(found.as_dict()) + "\n")
    pyplot = pyplot_on_files()
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    minutes = [one / 60 for one in found.seconds]
    if found.megabytes:
        above.plot(minutes, found.megabytes)
        above.set(ylim=(0, 1.2 * max(found.megabytes)))
    above.set(ylabel="server's resident memory, MB")
    below.plot(minutes, [float("nan") if one is None else one for one in found.ttft_s])
    below.set(ylabel="TTFT, s (median)", xlabel="minutes", ylim=(0, None))
    figure.suptitle(f"{found.rate_per_s:.3g} requests/s of {found.capacity_per_s:.3g} possible")
    with replacing(folder / "soak.png") as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    pyplot.close(figure)


def _plot(report: ServeReport, path: Path) -> None:
    """Times and goodput over the offered rate."""
    pyplot = pyplot_on_files()
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, server in report.servers.items():
        points = [point for point in server["points"] if point["load"] == "open"]
        rates = [point["offered"] for point in points]
        for axis, column, scale in ((axes[0], "ttft_s_p50", 1.0), (axes[1], "tpot_s_p50", 1e3)):
            for share, style in ((50, "-"), (99, ":")):
                values = [point[column.replace("p50", f"p{share}")] for point in points]
                shown = [float("nan") if one is None else scale * one for one in values]
                axis.plot(rates, shown, style, marker="o", label=f"{name}, p{share}")
        axes[2].plot(rates, [point["goodput_per_s"] for point in points], marker="o", label=name)
    for axis, label in zip(axes, ("TTFT, s", "TPOT, ms", "goodput, requests/s"), strict=True):
        axis.set(xlabel="requests/s offered", ylabel=label)
        axis.legend()
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    pyplot.close(figure)

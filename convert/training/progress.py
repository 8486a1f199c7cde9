"""Progress of long jobs: a bar or lines on stderr, and metrics as JSON lines."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from lineahead.recipes.files import write_text

LINE_SECONDS = 15.0


class Progress(Protocol):
    """Where a long job reports how far it is."""

    def start(self, label: str, total: int) -> None:
        """Begin a job of `total` tokens."""

    def advance(self, tokens: int, metrics: dict[str, float]) -> None:
        """`tokens` more are done; `metrics` are the latest figures."""

    def finish(self) -> None:
        """The job is over or was interrupted."""


class Silent:
    """Reports nothing."""

    def start(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, tokens: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Lines:
    """A line on stderr every 15 seconds: for logs, where a bar would be noise.

    Attributes:
        unit: what is counted.
    """

    def __init__(self, unit: str = "tokens") -> None:
        self.unit = unit

    def start(self, label: str, total: int) -> None:
        """Begin a job."""
        self._label, self._total, self._done = label, total, 0
        self._begin = self._last = time.monotonic()
        self._metrics: dict[str, float] = {}

    def advance(self, tokens: int, metrics: dict[str, float]) -> None:
        """Count, and print when it is time."""
        self._done += tokens
        self._metrics = metrics
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._print()

    def finish(self) -> None:
        """Print the last line."""
        self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        rate = self._done / max(self._last - self._begin, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        print(
            f"{self._label}: {self._done}/{self._total} {self.unit}, {rate:.4g} {self.unit}/s, "
            f"{left:.0f} s left, "
            f"{_words(self._metrics)}",
            file=sys.stderr,
        )


class Bar:
    """A rich progress bar on stderr with the rate and the time left; `unit` is what is counted."""

    def __init__(self, unit: str = "tokens") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._rich = Rich(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
            TextColumn(f"{{task.fields[rate]:.4g}} {unit}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )

    def start(self, label: str, total: int) -> None:
        """Show the bar."""
        self._begin, self._done = time.monotonic(), 0
        self._task = self._rich.add_task(label, total=total, rate=0.0, metrics="")
        self._rich.start()

    def advance(self, tokens: int, metrics: dict[str, float]) -> None:
        """Move the bar."""
        self._done += tokens
        rate = self._done / max(time.monotonic() - self._begin, 1e-9)
        self._rich.update(self._task, advance=tokens, rate=rate, metrics=_words(metrics))

    def finish(self) -> None:
        """Leave the bar as it stands."""
        self._rich.stop()


def stderr_progress(unit: str = "tokens") -> Progress:
    """A bar when stderr is a terminal and rich is installed, lines otherwise; `unit` is what is counted."""
    if not sys.stderr.isatty():
        return Lines(unit)
    try:
        return Bar(unit)
    except ImportError:
        return Lines(unit)


def _words(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items())


class Metrics:
    """One JSON object per optimiser step in ``metrics.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, stage: int, step: int) -> None:
        """Drop what was written after `step` of `stage`: a resumed run writes it again."""
        if not self.path.is_file():
            return
        kept = [
            line for line in self.path.read_text(encoding="utf-8").splitlines() if _before(line, stage, step)
        ]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def final(self, stage: int, steps: int) -> dict[str, float]:
        """Each loss of a finished stage, averaged over its last tenth."""
        rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        last = [row for row in rows if row["stage"] == stage and row["step"] > steps - max(1, steps // 10)]
        names = [name for name in ("loss", "kl", "ce") if last and name in last[0]]
        return {name: sum(row[name] for row in last) / len(last) for name in names}

    def write(self, row: dict[str, Any]) -> None:
        """Append one object."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _before(line: str, stage: int, step: int) -> bool:
    try:
        row = json.loads(line)
        return (int(row["stage"]), int(row["step"])) <= (stage, step)
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be cut
        return False

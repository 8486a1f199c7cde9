"""Which model types of transformers can be linearized: measured on tiny random models, each guarded."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lineahead.recipes.files import write_text

Status = Literal["exact", "inexact", "refused", "failed"]

BOUND = 1e-4
TIMEOUT_S = 60.0
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured for one model type.

    Attributes:
        model_type: transformers' name.
        status: ``exact``: chunks with the constant-size cache give the full pass's logits, and greedy text is
            the same with and without cache; ``inexact``: they do not; ``refused``: `linearize` says why;
            ``failed``: no tiny model of this type could be made and run.
        error: largest difference of the logits, where measured.
        layers: converted layers.
        reason: why it is not exact.
        seconds: time it took.
    """

    model_type: str
    status: Status
    error: float | None = None
    layers: int = 0
    reason: str = ""
    seconds: float = 0.0


Progress = Callable[[Row, int, int], None]


def model_types() -> list[str]:
    """All causal language model types of the installed transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def measure_architectures(
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    workers: int = WORKERS,
    timeout_s: float = TIMEOUT_S,
) -> list[Row]:
    """Measure model types.

    Args:
        names: model types; all when None.
        progress: called with each finished row, the number of finished rows, and the total.
        workers: processes at a time, one thread each.
        timeout_s: a type that takes longer counts as failed.

    Returns:
        One row per name, in alphabetical order.
    """
    wanted = sorted(model_types() if names is None else names)
    rows: list[Row] = []
    for row in _run(wanted, max(1, min(workers, len(wanted))), timeout_s):
        rows.append(row)
        if progress is not None:
            progress(row, len(rows), len(wanted))
    return sorted(rows, key=lambda row: row.model_type)


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write measured rows with the versions that they hold for.

    Raises:
        StorageError: when the file cannot be written.
    """
    data = {**versions(), "rows": [asdict(row) for row in rows]}
    write_text(path, json.dumps(data, indent=1) + "\n")


def load_rows(path: Path) -> list[Row] | None:
    """Rows that :func:`save_rows` wrote under the same versions; None when there are none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if {key: data[key] for key in versions()} != versions():
            return None
        return [Row(**row) for row in data["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def versions() -> dict[str, str]:
    """The versions that a measurement depends on."""
    return {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}


@dataclass(kw_only=True)
class _Worker:
    """A process that measures one type after another, and what it is doing."""

    process: Any
    pipe: Connection
    name: str | None = None
    since: float = 0.0

    @classmethod
    def start(cls) -> "_Worker":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return cls(process=process, pipe=ours)

    def give(self, name: str) -> None:
        self.name, self.since = name, time.monotonic()
        self.pipe.send(name)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _run(names: list[str], count: int, timeout_s: float) -> Iterator[Row]:
    todo, pool = list(reversed(names)), [_Worker.start() for _ in range(count)]
    for worker in pool:
        worker.pipe.recv()  # ready: imports are done and do not count
    try:
        while todo or any(worker.name for worker in pool):
            for worker in pool:
                if worker.name is None and todo:
                    worker.give(todo.pop())
            busy = [worker for worker in pool if worker.name is not None]
            wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                row = _answer(worker, timeout_s)
                if row is None:
                    continue
                worker.name = None
                yield row
                if not worker.process.is_alive() and todo:
                    pool[pool.index(worker)] = fresh = _Worker.start()
                    fresh.pipe.recv()
    finally:
        for worker in pool:
            worker.stop()


def _answer(worker: _Worker, timeout_s: float) -> Row | None:
    """The row that the worker has finished, or has failed to; None while it is at work."""
    name, spent = str(worker.name), time.monotonic() - worker.since
    try:
        if worker.pipe.poll():
            return Row(**worker.pipe.recv())
    except EOFError:
        worker.stop()
        return Row(model_type=name, status="failed", reason="the process died (memory)", seconds=spent)
    if spent > timeout_s:
        worker.stop()
        return Row(model_type=name, status="failed", reason=f"took over {timeout_s:.0f} s", seconds=spent)
    return None


def _serve(pipe: Connection) -> None:
    """Body of a worker process."""
    from lineahead.convert.tiny_models import limit_memory, measure

    torch.set_num_threads(1)
    limit_memory()
    pipe.send("ready")
    while True:
        name = pipe.recv()
        start = time.monotonic()
        found = measure(name, BOUND)
        pipe.send({"model_type": name, "seconds": time.monotonic() - start, **found})

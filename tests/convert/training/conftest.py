"""Programs in processes of their own, forked from one that has imported what they all need."""

import functools
import multiprocessing
import runpy
import socket
import time
from types import SimpleNamespace

import pytest
import torch

# A process that imports these is busy for 8 s before it does anything.
IMPORTED = ["lineahead.convert.pipeline", "lineahead.recipes.load", "accelerate", "peft"]
ENTER = """
import os, sys
log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.dup2(log, 1), os.dup2(log, 2)
os.environ.update(ENVIRONMENT)
sys.argv = ARGUMENTS
"""


def torchrun(rank, processes, port):
    """What torchrun tells a process of one machine."""
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(value) for name, value in said.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture
def captured(monkeypatch):
    """torch.compile captures and differentiates as ever, but makes no C++ of it, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def fork(tmp_path):
    """Run a program in one process, or in several as torchrun would; exit codes and what they wrote.

    They come from a server that has done the imports and nothing else: it has no thread, and what a program
    sets or breaks stays in its process.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)

    def run(program, *arguments, processes=1, environment=None, timeout=300):
        script, log = tmp_path / "program.py", tmp_path / "program.log"
        script.write_text(ENTER + program, encoding="utf-8")
        log.write_bytes(b"")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(processes):
            told = torchrun(rank, processes, port) if processes > 1 else {}
            given = {
                "LOG": str(log),
                "ARGUMENTS": [str(script), *map(str, arguments)],
                "ENVIRONMENT": {"OMP_NUM_THREADS": "1", **told, **(environment or {})},
            }
            process = server.Process(target=runpy.run_path, args=(str(script), given, "__main__"))
            process.start()
            started.append(process)
        end = time.monotonic() + timeout
        for process in started:
            process.join(max(0, end - time.monotonic()))
            if process.exitcode is None:
                process.kill()
        written = log.read_text(encoding="utf-8")
        return SimpleNamespace(exits=[process.exitcode for process in started], written=written)

    return run

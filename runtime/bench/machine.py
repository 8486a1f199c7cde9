"""What a measurement ran on, and the memory that it took."""

import platform
import re
from pathlib import Path

from lineahead.errors import InputError


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_megabytes(process: int) -> float:
    """Resident memory of a process and its children, in MB (Linux).

    Raises:
        InputError: when there is no such process.
    """
    total, waiting = 0, [process]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        status = _content(folder / "status")
        if not status and folder.name == str(process):
            raise InputError(f"no process {process}", hint="Give --pid the server's.")
        total += sum(map(int, re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)))
        for task in folder.glob("task/*/children"):
            waiting += map(int, _content(task).split())
    return total * 1024 / 1e6


def _content(path: Path) -> str:
    """A file's text; empty when its process or thread has just ended."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""

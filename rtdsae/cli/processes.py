"""Verbs as processes of their own, for the verbs that run others."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["end", "running"]


@contextlib.contextmanager
def running(arguments: Sequence[object], log: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A verb, for as long as the block lasts; what it says goes to the log, or else to where this program's goes."""
    command = [sys.executable, "-m", "rtdsae", *map(str, arguments)]
    with log.open("wb") if log else contextlib.nullcontext() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process by SIGTERM, and one that does not hear it by SIGKILL."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

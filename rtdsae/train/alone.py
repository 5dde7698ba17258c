"""A folder that one program at a time works in."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rtdsae.errors import TrainingError

__all__ = ["alone"]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Has the folder for this program, until the block or the program ends.

    A folder that is not there, or cannot be locked, as on some network file systems, is anybody's.

    Raises:
        TrainingError: another program has it.
    """
    if sys.platform == "win32" or not folder.is_dir():
        yield
        return
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise TrainingError(f"{folder} is in use by another training or search: wait for its end, or end it") from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(held)

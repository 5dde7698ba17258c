"""Arrays that may be larger than memory: the large ones are on disk, in files without a name, mapped."""

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from rtdsae.errors import RecordingError

if TYPE_CHECKING:
    import h5py

__all__ = ["LARGE", "blocks", "copied", "whole", "zeros"]

LARGE = 1 << 28  # bytes: larger arrays are on disk


def zeros(shape: tuple[int, ...], dtype: DTypeLike, what: str) -> np.ndarray:
    """An array of zeros, in memory or, where it is large, on disk; its file is gone with it.

    Args:
        shape: as of NumPy's.
        dtype: likewise.
        what: what needs the room, for the error.

    Raises:
        RecordingError: there is no room on disk.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= LARGE:
        return np.zeros(shape, dtype)
    chosen = _folder()
    with tempfile.TemporaryFile(prefix="rtdsae-", dir=chosen) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would end the program, later
        except OSError as error:
            raise RecordingError(
                f"{what} needs {size / 1e9:.1f} GB in {chosen} ({error.strerror}): set TMPDIR to a folder with room"
            ) from None
        return np.memmap(file, dtype, "r+", shape=shape)


def copied(values: "np.ndarray | h5py.Dataset", dtype: DTypeLike, what: str) -> np.ndarray:
    """The same values as an array of some type, in memory or on disk as `zeros`; some rows at a time.

    Raises:
        RecordingError: there is no room on disk.
    """
    array = zeros(values.shape, dtype, what)
    for rows in blocks(values):
        array[rows] = values[rows]
    return array


def blocks(values: "np.ndarray | h5py.Dataset") -> Iterator[slice]:
    """Rows of an array that may be large, so many at a time as memory has room for in any case."""
    size = max(1, LARGE // 16 * len(values) // values.nbytes)
    return (slice(first, first + size) for first in range(0, len(values), size))


def whole(values: np.ndarray) -> bool:
    """Whether all are whole numbers."""
    return values.dtype.kind in "iu" or all(bool((np.rint(values[b]) == values[b]).all()) for b in blocks(values))


def _folder() -> str:
    """The folder for temporary files: TMPDIR, else /var/tmp, since /tmp is in memory itself on many systems."""
    usual = tempfile.gettempdir()
    on_disk = "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK)
    return "/var/tmp" if usual == "/tmp" and on_disk else usual

"""Load and save: which reader a file needs is read from its content, never from its name."""

import os
from collections.abc import Callable
from pathlib import Path

from rtdsae.errors import RecordingError
from rtdsae.recordings import hdf5, npz
from rtdsae.recordings.recording import Recording

__all__ = ["load", "save"]


def load(path: str | Path, bin_width_s: float | None = None) -> Recording:
    """Read a recording: rtdsae's own HDF5, the lfads-torch HDF5 layout, or npz with the same names.

    Args:
        path: the file.
        bin_width_s: width of a bin in seconds, for a file that does not say it (lfads-torch files do not).

    Raises:
        RecordingError: no such file, truncated, of no known layout, or impossible content; the line names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"{path}: no such file")
    reader = _reader(path)
    recording = reader(path, bin_width_s)
    if bin_width_s is not None and recording.bin_width_s != bin_width_s:
        raise RecordingError(f"{path}: its bins are {recording.bin_width_s} s wide, {bin_width_s} s was asked for")
    return recording


def save(recording: Recording, path: str | Path) -> None:
    """Write a recording in rtdsae's own HDF5 form, or as npz where the path ends so; whole or not at all.

    Raises:
        RecordingError: when the file cannot be written.
    """
    path = Path(path)
    write = npz.write if path.suffix == ".npz" else hdf5.write
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(recording, beside)
        beside.replace(path)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _reader(path: Path) -> Callable[[Path, float | None], Recording]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from None
    if start == hdf5.SIGNATURE:
        return hdf5.read
    if start[:4] == npz.SIGNATURE:
        return npz.read
    raise RecordingError(f"{path}: neither HDF5 nor npz: a recording is one of these")

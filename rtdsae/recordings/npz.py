"""Recordings as npz: one array for each part, under the Recording's own names."""

from pathlib import Path

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.recording import Recording, from_fields, take_width

__all__ = ["SIGNATURE", "read", "write"]

SIGNATURE = b"PK\x03\x04"


def read(path: Path, bin_width_s: float | None = None) -> Recording:
    """Read a recording from npz; nothing in it is unpickled.

    Args:
        path: the file.
        bin_width_s: used where the file does not say.

    Raises:
        RecordingError: truncated, pickled, of other keys, or impossible content.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen unrelated types for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecordingError(f"{path}: not a readable npz: {reason}") from None
    return from_fields(take_width(fields, bin_width_s), str(path))


def write(recording: Recording, path: Path) -> None:
    """Write a recording as npz.

    Args:
        recording: what to write.
        path: the file; any suffix.

    Raises:
        OSError: when it cannot be written.
    """
    with path.open("wb") as file:
        np.savez_compressed(file, **recording.fields())

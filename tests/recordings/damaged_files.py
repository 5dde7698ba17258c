"""What may become of a damaged file: it is read, or refused in one line."""

from pathlib import Path

from rtdsae.errors import RecordingError
from rtdsae.recordings import Recording, load


def read_or_refused_in_one_line(path: Path, bin_width: float | None = None) -> bool:
    """Whether loading it gives a recording or one clear line; any other exception passes through."""
    try:
        return isinstance(load(path, bin_width), Recording)
    except RecordingError as error:
        return "\n" not in str(error)

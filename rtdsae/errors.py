"""Everything that rtdsae raises on purpose.

    RtdsaeError
    ├── ConfigError      a config file, an override or a flag is wrong
    ├── RecordingError   a recording cannot be read, or its content is impossible
    ├── BinError         a stream's samples cannot be binned as asked
    ├── BundleError      a bundle is altered, truncated, newer, or not one
    ├── WireError        a message is not of the wire format
    ├── StreamError      an LSL stream is missing, ambiguous, or not what the model needs
    ├── EndpointError    a ZeroMQ endpoint cannot be bound or reached
    ├── ControlError     a control request is not one, or was refused
    ├── TrainingError    a run cannot start, go on or be resumed
    └── ExportError      a model cannot become a bundle

A message is one line that says what is wrong, where, and how to mend it: the command line prints it as it is and exits
with 2.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BinError",
    "BundleError",
    "ConfigError",
    "ControlError",
    "EndpointError",
    "ExportError",
    "RecordingError",
    "RtdsaeError",
    "StreamError",
    "TrainingError",
    "WireError",
    "did_you_mean",
    "one_line",
]

MAX_LINE = 300  # characters


class RtdsaeError(Exception):
    """Base of all errors that a user can mend; `str()` of it is one line."""


class ConfigError(RtdsaeError):
    """A config file, an override or a flag is wrong."""


class RecordingError(RtdsaeError):
    """A recording cannot be read, or what it holds is impossible."""


class BinError(RtdsaeError):
    """A stream's samples cannot be binned as asked."""


class BundleError(RtdsaeError):
    """A bundle is altered, truncated, of a newer format, or not a bundle."""


class WireError(RtdsaeError):
    """A message is not of the wire format."""


class StreamError(RtdsaeError):
    """An LSL stream is missing, ambiguous, or not what the model needs."""


class EndpointError(RtdsaeError):
    """A ZeroMQ endpoint cannot be bound or reached."""


class ControlError(RtdsaeError):
    """A control request is not one, or the daemon refused it."""


class TrainingError(RtdsaeError):
    """A training run cannot start, go on or be resumed."""


class ExportError(RtdsaeError):
    """A trained model cannot become a bundle."""


def one_line(said: object) -> str:
    """Another program's words as part of a message: printable, on one line, and not without end."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(said)[: 2 * MAX_LINE].split()))
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or nothing where none is near."""
    near = difflib.get_close_matches(given, known, 1)
    return f"; did you mean `{near[0]}`?" if near else ""

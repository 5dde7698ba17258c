"""What `rtdsae record` stored, as a recording: the day's stream is tomorrow's training set.

The daemon's input in bins is the published array `counts`; everything else in the file is the model's output, and none
of it is taken as behaviour. Bins that were a gap, and holes between bins, cut the segments.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.binning import compact
from rtdsae.recordings.hdf5 import opened, values
from rtdsae.recordings.recording import Recording
from rtdsae.recordings.segments import runs
from rtdsae.wire import Flags

if TYPE_CHECKING:
    import h5py

__all__ = ["read", "recognises"]


def recognises(file: "h5py.File") -> bool:
    """Whether an HDF5 file is one of `rtdsae record`."""
    return "endpoint" in file.attrs and "status" in file


def read(path: Path, bin_width_s: float | None = None) -> Recording:
    """Read a recording from what was recorded of a daemon.

    Args:
        path: the file.
        bin_width_s: not needed: the file says it.

    Raises:
        RecordingError: damaged, without `counts`, or of models with other channels or bins.
    """
    with opened(path) as file:
        parts = [file[name] for name in sorted(file) if name.startswith("part") and len(file[name]["seq"])]
        if not parts:
            raise RecordingError("nothing was recorded")
        if lacking := [part.name.strip("/") for part in parts if "arrays/counts" not in part]:
            raise RecordingError(
                f"{lacking[0]} holds no counts: record a daemon that publishes them: "
                "rtdsae serve BUNDLE --publish counts,factors,behaviour"
            )
        kinds = {(_width(part), _labels(part)) for part in parts}
        if len(kinds) > 1:
            raise RecordingError("it changed to a model with other channels or another bin width: record them apart")
        ((width, labels),) = kinds
        counts = np.concatenate([values(part["arrays/counts"]) for part in parts])
        bins = np.concatenate([values(part["bin"]) for part in parts]).astype(np.int64)
        observed = np.concatenate([values(part["flags"]) & Flags.GAP == 0 for part in parts])
        run = np.repeat([int(part.attrs["run"]) for part in parts], [len(part["bin"]) for part in parts])
    if not observed.any():
        raise RecordingError("every bin of it is a gap")
    counts[~observed] = 0
    return Recording(
        counts=compact(counts),
        bin_width_s=width,
        channels=labels,
        segments=_segments(bins, run, observed),
        session=path.stem,
    )


def _segments(bins: np.ndarray, run: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Stretches of observed bins that follow one another in one run of the daemon."""
    breaks = np.flatnonzero((np.diff(bins) != 1) | (np.diff(run) != 0)) + 1
    pieces = np.split(observed, breaks)
    return np.concatenate([first + runs(piece) for first, piece in zip([0, *breaks], pieces, strict=True)])


def _width(part: "h5py.Group") -> float:
    return float(part.attrs["bin_width_s"])


def _labels(part: "h5py.Group") -> tuple[str, ...]:
    labels = part["arrays/counts"].attrs.get("labels")
    if labels is None:  # more than an attribute holds
        arrays = json.loads(part.attrs["schema"])["arrays"]
        return tuple(next(array["labels"] for array in arrays if array["name"] == "counts"))
    return () if not np.shape(labels) else tuple(str(label) for label in labels)

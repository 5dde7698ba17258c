"""The same recording in wider bins."""

import dataclasses
import logging
from typing import Any

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.binning import compact
from rtdsae.recordings.recording import Recording
from rtdsae.recordings.segments import lengths_of

__all__ = ["rebin"]

log = logging.getLogger(__name__)

BLOCK = 10_000  # bins at a time
TOLERANCE = 1e-3  # of a bin: as far as a width may be from a whole multiple, as in `bins.input_kind`


def rebin(recording: Recording, bin_width_s: float) -> Recording:
    """A recording whose bins are each k of the old: counts added up, all else averaged.

    Bins are taken together from the beginning of each segment; what does not fill the last, and what is outside all
    segments, is left out.

    Raises:
        RecordingError: the width is no whole multiple of the recording's, or no segment holds one such bin.
    """
    ratio = bin_width_s / recording.bin_width_s
    k = round(ratio)
    if k < 1 or abs(ratio - k) > TOLERANCE:
        raise RecordingError(
            f"its bins are {recording.bin_width_s:g} s wide, {bin_width_s:g} s was asked for: no whole multiple"
        )
    lengths = lengths_of(recording.segments) // k
    if not lengths.any():
        raise RecordingError(f"no segment is as long as one bin of {bin_width_s:g} s")
    before, used = int(lengths_of(recording.segments).sum()), k * int(lengths.sum())
    if used < before:
        log.info("%d of %d bins do not fill a wider one at the end of their segment: left out", before - used, before)
    kept = np.flatnonzero(lengths)
    spans = [(int(recording.segments[i, 0]), int(lengths[i])) for i in kept]
    index = np.concatenate([first + np.arange(k * n) for first, n in spans])

    def gathered(series: np.ndarray) -> np.ndarray:
        return series[index].reshape(-1, k, series.shape[1])

    stops = np.cumsum(lengths[kept])
    parts: dict[str, Any] = {"segments": np.stack([stops - lengths[kept], stops], axis=1), "bin_width_s": bin_width_s}
    parts["counts"] = compact(np.concatenate([added(recording.counts[a : a + k * n], k) for a, n in spans]))
    for name in ("behaviour", "external", "true_rates"):
        if (series := getattr(recording, name)) is not None:
            parts[name] = gathered(series).mean(axis=1)
    for name in ("conditions", "splits", "labels"):
        if (known := getattr(recording, name)) is not None:
            parts[name] = known[kept]
    return dataclasses.replace(recording, **parts)


def added(counts: np.ndarray, k: int) -> np.ndarray:
    """Counts of k bins added up, `(T / k, C)`; hours of a thousand channels, whose type is not made larger at once."""
    blocks = [counts[a : a + k * BLOCK].reshape(-1, k, counts.shape[1]) for a in range(0, len(counts), k * BLOCK)]
    return np.concatenate([compact(block.sum(axis=1)) for block in blocks])

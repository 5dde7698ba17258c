"""Segments of bins: runs of what is there, trials as bins, and trials cut where something is missing."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from rtdsae.bins.grid import nanoseconds, width_ns
from rtdsae.errors import BinError, RecordingError

__all__ = ["SAY_WIDTH", "checked_width", "cut", "lengths_of", "longest_each", "runs", "scraps", "whole_bins"]

SCRAP = 10  # times shorter than the mean
SAY_WIDTH = "say it with --bin-width SECONDS, or to train with --set data.bin_width_s=SECONDS"  # of a file's bins


def lengths_of(segments: np.ndarray) -> np.ndarray:
    """How many bins each of the segments, `(n, 2)`, has: `(n,)`."""
    return segments[:, 1] - segments[:, 0]


def runs(usable: np.ndarray) -> np.ndarray:
    """First and one-past-last bin of each stretch in which `usable`, `(T,)`, is true: `(n, 2)`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], usable, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)


def cut(segments: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of segments where some bins cannot be used.

    Args:
        segments: `(n, 2)`, in order.
        usable: `(T,)` true for bins that can be.

    Returns:
        The pieces, `(m, 2)`, and which segment each was a part of, `(m,)`.
    """
    pieces, sources = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for i, (start, stop) in enumerate(segments.tolist()):
        found = start + runs(usable[start:stop])
        pieces.append(found)
        sources.append(np.full(len(found), i))
    return np.concatenate(pieces), np.concatenate(sources)


def longest_each(pieces: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Which pieces are the longest of what `cut` left of their segment, `(m,)`: a trial in two is no two trials."""
    order = np.lexsort((pieces[:, 0] - pieces[:, 1], sources))
    kept = np.zeros(len(pieces), bool)
    kept[order[np.unique(sources[order], return_index=True)[1]]] = True
    return kept


def scraps(lengths: np.ndarray) -> np.ndarray:
    """Which segments, by their lengths `(n,)`, are no trials and no stretches, but what a gap left over."""
    return SCRAP * lengths < lengths.mean()


def whole_bins(intervals: np.ndarray, origin_s: float, bin_width_s: float, n_bins: int) -> np.ndarray:
    """The bins whose middle lies in each interval, `(n, 2)`: equally long intervals have equally many bins.

    Args:
        intervals: beginnings and ends in seconds, `(n, 2)`.
        origin_s: beginning of bin 0.
        bin_width_s: seconds.
        n_bins: how many bins there are; what lies outside is cut off.
    """
    width = checked_width(bin_width_s)
    (origin,) = nanoseconds(np.array([origin_s]))

    def first_after(times: np.ndarray) -> Sequence[int]:
        twice = 2 * width.numerator
        return [-((width.numerator - 2 * (t - origin) * width.denominator) // twice) for t in nanoseconds(times)]

    bins = np.stack([np.clip(first_after(column), 0, n_bins) for column in intervals.T], axis=1)
    return bins.astype(np.int64)


def checked_width(bin_width_s: float) -> Fraction:
    """A bin width in nanoseconds, exactly, as `bins` counts it.

    Raises:
        RecordingError: it is not between 0.1 ms and 10 s.
    """
    try:
        return width_ns(bin_width_s)
    except BinError as error:
        raise RecordingError(str(error)) from None

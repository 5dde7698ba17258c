"""Behaviour onto bins: a series with stamps of its own becomes one value a bin."""

import logging
from typing import Any, NamedTuple

import numpy as np

from rtdsae.bins.grid import MAX_STAMP
from rtdsae.recordings.segments import cut, lengths_of, longest_each

__all__ = ["Series", "attach", "axis_labels", "onto_bins"]

log = logging.getLogger(__name__)

BRIDGED_S = 0.1  # between two samples; further apart, what was between them is not known
BRIDGED_PERIODS = 3  # of the series, where those are longer


class Series(NamedTuple):
    """What a subject did: `values` (n, K) at `stamps` (n,) seconds, K `labels`, and a `name` for people."""

    name: str
    labels: tuple[str, ...]
    values: np.ndarray
    stamps: np.ndarray


def axis_labels(name: str, n: int) -> tuple[str, ...]:
    """Labels for the columns of a series that names none: x and y, x, y and z, or numbers."""
    if n == 1:
        return (name,)
    return tuple(f"{name}_{axis}" for axis in ("xyz" if n <= 3 else range(n)))[:n]


def onto_bins(series: Series, t_end: np.ndarray, bin_width_s: float) -> np.ndarray:
    """The mean of the samples in each bin, `(T, K)`.

    A bin without samples takes the straight line between its neighbours, where these are no further apart than 0.1 s
    or three of the series' periods; else it is NaN. A sample that is stamped with a bin's end belongs to that bin.

    Args:
        series: the samples, in any order; those that are not finite are passed over.
        t_end: ends of the bins, `(T,)` seconds, rising within a segment.
        bin_width_s: their width.
    """
    ends = _nanoseconds(t_end)
    columns = [_column(series.stamps, column, ends, round(bin_width_s * 1e9)) for column in series.values.T]
    return np.stack(columns, axis=1)


def _column(stamps: np.ndarray, values: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    good = np.isfinite(values) & (np.abs(stamps) < MAX_STAMP)
    if not good.any():
        return np.full(len(ends), np.nan)
    times, values = _nanoseconds(stamps[good]), values[good].astype(np.float64)
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    first, last = (np.searchsorted(times, edge, side="right") for edge in (ends - width, ends))
    centre = values.mean()  # near which sums lose fewest digits
    sums = np.concatenate([[0.0], np.cumsum(values - centre)])
    there = last > first
    means = np.full(len(ends), np.nan)
    means[there] = (sums[last] - sums[first])[there] / (last - first)[there] + centre
    return np.where(there, means, _between(times, values, ends - width // 2, first))


def _between(times: np.ndarray, values: np.ndarray, middles: np.ndarray, after: np.ndarray) -> np.ndarray:
    """In the middle of each bin, the straight line between the samples around it; NaN where none is drawn."""
    before, after = np.clip(after - 1, 0, None), np.clip(after, None, len(times) - 1)
    apart = times[after] - times[before]
    period = np.median(np.diff(times)) if len(times) > 1 else 0
    known = (apart > 0) & (apart <= max(BRIDGED_S * 1e9, BRIDGED_PERIODS * period))
    return np.where(known, np.interp(middles, times, values), np.nan)


def attach(parts: dict[str, Any], name: str, labels: tuple[str, ...], values: np.ndarray) -> None:
    """Gives a recording's parts their behaviour, and leaves out of the segments the bins in which it is not known.

    Args:
        parts: with `segments`, and what else is known of each segment; changed in place.
        name: of the behaviour, for people.
        labels: of its columns.
        values: `(T, K)`, NaN where it is not known.
    """
    known = np.isfinite(values).all(axis=1)
    segments, sources = cut(parts["segments"], known)
    if parts.get("conditions") is not None:
        kept = longest_each(segments, sources)
        segments, sources = segments[kept], sources[kept]
    before, after = (int(lengths_of(s).sum()) for s in (parts["segments"], segments))
    if not after:
        log.warning("behaviour %s is not known in any segment: left out", name)
        return
    if after < before:
        log.warning("behaviour %s is not known in %d of %d bins: cut out of the segments", name, before - after, before)
    delays = segments[:, 0] - parts["segments"][sources, 0]
    if parts.get("conditions") is not None and (late := delays > delays.min()).any():
        log.warning(
            "%d of %d trials now begin later than the others, for want of behaviour %s, and trials of a condition are "
            "averaged from their beginnings: let all begin where it is known, or convert with --behaviour none",
            late.sum(),
            len(late),
            name,
        )
    for part in ("conditions", "splits"):
        if parts.get(part) is not None:
            parts[part] = np.asarray(parts[part])[sources]
    filled = np.array(values, np.float64)
    for column in filled.T:  # outside the segments a bin belongs to nothing: the straight line between known ones
        column[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), column[known])
    parts |= {"segments": segments, "behaviour": filled, "behaviour_labels": labels}


def _nanoseconds(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1e9).astype(np.int64)

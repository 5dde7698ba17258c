"""NWB: sorted units in bins, trials as segments, and a behaviour series onto the bins.

    /units                       spike_times; heldout (NLB's co-smoothing); obs_intervals: what was recorded at all
    /intervals/trials            start_time, stop_time; split (train, val, test; trials of NLB's none are left out)
    /processing/*, /acquisition  TimeSeries and SpatialSeries: the behaviour

The file is read by h5py alone: NWB is HDF5, and these names stand since NWB 2.0. Bins begin with the first trial or
spike; a bin is in the trial that its middle is in, so that trials of one length have equally many bins.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtdsae.bins.grid import MAX_STAMP
from rtdsae.errors import RecordingError
from rtdsae.recordings.behaviour import Series, attach, axis_labels, onto_bins
from rtdsae.recordings.binning import count_spikes, needed_width
from rtdsae.recordings.checks import listed
from rtdsae.recordings.hdf5 import opened, values
from rtdsae.recordings.original import Original
from rtdsae.recordings.recording import Recording
from rtdsae.recordings.segments import cut, lengths_of, longest_each, whole_bins

if TYPE_CHECKING:
    import h5py

__all__ = ["original", "read", "recognises"]

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
CONDITIONS = (
    "condition",
    "conditions",
    "condition_id",
    "cond_id",
    "cond",
    "target_direction",
    "target_dir",
    "cond_dir",
)
SERIES = ("TimeSeries", "SpatialSeries")
LISTED = 3  # stretches in a line; more are counted
MAX_COLUMNS = 64  # of a behaviour; a wider series is something else


class _Units(NamedTuple):
    """`times`: seconds, of each unit; `observed`: intervals (n, 2), of each unit, where the file has them."""

    labels: tuple[str, ...]
    times: list[np.ndarray]
    heldout: np.ndarray | None
    observed: list[np.ndarray] | None


class _Trials(NamedTuple):
    """`spans`: beginnings and ends in seconds (n, 2), in order; `splits` and `conditions` (n,) where they are known."""

    spans: np.ndarray
    splits: np.ndarray | None
    conditions: np.ndarray | None


def recognises(file: "h5py.File") -> bool:
    """Whether an HDF5 file is NWB."""
    return "nwb_version" in file.attrs


def read(
    path: Path, bin_width_s: float | None = None, *, behaviour: str | None = None, condition: str | None = None
) -> Recording:
    """Read a recording from NWB.

    Args:
        path: the file.
        bin_width_s: of a bin; NWB has spike times, so somebody must say it.
        behaviour: which series, by its name or path; `none` for none; None for the one that is there.
        condition: the trials' column that tells conditions apart, or several with commas; `none` for none; None for
            one whose name says so.

    Raises:
        RecordingError: damaged, without units, or without such a series or column.
    """
    width = needed_width(bin_width_s, "NWB has spike times and no bins")
    with opened(path) as file:
        units, trials = _units(file), _trials(file, condition)
        series = _behaviour(file, behaviour)
    spans = [np.ravel(trials.spans)] if trials else []
    times = np.concatenate([*spans, *(units.observed or []), *units.times], axis=None)
    times = times[np.abs(times) < MAX_STAMP]  # an interval may be without end
    if not len(times):
        raise RecordingError("no spikes")
    origin = float(times.min())
    n_bins = int((float(times.max()) - origin) / width + 1e-6)
    if trials:  # which take every bin whose middle they hold
        n_bins = max(n_bins, int((float(trials.spans.max()) - origin) / width + 0.5))
    if not n_bins:
        raise RecordingError(f"no bin of {width:g} s between the first spike and the last")
    counts = count_spikes(units.times, origin, width, n_bins)
    segments = whole_bins(trials.spans, origin, width, n_bins) if trials else np.array([[0, n_bins]])
    whole = trials is not None and trials.conditions is not None
    observed, every = _observed(units, origin, width, n_bins), segments
    segments, sources = _cut(every, observed, whole)
    _tell_unobserved(cut(every, ~observed)[0], every, origin, width)
    parts: dict[str, Any] = {"counts": counts, "segments": segments, "heldout": units.heldout}
    if trials:
        parts |= {
            name: None if known is None else known[sources]
            for name, known in (("splits", trials.splits), ("conditions", trials.conditions))
        }
    if series:
        ends = origin + width * np.arange(1, n_bins + 1)
        attach(parts, series.name, series.labels, onto_bins(series, ends, width))
    return Recording(bin_width_s=width, channels=units.labels, session=path.stem, **parts)


def original(path: Path) -> Original:
    """The spikes of all units as one stream.

    Raises:
        RecordingError: damaged, or without units.
    """
    with opened(path) as file:
        units = _units(file)
    return Original.of_spikes(path.stem, units.labels, units.times, units.heldout)


def _units(file: "h5py.File") -> _Units:
    table = file.get("units")
    if table is None or "spike_times" not in table or "spike_times_index" not in table:
        found = ", ".join(sorted(file)) if table is None else ", ".join(sorted(table))
        raise RecordingError(f"no units with spike times: found {found}")
    times = _ragged(table, "spike_times")
    if not times:
        raise RecordingError("the table of units is empty")
    kept = [t[np.isfinite(t) & (np.abs(t) < MAX_STAMP)].astype(np.float64) for t in times]
    if lost := sum(map(len, times)) - sum(map(len, kept)):
        log.warning("%d spike times are no times: left out", lost)
    ids = values(table["id"]) if "id" in table else np.arange(len(times))
    heldout = _flags(values(table["heldout"])) if "heldout" in table else None
    if heldout is not None and not heldout.any():
        heldout = None
    observed = _ragged(table, "obs_intervals") if "obs_intervals_index" in table else None
    if observed and observed[0].shape[1:] != (2,):
        raise RecordingError("obs_intervals has no beginning and end in each row: the file is damaged")
    return _Units(tuple(f"unit{i}" for i in ids), kept, heldout, observed)


def _flags(column: np.ndarray) -> np.ndarray:
    """Which units are held out, be it written as text: `False`, a text that is not empty, is false."""
    found = [FLAGS.get(str(value).strip().lower()) for value in column.tolist()]
    if None in found:
        wrong = column[found.index(None)]
        raise RecordingError(f"units' column heldout holds {wrong!r}: write true or false, or 1 or 0, for each unit")
    return np.array(found, bool)


def _ragged(table: "h5py.Group", name: str) -> list[np.ndarray]:
    """A column of NWB whose rows have any length: where each ends is in its index."""
    column, ends = values(table[name]), values(table[f"{name}_index"]).astype(np.int64)
    if (np.diff(ends, prepend=0) < 0).any() or (len(ends) and ends[-1] > len(column)):
        raise RecordingError(f"the index of {name} does not fit it: the file is damaged")
    return np.split(column, ends)[: len(ends)]


def _observed(units: _Units, origin: float, width: float, n_bins: int) -> np.ndarray:
    """Which bins were recorded, of most units at least: `(n_bins,)`."""
    if not units.observed:
        return np.ones(n_bins, bool)
    alike: dict[bytes, tuple[np.ndarray, list[int]]] = {}  # units mostly share their intervals
    for unit, spans in enumerate(units.observed):
        alike.setdefault(spans.tobytes(), (spans.reshape(-1, 2), []))[1].append(unit)
    recorded = np.zeros(n_bins)
    masks = []
    for spans, members in alike.values():
        edges = np.zeros(n_bins + 1, np.int64)
        spans = np.clip(spans[~np.isnan(spans).any(axis=1)], origin, origin + n_bins * width)
        first, stop = whole_bins(spans, origin, width, n_bins).T
        np.add.at(edges, first, 1)
        np.add.at(edges, stop, -1)
        masks.append(np.cumsum(edges[:-1]) > 0)
        recorded += len(members) * masks[-1]
    usual = recorded * 2 > len(units.observed)
    for mask, (_, members) in zip(masks, alike.values(), strict=True):
        if missing := int((usual & ~mask).sum()):
            names = ", ".join(units.labels[m] for m in members[:5]) + (", ..." if len(members) > 5 else "")
            log.warning("%s: not observed in %d bins that others are: zeros there", names, missing)
    return usual


def _cut(segments: np.ndarray, observed: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """What was observed of each segment; of a `whole` one, a trial, the longest piece."""
    pieces, sources = cut(segments, observed)
    if not len(pieces):
        raise RecordingError("no bin of a trial was observed: no trial, and no obs_interval of most units, holds one")
    if whole:
        kept = longest_each(pieces, sources)
        if left := lengths_of(pieces[~kept]).sum():
            log.warning("of trials in pieces the longest is kept: %d bins of shorter ones are left out", left)
        pieces, sources = pieces[kept], sources[kept]
    return pieces, sources


def _tell_unobserved(lost: np.ndarray, segments: np.ndarray, origin: float, width: float) -> None:
    """Says how much of the segments was not recorded, and where, in the file's own seconds."""
    if len(lost):
        where = listed([f"{start:.6g} to {stop:.6g} s" for start, stop in origin + width * lost], LISTED)
        n, of = lengths_of(lost).sum(), lengths_of(segments).sum()
        log.warning("%d of %d bins lie outside obs_intervals: cut out of the segments, at %s", n, of, where)


def _trials(file: "h5py.File", condition: str | None) -> _Trials | None:
    """The trials that a recording takes; None where the file has none."""
    table = file.get("intervals/trials")
    if table is None or not len(table.get("start_time", ())):
        if condition and condition != "none":
            raise RecordingError(f"--condition {condition}: the file has no trials")
        return None
    spans = np.stack([values(table["start_time"]), values(table["stop_time"])], axis=1).astype(np.float64)
    splits = _splits(table)
    conditions = _conditions(table, condition)
    kept = np.isfinite(spans).all(axis=1) & (np.abs(spans) < MAX_STAMP).all(axis=1) & (spans[:, 1] > spans[:, 0])
    if not kept.all():
        log.warning("%d trials have no beginning or no end: left out", (~kept).sum())
    if splits is not None:
        unused = kept & (splits == "")
        if unused.any():
            log.warning("%d of %d trials are of no split: left out", unused.sum(), len(kept))
        kept &= ~unused
    if conditions is not None and (unknown := kept & (conditions == "")).any():
        log.warning("%d trials are of no condition (NaN): left out", unknown.sum())
        kept &= ~unknown
    if not kept.any():
        raise RecordingError("no trial can be used: each is of no split or condition, or has no beginning or end")
    order = np.flatnonzero(kept)[np.argsort(spans[kept, 0], kind="stable")]
    ordered = spans[order]
    overlap = ordered[1:, 0] < ordered[:-1, 1]
    if overlap.any():
        log.warning("%d trials begin before the one before them ends: begun at its end", overlap.sum())
        ordered[1:, 0] = np.maximum(ordered[1:, 0], np.maximum.accumulate(ordered[:-1, 1]))
    inside = ordered[:, 0] >= ordered[:, 1]
    if inside.any():
        log.warning("%d trials lie inside another: left out", inside.sum())
    order, ordered = order[~inside], ordered[~inside]
    return _Trials(ordered, *(None if known is None else known[order] for known in (splits, conditions)))


def _splits(table: "h5py.Group") -> np.ndarray | None:
    """`train`, `valid`, `test` or, where it is none of these, nothing for each trial; None where they are not split."""
    if "split" not in table:
        return None
    found = [SPLITS.get(str(split).lower(), "") for split in values(table["split"])]
    return np.array(found) if any(found) else None


def _conditions(table: "h5py.Group", asked: str | None) -> np.ndarray | None:
    if asked == "none":
        return None
    named = [name for name in CONDITIONS if name in table]
    columns = asked.split(",") if asked else named[:1]
    if missing := [name for name in columns if name not in table]:
        raise RecordingError(f"trials have no column {missing[0]!r}: they have {', '.join(sorted(table))}")
    if not columns:
        return None
    if not asked:
        log.info("conditions: the trials' column %s", columns[0])
    rows = zip(*(_texts(table, column) for column in columns), strict=True)
    return np.array(["" if "nan" in row else "/".join(row) for row in rows])


def _texts(table: "h5py.Group", name: str) -> list[str]:
    """A trial column as text, a trial each; in some files a trial has several rows of it, or none."""
    if f"{name}_index_index" in table:
        raise RecordingError(f"trials' column {name!r} has lists of lists: choose another as --condition")
    if f"{name}_index" in table:
        texts = [str(rows.tolist()) for rows in _ragged(table, name)]
    else:
        texts = [f"{v:.15g}" if isinstance(v, float) else str(v) for v in values(table[name]).tolist()]
    if len(texts) != (n := len(table["start_time"])):
        raise RecordingError(f"trials' column {name!r} has {len(texts)} rows for {n} trials: the file is damaged")
    return texts


def _behaviour(file: "h5py.File", asked: str | None) -> Series | None:
    found = dict(_series(file))
    if asked == "none":
        return None
    if asked is None:
        usual = {path: group for path, group in found.items() if "behav" in path or path.startswith("acquisition")}
        taken = list(usual) if len(usual) == 1 else []
        if found and not taken:
            log.warning(
                "none of %s is taken as behaviour: choose with rtdsae convert --behaviour NAME",
                ", ".join(usual or found),
            )
    else:
        taken = [path for path in found if asked in (path, path.rpartition("/")[2])]
        if len(taken) != 1:
            said = ", ".join(found) or "none"
            raise RecordingError(f"{len(taken) or 'no'} series are called {asked!r}: there are {said}")
    if not taken:
        return None
    log.info("behaviour: %s", taken[0])
    return _read_series(taken[0].rpartition("/")[2], found[taken[0]])


def _series(file: "h5py.File") -> list[tuple[str, "h5py.Group"]]:
    """All series that could be a behaviour, by their paths."""
    import h5py

    found: list[tuple[str, h5py.Group]] = []

    def look(path: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and _text(item.attrs.get("neurodata_type", "")) in SERIES:
            data = item.get("data")
            if isinstance(data, h5py.Dataset) and data.dtype.kind in "iuf" and _columns(data) in range(1, MAX_COLUMNS):
                found.append((f"{top}/{path}", item))

    for top in ("processing", "acquisition"):
        if top in file:
            file[top].visititems(look)
    return found


def _columns(data: "h5py.Dataset") -> int:
    """How many values a sample has; 0 where it is no row of numbers."""
    return 1 if data.ndim == 1 else data.shape[1] if data.ndim == 2 else 0


def _read_series(name: str, group: "h5py.Group") -> Series:
    data = group["data"]
    rows = values(data)
    rows = rows.reshape(len(rows), -1) * float(data.attrs.get("conversion", 1)) + float(data.attrs.get("offset", 0))
    if "timestamps" in group:
        stamps = values(group["timestamps"]).astype(np.float64)
    else:
        start = group["starting_time"]
        stamps = float(start[()]) + np.arange(len(rows)) / float(start.attrs["rate"])
    if stamps.shape != (len(rows),):
        raise RecordingError(f"behaviour {name} has {len(rows)} samples and timestamps of shape {stamps.shape}")
    return Series(name, axis_labels(name, rows.shape[1]), rows, stamps)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

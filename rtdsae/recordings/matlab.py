"""MATLAB recordings: trial-data struct arrays, spike-count trials, and one matrix of counts.

trial_data     a struct array of trials: `<array>_spikes` (T, C), `<array>_unit_guide` (C, 2), `bin_size` in
               seconds, `target_direction` in radians, and behaviour (T, K): `vel`, `pos`, `acc`, `force`, ...
dat            a struct array of trials: `spikes` or `data` (C, T), `condition`, and no bin width
spikes         one matrix, beside behaviour (`handVel`, ...) or `time`, whose length says which side is time
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.behaviour import attach, axis_labels
from rtdsae.recordings.binning import compact, needed_width
from rtdsae.recordings.matfile import load
from rtdsae.recordings.recording import Recording, say_width_taken

__all__ = ["read"]

log = logging.getLogger(__name__)

COUNTS = ("spikes", "counts", "spike_counts", "data")  # names of a matrix of counts
WIDTHS = ("bin_size", "bin_width_s", "bin_width", "dt")
TIMES = ("t", "time", "times", "timestamps")
BEHAVIOUR = ("vel", "handVel", "hand_vel", "cursor_vel", "finger_vel", "velocity")  # taken where several are there
CONDITIONS = ("target_direction", "condition", "conditionId", "condition_id")
IMPLAUSIBLE_S = 0.5  # of a bin: a file that counts in milliseconds
LONGER = 10  # times as many bins as channels are told apart by that alone

Fields = Mapping[str, Any]


class _Found(NamedTuple):
    """What a file holds: of each trial its counts (T, C), its fields, and those of them that are series (T, K)."""

    counts: list[np.ndarray]
    fields: Mapping[str, list[Any]]
    series: Mapping[str, list[Any]]
    channels: tuple[str, ...] = ()


def read(
    path: Path, bin_width_s: float | None = None, *, behaviour: str | None = None, condition: str | None = None
) -> Recording:
    """Read a recording from a MATLAB file.

    Args:
        path: the file.
        bin_width_s: of its bins, where it does not say it.
        behaviour: fields or variables, several with commas; `none` for none; None for the velocity, or the only one.
        condition: the trials' field that tells conditions apart; `none` for none; None for the one whose name says so.

    Raises:
        RecordingError: damaged, of none of these layouts, or it cannot be told which side of a matrix is time.
    """
    found = _find(load(path))
    width = _width(found.fields)
    if width is None or width >= IMPLAUSIBLE_S:
        why = "the file does not say how wide its bins are"
        if width is not None:
            why = f"its bins are {width:g} wide, which are no seconds; if they are ms, it is {width / 1000:g}"
        width = needed_width(bin_width_s, why)
        say_width_taken(width)
    counts = compact(_one_after_another("counts", found.counts))
    stops = np.cumsum([len(c) for c in found.counts])
    parts: dict[str, Any] = {
        "segments": np.stack([np.r_[0, stops[:-1]], stops], axis=1),
        "conditions": _conditions(found.fields, condition),
    }
    if taken := _chosen(found.series, behaviour):
        values = {name: _one_after_another(name, found.series[name]) for name in taken}
        labels = [label for name, v in values.items() for label in axis_labels(name, v.shape[1])]
        attach(parts, ", ".join(taken), tuple(labels), np.concatenate(list(values.values()), axis=1))
    return Recording(
        counts=counts,
        bin_width_s=width,
        channels=found.channels,
        session=path.stem,
        **parts,
    )


def _one_after_another(name: str, trials: Sequence[np.ndarray]) -> np.ndarray:
    """A series of all trials, `(T, K)`."""
    columns = [trial.shape[1] for trial in trials]
    if other := next((i for i, n in enumerate(columns) if n != columns[0]), 0):
        raise RecordingError(
            f"{name} has {columns[0]} columns in the first trial and {columns[other]} in trial {other + 1}: make them "
            "equal, or leave such trials out"
        )
    return np.concatenate(trials)


def _find(variables: Fields) -> _Found:
    """The counts, wherever they are: trials with `..._spikes` first, then trials of counts, then one matrix."""
    tables: list[list[Fields]] = [v for v in variables.values() if isinstance(v, list) and v and _is_struct(v[0])]
    tables += [[v] for v in variables.values() if _is_struct(v)]
    for trials in tables:
        if names := sorted(name for name in trials[0] if name.endswith("_spikes")):
            return _trial_data(trials, names)
    for trials in tables:
        if name := _first(COUNTS, trials[0]):
            return _count_trials(trials, name) if len(trials) > 1 else _one_matrix(trials[0], name)
    if name := _first(COUNTS, variables):
        return _one_matrix(variables, name)
    found = ", ".join(variables) or "nothing"
    raise RecordingError(f"no trials with '..._spikes', and no {', '.join(COUNTS)}, in trials or alone: found {found}")


def _trial_data(trials: Sequence[Fields], names: list[str]) -> _Found:
    counts = [_side_by_side(trial, names) for trial in trials]
    fields = {name: [trial.get(name) for trial in trials] for name in trials[0]}
    guides = [name for name in fields if name.endswith("_unit_guide")]
    series = {
        name: column for name, column in fields.items() if name not in (*names, *guides) and _is_series(column, counts)
    }
    return _Found(counts, fields, series, _channels(trials[0], names))


def _side_by_side(trial: Fields, names: list[str]) -> np.ndarray:
    arrays = [_matrix(trial, name) for name in names]
    if len({len(array) for array in arrays}) > 1:
        said = ", ".join(f"{name} {len(array)}" for name, array in zip(names, arrays, strict=True))
        raise RecordingError(f"the arrays of a trial have different numbers of bins ({said}): make them equal")
    return np.concatenate(arrays, axis=1)


def _channels(trial: Fields, names: list[str]) -> tuple[str, ...]:
    """Labels from the unit guides: electrode and unit; with the array's name where there are several."""
    labels: list[str] = []
    for name in names:
        area, n = name.removesuffix("_spikes"), _matrix(trial, name).shape[1]
        guide = trial.get(f"{area}_unit_guide")
        if isinstance(guide, np.ndarray) and guide.shape == (n, 2):
            units = [f"elec{electrode:g}_unit{unit:g}" for electrode, unit in guide.tolist()]
        else:
            units = [f"ch{i}" for i in range(n)]
        labels += [f"{area}_{unit}" for unit in units] if len(names) > 1 else units
    return tuple(labels)


def _count_trials(trials: Sequence[Fields], name: str) -> _Found:
    """Trials of counts, which GPFA and DataHigh keep as (C, T): channels are the side that is equal in all trials."""
    arrays = [_matrix(trial, name) for trial in trials]
    rows, columns = ({array.shape[side] for array in arrays} for side in (0, 1))
    if len(rows) > 1 and len(columns) > 1:
        raise RecordingError(f"{name!r} of the trials have neither equally many rows nor columns: which are channels?")
    rows_are_channels = len(rows) == 1
    side = "rows" if rows_are_channels else "columns"
    why = "as GPFA and DataHigh have it" if len(rows) == len(columns) else "as many in every trial"
    log.info("%s: %s are taken as channels: %s", name, side, why)
    counts = [array.T if rows_are_channels else array for array in arrays]
    return _Found(counts, {field: [trial.get(field) for trial in trials] for field in trials[0]}, {})


def _one_matrix(variables: Fields, name: str) -> _Found:
    """One matrix of counts; the variables beside it say which side is time."""
    counts = _matrix(variables, name)
    others = {n: v for n, v in variables.items() if n != name and _is_matrix(v) and max(v.shape) > 1}
    turned, why = _time_is_second(counts.shape, others)
    side = "second" if turned else "first"
    log.info("%s is %d x %d: the %s side is taken as time: %s", name, *counts.shape, side, why)
    counts = counts.T if turned else counts
    beside = {n: v if len(v) == len(counts) else v.T for n, v in others.items() if len(counts) in v.shape}
    times = [n for n in beside if n.lower() in TIMES and beside[n].size == len(counts)]
    fields = {n: [v] for n, v in variables.items()}
    if times and _first(WIDTHS, fields) is None:
        fields["dt"] = [np.array(_step(beside[times[0]].ravel()))]
    return _Found([counts], fields, {n: [v] for n, v in beside.items() if n not in times})


def _time_is_second(shape: tuple[int, ...], others: Mapping[str, np.ndarray]) -> tuple[bool, str]:
    first, second = ([n for n, v in others.items() if side in v.shape] for side in shape)
    longer = max(shape) >= LONGER * min(shape)
    if shape[0] != shape[1] and bool(first) != bool(second):
        named = first or second
        per_channel = longer and (shape[1] > shape[0]) != bool(second)  # as many as there are channels, it seems
        if not per_channel or any(name.lower() in TIMES or name in BEHAVIOUR for name in named):
            return bool(second), f"as long as {named[0]}"
    if longer:
        return shape[1] > shape[0], "far longer than the other"
    raise RecordingError(
        f"a matrix of {shape[0]} x {shape[1]}: which side is time? Give a variable 'time', or behaviour, of its length"
    )


def _step(times: np.ndarray) -> float:
    steps = np.diff(times.astype(np.float64))
    mean = float(steps.mean())
    if not (mean > 0 and np.abs(steps - mean).max() < 0.1 * mean):
        raise RecordingError("its times are not one step apart: bins of one width are needed")
    nice = round(mean, 3)  # whole milliseconds, as far as times that were rounded can tell
    return nice if nice and abs(nice - mean) < 1e-3 * mean else mean


def _width(fields: Mapping[str, list[Any]]) -> float | None:
    """What the file says of the width of its bins."""
    said = {_number(value) for name in WIDTHS for value in fields.get(name, ())} - {None}
    if len(said) > 1:
        raise RecordingError(f"its bins are of different width: {', '.join(sorted(map(str, said)))} s")
    return next(iter(said), None)


def _chosen(series: Mapping[str, Any], asked: str | None) -> list[str]:
    if asked == "none":
        return []
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        if missing := [name for name in names if name not in series]:
            raise RecordingError(f"no behaviour {missing[0]!r}: there are {', '.join(series) or 'none'}")
        return names
    usual = _first(BEHAVIOUR, series) or (next(iter(series)) if len(series) == 1 else None)
    if usual is None:
        if series:
            log.warning(
                "none of %s is taken as behaviour: choose with rtdsae convert --behaviour NAME", ", ".join(series)
            )
        return []
    rest = ", ".join(name for name in series if name != usual)
    log.info("behaviour: %s%s", usual, f" (besides there are {rest})" if rest else "")
    return [usual]


def _conditions(fields: Mapping[str, list[Any]], asked: str | None) -> np.ndarray | None:
    if asked == "none":
        return None
    if asked is not None and asked not in fields:
        raise RecordingError(f"trials have no field {asked!r}: they have {', '.join(fields)}")
    name = asked or _first(CONDITIONS, fields)
    if name is None or len(fields[name]) < 2:
        return None
    if not asked:
        log.info("conditions: the trials' field %s", name)
    if all(isinstance(value, str) for value in fields[name]):
        return np.array(fields[name])
    numbers = [_number(value) for value in fields[name]]
    if not all(number is not None and np.isfinite(number) for number in numbers):
        raise RecordingError(f"conditions: {name} is neither one number nor a text in every trial")
    values = np.array(numbers, np.float64)
    if name == "target_direction":
        return np.round(np.degrees(values % (2 * np.pi))).astype(np.int64) % 360
    whole = (np.rint(values) == values).all() and np.abs(values).max() < 1 << 53
    return values.astype(np.int64) if whole else np.array([f"{v:.15g}" for v in values])


def _matrix(fields: Fields, name: str) -> np.ndarray:
    found = fields.get(name)
    if not isinstance(found, np.ndarray) or not _is_matrix(found) or 0 in found.shape:
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        if found is None:
            what = "sparse, complex or an object, none of which is read"
        raise RecordingError(f"{name!r} is {what}: a matrix of counts is needed, as full() makes it")
    return found


def _is_struct(value: Any) -> bool:
    return isinstance(value, dict)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "iufb"


def _is_series(column: Sequence[Any], counts: Sequence[np.ndarray]) -> bool:
    """Whether a field of the trials has a row for each bin; single numbers of trials of one bin may be anything."""
    rows = all(_is_matrix(v) and len(v) == len(c) and v.shape[1] > 0 for v, c in zip(column, counts, strict=True))
    return rows and any(len(c) > 1 for c in counts)


def _number(value: Any) -> float | None:
    known = isinstance(value, np.ndarray) and value.dtype.kind in "iufb" and value.size == 1
    return float(value.item()) if known else None


def _first(names: Sequence[str], there: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in there), None)

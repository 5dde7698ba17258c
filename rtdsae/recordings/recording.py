"""Recording: binned spike counts with what is known beside them, checked once, on the way in."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.segments import SAY_WIDTH, checked_width, lengths_of, scraps

__all__ = ["Recording"]

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
VALID_FRACTION, TEST_FRACTION = 0.15, 0.2  # of a recording that names no splits, everywhere
MIN_TRIALS = 5  # with fewer segments than this, a split by segment would leave a part empty: time is cut instead


@dataclass(frozen=True, eq=False)
class Recording:
    """Spike counts of one session in bins, cut into segments.

    Arrays are time by channel. Trials stand one after another along time, and `segments` says where each begins and
    ends; bins outside all segments are allowed and belong to nothing.

    Attributes:
        counts: spikes, `(T, C)`, an integer or float type, finite and not negative.
        bin_width_s: width of a bin in seconds.
        channels: C distinct labels; `ch0`, `ch1`, ... where none are given.
        segments: first and one-past-last bin of each trial, `(n, 2)`, in order of time, not overlapping; one segment
            over all bins where none is given.
        behaviour: what the subject did, `(T, K)`, in the labels' units.
        behaviour_labels: K distinct labels.
        conditions: which condition each segment is of, `(n,)`, integers or text.
        labels: what is known of each segment, its static factors (direction, speed, ...), `(n, L)`, kept as float64.
        label_names: L distinct labels, one for each column of `labels`.
        external: known inputs to the neurons, `(T, U)`.
        external_labels: U distinct labels.
        true_rates: the rates that the counts were drawn from, `(T, C)`, in spikes/s, where they are known.
        session: a name for the session.
        splits: `train`, `valid` or `test` for each segment, `(n,)`.
        heldout: true for channels that a model must predict without seeing them (co-smoothing), `(C,)`.
        generator: of generated neurons, the arguments that made them (see `recordings.synthetic`); no part of the hash,
            which is of the data.

    Raises:
        RecordingError: whenever a part is impossible, with the part's name and where in it.
    """

    counts: np.ndarray
    bin_width_s: float
    channels: tuple[str, ...] = ()
    segments: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    behaviour: np.ndarray | None = None
    behaviour_labels: tuple[str, ...] = ()
    conditions: np.ndarray | None = None
    external: np.ndarray | None = None
    external_labels: tuple[str, ...] = ()
    true_rates: np.ndarray | None = None
    session: str = ""
    splits: np.ndarray | None = None
    heldout: np.ndarray | None = None
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    generator: str = ""

    def __post_init__(self) -> None:
        self._put("counts", _series("counts", self.counts))
        self._put("bin_width_s", _bin_width(self.bin_width_s))
        self._put("session", str(self.session))
        self._put("generator", str(self.generator))
        self._put("channels", _labels("channels", self.channels, self.n_channels, "ch"))
        self._put("segments", _segments(self.segments, self.n_bins))
        for name in ("behaviour", "external", "true_rates"):
            self._put_known(name, _series, self.n_bins)
        for name in ("conditions", "splits"):
            self._put_known(name, _per_segment, self.n_segments)
        self._put_known("heldout", _heldout, self.n_channels)
        self._put_known("labels", _factors, self.n_segments)
        self._put_names("behaviour", "behaviour_labels", "behaviour")
        self._put_names("external", "external_labels", "external")
        self._put_names("labels", "label_names", "label")
        self._check_values()

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone else

    def _put_known(self, name: str, check: Callable[[str, Any, int], np.ndarray], n: int) -> None:
        if (value := getattr(self, name)) is not None:
            self._put(name, check(name, value, n))

    def _put_names(self, table: str, names: str, stem: str) -> None:
        columns = getattr(self, table)
        width = 0 if columns is None else columns.shape[1]
        self._put(names, _labels(names, getattr(self, names), width, stem))

    def _check_values(self) -> None:
        for name in ("counts", "true_rates"):
            values = getattr(self, name)
            if values is not None and values.min() < 0:
                raise RecordingError(f"{name} holds {values.min():g} at {_where(values < 0)}: it cannot be negative")
        if self.true_rates is not None and self.true_rates.shape != self.counts.shape:
            raise RecordingError(
                f"true_rates is {self.true_rates.shape}, counts is {self.counts.shape}: make them equal"
            )
        if self.splits is not None and not set(self.splits.tolist()) <= set(SPLITS):
            wrong = sorted(set(self.splits.tolist()) - set(SPLITS))[0]
            raise RecordingError(f"splits holds {wrong!r}: a segment is one of {', '.join(SPLITS)}")

    @property
    def n_bins(self) -> int:
        """Number of bins, T."""
        return int(self.counts.shape[0])

    @property
    def n_channels(self) -> int:
        """Number of channels, C."""
        return int(self.counts.shape[1])

    @property
    def n_segments(self) -> int:
        """Number of segments, n."""
        return len(self.segments)

    @property
    def heldin(self) -> np.ndarray:
        """True for the channels that a model sees: all but `heldout`, `(C,)`."""
        return np.ones(self.n_channels, bool) if self.heldout is None else ~self.heldout

    def in_split(self, name: str) -> np.ndarray:
        """True for the segments of a split, `(n,)`; a recording that names no splits is all `train`."""
        return np.full(self.n_segments, name == "train") if self.splits is None else self.splits == name

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all the data that the recording holds, in hex: the `data hash` of a bundle's provenance."""
        digest = hashlib.sha256()
        for name, value in self.fields().items():
            if name == "generator":
                continue
            if not isinstance(value, np.ndarray):
                digest.update(f"{name}={json.dumps(value)}\n".encode())
            elif value.dtype.kind == "U":
                digest.update(f"{name}={json.dumps(value.tolist())}\n".encode())
            else:
                digest.update(f"{name}:{value.dtype.str}{value.shape}\n".encode())
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    def fields(self) -> dict[str, Any]:
        """What is known, by name; parts that are None or empty are left out."""
        items = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in items if isinstance(value, np.ndarray) or value}

    def select(self, segments: Sequence[int] | np.ndarray) -> "Recording":
        """The recording of some segments only, in the order given; bins outside them are dropped.

        Args:
            segments: indices into `segments`, or a boolean mask of `(n,)`.

        Raises:
            RecordingError: when nothing is chosen, or a segment that does not exist.
        """
        index = np.asarray(segments)
        index = np.flatnonzero(index) if index.dtype == bool and index.shape == (self.n_segments,) else index
        if index.size == 0 or index.ndim != 1 or index.dtype.kind not in "iu":
            raise RecordingError("no segment is selected: give indices or a mask that choose at least one")
        absent = index[(index < 0) | (index >= self.n_segments)]
        if absent.size:
            raise RecordingError(f"segment {absent[0]} is selected of {self.n_segments}: indices begin at 0")
        chosen = self.segments[index]
        bins = np.concatenate([np.arange(start, stop) for start, stop in chosen])
        lengths = lengths_of(chosen)
        stops = np.cumsum(lengths)
        parts: dict[str, Any] = {"segments": np.stack([stops - lengths, stops], axis=1)}
        parts |= {name: _take(getattr(self, name), bins) for name in ("counts", "behaviour", "external", "true_rates")}
        parts |= {name: _take(getattr(self, name), index) for name in ("conditions", "splits", "labels")}
        return dataclasses.replace(self, **parts)

    def split(self, valid: float = VALID_FRACTION, test: float = TEST_FRACTION) -> "Recording":
        """The same recording with `splits`; splits that it already has are kept.

        Trials (five segments or more): the last `test` of them are the test set, and `valid` of the others, evenly
        spaced, the validation set. Fewer segments: each is cut in time into train, valid and test, test last. Scraps,
        below a tenth of the segments' mean length, count for neither and are trained on.

        Args:
            valid: fraction of what is not test.
            test: fraction of the segments, or of each segment's time.

        Raises:
            RecordingError: when a part would be empty.
        """
        if self.splits is not None:
            return self
        if not (0 <= valid < 1 and 0 <= test < 1):
            raise RecordingError(f"split(valid={valid}, test={test}): both are fractions of at least 0 and below 1")
        scrap = scraps(lengths_of(self.segments))
        if scrap.any():
            log.info("%d of %d segments are scraps that gaps left over: all are trained on", scrap.sum(), len(scrap))
        if (n_trials := int((~scrap).sum())) >= MIN_TRIALS:
            splits = np.full(self.n_segments, "train", dtype="<U5")
            splits[~scrap] = _split_trials(n_trials, valid, test)
            return dataclasses.replace(self, splits=splits)
        return self._split_time(valid, test, scrap)

    def _split_time(self, valid: float, test: float, scrap: np.ndarray) -> "Recording":
        segments, splits, sources = [], [], []  # sources: which segment each part was cut from
        for source, (start, stop) in enumerate(self.segments.tolist()):
            if scrap[source]:
                segments.append((start, stop))
                splits.append("train")
                sources.append(source)
                continue
            n_test = round(test * (stop - start))
            n_valid = round(valid * (stop - start - n_test))
            cuts = (start, stop - n_test - n_valid, stop - n_test, stop)
            for name, wanted, first, last in zip(SPLITS, (1, valid, test), cuts[:-1], cuts[1:], strict=True):
                if wanted and first >= last:
                    raise RecordingError(
                        f"segment {source} has {stop - start} bins: too few for a {name} part; name splits of your own"
                    )
                if last > first:
                    segments.append((first, last))
                    splits.append(name)
                    sources.append(source)
        parts: dict[str, Any] = {"segments": np.array(segments), "splits": np.array(splits)}
        parts |= {name: _take(getattr(self, name), np.array(sources)) for name in ("conditions", "labels")}
        return dataclasses.replace(self, **parts)


def from_fields(fields: Mapping[str, Any], origin: str) -> Recording:
    """A Recording of parts read from a file, by their names; `origin` is the file, for the error."""
    known = [f.name for f in dataclasses.fields(Recording)]
    if unknown := sorted(set(fields) - set(known)):
        raise RecordingError(f"{origin}: unknown key {unknown[0]!r}; a recording holds {', '.join(known)}")
    if missing := [name for name in ("counts", "bin_width_s") if name not in fields]:
        how = f": {SAY_WIDTH}" if missing == ["bin_width_s"] else ""
        raise RecordingError(f"{origin}: no {missing[0]!r}; found {', '.join(sorted(fields)) or 'nothing'}{how}")
    try:
        return Recording(**fields)
    except (RecordingError, TypeError, ValueError) as error:
        raise RecordingError(f"{origin}: {error}") from None


def take_width(fields: Mapping[str, Any], bin_width_s: float | None) -> dict[str, Any]:
    """The parts of a file with a bin width; `bin_width_s` is taken, and said, where the file has none."""
    if bin_width_s is None or "bin_width_s" in fields:
        return dict(fields)
    say_width_taken(bin_width_s)
    return {**fields, "bin_width_s": bin_width_s}


def say_width_taken(bin_width_s: float) -> None:
    """Says that a file's own bins were taken to be as wide as those that were asked for."""
    log.info(
        "the file does not say how wide its bins are: taken to be %g ms, as asked for; are they narrower, give their "
        "own width, and convert once more to wider ones",
        1e3 * bin_width_s,
    )


def _series(name: str, values: Any, n_bins: int | None = None) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise RecordingError(f"{name} is of type {array.dtype}: numbers are needed")
    if array.ndim != 2 or 0 in array.shape:
        trials = "; trials follow one another, and segments say where each is" if array.ndim == 3 else ""
        raise RecordingError(f"{name} has shape {array.shape}: (bins, channels) is needed, at least 1 by 1{trials}")
    if n_bins is not None and len(array) != n_bins:
        raise RecordingError(f"{name} has {len(array)} bins, counts has {n_bins}: make them equal")
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():  # no mask of a large array
        where = _where(~np.isfinite(array))
        raise RecordingError(f"{name} is not finite at {where}: fill such bins, and leave them out of the segments")
    return array.view(np.uint8) if array.dtype.kind == "b" else array


def _where(mask: np.ndarray) -> str:
    row, column = np.argwhere(mask)[0].tolist()
    return f"bin {row}, column {column}"


def _bin_width(value: Any) -> float:
    try:
        width = float(np.asarray(value).item())  # what MATLAB writes is of shape (1,) or (1, 1)
    except (TypeError, ValueError):
        raise RecordingError(f"bin_width_s is {value!r}: a number of seconds is needed") from None
    checked_width(width)
    return width


def _labels(name: str, labels: Any, n: int, stem: str) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise RecordingError(f"{name} is one text: give a sequence of {n} labels")
    texts = tuple(str(label) for label in labels) or tuple(f"{stem}{i}" for i in range(n))
    if len(texts) != n:
        raise RecordingError(f"{name} has {len(texts)} labels for {n} columns: make them equal")
    if len(set(texts)) != n:
        twice = next(label for label in texts if texts.count(label) > 1)
        raise RecordingError(f"{name} has {twice!r} twice: labels must differ")
    return texts


def _segments(segments: Any, n_bins: int) -> np.ndarray:
    array = np.asarray(segments)
    if array.size == 0:
        return np.array([[0, n_bins]], np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise RecordingError(f"segments is {array.dtype} {array.shape}: integers (n, 2), first and one-past-last bin")
    array = array.astype(np.int64)
    bad = (array[:, 0] < 0) | (array[:, 1] > n_bins) | (array[:, 0] >= array[:, 1])
    if bad.any():
        i = int(bad.argmax())
        raise RecordingError(f"segment {i} is {array[i].tolist()}: it must hold a bin, and lie within 0 to {n_bins}")
    overlap = array[1:, 0] < array[:-1, 1]
    if overlap.any():
        i = int(overlap.argmax())
        raise RecordingError(f"segments {i} and {i + 1} overlap or are out of order: {array[i : i + 2].tolist()}")
    return array


def _per_segment(name: str, values: Any, n: int) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind == "O":
        array = array.astype(str)
    if array.dtype.kind not in "iuU" or array.shape != (n,):
        raise RecordingError(f"{name} is {array.dtype} {array.shape}: one integer or text for each of {n} segments")
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _factors(name: str, values: Any, n: int) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise RecordingError(f"{name} is of type {array.dtype}: numbers are needed")
    if array.ndim != 2 or len(array) != n or not array.shape[1]:
        raise RecordingError(f"{name} has shape {array.shape}: one row of factors for each of {n} segments is needed")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0].tolist()
        raise RecordingError(f"{name} is not finite at segment {row}, column {column}: mend it or leave that out")
    return array.astype(np.float64)


def _heldout(name: str, values: Any, n: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (n,) or not np.isin(array, (0, 1)).all():
        raise RecordingError(f"{name} is {array.dtype} {array.shape}: true or false for each of {n} channels")
    if array.all():
        raise RecordingError(f"{name} is true for every channel: leave at least one for the model to see")
    return array.astype(bool)


def _take(array: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    return None if array is None else array[index]


def _split_trials(n: int, valid: float, test: float) -> np.ndarray:
    n_test = round(test * n)
    n_rest = n - n_test
    n_valid = round(valid * n_rest)
    if n_valid >= n_rest or (test and not n_test) or (valid and not n_valid):
        raise RecordingError(f"{n} segments are too few for valid={valid} and test={test}: a part would be empty")
    splits = np.full(n, "train", dtype="<U5")
    splits[n_rest:] = "test"
    splits[((np.arange(n_valid) + 0.5) * n_rest / max(n_valid, 1)).astype(int)] = "valid"
    return splits

"""From spikes and samples to bins, by the binner that the daemon uses, or by its very rule."""

import logging
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from rtdsae.bins import BinCounters, Bins, EventsBinner, RegularBinner, input_kind
from rtdsae.bins.grid import BACKWARD_NS, FORWARD_NS, MAX_STAMP, nanoseconds
from rtdsae.errors import BinError, RecordingError
from rtdsae.recordings.original import Original
from rtdsae.recordings.segments import SAY_WIDTH, checked_width, runs

__all__ = ["Binned", "bin_original", "check_size", "compact", "count_spikes", "needed_width"]

log = logging.getLogger(__name__)

MAX_CELLS = 1 << 31  # bins times channels: 2 GB where a byte is enough for a count
CHUNK = 1 << 12  # samples that are binned at a time
LATENESS_S = 1.0  # the most there is: nothing that is merely out of order is lost
SILENCE_S = 1.0  # spikes that stay away for longer were not recorded: as in the daemon
RESET_S = FORWARD_NS / 1e9  # a longer step is a clock that was reset
BACKWARD_S = BACKWARD_NS / 1e9  # and so is a longer one back


class Binned(NamedTuple):
    """Bins of a stream, each `bin_width_s`: `counts` (T, C), `t_end` (T,), `segments` (n, 2) without a gap inside."""

    counts: np.ndarray
    t_end: np.ndarray
    segments: np.ndarray
    bin_width_s: float


def needed_width(bin_width_s: float | None, why: str) -> float:
    """The bin width that was asked for.

    Raises:
        RecordingError: none was; the line says how to.
    """
    if bin_width_s is None:
        raise RecordingError(f"{why}: {SAY_WIDTH}")
    checked_width(bin_width_s)
    return bin_width_s


def check_size(n_bins: int, n_channels: int) -> None:
    """Refuses more bins than a computer holds, before they are made.

    Raises:
        RecordingError: there would be more.
    """
    if n_bins * n_channels > MAX_CELLS:
        raise RecordingError(f"{n_bins} bins of {n_channels} channels are too many: are the times right, and the bins?")


def compact(counts: np.ndarray) -> np.ndarray:
    """The same counts in the smallest type of whole numbers that holds them, where they are whole."""
    if counts.dtype.kind == "f" and not (np.isfinite(counts).all() and (np.rint(counts) == counts).all()):
        return counts
    if counts.size == 0 or counts.min() < 0:
        return counts
    return counts.astype(np.min_scalar_type(int(counts.max())))


def count_spikes(times: list[np.ndarray], origin_s: float, bin_width_s: float, n_bins: int) -> np.ndarray:
    """Spikes of each channel in bins from `origin_s` on, `(n_bins, C)`.

    A spike is in the bin with start <= time < end, in whole nanoseconds: what `EventsBinner` does with the same spikes.
    """
    width = checked_width(bin_width_s)
    check_size(n_bins, len(times))
    (origin,) = nanoseconds(np.array([origin_s]))
    edges = origin + _multiples(width, n_bins + 1)
    counts = np.zeros((n_bins, len(times)), np.uint16)
    for channel, seconds in enumerate(times):
        usable = seconds[np.abs(seconds) < MAX_STAMP]  # NaN is not
        bins = np.searchsorted(edges, np.rint(usable * 1e9).astype(np.int64), side="right") - 1
        inside = bins[(bins >= 0) & (bins < n_bins)]
        counts[:, channel] = np.minimum(np.bincount(inside, minlength=n_bins), np.iinfo(np.uint16).max)
    return compact(counts)


def _multiples(width: Fraction, n: int) -> np.ndarray:
    """The first whole nanoseconds at or after 0, W, 2 W, ...: `(n,)`."""
    wide = n * width.numerator >= 1 << 62  # an odd width over a long time
    k = np.array(range(n), object) if wide else np.arange(n)
    return (-(-k * width.numerator // width.denominator)).astype(np.int64)


def bin_original(original: Original, bin_width_s: float | None) -> Binned:
    """A stream's bins, as the daemon would make them of it.

    Raises:
        RecordingError: it does not say how wide a bin is and nobody else does, its rate makes no such bins, or nothing
            in it can be used.
    """
    where = f"stream {original.name}"
    width = needed_width(bin_width_s or original.bin_width_s, f"{where} does not say how wide a bin is")
    try:
        kind, k = input_kind(original.nominal_rate_hz, width)
    except BinError as error:
        raise RecordingError(f"{where}: {error}") from None
    n_channels = len(original.channels)
    _check_span(original.stamps, width, n_channels)
    binner = EventsBinner(n_channels, width, LATENESS_S) if kind == "events" else RegularBinner(n_channels, width, k)
    gathered = _Gathered(n_channels)
    if isinstance(binner, EventsBinner):
        _push_spikes(binner, original, gathered)
    else:
        for at in range(0, len(original.stamps), CHUNK):
            part = slice(at, at + CHUNK)
            gathered.add(binner.push(original.samples[part], original.stamps[part]))
    _report(where, binner.counters)
    binned = gathered.binned(width)
    if not len(binned.segments):
        raise RecordingError(f"{where}: no bin of {width:g} s is whole in {len(original.stamps)} samples")
    return binned


def _check_span(stamps: np.ndarray, width: float, n_channels: int) -> None:
    """Refuses a stream whose gaps make more bins than a computer holds.

    A step back within a second is a spike out of order, and what goes forward again after it is no time of its own.
    """
    with np.errstate(invalid="ignore"):
        steps = np.diff(stamps)
    gaps = steps[(steps > BACKWARD_S) & (steps < RESET_S)]
    others = steps[np.abs(steps) <= BACKWARD_S]
    check_size(int((gaps.sum() + max(others.sum(), 0.0)) / width) + 1, n_channels)


def _push_spikes(binner: EventsBinner, original: Original, gathered: "_Gathered") -> None:
    """All spikes; where none came for long, nothing was recorded."""
    usable = np.abs(original.stamps) < MAX_STAMP  # NaN is not
    binner.push(original.samples[~usable], original.stamps[~usable])  # which counts them, and no more
    samples, stamps = original.samples[usable], original.stamps[usable]
    steps = np.diff(stamps)
    pauses = np.flatnonzero((steps > SILENCE_S) & (steps < RESET_S)) + 1
    for first, last in zip([0, *pauses], [*pauses, len(stamps)], strict=True):
        if first:
            gathered.add(binner.flush(float(stamps[first - 1]) + SILENCE_S))
            gathered.add(binner.flush(float(stamps[first]), observed=False))
        for at in range(first, last, CHUNK):
            part = slice(at, min(at + CHUNK, last))
            gathered.add(binner.push(samples[part], stamps[part]))
    resets = np.flatnonzero((steps <= -BACKWARD_S) | (steps >= RESET_S)) + 1
    if len(stamps):
        gathered.add(binner.flush(float(stamps[resets[-1] if len(resets) else 0 :].max())))


def _report(where: str, counters: BinCounters) -> None:
    """Says what was not used, by the counters' names."""
    lost = {name: getattr(counters, name) for name in counters.__slots__ if getattr(counters, name)}
    if lost:
        log.warning("%s: %s", where, ", ".join(f"{name} {n}" for name, n in lost.items()))


class _Gathered:
    """The bins of many calls: those of one are valid until the next only."""

    def __init__(self, n_channels: int) -> None:
        self._n_bins, self._n_channels = 0, n_channels
        self._counts: list[np.ndarray] = []
        self._t_end: list[np.ndarray] = []
        self._observed: list[np.ndarray] = []

    def add(self, bins: Bins) -> None:
        self._n_bins += len(bins.index)
        check_size(self._n_bins, self._n_channels)
        self._counts.append(compact(bins.counts.copy()))
        self._t_end.append(bins.t_end.copy())
        self._observed.append(bins.observed.copy())

    def binned(self, width: float) -> Binned:
        if not self._n_bins:
            return Binned(np.zeros((0, self._n_channels)), np.zeros(0), np.zeros((0, 2), np.int64), width)
        t_end, observed = np.concatenate(self._t_end), np.concatenate(self._observed)
        steps = np.diff(t_end)
        jumps = np.flatnonzero((steps < 0) | (steps > RESET_S / 2 + width)) + 1  # a clock that was reset
        segments = [first + runs(observed[first:last]) for first, last in _pieces(jumps, len(t_end))]
        return Binned(np.concatenate(self._counts), t_end, np.concatenate(segments), width)


def _pieces(cuts: np.ndarray, n: int) -> list[tuple[int, int]]:
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), n], strict=True))

"""Bins: the one binner, of training, replay and the daemon alike, so that a model meets no bin made by other code.

A stream of samples becomes bins on a grid. Three kinds of stream are known:

    counts     each sample is a bin already
    samples    a regular stream: k samples make a bin, added up or averaged
    events     an irregular stream: a sample is a spike, its value the channel's number

Time is taken in as whole nanoseconds and kept as integers from there on, in fractions that make the period whole, and
bins are told apart by their index, never by a running sum of float edges. Any chunking of the same samples therefore
gives the same bins, bit for bit. The grid begins with the first sample, and every bin from there on comes out once, in
order; what was not recorded comes out as a bin that is not `observed`. Every sample ends in a bin or in a counter:

    regular    samples pushed = k · (bins published - gaps) + late + duplicates + nan + overflow + partial + pending
    events     spikes pushed  = Σ counts published          + late              + nan + overflow + partial + pending

What a regular stream's stamps do, with W the bin width and d a stamp's distance from where the grid expects it:

    -W/2 <= d < W/2              jitter: the next sample; the grid follows by d/16, and so a source's own clock
    d >= W/2                     a gap: the samples between are missing, their bins come out unobserved
    d < -W/2                     a second sample for the time of the last: dropped, `duplicates`
    equal to the last            dropped, `duplicates`
    before the last, by <= 1 s   dropped, `late`
    before it by more, or after it by more than 60 s: the clock was reset, the grid goes on at the next index
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rtdsae.errors import BinError

__all__ = ["BinCounters", "Bins", "EventsBinner", "Kind", "RegularBinner", "input_kind"]

Kind = Literal["counts", "samples", "events"]
Values: TypeAlias = NDArray[Any]
Stamps: TypeAlias = NDArray[np.float64]

LARGEST = 2.0**24  # beyond it float32 no longer counts by one
BACKWARD_NS = 1_000_000_000  # a stamp further back than this is a reset clock
FORWARD_NS = 60_000_000_000  # a stamp further ahead than this is a reset clock
FOLLOW = 4  # the grid follows the stamps by 1/2**4 of their distance

_MAX_STAMP = 9e9  # seconds, 285 years: what int64 nanoseconds hold
_NO_STAMP = -(1 << 63)
_NEVER = 1 << 63


class Bins(NamedTuple):
    """Bins that are complete, in order. The arrays are valid until the next call on the binner that gave them.

    Attributes:
        index: `(m,)` on the stream's grid.
        t_end: `(m,)` seconds: the stamp of the bin's last sample, or when it was due where that is missing.
        counts: `(m, C)`; zeros where not observed.
        observed: `(m,)` False where anything of the bin is missing or unusable.
    """

    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    t_end: NDArray[np.float64]
    counts: NDArray[np.float32]
    observed: NDArray[np.bool_]


@dataclass(slots=True)
class BinCounters:
    """What became of the input: `gaps` counts bins, `resets` clock resets, all others samples."""

    gaps: int = 0  # bins published unobserved
    late: int = 0  # stamped before what had been seen (regular) or published (events) already
    duplicates: int = 0  # a second sample for the same time
    nan: int = 0  # no number, infinite or negative; or its stamp is
    overflow: int = 0  # above 2**24; a spike of a channel that does not exist
    partial: int = 0  # good, but other samples of their bin were missing or unusable
    resets: int = 0


def input_kind(nominal_rate_hz: float, bin_width_s: float, declared: Kind | None = None) -> tuple[Kind, int]:
    """What a stream's samples are, from its nominal rate: the kind, and how many samples make a bin (0 for events).

    Args:
        nominal_rate_hz: 0 for an irregular stream.
        bin_width_s: of the model.
        declared: the kind where the user says so; the rate must still be possible for it.

    Raises:
        BinError: no whole number of such samples makes such a bin.

    Examples:
        >>> input_kind(50, 0.02), input_kind(1000, 0.02), input_kind(0, 0.02)
        (('counts', 1), ('samples', 20), ('events', 0))
    """
    _width_ns(bin_width_s)
    if not (math.isfinite(nominal_rate_hz) and nominal_rate_hz >= 0):
        raise BinError(f"a nominal rate of {nominal_rate_hz} Hz is impossible: the source must state its rate, or 0")
    if declared == "events" or (declared is None and nominal_rate_hz == 0):
        return "events", 0
    if declared == "counts" and nominal_rate_hz == 0:
        return "counts", 1
    ratio = nominal_rate_hz * bin_width_s
    k = round(ratio)
    if k < 1 or abs(ratio - k) > 1e-3 or (declared == "counts" and k != 1):
        raise BinError(
            f"samples at {nominal_rate_hz:g} Hz do not make {declared or 'whole'} bins of {bin_width_s:g} s: "
            f"expected {1 / bin_width_s:g} Hz (counts), a whole multiple of it (samples) or 0 Hz (events)"
        )
    return declared or ("counts" if k == 1 else "samples"), k


class RegularBinner:
    """Bins of a regular stream, of the kinds `counts` (one sample a bin) and `samples` (k samples a bin).

    A bin that lacks any of its samples is not observed, and none of its samples count. Losses shorter than half a bin
    cannot be told from jitter and are not gaps: the samples around them close ranks.

    Args:
        n_channels: C.
        bin_width_s: W.
        samples_per_bin: k; 1 for `counts`.
        reduce: a bin is the sum or the mean of its samples.

    Raises:
        BinError: the bin width is not between 0.1 ms and 10 s, or there are no channels or samples.
    """

    def __init__(
        self,
        n_channels: int,
        bin_width_s: float,
        samples_per_bin: int = 1,
        reduce: Literal["sum", "mean"] = "sum",
    ) -> None:
        if n_channels < 1 or samples_per_bin < 1:
            raise BinError(f"{n_channels} channels and {samples_per_bin} samples a bin: both must be 1 or more")
        self.counters = BinCounters()
        self._k = samples_per_bin
        self._divisor = samples_per_bin if reduce == "mean" else 1
        self._out = _Output(n_channels)
        # Times on the grid are whole multiples of 1/scale ns, in which the period is a whole number.
        period = _width_ns(bin_width_s) / samples_per_bin
        self._period, self._scale = period.numerator, period.denominator
        self._expected = 0
        self._last = _NEVER
        self._index = 0  # of the open bin
        self._filled = 0  # its samples so far, missing ones included
        self._good = 0  # those of them that count
        self._sum = np.zeros(n_channels)

    def push(self, values: Values, stamps: Stamps) -> Bins:
        """Takes samples and gives the bins that they complete.

        Args:
            values: `(n, C)`, any number type.
            stamps: `(n,)` seconds, the end of what each sample covers.

        Raises:
            BinError: the shapes are others.
        """
        if values.ndim != 2 or values.shape != (len(stamps), self._out.n_channels):
            raise BinError(f"samples of shape {values.shape}: expected ({len(stamps)}, {self._out.n_channels})")
        times = _nanoseconds(stamps)
        self._out.clear()
        at = 0
        while at < len(times):
            stop = self._follow(times, at)
            if stop > at:
                self._take(values[at:stop], stamps[at:stop])
            at = stop
            if at < len(times) and not self._mend(times[at]):
                at += 1
        return self._out.bins()

    def _follow(self, times: Sequence[int], at: int) -> int:
        """Moves the grid along the samples that are where it expects them; says where these end."""
        expected, last, period, scale, width = self._expected, self._last, self._period, self._scale, self._k
        width *= period
        while at < len(times):
            off = times[at] * scale - expected
            if times[at] <= last or not -width <= 2 * off < width:
                break
            last = times[at]
            expected += period + (off >> FOLLOW)
            at += 1
        self._expected, self._last = expected, last
        return at

    def _mend(self, time: int) -> bool:
        """Deals with a sample that is not where the grid expects it; False if it is dropped, else it is there now."""
        if time == _NO_STAMP:
            self.counters.nan += 1
            return False
        if self._last == _NEVER:
            return self._restart(time)
        ahead = time - self._last
        if not -BACKWARD_NS <= ahead <= FORWARD_NS:
            self.counters.resets += 1
            self._skip(-self._filled % self._k)
            return self._restart(time)
        off = 2 * (time * self._scale - self._expected)
        if ahead < 0:
            self.counters.late += 1
        elif ahead == 0 or off < 0:
            self.counters.duplicates += 1
        else:
            self._skip((off + self._period) // (2 * self._period))
            return True
        return False

    def _restart(self, time: int) -> bool:
        self._expected, self._last = time * self._scale, time - 1
        return True

    def _skip(self, missing: int) -> None:
        """Leaves samples out: every bin that lacks one comes out unobserved, when its last sample was due."""
        if not missing:
            return
        to_end = self._k - self._filled - 1
        closed, self._filled = divmod(self._filled + missing, self._k)
        for i in range(closed):
            due = self._expected + (to_end + i * self._k) * self._period
            self._out.add_unobserved(self._index + i, due / (self._scale * 1_000_000_000))
        self._index += closed
        self.counters.gaps += closed
        self.counters.partial += self._good
        self._good = 0
        self._expected += missing * self._period

    def _take(self, rows: Values, stamps: Stamps) -> None:
        """Takes the samples that come next on the grid, in bins as whole as they come."""
        rows, good = self._usable(rows)
        k, n = self._k, len(rows)
        head = min(-self._filled % k, n)
        whole = (n - head) // k
        for i in range(head):
            self._add_sample(rows[i], good is None or bool(good[i]), stamps[i])
        if whole:
            end = head + whole * k
            self._add_bins(rows[head:end], None if good is None else good[head:end], stamps[head:end])
        for i in range(head + whole * k, n):
            self._add_sample(rows[i], good is None or bool(good[i]), stamps[i])

    def _usable(self, rows: Values) -> tuple[Values, NDArray[np.bool_] | None]:
        """The rows, with zeros in those that hold no counts, and which do (None: all)."""
        # A NaN comes through both reductions and fails both comparisons.
        if np.minimum.reduce(rows, axis=None) >= 0 and np.maximum.reduce(rows, axis=None) <= LARGEST:
            return rows, None
        numbers = np.all(np.isfinite(rows) & (rows >= 0), axis=1)
        good = numbers & np.all(rows <= LARGEST, axis=1)
        self.counters.nan += int((~numbers).sum())
        self.counters.overflow += int((numbers & ~good).sum())
        return np.where(good[:, None], rows, np.zeros((), rows.dtype)), good

    def _add_sample(self, row: Values, good: bool, stamp: float) -> None:
        if not self._filled:
            self._sum[:] = 0
        self._sum += row
        self._good += good
        self._filled += 1
        if self._filled < self._k:
            return
        if self._good == self._k:
            self._out.add(self._index, stamp, self._sum / self._divisor)
        else:
            self._out.add_unobserved(self._index, stamp)
            self.counters.gaps += 1
            self.counters.partial += self._good
        self._index += 1
        self._filled = self._good = 0

    def _add_bins(self, rows: Values, good: NDArray[np.bool_] | None, stamps: Stamps) -> None:
        """Whole bins, added up sample after sample as `_add_sample` does it, so that the sums agree to the last bit."""
        k, n = self._k, len(rows) // self._k
        counts, observed = self._out.extend(self._index, stamps[k - 1 :: k])
        self._index += n
        if k == 1:
            counts[:] = rows
        else:
            samples = rows.reshape(n, k, -1)
            total = np.zeros(counts.shape)
            for i in range(k):
                total += samples[:, i]
            counts[:] = total / self._divisor
        if good is not None:
            per_bin = good.reshape(n, k).sum(axis=1)
            observed[:] = per_bin == k
            counts[~observed] = 0
            self.counters.gaps += int(n - observed.sum())
            self.counters.partial += int(per_bin[~observed].sum())


class EventsBinner:
    """Bins of an irregular stream of spikes.

    A spike belongs to the bin with start <= stamp < start + W. A bin is published once the time has passed its end by
    the lateness, where the time is the newest stamp or what `advance` was told, whichever is later; a spike that comes
    for a published bin is counted `late`. A bin without spikes is a bin of zeros. Bad spikes are dropped one by one and
    spoil no bin, since a rig may well have units that the model does not know.

    Args:
        n_channels: C.
        bin_width_s: W.
        lateness_s: how long a bin waits for spikes that are out of order.

    Raises:
        BinError: the bin width is not between 0.1 ms and 10 s, the lateness not between 0 and 1 s, or C is 0.
    """

    def __init__(self, n_channels: int, bin_width_s: float, lateness_s: float = 0.0) -> None:
        if n_channels < 1 or not 0 <= lateness_s <= 1:
            raise BinError(f"{n_channels} channels, lateness {lateness_s} s: expected 1 or more, and 0 to 1 s")
        self.counters = BinCounters()
        width = _width_ns(bin_width_s)
        self._width, self._scale = width.numerator, width.denominator
        self._lateness = round(lateness_s * 1e9)
        self._out = _Output(n_channels)
        self._ring = np.zeros((self._lateness * self._scale // self._width + 3, n_channels), np.float32)
        self._origin: int | None = None
        self._base = 0  # index of the bin that begins at the origin
        self._closed = 0  # bins published since the origin
        self._newest = 0  # stamp
        self._time = 0  # the newest stamp, or later by the clock
        self._clock_shift = 0  # by which the stamps' clock was reset against `advance`'s

    def push(self, values: Values, stamps: Stamps) -> Bins:
        """Takes spikes and gives the bins that they complete.

        Args:
            values: `(n,)` or `(n, columns)`, any number type; the first column is the channel's number, from 0.
            stamps: `(n,)` seconds.

        Raises:
            BinError: there are more stamps than values, or fewer.
        """
        if values.ndim not in (1, 2) or len(values) != len(stamps):
            raise BinError(f"spikes of shape {values.shape}: expected ({len(stamps)},) or ({len(stamps)}, columns)")
        self._out.clear()
        channels = (values if values.ndim == 1 else values[:, 0]).tolist()
        for time, channel in zip(_nanoseconds(stamps), channels, strict=True):
            self._add_spike(time, channel)
        return self._out.bins()

    def advance(self, now: float, *, observed: bool = True) -> Bins:
        """Gives the bins that the clock completes.

        Args:
            now: seconds, on the clock of the stamps.
            observed: False while the stream is away, since no spikes are then no news.
        """
        self._out.clear()
        if self._origin is not None:
            now_ns = round(now * 1e9) + self._clock_shift
            if now_ns > self._time + FORWARD_NS:
                self._reset(now_ns)
            self._time = max(self._time, now_ns)
            self._close_until(self._time - self._lateness, observed)
        return self._out.bins()

    def flush(self, t_end: float) -> Bins:
        """Gives the bins that end at `t_end` seconds or before, without waiting: a recording's last ones."""
        self._out.clear()
        if self._origin is not None:
            self._close_until(round(t_end * 1e9))
        return self._out.bins()

    def _add_spike(self, time: int, channel: float) -> None:
        if time == _NO_STAMP or not 0 <= channel < math.inf or channel != int(channel):
            self.counters.nan += 1
        elif channel >= self._out.n_channels:
            self.counters.overflow += 1
        else:
            bin_ = self._move_to(time)
            if bin_ < self._closed:
                self.counters.late += 1
            else:
                self._ring[bin_ % len(self._ring), int(channel)] += 1

    def _move_to(self, time: int) -> int:
        """Lets a stamp close bins, and says which bin it belongs to."""
        if self._origin is None:
            self._origin = self._newest = self._time = time
        elif time < self._newest - BACKWARD_NS or time > self._time + FORWARD_NS:
            self._clock_shift += time - self._time
            self._reset(time)
        self._newest = max(self._newest, time)
        if time > self._time:
            self._time = time
            self._close_until(time - self._lateness)
        return (time - self._origin) * self._scale // self._width

    def _close_until(self, time: int, observed: bool = True) -> None:
        """Publishes the bins that end at the time or before."""
        assert self._origin is not None
        n = (time - self._origin) * self._scale // self._width
        for bin_ in range(self._closed, n):
            self._close(bin_, observed)
        self._closed = max(self._closed, n)

    def _close(self, bin_: int, observed: bool) -> None:
        assert self._origin is not None
        t_end = (self._origin * self._scale + (bin_ + 1) * self._width) / (self._scale * 1_000_000_000)
        counts = self._ring[bin_ % len(self._ring)]
        if observed:
            self._out.add(self._base + bin_, t_end, counts)
        else:
            self._out.add_unobserved(self._base + bin_, t_end)
            self.counters.gaps += 1
            self.counters.partial += int(counts.sum())
        counts[:] = 0

    def _reset(self, time: int) -> None:
        """Begins the grid again at another time and the next index; the bin that this cuts short is not observed."""
        self.counters.resets += 1
        self._close_until(self._time)
        self._close(self._closed, observed=False)
        self._base += self._closed + 1
        self._closed = 0
        self._origin = self._newest = self._time = time


class _Output:
    """Room for the bins of one call, used again by the next; it grows when a call completes more than any before."""

    def __init__(self, n_channels: int) -> None:
        self.n_channels = n_channels
        self._n = 0
        self._allocate(4)

    def _allocate(self, capacity: int) -> None:
        self._index = np.zeros(capacity, np.int64)
        self._t_end = np.zeros(capacity)
        self._counts = np.zeros((capacity, self.n_channels), np.float32)
        self._observed = np.zeros(capacity, np.bool_)
        self._few = [self._first(0), self._first(1)]  # what most calls give, sliced beforehand

    def _first(self, n: int) -> Bins:
        return Bins(self._index[:n], self._t_end[:n], self._counts[:n], self._observed[:n])

    def _reserve(self, n: int) -> slice:
        start, self._n = self._n, self._n + n
        if self._n > len(self._index):
            old = self._first(start)
            self._allocate(2 * self._n)
            for new, kept in zip(self._first(start), old, strict=True):
                new[:] = kept
        return slice(start, self._n)

    def clear(self) -> None:
        self._n = 0

    def bins(self) -> Bins:
        return self._few[self._n] if self._n < 2 else self._first(self._n)

    def add(self, index: int, t_end: float, counts: NDArray[Any]) -> None:
        at = self._reserve(1).start
        self._index[at], self._t_end[at], self._counts[at], self._observed[at] = index, t_end, counts, True

    def add_unobserved(self, index: int, t_end: float) -> None:
        at = self._reserve(1).start
        self._index[at], self._t_end[at], self._counts[at], self._observed[at] = index, t_end, 0, False

    def extend(self, index: int, t_end: Stamps) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Adds observed bins that follow one another; their counts are for the caller to fill in."""
        at = self._reserve(len(t_end))
        self._index[at] = range(index, index + len(t_end))
        self._t_end[at], self._observed[at] = t_end, True
        return self._counts[at], self._observed[at]


def _width_ns(bin_width_s: float) -> Fraction:
    if not 1e-4 <= bin_width_s <= 10:
        raise BinError(f"a bin width of {bin_width_s} s: expected 0.0001 to 10 s")
    return Fraction(bin_width_s).limit_denominator(1_000_000) * 1_000_000_000


def _nanoseconds(stamps: Stamps) -> list[int]:
    return [round(s * 1e9) if -_MAX_STAMP < s < _MAX_STAMP else _NO_STAMP for s in stamps.tolist()]

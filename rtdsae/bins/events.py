"""Irregular streams: a sample is a spike, and the clock says when a bin is complete.

Every spike ends in a bin or in a counter:

    spikes pushed = Σ counts published + late + nan + overflow + partial + pending
"""

import math

import numpy as np

from rtdsae.bins.grid import (
    BACKWARD_NS,
    FORWARD_NS,
    MAX_STAMP,
    NO_STAMP,
    BinBuffer,
    BinCounters,
    Bins,
    Stamps,
    Values,
    nanoseconds,
    width_ns,
)
from rtdsae.errors import BinError

__all__ = ["EventsBinner"]

MANY = 64  # spikes that are worth looking at together: that costs as much, in cold caches, as to take forty singly
TOGETHER = 1024  # and no more: one that closes a bin has the rest looked at again
FEW = 4  # that are taken singly where these end, which is at one that does something else


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
        width = width_ns(bin_width_s)
        self._width, self._scale = width.numerator, width.denominator
        self._lateness = round(lateness_s * 1e9)
        self._out = BinBuffer(n_channels)
        self._ring = np.zeros((self._lateness * self._scale // self._width + 3, n_channels), np.float32)
        self._origin: int | None = None
        self._base = 0  # index of the bin that begins at the origin
        self._closed = 0  # bins published since the origin
        self._newest = 0  # stamp
        self._time = 0  # the newest stamp, or later by the clock
        self._clock_shift = 0  # of the stamps' clock against `advance`'s
        self._compared = False
        self._away = False  # until the next spike
        self._missed = -1  # the last bin that the stream was away in

    @property
    def due(self) -> float:
        """When the clock completes the open bin, seconds as `advance` counts them; infinite before the first spike."""
        if self._origin is None:
            return math.inf
        end = self._origin * self._scale + (self._closed + 1) * self._width
        return (end / self._scale + self._lateness - self._clock_shift) / 1e9

    def push(self, values: Values, stamps: Stamps, now: float | None = None) -> Bins:
        """Takes spikes and gives the bins that they complete.

        Args:
            values: `(n,)` or `(n, columns)`, any number type; the first column is the channel's number, from 0.
            stamps: `(n,)` seconds.
            now: seconds, when they came by the clock of `advance`, where the stamps' may be another: more than a second
                apart, the two run side by side.

        Raises:
            BinError: there are more stamps than values, or fewer.
        """
        if values.ndim not in (1, 2) or len(values) != len(stamps):
            raise BinError(f"spikes of shape {values.shape}: expected ({len(stamps)},) or ({len(stamps)}, columns)")
        self._out.clear()
        channels = values if values.ndim == 1 else values[:, 0]
        came = None if now is None else round(now * 1e9)
        at, singly = 0, FEW
        while at < len(stamps):
            if len(stamps) - at < MANY:
                singly = MANY
            else:
                n_usual = self._add_usual(stamps[at : at + TOGETHER], channels[at : at + TOGETHER], came)
                singly = FEW if n_usual >= MANY else 2 * singly  # less and less often where it is in vain
                at += n_usual
            few = slice(at, at + singly)
            for time, channel in zip(nanoseconds(stamps[few]), channels[few].tolist(), strict=True):
                self._add_spike(time, channel, came)
            at += singly
        if came is not None and self._origin is not None:
            self._compare(came)
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

    def miss(self) -> None:
        """The stream was away: no bin is observed until a spike says that it is back, nor the one that is open then."""
        self._away = self._origin is not None

    def flush(self, t_end: float, *, observed: bool = True) -> Bins:
        """Gives the bins that end at `t_end` seconds or before by the stamps' own clock, without waiting.

        Args:
            t_end: a recording's end, or that of a pause in it.
            observed: as in `advance`.
        """
        self._out.clear()
        if self._origin is not None:
            self._close_until(round(t_end * 1e9), observed)
        return self._out.bins()

    def _add_usual(self, stamps: Stamps, channels: Values, came: int | None) -> int:
        """Adds, all at once, the spikes before the first that is bad or does more than count in an unpublished bin.

        That is what `_add_spike` does with these, in a tenth of the time. Says how many they are.
        """
        if self._origin is None or self._away:
            return 0
        first, last = self._begin_of(self._closed), self._begin_of(self._closed + 1) + self._lateness - 1
        last = min(last, self._time + FORWARD_NS)
        if came is not None and self._compared:
            last = min(last, came + max(0, self._clock_shift) + BACKWARD_NS)
        if (last - self._origin) * self._scale >= 1 << 62:
            return 0
        good = np.abs(stamps) < MAX_STAMP
        times = np.rint(np.where(good, stamps, 0.0) * 1e9).astype(np.int64)
        good &= (first <= times) & (times <= last)
        good &= (channels >= 0) & (channels < self._out.n_channels) & (channels == np.floor(channels))
        n = len(good) if good.all() else int(good.argmin())
        times = times[:n]
        if not n or times.min() < max(self._newest, newest := int(times.max())) - BACKWARD_NS:
            return 0
        bins = (times - self._origin) * self._scale // self._width
        np.add.at(self._ring, (bins % len(self._ring), channels[:n].astype(np.intp)), 1)
        self._newest, self._time = max(self._newest, newest), max(self._time, newest)
        return n

    def _begin_of(self, bin_: int) -> int:
        """The first nanosecond of a bin; bins count from the origin."""
        assert self._origin is not None
        return self._origin - (-bin_ * self._width // self._scale)

    def _add_spike(self, time: int, channel: float, came: int | None) -> None:
        if time == NO_STAMP or not 0 <= channel < math.inf or channel != int(channel):
            self.counters.nan += 1
        elif channel >= self._out.n_channels:
            self.counters.overflow += 1
        else:
            bin_ = self._move_to(time, came)
            if bin_ < self._closed:
                self.counters.late += 1
            else:
                self._ring[bin_ % len(self._ring), int(channel)] += 1

    def _move_to(self, time: int, came: int | None) -> int:
        """Lets a stamp close bins, and says which bin it belongs to."""
        if self._origin is None:
            self._origin = self._newest = self._time = time
        elif came is not None and self._compared and time > came + max(0, self._clock_shift) + BACKWARD_NS:
            self._clock_shift = time - came  # it was set ahead: nothing is known of the time between
            self._reset(time)
        elif time < self._newest - BACKWARD_NS or time > self._time + FORWARD_NS:
            self._clock_shift += time - self._time
            self._reset(time)
        if self._away:
            reached = time if came is None else max(time, came + self._clock_shift)
            self._missed, self._away = (reached - self._origin) * self._scale // self._width, False
        self._newest = max(self._newest, time)
        if time > self._time:
            self._time = time
            self._close_until(time - self._lateness)
        return (time - self._origin) * self._scale // self._width

    def _compare(self, now: int) -> None:
        """Finds out that the stamps' clock is another, or was set ahead. Spikes may be late, but never early."""
        ahead = self._newest - now - self._clock_shift
        if ahead > BACKWARD_NS or (ahead < -BACKWARD_NS and not self._compared):
            self._clock_shift += ahead
        self._compared = True

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
        if observed and bin_ > self._missed and not self._away:
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
        self._missed, self._away = -1, False
        self._origin = self._newest = self._time = time

"""Regular streams: samples that come at a fixed rate, one or more of them a bin.

Every sample ends in a bin or in a counter:

    samples pushed = k · (bins published - gaps) + late + duplicates + nan + overflow + partial + pending

What the stamps do, with W the bin width and d a stamp's distance from where the grid expects it:

    -W/2 <= d < W/2              jitter: the next sample; the grid follows by d/16, and so a source's own clock
    d >= W/2                     a gap: the samples between are missing, their bins come out unobserved
    d < -W/2                     a second sample for the time of the last: dropped, `duplicates`
    equal to the last            dropped, `duplicates`
    before the last, by <= 1 s   dropped, `late`
    before it by more, or after it by more than 60 s: the clock was reset, the grid goes on at the next index
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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

__all__ = ["RegularBinner"]

LARGEST = 2.0**24  # beyond it float32 no longer counts by one
LARGEST_BITS = int(np.float32(LARGEST).view(np.uint32))
FLOAT32 = np.dtype(np.float32)
FOLLOW = 4  # the grid follows the stamps by 1/2**4 of their distance

_NEVER = 1 << 63


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
        self._out = BinBuffer(n_channels)
        # Times on the grid are whole multiples of 1/scale ns, in which the period is a whole number.
        period = width_ns(bin_width_s) / samples_per_bin
        self._period, self._scale = period.numerator, period.denominator
        self._expected = 0
        self._last = _NEVER
        self._index = 0  # of the open bin
        self._filled = 0  # its samples so far, missing ones included
        self._good = 0  # those of them that count
        self._sum = np.zeros(n_channels)

    @property
    def missing(self) -> int:
        """How many samples the open bin still needs."""
        return self._k - self._filled

    def push(self, values: Values, stamps: Stamps) -> Bins:
        """Takes samples and gives the bins that they complete.

        Args:
            values: `(n, C)`, any number type.
            stamps: `(n,)` seconds, the end of what each sample covers.

        Raises:
            BinError: the shapes are others.
        """
        if values.shape != (len(stamps), self._out.n_channels):
            raise BinError(f"samples of shape {values.shape}: expected ({len(stamps)}, {self._out.n_channels})")
        if self._k == len(stamps) == 1 and self._take_next(values, stamps.item()):
            return self._out.one
        times = nanoseconds(stamps)
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

    def _take_next(self, values: Values, stamp: float) -> bool:
        """Takes what a live stream nearly always gives: one good sample, a bin of its own, where the grid expects it.

        False where it is anything else; nothing is taken then.
        """
        if values.dtype is not FLOAT32 or not -MAX_STAMP < stamp < MAX_STAMP:
            return False
        time = round(stamp * 1e9)
        off = time * self._scale - self._expected
        if time <= self._last or not -self._period <= 2 * off < self._period:
            return False
        index, t_end, counts, observed = self._out.one
        counts[:] = values
        # As integers, float32 that are negative, infinite or no number are above all counts: one comparison finds them.
        bits = self._out.bits
        if bits.item(bits.argmax()) > LARGEST_BITS:
            return False
        index[0], t_end[0], observed[0] = self._index, stamp, True
        self._index, self._last = self._index + 1, time
        self._expected += self._period + (off >> FOLLOW)
        return True

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
        if time == NO_STAMP:
            self.counters.nan += 1
            return False
        if self._last == _NEVER:
            return self._restart(time)
        ahead = time - self._last
        if not -BACKWARD_NS <= ahead <= FORWARD_NS:
            self.counters.resets += 1
            self._skip(self._k - self._filled)  # the open bin, or a whole one: no anchor is made across a reset
            return self._restart(time)
        off = 2 * (time * self._scale - self._expected)
        if ahead < 0:
            self.counters.late += 1
        elif ahead == 0 or off < 0:
            self.counters.duplicates += 1
        else:
            missing = (off + self._period) // (2 * self._period)
            self._skip(missing)
            if missing > self._k:  # no drift: a source that comes back need not be in step with what it was
                self._expected = time * self._scale
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
        end = head + whole * k
        parts = (slice(head), self._add_some), (slice(head, end), self._add_bins), (slice(end, n), self._add_some)
        for part, add in parts:
            if len(stamps[part]):
                add(rows[part], None if good is None else good[part], stamps[part])

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

    def _add_some(self, rows: Values, good: NDArray[np.bool_] | None, stamps: Stamps) -> None:
        """Samples of the open bin, which the last of them may complete."""
        if not self._filled:
            self._sum[:] = 0
        self._sum = _sums(np.concatenate([self._sum[None], rows])[None])[0]
        self._good += len(rows) if good is None else int(good.sum())
        self._filled += len(rows)
        if self._filled < self._k:
            return
        if self._good == self._k:
            self._out.add(self._index, stamps[-1], self._sum / self._divisor)
        else:
            self._out.add_unobserved(self._index, stamps[-1])
            self.counters.gaps += 1
            self.counters.partial += self._good
        self._index += 1
        self._filled = self._good = 0

    def _add_bins(self, rows: Values, good: NDArray[np.bool_] | None, stamps: Stamps) -> None:
        """Whole bins, added up sample after sample as `_add_some` does it, so that the sums agree to the last bit."""
        k, n = self._k, len(rows) // self._k
        counts, observed = self._out.extend(self._index, stamps[k - 1 :: k])
        self._index += n
        if k == 1:
            counts[:] = rows
        else:
            counts[:] = _sums(np.ascontiguousarray(rows).reshape(n, k, -1)) / self._divisor
        if good is not None:
            per_bin = good.reshape(n, k).sum(axis=1)
            observed[:] = per_bin == k
            counts[~observed] = 0
            self.counters.gaps += int(n - observed.sum())
            self.counters.partial += int(per_bin[~observed].sum())


def _sums(samples: Values) -> NDArray[np.float64]:
    """Sums of `(n, k, C)` along the second axis, added one after the other from zero: `(n, C)`."""
    if samples.shape[2] > 1:  # numpy adds in pairs only along the axis that is contiguous in memory
        return np.asarray(np.add.reduce(samples, axis=1, dtype=np.float64, initial=0.0))
    return np.asarray(np.add.accumulate(samples, axis=1, dtype=np.float64)[:, -1] + 0.0)

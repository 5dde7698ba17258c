"""How long the bins took: the last ones in a ring of fixed size, all of them as a histogram.

Both are written on the hot path, in a microsecond after a bin was sent, and read off it or once a second. Each of the
last bins is in a class, of a hundredth: to sort their times for the status kept the decoding for a sixth of a
millisecond. The histogram is counted here too, and not from the ring later: no burst can be longer than it remembers.
"""

import math
from bisect import bisect_left
from itertools import accumulate

import numpy as np

__all__ = ["BOUNDS_S", "Latency"]

SIZE = 1 << 13  # bins: 8 s at 1 kHz, 164 s at 50 Hz; a power of two, so that the index wraps by a mask
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
BOUNDS_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)  # each belongs to the class below
SHORTEST_S, LONGEST_S = 1e-6, 1e2  # that are told apart
A_FOLD = 100  # classes, from one time to e times as long
N_CLASSES = math.ceil(A_FOLD * math.log(LONGEST_S / SHORTEST_S))


class Latency:
    """The times `t_out - t_in` of the bins.

    Attributes:
        total_s: the sum over all bins.
    """

    def __init__(self) -> None:
        self._ring = [0] * SIZE  # the classes of the last bins
        self._n = 0
        self._last = np.zeros(N_CLASSES, np.intp)  # how many of them are of each
        self._all = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Notes one bin."""
        slot, its_class = self._n & (SIZE - 1), _class(seconds)
        if self._n >= SIZE:
            self._last[self._ring[slot]] -= 1
        self._ring[slot] = its_class
        self._last[its_class] += 1
        self._n += 1
        self._all[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def summary(self) -> dict[str, float | None]:
        """`p50`, `p99`, `p99.9` and `max` of the last bins in µs, to half a percent; None before the first."""
        n = min(self._n, SIZE)
        if not n:
            return dict.fromkeys(QUANTILES)
        ranks = [int(share * (n - 1)) for share in QUANTILES.values()]
        classes = self._last.cumsum().searchsorted(ranks, "right").tolist()
        middles_s = [SHORTEST_S * math.exp((k + 0.5) / A_FOLD) for k in classes]
        return {name: round(1e6 * seconds, 1) for name, seconds in zip(QUANTILES, middles_s, strict=True)}

    def histogram(self) -> list[int]:
        """How many of all bins took no longer than each of `BOUNDS_S`, and last all of them; for any thread."""
        return list(accumulate(self._all.copy()))


def _class(seconds: float) -> int:
    if SHORTEST_S < seconds < LONGEST_S:
        return int(A_FOLD * math.log(seconds / SHORTEST_S))
    return 0 if seconds <= SHORTEST_S else N_CLASSES - 1

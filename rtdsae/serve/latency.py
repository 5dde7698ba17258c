"""How long the bins took: the last ones in a ring of fixed size, all of them as a histogram.

Both are written on the hot path and read off it. The histogram is counted there too, and not from the ring later: it
costs a tenth of a microsecond, and no burst can be longer than what it remembers.
"""

from bisect import bisect_left
from itertools import accumulate

import numpy as np

__all__ = ["BOUNDS_S", "Latency"]

SIZE = 1 << 13  # bins: 8 s at 1 kHz, 164 s at 50 Hz; a power of two, so that the index wraps by a mask
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
BOUNDS_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)  # each belongs to the class below


class Latency:
    """The times `t_out - t_in` of the bins.

    Attributes:
        total_s: the sum over all bins.
    """

    def __init__(self) -> None:
        self._ring = np.zeros(SIZE)
        self._scratch = np.zeros(SIZE)
        self._n = 0
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Notes one bin."""
        self._ring[self._n & (SIZE - 1)] = seconds
        self._n += 1
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def summary(self) -> dict[str, float | None]:
        """`p50`, `p99`, `p99.9` and `max` of the last bins in microseconds; None before the first."""
        n = min(self._n, SIZE)
        if not n:
            return dict.fromkeys(QUANTILES)
        ordered = self._scratch[:n]
        ordered[:] = self._ring[:n]
        ordered.sort()
        return {name: round(1e6 * float(ordered[int(q * (n - 1))]), 1) for name, q in QUANTILES.items()}

    def histogram(self) -> list[int]:
        """How many of all bins took no longer than each of `BOUNDS_S`, and last all of them; for any thread."""
        return list(accumulate(self._counts.copy()))

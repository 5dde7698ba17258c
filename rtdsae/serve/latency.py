"""How long the last bins took, in a ring of fixed size: written on the hot path, read off it."""

import numpy as np

__all__ = ["Latency"]

SIZE = 1 << 13  # bins: 8 s at 1 kHz, 164 s at 50 Hz; a power of two, so that the index wraps by a mask
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


class Latency:
    """The times `t_out - t_in` of the last bins."""

    def __init__(self) -> None:
        self._ring = np.zeros(SIZE)
        self._scratch = np.zeros(SIZE)
        self._n = 0

    def add(self, seconds: float) -> None:
        """Notes one bin."""
        self._ring[self._n & (SIZE - 1)] = seconds
        self._n += 1

    def summary(self) -> dict[str, float | None]:
        """`p50`, `p99`, `p99.9` and `max` in microseconds; None before the first bin."""
        n = min(self._n, SIZE)
        if not n:
            return dict.fromkeys(QUANTILES)
        ordered = self._scratch[:n]
        ordered[:] = self._ring[:n]
        ordered.sort()
        return {name: round(1e6 * float(ordered[int(q * (n - 1))]), 1) for name, q in QUANTILES.items()}

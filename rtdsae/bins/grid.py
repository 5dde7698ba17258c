"""The grid: bins, their counters, and time in integers, as both binners share them.

Time is taken in as whole nanoseconds and kept as integers from there on, in fractions that make the period whole, and
bins are told apart by their index, never by a running sum of float edges: the bins cannot depend on the chunks.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rtdsae.errors import BinError

__all__ = [
    "BACKWARD_NS",
    "FORWARD_NS",
    "MAX_STAMP",
    "NO_STAMP",
    "BinBuffer",
    "BinCounters",
    "Bins",
    "Stamps",
    "Values",
    "nanoseconds",
    "width_ns",
]

Values: TypeAlias = NDArray[Any]
Stamps: TypeAlias = NDArray[np.float64]

KEPT_BYTES = 1 << 24  # of room for a call's bins
BACKWARD_NS = 1_000_000_000  # a stamp further back than this is a reset clock
FORWARD_NS = 60_000_000_000  # a stamp further ahead than this is a reset clock
NO_STAMP = -(1 << 63)  # in place of a stamp that is no time

MAX_STAMP = 9e9  # seconds, 285 years: what int64 nanoseconds hold


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


class BinBuffer:
    """Room for the bins of one call, used again by the next; it grows when a call completes more than any before.

    Attributes:
        one: the first of them, for who gives no other.
        bits: its counts as integers, `(C,)`.
    """

    def __init__(self, n_channels: int) -> None:
        self.n_channels = n_channels
        self._n = 0
        self._allocate(4)

    def _allocate(self, capacity: int) -> None:
        self._index = np.zeros(capacity, np.int64)
        self._t_end = np.zeros(capacity)
        self._counts = np.zeros((capacity, self.n_channels), np.float32)
        self._observed = np.zeros(capacity, np.bool_)
        self.one = self._first(1)
        self.bits = self._counts[0].view(np.uint32)
        self._few = [self._first(0), self.one]  # what most calls give, sliced beforehand

    def _first(self, n: int) -> Bins:
        return Bins(self._index[:n], self._t_end[:n], self._counts[:n], self._observed[:n])

    def _reserve(self, n: int) -> slice:
        start, self._n = self._n, self._n + n
        if self._n > len(self._index):
            old = self._first(start)
            self._allocate(2 * self._n)
            self._index[:start], self._t_end[:start], self._counts[:start], self._observed[:start] = old
        return slice(start, self._n)

    def clear(self) -> None:
        """Begins the next call."""
        self._n = 0

    def bins(self) -> Bins:
        """The bins of this call, as views; a long gap's room, a gigabyte at 4096 channels and 1 kHz, goes with it."""
        if self._n < 2:
            return self._few[self._n]
        bins = self._first(self._n)
        if self._counts.nbytes > KEPT_BYTES:
            self._n = 0
            self._allocate(4)
        return bins

    def add(self, index: int, t_end: float, counts: NDArray[Any]) -> None:
        """Adds an observed bin; its `(C,)` counts are copied."""
        at = self._reserve(1).start
        self._index[at], self._t_end[at], self._counts[at], self._observed[at] = index, t_end, counts, True

    def add_unobserved(self, index: int, t_end: float) -> None:
        """Adds a bin of zeros that is not observed."""
        at = self._reserve(1).start
        self._index[at], self._t_end[at], self._counts[at], self._observed[at] = index, t_end, 0, False

    def extend(self, index: int, t_end: Stamps) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Adds observed bins that follow one another; their counts are for the caller to fill in."""
        at = self._reserve(len(t_end))
        self._index[at] = range(index, index + len(t_end))
        self._t_end[at], self._observed[at] = t_end, True
        return self._counts[at], self._observed[at]


def width_ns(bin_width_s: float) -> Fraction:
    """A bin width in nanoseconds, exactly.

    Raises:
        BinError: it is not between 0.1 ms and 10 s.
    """
    if not 1e-4 <= bin_width_s <= 10:
        raise BinError(f"a bin width of {bin_width_s} s: expected 0.0001 to 10 s")
    return Fraction(bin_width_s).limit_denominator(1_000_000) * 1_000_000_000


def nanoseconds(stamps: Stamps) -> list[int]:
    """Stamps in whole nanoseconds; `NO_STAMP` for NaN and for what is too large to be a time."""
    return [round(s * 1e9) if -MAX_STAMP < s < MAX_STAMP else NO_STAMP for s in stamps.tolist()]

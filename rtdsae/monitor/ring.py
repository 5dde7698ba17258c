"""The last bins, in memory of a fixed size: one thread adds, others read without a lock.

A row is counted after it has been written, and there are more rows than anybody is given, so that a reader never meets
one that is being written over.
"""

import numpy as np
from numpy.typing import NDArray

from rtdsae.wire import Flags, Latents, Schema

__all__ = ["HOLE", "KEPT_S", "RESTART", "Ring", "Slots"]

KEPT_S = 60.0  # the longest time window of the page
MAX_BYTES = 256 << 20  # very wide arrays are kept for a shorter time
SPARE_S = 1.0  # rows that are not given to readers: they may be written over while they look
MIN_ROWS = 16
BESIDE = 50  # bytes of a row beside its values

KNOWN = Flags.GAP | Flags.ANCHORED | Flags.LATE | Flags.SWAPPED
HOLE, RESTART = 32, 64  # bins before this one never came here; another run of the daemon began with it

Slots = NDArray[np.intp]


class Ring:
    """Bins under one layout of arrays, as rows: row 0 came first, row `end` comes next.

    Args:
        schema: its arrays and bin width; another schema with the same ones may go on here.
        number: which ring this is, for those who look again.

    Attributes:
        seq, t_bin, t_out, received, daemon_s, flags: a value a slot; `daemon_s` is `t_out - t_in`, `received` is by
            this computer's monotonic clock, which is LSL's as well.
        values: `(slots, count)`, the payloads.
        slots: how many there are.
    """

    def __init__(self, schema: Schema, number: int) -> None:
        self.schema, self.number = schema, number
        most = MAX_BYTES // (4 * schema.count + BESIDE)
        spare = max(MIN_ROWS, self._bins(SPARE_S))
        self.slots = max(2 * MIN_ROWS, min(self._bins(KEPT_S) + spare, most))
        self._spare = min(spare, self.slots // 2)
        self.t_bin, self.t_out, self.received, self.daemon_s = (np.zeros(self.slots) for _ in range(4))
        self.seq = np.zeros(self.slots, np.uint64)
        self.flags = np.zeros(self.slots, np.uint16)
        self.values = np.zeros((self.slots, schema.count), np.float32)
        self.end = 0

    def takes(self, message: Latents) -> bool:
        """Whether the bin can be the next row: of the same arrays, and later."""
        schema = message.schema
        if schema is None:
            return False
        same = schema is self.schema or (
            schema.arrays == self.schema.arrays and schema.bin_width_s == self.schema.bin_width_s
        )
        return same and (not self.end or message.t_bin > self.t_bin[(self.end - 1) % self.slots])

    def add(self, message: Latents, received: float, marks: int) -> None:
        """The next row; `marks` are this computer's own flags."""
        slot = self.end % self.slots
        self.seq[slot] = message.seq
        self.t_bin[slot], self.t_out[slot], self.received[slot] = message.t_bin, message.t_out, received
        self.daemon_s[slot] = message.t_out - message.t_in
        self.flags[slot] = (int(message.flags) & KNOWN) | marks
        self.values[slot] = message.payload
        self.end += 1

    @property
    def first(self) -> int:
        """The oldest row that may be read."""
        return max(0, self.end - self.slots + self._spare)

    def since(self, seconds: float) -> int:
        """The first row of the last so many seconds of bins."""
        return max(self.first, self.end - max(1, self._bins(seconds)))

    def at(self, first: int, end: int, step: int = 1) -> Slots:
        """The slots of rows first to end, which itself is left out."""
        return np.arange(first, end, step) % self.slots

    def _bins(self, seconds: float) -> int:
        return round(min(seconds / self.schema.bin_width_s, MAX_BYTES))

    def columns(self, name: str) -> slice:
        """Where an array's values lie in a row."""
        return self.schema.slices[name][0]

"""The last minutes of what was published, for subscribers that noticed a hole."""

import numpy as np

from rtdsae.wire import Flags

__all__ = ["History"]

MAX_BYTES = 1 << 28
_FLAGS = slice(10, 12)  # where a frame has them


class History:
    """A ring of frames of one size, written on the hot path and read from other threads.

    A frame that may have been written over while a reader copied it is left out: NumPy lets others run meanwhile.

    Args:
        frame_size: bytes.
        n_frames: how many are kept; fewer where they would take more than MAX_BYTES.

    Attributes:
        first: `seq` of the first frame that it got.
    """

    def __init__(self, frame_size: int, n_frames: int) -> None:
        n_frames = max(1, min(n_frames, MAX_BYTES // frame_size))
        # Written to, so that no page is new to the hot path. One slot is spare: it is the one that is being written.
        self._ring = np.ones((n_frames + 1, frame_size), np.uint8)
        self._bytes = self._ring.data.cast("B")
        self.first = self._next = 0

    def begin(self, seq: int) -> None:
        """The next frame will be this one, and the first."""
        self.first = self._next = seq

    def add(self, frame: bytearray | memoryview) -> None:
        """Keeps the next frame."""
        n_slots, size = self._ring.shape
        at = self._next % n_slots * size
        self._bytes[at : at + size] = frame
        self._next += 1

    @property
    def is_full(self) -> bool:
        """Whether it has lost its first frames: older ones, of models before, would be on the far side of a hole."""
        return self._next - self.first > self.capacity

    @property
    def capacity(self) -> int:
        """How many frames it can have."""
        return len(self._ring) - 1

    def since(self, oldest: int) -> "History | None":
        """A copy of what is there from `seq` oldest on, no larger than that; None where nothing is."""
        kept = self.kept
        if kept is None or kept[1] < oldest:
            return None
        first, last = max(oldest, kept[0]), kept[1]
        copy = History(self._ring.shape[1], last - first + 1)
        copy.begin(first)
        for seq in range(first, last + 1):
            copy.add(self._ring[seq % len(self._ring)].data)
        return copy

    @property
    def kept(self) -> tuple[int, int] | None:
        """The oldest and the newest `seq` that are there."""
        newest = self._next - 1
        oldest = max(self.first, self._next - self.capacity)
        return (oldest, newest) if oldest <= newest else None

    def frames(self, first: int, last: int) -> list[bytes]:
        """Those of `seq` first to last that are there, in order, flagged as backfill."""
        kept = self.kept
        if kept is None:
            return []
        chosen = range(max(first, kept[0]), min(last, kept[1]) + 1)
        frames = [(seq, bytearray(self._ring[seq % len(self._ring)].tobytes())) for seq in chosen]
        return [_backfill(frame) for seq, frame in frames if self._next - seq <= self.capacity]


def _backfill(frame: bytearray) -> bytes:
    flags = int.from_bytes(frame[_FLAGS], "little") | Flags.BACKFILL
    frame[_FLAGS] = flags.to_bytes(2, "little")
    return bytes(frame)

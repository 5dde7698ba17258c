"""The ring of what was published."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.serve.history import History
from rtdsae.wire import Flags

SIZE = 16


def frame(seq):
    return bytearray(int(seq).to_bytes(8, "little") + bytes(SIZE - 8))


def seqs(frames):
    for content in frames:
        assert int.from_bytes(content[10:12], "little") == Flags.BACKFILL
    return [int.from_bytes(content[:8], "little") for content in frames]


def test_a_frame_that_is_being_written_spoils_none_that_is_there():
    history = History(SIZE, 3)
    for seq in range(5):
        history.add(frame(seq))
    history._ring[history._next % len(history._ring)] = 0xFF  # the hot path, in the middle of `add`
    assert history.kept == (2, 4)
    assert seqs(history.frames(0, 9)) == [2, 3, 4]


class Overtaken(History):
    """The hot path goes on just after a reader has asked what is there."""

    @property
    def kept(self):
        kept = super().kept
        self.add(frame(self._next))
        self._ring[self._next % len(self._ring)] = 0xFF  # in the middle of the next `add`
        return kept


def test_a_frame_that_was_written_over_while_it_was_copied_is_left_out():
    history = Overtaken(SIZE, 3)
    for seq in range(5):
        history.add(frame(seq))
    assert seqs(history.frames(0, 9)) == [3, 4]


@given(
    capacity=st.integers(1, 12),
    first=st.integers(0, 30),
    n=st.integers(0, 40),
    asked=st.tuples(st.integers(0, 80), st.integers(0, 80)),
    oldest=st.integers(-5, 80),
)
def test_what_is_kept_is_the_last_of_what_was_added(capacity, first, n, asked, oldest):
    history = History(SIZE, capacity)
    history.begin(first)
    for seq in range(first, first + n):
        history.add(frame(seq))
    there = list(range(first, first + n))[-capacity:]
    assert history.is_full == (n > capacity)
    assert history.kept == ((there[0], there[-1]) if there else None)
    assert seqs(history.frames(*asked)) == [seq for seq in there if asked[0] <= seq <= asked[1]]
    later, copy = [seq for seq in there if seq >= oldest], history.since(oldest)
    assert (copy is None) == (not later)
    if copy is not None:
        assert seqs(copy.frames(0, 100)) == later
        assert copy.capacity == len(later)
        assert np.shares_memory(copy._ring, history._ring) is False

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import TrainingError
from rtdsae.recordings import Recording
from rtdsae.train.config import Fit
from rtdsae.train.windows import SessionWindows, Tensors, Windows, by_session, draw_batches, entries_apart, epoch_seed

CPU = torch.device("cpu")


def recording(lengths, **parts):
    ends = np.cumsum(lengths)
    counts = np.arange(ends[-1])[:, None] + np.zeros((1, 3), int)  # a count tells its bin
    return Recording(counts, 0.02, segments=np.stack([ends - lengths, ends], 1), **parts)


def tensors(lengths, **parts):
    return Tensors(recording(lengths, **parts))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 12), st.integers(0, 9))
def test_no_window_crosses_a_segment_and_tiles_cover_every_modelled_bin(lengths, s, r, seed):
    lengths = [*lengths, s + r]  # at least one is long enough
    t = tensors(lengths)
    windows = Windows(t.recording, "train", s + r, r)
    long = [(a, b) for a, b in t.recording.segments.tolist() if b - a >= s + r]
    assert windows.too_short == len(lengths) - len(long)
    for firsts in (windows.tiles(), windows.draw(torch.Generator().manual_seed(seed))):
        assert all(any(a <= f and f + s + r <= b for a, b in long) for f in firsts.tolist())
    modelled = {bin_ for f in windows.tiles().tolist() for bin_ in range(f + s, f + s + r)}
    assert modelled == {bin_ for a, b in long for bin_ in range(a + s, b)}
    assert len(windows.draw(torch.Generator().manual_seed(seed))) == len(windows.tiles())


def test_drawn_offsets_vary_and_follow_their_seed():
    windows = Windows(tensors([100]).recording, "train", 20, 10)
    a, b, c = (windows.draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_every_offset_that_fits_is_drawn_equally_often():
    """The first and the last one too: a stream is anchored at any bin, so that no phase may be new to the model."""
    windows = Windows(tensors([28, 21]).recording, "train", 20, 10)
    generator = torch.Generator().manual_seed(0)
    firsts = torch.cat([windows.draw(generator) for _ in range(4000)])
    drawn = torch.bincount(firsts).tolist()
    expected = [8000 / 9] * 9 + [0] * 19 + [8000 / 2] * 2  # two tiles in each segment; 9 and 2 offsets
    assert drawn == pytest.approx(expected, rel=0.15)


def test_each_epoch_draws_its_windows_anew():
    session = SessionWindows(Tensors(recording([400, 60], splits=np.array(["train", "valid"]))), 20, 10, [])
    epochs = [torch.cat(draw_batches([session], Fit(), epoch))[:, 1] for epoch in range(20)]
    assert len({tuple(sorted(firsts.tolist())) for firsts in epochs}) == 20
    assert len(torch.cat(epochs).unique()) > 300  # of 381 offsets, in 20 epochs of 38 windows


def test_a_batch_holds_the_bins_and_hides_heldout_neurons():
    t = tensors([50], heldout=[False, True, False])
    batch = t.windows_at(torch.tensor([3, 10]), 4)
    assert batch.counts[:, :, 0].tolist() == [[3, 4, 5, 6], [10, 11, 12, 13]]
    assert batch.inputs.shape == (2, 4, 2)


def test_segments_that_are_all_too_short_are_refused_with_what_to_lower():
    with pytest.raises(TrainingError, match=r"window of 20 bins .* the longest of 2 has 12; lower"):
        Windows(tensors([10, 12]).recording, "train", 20, 10)


# ------------------------------------------------------------------------------------------------------------ sessions


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 8), st.integers(1, 12), st.integers(0, 9))
def test_windows_know_their_segment(lengths, s, r, seed):
    """Segments that are too short are not counted: the index is of those that hold a window."""
    t = tensors([*lengths, s + r])
    windows = Windows(t.recording, "train", s + r, r)
    long = [(a, b) for a, b in t.recording.segments.tolist() if b - a >= s + r]
    for firsts in (windows.tiles(), windows.draw(torch.Generator().manual_seed(seed))):
        segment = windows.segment_of(firsts).tolist()
        assert all(long[i][0] <= f and f + s + r <= long[i][1] for i, f in zip(segment, firsts.tolist(), strict=True))
        assert windows.per_segment().tolist() == [segment.count(i) for i in range(len(long))]


SPLITS = np.array(["train", "valid", "train", "train", "train"])


def two_sessions(batch_bins=20):
    """Windows of 10 + 10 bins; the third segment of each is too short for one."""
    words = ["left", "right", "up"]
    first = recording([40, 20, 5, 20, 20], splits=SPLITS, conditions=np.array(["up", "up", "left", "left", "up"]))
    second = recording([20, 20, 5, 50, 21], splits=SPLITS, conditions=np.array(["right", "up", "left", "up", "right"]))
    a = SessionWindows(Tensors(first), batch_bins, 10, words)
    return [a, SessionWindows(Tensors(second), batch_bins, 10, words, first_sequence=len(a.train.segments))]


def test_a_context_has_label_sequence_and_number_of_windows():
    """Labels are by the vocabulary that the sessions share; sequences are numbered on from session to session."""
    a, b = two_sessions()
    context = a.context(torch.tensor([85, 0, 15, 20, 65]), CPU)
    assert context.label.tolist() == [2, 2, 2, 2, 0]  # up, up, up, up, left
    assert context.sequence.tolist() == [2, 0, 0, 0, 1]
    assert context.windows.tolist() == [1, 3, 3, 3, 1]
    context = b.context(torch.tensor([0, 45, 75, 95, 96]), CPU)
    assert context.label.tolist() == [1, 2, 2, 1, 1]
    assert context.sequence.tolist() == [3, 4, 4, 5, 5]
    assert context.windows.tolist() == [1, 4, 4, 2, 2]


def test_without_conditions_in_every_session_there_are_no_labels():
    with_them = recording([40, 20, 20, 20, 20], splits=SPLITS, conditions=np.arange(5))
    assert SessionWindows(Tensors(with_them), 20, 10, []).context(torch.tensor([0]), CPU).label is None
    without = recording([40, 20, 20, 20, 20], splits=SPLITS)
    assert SessionWindows(Tensors(without), 20, 10, []).context(torch.tensor([0]), CPU).label is None


def test_training_bins_are_the_training_segments_that_hold_a_window():
    a, _ = two_sessions()
    assert a.training_bins()[:, 0].tolist() == [*range(40), *range(65, 105)]


def test_of_a_long_recording_evenly_spaced_bins_stand_for_all(monkeypatch):
    a, _ = two_sessions()
    monkeypatch.setattr("rtdsae.train.windows.MOST_VALUES", 3 * 80 // 2)  # of 80 bins of three neurons
    assert a.training_bins()[:, 0].tolist() == [*range(0, 40, 2), *range(65, 105, 2)]


def test_no_two_runs_share_an_epochs_draws():
    seeds = {epoch_seed(Fit(seed=seed), epoch) for seed in range(5) for epoch in range(1000)}
    assert len(seeds) == 5000


@given(st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_has_every_window_of_every_session_once(batch_size, epoch):
    sessions = two_sessions()
    batches = draw_batches(sessions, Fit(batch_size=batch_size), epoch)
    assert {*map(len, batches[:-1])} <= {batch_size}
    parts = [part for windows in batches for part in by_session(windows)]
    for i, session in enumerate(sessions):
        segment = session.train.segment_of(torch.cat([first for each, first in parts if each == i])).tolist()
        assert [segment.count(k) for k in range(3)] == session.train.per_segment().tolist()
    again = draw_batches(sessions, Fit(batch_size=batch_size), epoch)
    assert [windows.tolist() for windows in again] == [windows.tolist() for windows in batches]


def test_sessions_are_mixed_in_batches_at_random():
    sessions = two_sessions()
    mixes = {tuple(draw_batches(sessions, Fit(batch_size=4), epoch)[0][:, 0].tolist()) for epoch in range(20)}
    assert len(mixes) > 5
    assert sum(len(set(mix)) == 2 for mix in mixes) > len(mixes) / 2
    seeds = [draw_batches(sessions, Fit(batch_size=1, seed=seed), 0) for seed in (0, 1)]
    assert [w.tolist() for w in seeds[0]] != [w.tolist() for w in seeds[1]]


def test_the_windows_of_a_batch_are_sorted_by_session():
    drawn = torch.tensor([[1, 30], [0, 5], [1, 2], [0, 9]])
    assert [(i, first.tolist()) for i, first in by_session(drawn)] == [(0, [5, 9]), (1, [30, 2])]
    session = two_sessions()[1]
    part = session.part(torch.tensor([30, 2]))
    assert (part.session, part.first.tolist()) == (session.index, [30, 2])
    assert torch.equal(part.heldin, session.tensors.heldin)
    assert torch.equal(part.context.sequence, session.context(part.first).sequence)
    assert torch.equal(part.windows.counts, session.tensors.windows_at(part.first, session.train.bins).counts)


# ------------------------------------------------------------------------------------------ entries that are kept apart


def test_entries_are_kept_apart_at_their_rate_whatever_their_neighbours():
    apart = entries_apart(torch.arange(20_000)[None], 50, 0.2)[0]
    assert apart.unique().tolist() == [0, 1]
    assert apart.mean(0).numpy() == pytest.approx(np.full(50, 0.2), abs=0.015)  # of every neuron: 5 deviations
    apart -= apart.mean(0)
    between = apart.T @ apart / len(apart) / 0.16
    assert (between - torch.diag(between.diag())).abs().max() < 0.04
    assert all(abs((apart[lag:] * apart[:-lag]).mean().item()) < 0.001 for lag in (1, 2, 20))


def test_windows_carry_which_of_their_entries_are_apart_always_the_same():
    t = Tensors(Recording(np.zeros((60, 3)), 0.02), cv_mask=0.3)
    torch.manual_seed(99)
    batch = t.windows_at(torch.tensor([0, 7]), 10)
    assert torch.equal(batch.apart[0, 7:], batch.apart[1, :3])
    assert torch.equal(
        batch.apart, Tensors(Recording(np.ones((60, 3)), 0.02), 0.3).windows_at(torch.tensor([0, 7]), 10).apart
    )
    assert batch.apart.any()
    assert t.windows_at(torch.tensor([0]), 10).u is None
    assert Tensors(Recording(np.zeros((60, 3)), 0.02)).windows_at(torch.tensor([0]), 10).apart is None


@pytest.mark.parametrize(
    ("most", "kind"), [(300, torch.int16), (32_767, torch.int16), (32_768, torch.float32), (40_000, torch.float32)]
)
def test_counts_of_two_bytes_stay_where_they_are_if_pytorch_can_index_them(most, kind):
    counts = np.arange(40, dtype=np.uint16).reshape(20, 2)
    counts[3, 1] = most
    tensors = Tensors(Recording(counts, 0.02))
    assert tensors.counts.dtype == kind
    assert np.shares_memory(tensors.counts.numpy(), tensors.recording.counts) == (kind == torch.int16)
    np.testing.assert_array_equal(tensors.windows_at(torch.tensor([2]), 5).counts[0], counts[2:7])


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_counts_that_may_only_be_read_stay_where_they_are(kind):
    """As the trials of a search have them, which share one copy."""
    counts = np.arange(40, dtype=kind).reshape(20, 2)
    counts.flags.writeable = False
    recording = Recording(counts, 0.02, segments=[[0, 20]], splits=np.array(["train"]))
    assert not recording.counts.flags.writeable
    tensors = Tensors(recording)
    assert np.shares_memory(tensors.counts.numpy(), counts)
    batch = tensors.windows_at(torch.tensor([2]), 5)
    batch.counts.zero_()  # a batch is its own
    assert counts[2:7].any()


def test_whole_numbers_of_a_wide_type_are_a_byte_each():
    counts = np.random.default_rng(0).poisson(1.0, (300, 4)).astype(np.float64)
    made = Tensors(Recording(counts, 0.02)).counts
    assert made.dtype == torch.uint8
    np.testing.assert_array_equal(made.numpy(), counts)
    highest = counts.copy()
    highest[7, 2] = 256  # one more than a byte holds
    for other in (counts + 0.5, counts * 1000, highest):
        made = Tensors(Recording(other, 0.02)).counts
        assert made.dtype == torch.float32
        np.testing.assert_array_equal(made.numpy(), other)

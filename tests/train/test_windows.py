import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import TrainingError
from rtdsae.recordings import Recording
from rtdsae.train.windows import Tensors, Windows


def tensors(lengths, heldout=None):
    ends = np.cumsum(lengths)
    counts = np.arange(ends[-1])[:, None] + np.zeros((1, 3), int)  # a count tells its bin
    return Tensors(Recording(counts, 0.02, segments=np.stack([ends - lengths, ends], 1), heldout=heldout))


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


def test_a_batch_holds_the_bins_and_hides_heldout_neurons():
    t = tensors([50], heldout=[False, True, False])
    batch = t.windows_at(torch.tensor([3, 10]), 4)
    assert batch.counts[:, :, 0].tolist() == [[3, 4, 5, 6], [10, 11, 12, 13]]
    assert batch.inputs.shape == (2, 4, 2)


def test_segments_that_are_all_too_short_are_refused_with_what_to_lower():
    with pytest.raises(TrainingError, match=r"window of 20 bins .* the longest of 2 has 12; lower"):
        Windows(tensors([10, 12]).recording, "train", 20, 10)

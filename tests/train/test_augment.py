"""Training windows altered: what moves, and what stays."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fit import config, fit, recording

from rtdsae.errors import ConfigError
from rtdsae.train.augment import augment, jitter_spikes, shift_channels
from rtdsae.train.config import Objective, make_config
from rtdsae.train.windows import Batch

shapes = st.tuples(st.integers(1, 4), st.integers(2, 30), st.integers(1, 5))


def counts_of(shape, seed=0, rate=0.7):
    return torch.from_numpy(np.random.default_rng(seed).poisson(rate, shape).astype(np.float32))


@given(shape=shapes, seed=st.integers(0, 99), data=st.data())
def test_jitter_keeps_every_spike_and_moves_none_too_far(shape, seed, data):
    width = data.draw(st.integers(0, shape[1] - 1))
    counts = counts_of(shape, seed)
    moved = jitter_spikes(counts, width)
    assert moved.shape == counts.shape
    torch.testing.assert_close(moved.sum(1), counts.sum(1))
    # Spikes keep their order at best: the k-th spike of the sorted ones is at most `width` from the k-th before.
    for b, n in np.ndindex(shape[0], shape[2]):
        before, after = (np.repeat(np.arange(shape[1]), c[b, :, n].long().numpy()) for c in (counts, moved))
        assert (np.abs(before - after) <= width).all()


def test_jitter_keeps_fractions_of_counts():
    counts = counts_of((3, 20, 4)) + torch.rand(3, 20, 4, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    counts[:, ::3] = 0.0
    moved = jitter_spikes(counts, 2)
    torch.testing.assert_close(moved.sum(1), counts.sum(1))
    assert not torch.equal(moved, counts)


def test_jitter_of_values_that_may_be_negative_is_refused():
    tree = {"model": {"family": "lfads", "reconstruction": "gaussian"}, "objective": {"spike_jitter_bins": 1}}
    with pytest.raises(ConfigError, match="spike_jitter_bins moves spikes, and gaussian counts may be below 0"):
        make_config(tree, "c", (), ())


def test_jitter_is_even_over_its_bins():
    counts = torch.zeros(4000, 9, 1)
    counts[:, 4] = 2
    share = jitter_spikes(counts, 2).mean(0)[:, 0]
    torch.testing.assert_close(share, torch.tensor([0, 0, 0.4, 0.4, 0.4, 0.4, 0.4, 0, 0]), atol=0.04, rtol=0)


@pytest.mark.parametrize("end", [0, 8])
def test_jitter_is_reflected_at_a_windows_ends(end):
    counts = torch.zeros(4000, 9, 1)
    counts[:, end] = 1
    share = jitter_spikes(counts, 2).mean(0)[:, 0]
    expected = torch.tensor([0.2, 0.4, 0.4, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(share, expected.flip(0) if end else expected, atol=0.04, rtol=0)


@given(shape=shapes, seed=st.integers(0, 99), most=st.integers(0, 8))
def test_a_shift_moves_a_neuron_as_a_whole(shape, seed, most):
    counts = counts_of(shape, seed)
    moved = shift_channels(counts, most)
    for b, n in np.ndindex(shape[0], shape[2]):
        possible = [counts[b, (torch.arange(shape[1]) - by).clamp(0, shape[1] - 1), n] for by in range(-most, most + 1)]
        assert any(torch.equal(moved[b, :, n], one) for one in possible)


def test_neurons_are_shifted_each_by_itself():
    counts = torch.zeros(50, 20, 3)
    counts[:, 10] = 1
    at = shift_channels(counts, 3).argmax(1)
    assert set(at.flatten().tolist()) == set(range(7, 14))
    assert (at[:, 0] != at[:, 1]).any()


def test_inputs_are_of_the_altered_counts():
    counts, heldin = counts_of((3, 20, 4)), torch.tensor([True, False, True, True])
    batch = Batch(counts, counts[..., heldin], None, None)
    assert augment(batch, heldin, Objective()) is batch
    altered = augment(batch, heldin, Objective(spike_jitter_bins=3, shift_bins=2))
    assert not torch.equal(altered.counts, counts)
    torch.testing.assert_close(altered.inputs, altered.counts[..., heldin])
    assert torch.equal(batch.counts, counts_of((3, 20, 4)))


def test_training_goes_with_them_and_the_validation_part_is_left_alone(tmp_path):
    plain, altered = [], []
    fit(tmp_path / "a", config(epochs=2), plain.append, recording())
    o = Objective(ramp_epochs=2, spike_jitter_bins=2, shift_bins=1)
    fit(tmp_path / "b", config(objective=o, epochs=2), altered.append, recording())
    assert plain[0].metrics["train/nll"] != altered[0].metrics["train/nll"]
    assert np.isfinite(altered[-1].metrics["valid/nll_masked"])


def test_more_than_a_window_is_refused():
    with pytest.raises(ConfigError, match="below the window's bins"):
        make_config({"model": {"family": "lfads"}, "objective": {"shift_bins": 50}}, "c", (), ())

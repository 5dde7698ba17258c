"""Quality against time since the anchor: who answers for which bin, and that it is what a stream of that age says."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.evaluate import since_anchor as module
from rtdsae.evaluate.metrics import bits_per_spike
from rtdsae.evaluate.since_anchor import asked_bins, at_age, measures_of, since_anchor, streams_at_age
from rtdsae.model.families import make_family
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.stream import stream
from rtdsae.recordings import Recording
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.windows import Tensors

S, R, C = 4, 10, 6
SMALL = {"f_dim": 3, "z_dim": 2, "gen_dim": 8, "fac_dim": 5}


def recording(bins=300, **parts):
    rng = np.random.default_rng(0)
    rates = np.exp(np.sin(np.arange(bins) / 9)[:, None] * rng.normal(size=C))
    return Recording(rng.poisson(rates), 0.02, true_rates=rates / 0.02, **parts)


def family(config=LFADSConfig, lanes=1, **more):
    torch.manual_seed(0)
    return make_family(config(**SMALL, **more), Dims((Neurons("a", C, C),), 0, 0, 0, 9, 0.02, S, R, lanes)).eval()


@given(
    st.lists(st.integers(50, 400), min_size=1, max_size=60, unique=True).map(sorted),
    st.sampled_from(module.EDGES[:5]),
    st.integers(1, 20),
)
def test_every_bin_is_answered_once_at_the_age_that_was_asked_for(bins, low, width):
    streams = streams_at_age(np.array(bins), low, low + width, S)
    answered = [t for one in streams for t in range(one.begin, one.begin + one.bins)]
    assert answered == bins
    ages = [t - one.anchor - S for one in streams for t in range(one.begin, one.begin + one.bins)]
    assert all(low <= age < low + width for age in ages)


@pytest.mark.parametrize("config", [LFADSConfig, FHVAEConfig])
def test_an_answer_is_that_of_a_stream_which_was_anchored_so_long_before(config):
    model, tensors, bins = family(config), Tensors(recording()), np.array([40, 41, 42, 43, 44, 90, 91])
    low, high = 5, 8
    asked, outputs = at_age(model, tensors, bins, (low, high), S)
    assert asked is bins
    x = tensors.counts.float()
    for one in streams_at_age(bins, low, high, S):
        expected = stream(model, x[None, one.anchor : one.begin + one.bins]).rates[0, low:]
        rows = np.searchsorted(bins, np.arange(one.begin, one.begin + one.bins))
        np.testing.assert_allclose(outputs["rates"][rows], expected.numpy(), rtol=1e-4)


def test_long_segments_have_the_same_bins_at_every_age_and_what_is_usual_there():
    r, model = recording(), family(lanes=2)
    segments = np.array([[0, 140], [140, 300]])
    outputs = segment_outputs(model, Tensors(r), segments)
    found = since_anchor(model, Tensors(r), segments, outputs, False)
    assert found.same
    assert len(set(found.bins.tolist())) == 1
    assert list(found.scores) == list(found.usual) == ["r2_true_rates"]
    oldest = found.blocks[-1, 1]
    assert oldest <= 140 * 2 / 3
    bins, _ = asked_bins(segments, S)
    assert set(bins) <= set(modelled_bins(segments, S))
    assert min(bins) == S + oldest


def test_trials_as_long_as_a_window_are_streamed_from_their_beginnings():
    segments = np.arange(0, 280, S + R)[:, None] + [0, S + R]
    r = recording(segments=segments, heldout=np.arange(C) == 2, bins=280)
    model = make_family(LFADSConfig(**SMALL), Dims((Neurons("a", C - 1, C),), 0, 0, 0, 9, 0.02, S, R)).eval()
    outputs = segment_outputs(model, Tensors(r), segments)
    found = since_anchor(model, Tensors(r), segments, outputs, False)
    assert not found.same
    assert not found.usual
    assert set(found.scores) == {"r2_true_rates", "co_bps"}
    assert found.bins.tolist() == [5 * 20, 5 * 20]


def test_what_cannot_be_said_is_a_reason():
    r = recording()
    segments = np.array([[0, 300]])
    acausal = family(causal=False)
    with pytest.raises(ValueError, match="not anchored"):
        since_anchor(acausal, Tensors(r), segments, {}, False)
    short = np.array([[0, S + 3]])
    with pytest.raises(ValueError, match="too short"):
        since_anchor(family(), Tensors(r), short, segment_outputs(family(), Tensors(r), short), False)


def test_the_cost_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_BINS", 50)
    bins, _ = asked_bins(np.array([[0, 10_000]]), S)
    assert len(bins) == 50
    assert bins[-1] == 9_999


def test_spikes_are_scored_of_held_out_neurons_where_there_are_any():
    heldout = np.arange(C) % 3 == 2
    r, bins = recording(heldout=heldout), np.arange(50, 200)
    out = {"rates": r.true_rates[bins]}
    for known, neurons, name in ((r, heldout, "co_bps"), (recording(), ~heldout | heldout, "bps")):
        measures = measures_of(dataclasses.replace(known, true_rates=None), False)
        expected = bits_per_spike(out["rates"][:, neurons] * 0.02, r.counts[bins][:, neurons])
        assert {key: measure(bins, out) for key, measure in measures.items()} == {name: expected}


def test_one_long_segment_does_not_make_the_others_too_short():
    segments = np.array([[0, 104], [104, 208], [208, 2212]])
    bins, blocks = asked_bins(segments, S)
    assert blocks[-1] == (20, 40)
    assert bins[:3].tolist() == [44, 45, 46]

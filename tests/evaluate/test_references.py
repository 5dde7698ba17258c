"""Which simpler things a session is held against, and on which bins they are fitted."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.evaluate import references as module
from rtdsae.evaluate.baselines import lagged, psth
from rtdsae.evaluate.references import (
    Parts,
    a_few,
    glm_reference,
    last_fifth,
    limited,
    parts_of,
    pieces,
    psth_reference,
    references,
    ridge_reference,
    smoothed_reference,
)
from rtdsae.model.families import make_family
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Dims, Neurons
from rtdsae.recordings import Recording
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.windows import Tensors

S, R, C = 5, 15, 8
SEGMENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 900)), min_size=1, max_size=9).map(
    lambda gaps: np.cumsum(np.array(gaps).ravel()).reshape(-1, 2)
)


def recording(**parts):
    """Neurons that follow a slow wave, which is the behaviour too; trials of two conditions."""
    rng = np.random.default_rng(0)
    wave = np.stack([np.sin(np.arange(1200) / 9), np.cos(np.arange(1200) / 11)], 1)
    rates = np.exp(wave @ rng.normal(size=(2, C)))
    known = {
        "behaviour": wave,
        "behaviour_labels": ("x", "y"),
        "true_rates": rates / 0.02,
        "heldout": np.arange(C) % 4 == 3,
        "segments": np.arange(0, 1200, 40)[:, None] + [0, 40],
        "conditions": np.arange(30) % 2,
    }
    return Recording(rng.poisson(rates), 0.02, **(known | parts)).split()


def found(r, part="test", causal=True):
    torch.manual_seed(0)
    seen = C if r.heldout is None else int((~r.heldout).sum())
    config = LFADSConfig(causal=causal, f_dim=4, z_dim=2, gen_dim=8, fac_dim=6, ic_enc_dim=8, ci_enc_dim=8, con_dim=8)
    family = make_family(config, Dims((Neurons("a", seen, C),), 0, 2, 2, 9, 0.02, S, R)).eval()
    segments = r.segments if part == "whole" else r.segments[np.asarray(r.splits) == part]
    return references(family, Tensors(r), segments, part, segment_outputs(family, Tensors(r), segments)["factors"])


def test_each_score_has_its_references_and_they_are_what_they_can_be():
    simpler = found(recording())
    assert {name: [r.key for r in some] for name, some in simpler.items()} == {
        "co_bps": ["glm"],
        "r2_behaviour": ["shifted", "ridge"],
        "r2_true_rates": ["smoothed", "psth"],
    }
    value = {r.key: r.value for some in simpler.values() for r in some}
    assert value["glm"] > 0.1
    assert value["ridge"] > 0.5
    assert value["shifted"] < value["ridge"]
    assert value["smoothed"] > 0.05
    assert value["psth"] < 0  # the wave does not repeat from trial to trial: a mean over them is of no use


def test_what_the_recording_lacks_has_no_reference():
    bare = recording(behaviour=None, behaviour_labels=(), true_rates=None, heldout=None, conditions=None)
    assert found(bare) == {}


def test_a_recording_that_is_scored_whole_leaves_nothing_to_fit_on():
    for some in found(recording(), "whole").values():
        assert all(r.value is None and "scored whole" in r.what for r in some)


def test_an_acausal_reference_is_held_against_the_same_on_trials_of_exactly_a_window():
    windows = np.arange(0, 1200, S + R)[:, None] + [0, S + R]
    r = recording(segments=windows, conditions=np.arange(len(windows)) % 2)
    some = found(r, causal=False)
    assert {name: [x.key for x in simpler] for name, simpler in some.items()} == {
        "co_bps": ["glm"],
        "r2_behaviour": ["shifted", "ridge"],
        "r2_true_rates": ["smoothed", "psth"],
    }
    assert all(x.value is not None for simpler in some.values() for x in simpler)


def test_too_many_channels_are_a_reason(monkeypatch):
    monkeypatch.setattr(module, "MOST_COLUMNS", 5)
    value = {r.key: r for some in found(recording()).values() for r in some}
    assert value["ridge"].value is None
    assert "5 channels" in value["glm"].what


@pytest.mark.parametrize("part", ["valid", "test"])
def test_nothing_is_fitted_or_chosen_on_the_scored_part(part):
    r = recording()
    parts = parts_of(r, r.segments[np.asarray(r.splits) == part], part, S + 1)
    bins = [{int(t) for a, b in some for t in range(a, b)} for some in (parts.fit, parts.choose, parts.scored)]
    assert sum(map(len, bins)) == len(set().union(*bins))
    assert min(map(len, bins)) >= 40


def scored_parts(r):
    return parts_of(r, r.segments[np.asarray(r.splits) == "test"], "test", S + 1)


def test_ridge_sees_no_held_out_neuron():
    r, told = recording(), recording()
    told.counts[:, r.heldout] = np.round(5 + 5 * r.behaviour)  # all that is asked for
    assert ridge_reference(told, scored_parts(told), S) == ridge_reference(r, scored_parts(r), S)


def test_smoothed_spikes_are_begun_and_scaled_by_other_bins_than_the_scored(monkeypatch):
    r, told, taken = recording(), recording(), []
    parts, plain = scored_parts(r), module.baselines.smoothed
    told.true_rates[modelled_bins(parts.scored, 0)] *= 3
    monkeypatch.setattr(module.baselines, "smoothed", lambda *args: taken.append(args[-1]) or plain(*args))
    assert smoothed_reference(told, parts, S)[0] < smoothed_reference(r, parts, S)[0] - 0.1
    for before in taken:
        np.testing.assert_allclose(before, r.counts[modelled_bins(parts.fit, 0)].mean(0))


def test_shifted_behaviour_has_the_mean_and_the_95th_percentile_of_its_shifts(monkeypatch):
    monkeypatch.setattr(module.baselines, "shifted_scores", lambda *args, **more: np.arange(101.0))
    shifted = found(recording())["r2_behaviour"][0]
    assert (shifted.key, shifted.value) == ("shifted", 50.0)
    assert "95 % below 95.000" in shifted.what


def test_segments_that_are_fitted_on_are_evenly_spaced():
    segments = np.arange(0, 1000, 100)[:, None] + [0, 100]
    assert limited(segments, 300).tolist() == [[0, 100], [300, 400], [600, 700]]


def test_hours_are_not_held_as_floats_for_the_poisson_regression():
    rng = np.random.default_rng(0)
    r = Recording(rng.poisson(0.3, (100_000, 60)).astype(np.uint8), 0.02, heldout=np.arange(60) % 20 == 0)
    parts = Parts(np.array([[0, 600]]), np.array([[600, 900]]), np.array([[900, 100_000]]))
    tracemalloc.start()
    glm_reference(r, parts, S)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < r.counts.size * 4  # bytes of them as floats


def test_a_psths_smoothing_is_not_chosen_on_the_scored_trials():
    r, told = recording(), recording()
    conditions = np.asarray(r.conditions)
    training, asked = (np.asarray(r.splits) == part for part in ("train", "test"))
    rough = psth(r.counts, (r.segments[training], conditions[training]), r.segments[asked], conditions[asked], S)
    told.true_rates[modelled_bins(r.segments[asked], S)] = rough / r.bin_width_s  # smoothing takes it further away
    values, whats = zip(*(psth_reference(made, scored_parts(made), S) for made in (r, told)), strict=True)
    assert values[0] != values[1]
    assert whats[0] == whats[1]


def test_a_single_training_segment_is_cut_in_time():
    one = np.array([[0, 1000]])
    first, last = last_fifth(one, 10)
    assert (first.tolist(), last.tolist()) == ([[0, 800]], [[800, 1000]])
    short = dataclasses.replace(recording(), splits=None, segments=np.array([[0, 1200]]), conditions=None, labels=None)
    with pytest.raises(ValueError, match="too short"):
        parts_of(short.split(0.1, 0.9), np.array([[120, 1200]]), "test", 500)


@given(SEGMENTS, st.integers(1, 60))
def test_pieces_are_long_enough_and_cover_segments_but_for_their_ends(segments, least):
    cut = pieces(segments, least)
    whole = {t for a, b in segments.tolist() for t in range(a, b)}
    covered = [t for a, b in cut.tolist() for t in range(a, b)]
    assert len(covered) == len(set(covered))
    assert set(covered) <= whole
    assert all(b - a >= least for a, b in cut.tolist())
    assert len(whole) - len(covered) < least * len(segments)


@given(SEGMENTS)
def test_what_is_fitted_on_is_bounded(segments):
    kept = limited(segments)
    assert len(kept) >= 1
    assert (kept[:, 1] > kept[:, 0]).all()
    huge = limited(np.array([[0, 10**6]]))
    assert huge.tolist() == [[10**6 - module.MOST_BINS, 10**6]]
    trials = np.arange(0, 26_000, 50)[:, None] + [0, 50]
    assert np.diff(limited(trials)).sum() == module.MOST_BINS  # not half of them
    assert limited(trials, 26_000).tolist() == trials.tolist()


@given(SEGMENTS, st.integers(1, 12), st.integers(0, 5))
def test_a_few_at_a_time_are_lagged_as_all_are(segments, lags, skip):
    counts = np.random.default_rng(0).poisson(1.0, (segments.max() + 1, 2))
    segments = segments[np.diff(segments, axis=1)[:, 0] > skip]
    if len(segments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "NULL_BINS", 50)
            some = [lagged(counts, part, lags, before) for part, before in a_few(segments, lags, skip)]
        assert max(map(len, some)) <= 50
        np.testing.assert_array_equal(np.concatenate(some), lagged(counts, segments, lags, skip))

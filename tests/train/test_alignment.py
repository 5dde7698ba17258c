"""Sessions of one latent process seen by neurons that are others: what their read-ins give after alignment."""

import dataclasses
import sys

import msgspec
import numpy as np
import pytest
import torch
from test_fit import FAMILIES

from rtdsae.model.families import make_family
from rtdsae.model.family import Dims
from rtdsae.recordings import Recording
from rtdsae.train.alignment import align, align_session, shared_conditions, usual_bins
from rtdsae.train.sessions import neurons_of

DIM, BINS, PER_CONDITION = 3, 40, 50
WORDS = ("down", "left", "right", "up")


def latents():
    """What each condition's trials have in common, (conditions, BINS, DIM): smooth, of unequal strengths."""
    t = np.arange(BINS) / BINS
    phase = np.arange(len(WORDS)) * np.pi / 2
    angle = phase[:, None] + 2 * np.pi * t
    return np.stack([np.sin(angle), 0.8 * np.cos(angle + 1), 0.6 * np.cos(2 * angle + phase[:, None])], 2)


def session(seed, neurons, words=WORDS, bins=BINS, **parts):
    """Trials of each condition in turn, its latents read by random Poisson neurons."""
    rng = np.random.default_rng(seed)
    conditions = np.tile(words, PER_CONDITION)
    log_rates = latents()[[WORDS.index(c) for c in conditions], :bins] @ (0.7 * rng.normal(size=(DIM, neurons)))
    counts = rng.poisson(np.exp(log_rates + rng.normal(-0.5, 0.3, neurons))).reshape(-1, neurons)
    segments = np.arange(0, len(counts), bins)[:, None] + [0, bins]
    parts = {"segments": segments, "conditions": conditions} | parts
    return Recording(counts, 0.02, **parts).split(0.15, 0.2)


def family_for(recordings, readin_dim=DIM, name="lfads"):
    torch.manual_seed(0)
    model = msgspec.structs.replace(FAMILIES[name], readin_dim=readin_dim)
    dims = Dims(tuple(neurons_of(r, f"{i}.h5") for i, r in enumerate(recordings)), 0, 0, 0, 0, 0.02, 5, 15)
    family = make_family(model, dims)
    for i, r in enumerate(recordings):
        counts = torch.from_numpy(r.counts.astype(np.float32))
        family.use(i).session.fit(counts, counts[:, r.heldin])
    return family


def read_in(family, i, r, words=WORDS, split="test"):
    """Averages of a split's trials in the common inputs, (conditions · bins, readin_dim), begun at the first bin."""
    x = torch.from_numpy(r.counts[:, r.heldin].astype(np.float32))
    readin = family.use(i).readin
    inputs = readin(readin.normalise(x)).detach().numpy()
    bins = np.diff(r.segments).min()
    trials = np.stack([inputs[a : a + bins] for a in r.segments[:, 0]])
    chosen = r.splits == split
    averages = [trials[chosen & (r.conditions == word)].mean(0) for word in words]
    return np.concatenate(averages)


def correlations(a, b):
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


TWO = (session(1, 25), session(2, 18))


@pytest.mark.parametrize("name", FAMILIES)
def test_after_alignment_sessions_read_the_same_into_the_common_inputs(name):
    """On test trials, which no average was taken of; by random read-ins they do not."""
    family = family_for(TWO, name=name)
    before = correlations(*(read_in(family, i, r) for i, r in enumerate(TWO)))
    alignment = align(family, TWO)
    after = correlations(*(read_in(family, i, r) for i, r in enumerate(TWO)))
    assert before.min() < 0 < 0.8 < after.min()
    assert alignment.conditions == WORDS
    assert alignment.averages.shape == (len(WORDS), BINS, DIM)
    components = alignment.averages.reshape(-1, DIM)
    assert components.mean(0) == pytest.approx(np.zeros(DIM), abs=1e-4)
    assert components.T @ components / len(components) == pytest.approx(np.eye(DIM), abs=1e-3)  # of equal size


def test_the_common_inputs_hold_the_latents():
    family = family_for(TWO)
    align(family, TWO)
    truth = latents().reshape(-1, DIM)
    for i, r in enumerate(TWO):
        inputs = read_in(family, i, r, split="train")
        design = np.column_stack([inputs, np.ones(len(inputs))])
        fitted = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
        assert correlations(fitted, truth).min() > 0.9


def test_a_third_session_is_brought_in_from_the_averages_alone():
    """It has other neurons again, only some of the conditions, and shorter trials."""
    family = family_for(TWO)
    alignment = align(family, TWO)
    words, bins = ("down", "right", "up"), 30
    shortened = TWO[0].segments[:, :1] + [0, bins]
    known = read_in(family, 0, dataclasses.replace(TWO[0], segments=shortened), words)
    third = session(3, 30, words, bins)
    family = family_for([third])
    assert correlations(read_in(family, 0, third, words), known).min() < 0
    assert align_session(family.session, third, alignment)
    assert correlations(read_in(family, 0, third, words), known).min() > 0.8


def test_a_session_that_shares_some_conditions_reads_their_common_level_too(monkeypatch):
    """The mean over some of the conditions is not 0, as it is over all of them, and a read-in has no offset."""
    levels = np.array([[1.0, 0.2, 0.0], [1.0, -0.2, 0.0], [-1.0, 0.0, 0.2], [-1.0, 0.0, -0.2]])
    monkeypatch.setattr(sys.modules[__name__], "latents", lambda: np.repeat(levels[:, None], BINS, 1))
    two, shared = (session(1, 25), session(2, 18)), WORDS[:2]
    family = family_for(two)
    alignment = align(family, two)
    known = read_in(family, 0, two[0], shared)
    third = session(3, 30)
    third = dataclasses.replace(third, conditions=[c if c in shared else f"other {c}" for c in third.conditions])
    family = family_for([third])
    assert align_session(family.session, third, alignment)
    error = np.square(read_in(family, 0, third, shared).mean(0) - known.mean(0)).sum() / np.square(known.mean(0)).sum()
    assert error < 0.2


def test_the_read_out_is_the_way_back():
    """From the first factors, as if they were the common inputs: at the weights' usual size, in every session alike."""
    family = family_for(TWO)
    before = [family.use(i).session.readout.linear.weight.detach().clone() for i in (0, 1)]
    align(family, TWO)
    for i, r in enumerate(TWO):
        s = family.use(i).session
        out, back = s.readout.linear.weight.detach(), torch.linalg.pinv(s.readin.linear.weight.detach())
        assert out.shape == (r.n_channels, 4)
        torch.testing.assert_close(out[:, :DIM] / out[:, :DIM].std(), back / back.std())
        assert out[:, :DIM].std().item() == pytest.approx(before[i].std().item(), rel=1e-4)
        assert torch.equal(out[:, DIM:], before[i][:, DIM:])


def test_heldout_neurons_are_not_read_in():
    """Their counts change nothing, and the read-out stays random: which of it is theirs is not known there."""
    heldout = np.arange(25) % 5 == 2
    both = [dataclasses.replace(TWO[0], heldout=heldout), TWO[1]]
    family = family_for(both)
    before = family.use(0).session.readout.linear.weight.detach().clone()
    align(family, both)
    aligned = family.use(0).session
    assert aligned.readin.linear.weight.shape == (DIM, 20)
    assert torch.equal(aligned.readout.linear.weight, before)
    assert correlations(*(read_in(family, i, r) for i, r in enumerate(both))).min() > 0.8

    counts = both[0].counts.copy()
    counts[:, heldout] = counts[::-1, heldout] + 3
    both[0] = dataclasses.replace(both[0], counts=counts)
    other = family_for(both)
    align(other, both)
    assert torch.equal(other.use(0).readin.linear.weight, aligned.readin.linear.weight)


def test_only_training_trials_are_averaged():
    family, other = family_for(TWO), family_for(TWO)
    align(family, TWO)
    counts = TWO[0].counts.copy()
    for a, b in TWO[0].segments[TWO[0].splits != "train"]:
        counts[a:b] += 7
    align(other, [dataclasses.replace(TWO[0], counts=counts), TWO[1]])
    assert torch.equal(family.use(0).readin.linear.weight, other.use(0).readin.linear.weight)


def without(r):
    return dataclasses.replace(r, conditions=None)


@pytest.mark.parametrize(
    ("recordings", "readin_dim"),
    [
        ([TWO[0], without(TWO[1])], DIM),
        ([without(TWO[0]), without(TWO[1])], DIM),
        ([TWO[0], dataclasses.replace(TWO[1], conditions=np.char.add("my ", TWO[1].conditions))], DIM),
        ([TWO[0], session(4, 10, ("up",))], DIM),  # one that is shared is too few
        ([TWO[0]], DIM),
        ([TWO[0], TWO[0]], 0),
    ],
    ids=["one without", "none", "others", "one shared", "one session", "no read-in"],
)
def test_where_too_little_is_shared_everything_stays_random(recordings, readin_dim):
    family = family_for(recordings, readin_dim)
    before = {key: value.clone() for key, value in family.state_dict().items()}
    assert align(family, recordings) is None
    assert all(torch.equal(value, before[key]) for key, value in family.state_dict().items())


def test_a_session_that_shares_too_little_is_left_as_it_is():
    alignment = align(family_for(TWO), TWO)
    for stranger in (without(TWO[0]), session(4, 10, ("up",))):
        family = family_for([stranger])
        before = family.readin.linear.weight.clone()
        assert not align_session(family.session, stranger, alignment)
        assert torch.equal(family.readin.linear.weight, before)


def test_more_common_inputs_than_neurons_are_filled_up_with_zeros():
    """Two sessions of three neurons have six components between them, however wide the read-in is."""
    few = [session(5, 3), session(6, 3)]
    family = family_for(few, readin_dim=8)
    alignment = align(family, few)
    assert alignment.averages.shape[2] == 8
    assert not alignment.averages[..., 6:].any()
    assert not family.use(0).readin.linear.weight[6:].any()
    assert torch.isfinite(family.readin.linear.weight).all()


def test_a_trial_that_was_cut_short_does_not_shorten_the_averages():
    """It is left out of them, in an alignment and in a session that is brought in."""
    segments = TWO[0].segments.copy()
    at = np.flatnonzero(TWO[0].splits == "train")[3]
    segments[at, 1] = segments[at, 0] + 4
    stumbled = dataclasses.replace(TWO[0], segments=segments)
    family = family_for([stumbled, TWO[1]])
    alignment = align(family, [stumbled, TWO[1]])
    assert alignment.averages.shape[1] == BINS
    counts = stumbled.counts.copy()
    counts[segments[at, 0] :][:4] += 7
    changed = dataclasses.replace(stumbled, counts=counts)
    weights = []
    for r in (stumbled, changed):
        assert align_session(family.use(0).session, r, alignment)
        weights.append(family.readin.linear.weight.detach().clone())
    assert torch.equal(*weights)
    inputs = [read_in(family, i, r) for i, r in enumerate(TWO)]
    assert correlations(*inputs).min() > 0.8


def test_a_condition_without_a_training_trial_is_not_shared():
    splits = TWO[0].splits.copy()
    splits[TWO[0].conditions == "up"] = "test"
    assert shared_conditions([dataclasses.replace(TWO[0], splits=splits), TWO[1]]) == ["down", "left", "right"]


def test_trials_are_averaged_over_the_bins_that_half_of_each_condition_reach():
    lengths = np.array([10, 10, 4, 9, 3, 3, 8])
    ends = np.cumsum(lengths)
    r = Recording(np.ones((47, 1), int), 0.02, segments=np.stack([ends - lengths, ends], 1), conditions=[*"aaabbba"])
    assert usual_bins(r, ["a"]) == 9
    assert usual_bins(r, ["a", "b"]) == 3


@pytest.mark.timeout(60)  # minutes where each looks through all
def test_thousands_of_conditions_take_no_time_of_each_for_each():
    n = 10_000
    segments = np.arange(n)[:, None] + [0, 1]
    recording = Recording(np.ones((n, 1), np.uint8), 0.02, segments=segments, conditions=np.arange(n))
    assert usual_bins(recording, list(map(str, range(n)))) == 1

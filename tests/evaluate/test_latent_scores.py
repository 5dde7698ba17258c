"""The latent scores of a trained model, and the reasons where one cannot be."""

import dataclasses

import numpy as np
import pytest
import torch

from rtdsae.evaluate.disentanglement import mig, sap
from rtdsae.evaluate.latent_scores import as_sources, latent_scores
from rtdsae.evaluate.probes import label_probe
from rtdsae.evaluate.trials import trials_of
from rtdsae.model.families import make_family
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.stream import stream
from rtdsae.recordings.reaching import reaching
from rtdsae.train.windows import Tensors

S, R, C = 10, 20, 12


@pytest.fixture(scope="module")
def recording():
    return reaching(n_trials=3, n_bins=S + R, n_neurons=C, valid=0.34, test=0.34)


def family(config=LFADSConfig):
    torch.manual_seed(0)
    small = {"f_dim": 3, "z_dim": 2, "gen_dim": 8, "fac_dim": 5}
    return make_family(config(**small), Dims((Neurons("a", C, C),), 0, 3, 72, 72, 0.02, S, R)).eval()


def parts(recording):
    splits = np.asarray(recording.splits)
    return recording.segments[splits == "test"], recording.segments[splits == "train"]


@pytest.mark.parametrize("config", [LFADSConfig, FHVAEConfig])
def test_trials_hold_what_the_stream_gives(recording, config):
    model, tensors, (test, _) = family(config), Tensors(recording), parts(recording)
    trials = trials_of(model, tensors, test, R)
    x = torch.stack([tensors.counts[a:b] for a, b in test])
    streamed = stream(model, x)
    np.testing.assert_allclose(trials.outputs["z"], streamed.z.numpy(), atol=1e-5)
    np.testing.assert_allclose(trials.f, streamed.f[:, -1].numpy(), atol=1e-5)
    chosen = np.asarray(recording.splits) == "test"
    np.testing.assert_array_equal(trials.labels["direction"], recording.labels[chosen, 0])
    a = test[5, 0] + S
    np.testing.assert_array_equal(trials.behaviour["vel_x"][5], recording.behaviour[a : a + R, 0])


def test_every_score_is_there_for_a_recording_that_knows_its_factors(recording):
    model, tensors, (test, train) = family(), Tensors(recording), parts(recording)
    scores = latent_scores(model, tensors, test, train)
    assert scores.reasons == {}
    assert set(scores.values) == {
        *("mig", "sap", "dci", "beta_vae", "factor_vae", "mcc"),
        *("probe_f", "probe_z", "probe_f_series", "probe_z_series", "tangling", "swap"),
    }
    trials = trials_of(model, tensors, test, R)
    probe = label_probe(trials.f, trials.labels["gain"])
    assert scores.values["probe_f"]["gain"] == {"accuracy": probe.score, "chance": probe.chance}
    straight = np.stack([values for name, values in trials.labels.items() if name != "direction"], 1)
    assert scores.values["mig"] == pytest.approx(mig(trials.f, straight))  # a direction has two codes, with no gap
    assert scores.values["sap"] == pytest.approx(sap(trials.f, straight))
    assert set(scores.values["swap"]) == {"direction", "speed", "gain", "vel_x", "vel_y", "perturbation"}


def test_a_direction_is_two_sources():
    cosine, sine = as_sources("direction", np.array([0.0, 90.0, 180.0]))
    np.testing.assert_allclose([cosine, sine], [[1, 0, -1], [0, 1, 0]], atol=1e-12)


def test_all_trials_are_as_long_as_the_shortest_of_either_part(recording):
    test, train = parts(recording)
    scores = latent_scores(family(), Tensors(recording), test, train - [0, 3])
    assert scores.reasons == {}


def test_what_cannot_be_scored_is_none_with_the_reason(recording):
    bare = dataclasses.replace(
        recording, labels=None, label_names=(), conditions=None, behaviour=None, behaviour_labels=()
    )
    scores = latent_scores(family(), Tensors(bare), *parts(bare))
    assert all(value is None for value in scores.values.values())
    assert scores.reasons.keys() == scores.values.keys()
    assert "no `labels`" in scores.reasons["mig"]
    assert "no behaviour" in scores.reasons["probe_z_series"]


def test_a_trial_that_was_broken_off_does_not_cut_the_others(recording):
    test, train = parts(recording)
    cut = test.copy()
    cut[2, 1] = cut[2, 0] + S + 1
    model, tensors = family(), Tensors(recording)
    scores = latent_scores(model, tensors, cut, train)
    assert scores.reasons == {}
    without = latent_scores(model, tensors, np.delete(test, 2, 0), train)
    assert scores.values == without.values


def test_conditions_stand_in_for_labels(recording):
    by_direction = np.asarray(recording.conditions) % 8
    conditions = dataclasses.replace(recording, labels=None, label_names=(), conditions=by_direction)
    scores = latent_scores(family(), Tensors(conditions), *parts(conditions))
    assert set(scores.values["probe_f"]) == {"condition"}
    assert scores.values["tangling"] > 0
    assert scores.values["mig"] is None

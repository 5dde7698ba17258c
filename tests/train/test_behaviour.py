import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from test_fit import config, fit, recording

from rtdsae.evaluate.metrics import r2
from rtdsae.recordings import Recording
from rtdsae.train import behaviour, ridge
from rtdsae.train.behaviour import fit_behaviour
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.ridge import ALPHAS, mean_r2
from rtdsae.train.sessions import prepare
from rtdsae.train.windows import Tensors


def test_the_read_out_decodes_as_its_fit_says(tmp_path):
    """Fitted on standardised factors, it is used on plain ones: what streams is what was scored, offset included."""
    run = fit(tmp_path / "run", config(epochs=10))
    r = prepare(recording(), run.config)
    segments = r.segments[r.splits == "valid"]
    decoded = segment_outputs(run.model(), Tensors(r), segments)["behaviour"]
    scores = r2(r.behaviour[modelled_bins(segments, run.dims.anchor_bins)], decoded)
    assert scores.mean() == pytest.approx(run.info["behaviour_fit"]["r2_valid"], abs=1e-4)
    assert np.abs(run.model().behaviour.bias.detach().numpy()).max() > 1e-3


@pytest.mark.parametrize("constant", [0.1, 2.2])
def test_a_column_that_does_not_vary_in_the_validation_part_chooses_nothing(tmp_path, constant):
    wave = recording().behaviour
    noise = np.random.default_rng(1).normal(size=len(wave))
    still = np.where(np.arange(len(wave)) < 100, noise, constant)[:, None]
    both = recording(behaviour=np.hstack([wave, still]), behaviour_labels=("x", "y", "still"))
    found = fit(tmp_path / "run", config(epochs=3), data=both).info["behaviour_fit"]
    assert found["r2_valid"] > 0.4
    assert found["alpha"] < 1000


def test_one_column_alone_is_decoded(tmp_path):
    wave = recording().behaviour[:, 1:]
    run = fit(tmp_path / "run", config(epochs=3), data=recording(behaviour=wave, behaviour_labels=("grip",)))
    assert run.info["state"] == "finished"
    assert run.info["behaviour_fit"]["r2_valid"] > 0.4


def streamed(monkeypatch, factors, sessions):
    """A model of which these are the factors, session by session, each behind an anchor of a bin."""
    k = len(sessions[0].behaviour_labels)
    family = SimpleNamespace(dims=SimpleNamespace(anchor_bins=1), using=0)
    family.behaviour = torch.nn.Linear(factors[0].shape[1], k, dtype=torch.float64)
    family.use = lambda i: vars(family).update(using=i) or family
    monkeypatch.setattr(
        behaviour,
        "segment_outputs",
        lambda family, tensors, segments, names: {"factors": factors[family.using][modelled_bins(segments, 1)]},
    )
    return family, [SimpleNamespace(recording=session) for session in sessions]


@pytest.mark.parametrize("noise", [0.1, 3.0, 100.0])
def test_hours_in_pieces_are_fitted_as_if_they_were_one(monkeypatch, noise):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(12, 12)) * np.logspace(-3, 1, 12)
    factors = [(rng.normal(size=(n, 12)) @ mixed + 5).astype(np.float32) for n in (1030, 555)]
    for values in factors:
        values[:, 3] = 0.3
    hands = [x[:, :2] / x[:, :2].std(0) + noise * rng.normal(size=(len(x), 2)) for x in factors]
    sessions = [Recording(np.ones((len(y), 1)), 0.02, behaviour=y).split() for y in hands]
    family, tensors = streamed(monkeypatch, factors, sessions)
    monkeypatch.setattr(ridge, "ENTRIES", 1400)
    found = fit_behaviour(family, tensors, 2)

    parts = {}
    for split in ("train", "valid"):
        bins = [modelled_bins(r.segments[r.in_split(split)], 1) for r in sessions]
        parts[split] = [
            np.concatenate([v[b] for v, b in zip(values, bins, strict=True)]) for values in (factors, hands)
        ]
    (x, y), (x_valid, y_valid) = ((x.astype(np.float64), y) for x, y in parts.values())
    mean, scale = x.mean(0), x.std(0) + 1e-6
    fits = [Ridge(alpha=alpha).fit((x - mean) / scale, y) for alpha in ALPHAS]
    scores = [mean_r2(y_valid, each.predict((x_valid - mean) / scale)) for each in fits]
    best = fits[int(np.argmax(scores))]
    assert found["alpha"] == best.alpha
    assert found["r2_valid"] == pytest.approx(max(scores), rel=1e-9)
    weight = best.coef_ / scale
    np.testing.assert_allclose(family.behaviour.weight.detach(), weight, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(family.behaviour.bias.detach(), best.intercept_ - weight @ mean, rtol=1e-7, atol=1e-9)


def test_a_segment_that_holds_one_window_is_fitted_to():
    r = Recording(np.ones((120, 1), int), 0.02, segments=[[0, 39], [39, 79], [79, 120]])
    assert behaviour.split_segments(r, "train", 40).tolist() == [[39, 79], [79, 120]]


def test_hours_need_little_memory_beside_the_factors(monkeypatch):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(50_000, 64)).astype(np.float32)
    session = Recording(np.ones((50_000, 1), np.uint8), 0.02, behaviour=factors[:, :1] ** 3).split(valid=0.5, test=0)
    family, tensors = streamed(monkeypatch, [factors], [session])
    monkeypatch.setattr(behaviour, "segment_outputs", lambda f, t, segments, names: {"factors": factors[1:25_000]})
    monkeypatch.setattr(ridge, "ENTRIES", 65_000)
    tracemalloc.start()
    fit_behaviour(family, tensors, 2)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < factors[:25_000].nbytes / 2

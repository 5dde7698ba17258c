import numpy as np
import pytest
from test_fit import config, fit, recording

from rtdsae.evaluate.metrics import r2
from rtdsae.train.behaviour import mean_r2
from rtdsae.train.latents import modelled_bins, segment_outputs
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


def test_behaviour_that_never_varies_in_the_validation_part_has_no_score():
    actual = np.full((10, 2), 0.1)
    assert mean_r2(actual, actual + 1) == 0.0


def test_one_column_alone_is_decoded(tmp_path):
    wave = recording().behaviour[:, 1:]
    run = fit(tmp_path / "run", config(epochs=3), data=recording(behaviour=wave, behaviour_labels=("grip",)))
    assert run.info["state"] == "finished"
    assert run.info["behaviour_fit"]["r2_valid"] > 0.4

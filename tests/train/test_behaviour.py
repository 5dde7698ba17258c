import numpy as np
import pytest
from test_fit import config, fit, recording

from rtdsae.evaluate.metrics import r2
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

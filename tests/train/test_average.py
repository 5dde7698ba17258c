"""The average of the weights along a run: what it is, and that it is what is kept."""

import numpy as np
import pytest
import torch

from rtdsae.errors import TrainingError
from rtdsae.recordings import synthetic
from rtdsae.train.average import POWER, Averaged, polynomial_decay
from rtdsae.train.config import make_config
from rtdsae.train.fit import train
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare

SMALL = {
    "model": {"family": "lfads", "gen_dim": 9, "fac_dim": 4, "z_dim": 2},
    "fit": {"accelerator": "cpu", "batch_size": 8},
}


def trained(path, epochs, **options):
    config = make_config(dict(SMALL), "test", (f"fit.epochs={epochs}",), ("day.h5",))
    recording = prepare(synthetic.lorenz(n_conditions=4, n_trials=8, n_neurons=9), config)
    return train(path, config, [recording], lambda _: None, **options)


def test_step_t_counts_as_its_rising_power():
    values = torch.randn(40, 3, dtype=torch.float64)
    mean = values[0]
    for n in range(1, 40):
        mean = polynomial_decay(mean, values[n], n)
    t = np.arange(40)
    counts = np.array([np.prod(n + 1 + np.arange(POWER)) for n in t], float)  # (n + 1) ... (n + POWER)
    np.testing.assert_allclose(mean, counts @ values.numpy() / counts.sum(), rtol=1e-12)


def test_it_follows_every_parameter_and_leaves_the_model_alone(tmp_path):
    family = trained(tmp_path / "run", 1).build()
    average = Averaged(family)
    before = {name: value.clone() for name, value in family.named_parameters()}
    average.update_parameters(family)  # the first is copied
    with torch.no_grad():
        for value in family.parameters():
            value += 1
    average.update_parameters(family)
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(value, before[name] + (POWER + 1) / (POWER + 2))
        torch.testing.assert_close(family.get_parameter(name), before[name] + 1)


def test_the_average_is_kept_and_training_goes_on_from_the_newest_weights(tmp_path):
    run = Run.open(trained(tmp_path / "run", 1).path)
    best, last = run.load_checkpoint("best.pt")["model"], run.load_checkpoint("last.pt")
    for name, _ in run.build().named_parameters():
        torch.testing.assert_close(best[name], last["average"][f"module.{name}"], rtol=0, atol=0)
    assert any(not torch.equal(best[name], last["model"][name]) for name in best)


def test_a_run_of_an_earlier_version_is_not_gone_on_with(tmp_path):
    run = trained(tmp_path / "run", 1)
    last = run.load_checkpoint("last.pt")
    del last["average"]
    run.save_checkpoint("last.pt", last)
    with pytest.raises(TrainingError, match="of an earlier version of rtdsae, which cannot be gone on with"):
        trained(tmp_path / "run", 2, resume=True)

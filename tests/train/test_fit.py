import csv

import numpy as np
import pytest
import torch

from rtdsae.errors import TrainingError
from rtdsae.recordings import Recording
from rtdsae.train.config import Data, Fit, Objective, TrainConfig, Window
from rtdsae.train.fit import train
from rtdsae.train.run import Run, prepare

from rtdsae.model.families.lfads import LFADSConfig  # isort: skip


def recording(seed=0, bins=400):
    """A slow wave that drives eight neurons and is itself the behaviour."""
    rng = np.random.default_rng(seed)
    wave = np.stack([np.sin(np.arange(bins) / 9), np.cos(np.arange(bins) / 9)], 1)
    rates = np.exp(wave @ rng.normal(size=(2, 8)))
    return Recording(rng.poisson(rates), 0.02, behaviour=wave, behaviour_labels=("x", "y"), true_rates=rates / 0.02)


def config(**fit):
    return TrainConfig(
        model=LFADSConfig(ic_enc_dim=8, f_dim=4, ci_enc_dim=8, con_dim=8, z_dim=2, gen_dim=16, fac_dim=4),
        data=Data(path="wave.h5", heldout_every=fit.pop("heldout_every", 0)),
        window=Window(anchor_bins=5, horizon_bins=15),
        objective=Objective(ramp_epochs=2),
        fit=Fit(**({"epochs": 6, "batch_size": 8, "accelerator": "cpu", "learning_rate": 1e-2} | fit)),
    )


def new_run(path, c=None):
    c = c or config()
    r = prepare(recording(), c)
    return Run.create(path, c, r, "rtdsae train"), r


def weights(run, name="last.pt"):
    return run.load_checkpoint(name)["model"]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def interrupt_after(epoch):
    def report(progress):
        if progress.epoch == epoch:
            raise KeyboardInterrupt

    return report


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(tmp_path):
    runs = [new_run(tmp_path / name, config(seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for run, r in runs:
        train(run, r, lambda p: None)
    a, b, c = (weights(run) for run, _ in runs)
    assert_equal(a, b)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_resume_continues_bit_for_bit(tmp_path):
    whole, r = new_run(tmp_path / "whole")
    train(whole, r, lambda p: None)
    parts, _ = new_run(tmp_path / "parts")
    train(parts, r, interrupt_after(2))
    resumed = Run.open(tmp_path / "parts")
    assert resumed.info["state"] == "interrupted"
    assert resumed.info["epochs_done"] == 3
    train(resumed, r, lambda p: None, resume=True)
    assert_equal(weights(whole), weights(resumed))
    assert_equal(weights(whole, "best.pt"), weights(resumed, "best.pt"))
    tables = [(path / "metrics.csv").read_text() for path in (whole.path, resumed.path)]
    assert tables[0] == tables[1]
    assert [row["epoch"] for row in csv.DictReader(tables[0].splitlines())] == list("012345")


def test_an_interrupted_run_is_usable(tmp_path):
    run, r = new_run(tmp_path / "run")
    train(run, r, interrupt_after(1))
    model = Run.open(run.path).model()
    assert model.behaviour.weight.abs().sum() > 0  # the read-out was fitted on the way out


def test_learns_and_leaves_everything_behind(tmp_path):
    run, r = new_run(tmp_path / "run", config(epochs=40))
    seen = []
    train(run, r, seen.append)
    first, best = seen[0].metrics, seen[run.info["best_epoch"]].metrics
    assert best["valid/nll_masked"] < first["valid/nll_masked"] - 0.02
    assert run.info["behaviour_fit"]["r2_valid"] > 0.5
    names = {path.name for path in run.path.iterdir()}
    assert {"config.yaml", "run.json", "metrics.csv", "best.pt", "last.pt", "sample.npz", "tensorboard"} <= names
    assert run.info["data_hash"] == r.hash
    assert any((run.path / "tensorboard").iterdir())


def test_heldout_neurons_select_and_are_never_seen(tmp_path):
    run, r = new_run(tmp_path / "run", config(heldout_every=4, epochs=2))
    seen = []
    standing = train(run, r, seen.append)
    assert run.dims.n_channels == 6
    assert run.dims.n_neurons == 8
    assert standing.best == min(p.metrics["valid/nll_heldout"] for p in seen)


def test_patience_stops_early(tmp_path):
    run, r = new_run(tmp_path / "run", config(epochs=500, patience=3, learning_rate=0.3, clip_norm=100.0))
    standing = train(run, r, lambda p: None)
    assert standing.epoch < 499
    assert standing.epoch - max(standing.best_epoch, 2) == 3


def test_a_loss_that_is_not_finite_stops_with_what_to_lower(tmp_path):
    run, r = new_run(tmp_path / "run", config(learning_rate=1e30, clip_norm=1e30))
    with pytest.raises(TrainingError, match=r"not finite in epoch \d+: lower fit.learning_rate"):
        train(run, r, lambda p: None)


def test_resuming_needs_the_same_config_and_data(tmp_path):
    run, r = new_run(tmp_path / "run")
    train(run, r, interrupt_after(0))
    with pytest.raises(TrainingError, match=r"begun with fit.seed=0, not 3"):
        run.check_resumable(config(seed=3), r)
    with pytest.raises(TrainingError, match="other data"):
        run.check_resumable(config(), prepare(recording(seed=1), config()))
    run.check_resumable(config(epochs=9), r)
    assert run.config.fit.epochs == 9


def test_damaged_runs_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="is not a run"):
        Run.open(tmp_path)
    run, r = new_run(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"no best\.pt: no epoch"):
        run.model()
    train(run, r, interrupt_after(0))
    (run.path / "best.pt").write_bytes((run.path / "best.pt").read_bytes()[:500])
    with pytest.raises(TrainingError, match="damaged"):
        run.model()
    with pytest.raises(TrainingError, match="exists: choose another --out"):
        new_run(run.path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        Run.open(run.path)

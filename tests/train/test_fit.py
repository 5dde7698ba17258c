import csv
import json

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


def fit(path, c=None, report=lambda p: None, data=None, **options):
    c = c or config()
    return train(path, c, prepare(data or recording(), c), report, **options)


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
    a, b, c = (weights(fit(tmp_path / name, config(seed=seed))) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert_equal(a, b)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_resume_continues_bit_for_bit(tmp_path):
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", report=interrupt_after(2))
    interrupted = Run.open(tmp_path / "parts").info
    assert (interrupted["state"], interrupted["epochs_done"]) == ("interrupted", 3)
    resumed = fit(tmp_path / "parts", resume=True)
    assert_equal(weights(whole), weights(resumed))
    assert_equal(weights(whole, "best.pt"), weights(resumed, "best.pt"))
    tables = [(path / "metrics.csv").read_text() for path in (whole.path, resumed.path)]
    assert tables[0] == tables[1]
    assert [row["epoch"] for row in csv.DictReader(tables[0].splitlines())] == list("012345")


def test_an_interrupted_run_is_usable(tmp_path):
    fit(tmp_path / "run", report=interrupt_after(1))
    model = Run.open(tmp_path / "run").model()
    assert model.behaviour.weight.abs().sum() > 0  # the read-out was fitted on the way out


def test_learns_and_leaves_everything_behind(tmp_path):
    seen = []
    run = fit(tmp_path / "run", config(epochs=40), seen.append)
    first, best = seen[0].metrics, seen[run.info["best_epoch"]].metrics
    assert best["valid/nll_masked"] < first["valid/nll_masked"] - 0.02
    assert run.info["behaviour_fit"]["r2_valid"] > 0.5
    names = {path.name for path in run.path.iterdir()}
    assert {"config.yaml", "run.json", "metrics.csv", "best.pt", "last.pt", "sample.npz", "tensorboard"} <= names
    assert run.info["data_hash"] == prepare(recording(), run.config).hash
    assert any((run.path / "tensorboard").iterdir())


def test_heldout_neurons_select_and_are_never_seen(tmp_path):
    seen = []
    run = fit(tmp_path / "run", config(heldout_every=4, epochs=2), seen.append)
    assert (run.dims.n_channels, run.dims.n_neurons) == (6, 8)
    assert run.info["best_score"] == min(p.metrics["valid/nll_heldout"] for p in seen)


def test_patience_stops_early(tmp_path):
    info = fit(tmp_path / "run", config(epochs=500, patience=3, learning_rate=0.3, clip_norm=100.0)).info
    assert info["epochs_done"] < 500
    assert info["epochs_done"] - 1 - max(info["best_epoch"], 2) == 3


def test_a_loss_that_is_not_finite_stops_with_what_to_lower(tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in epoch \d+: lower fit.learning_rate"):
        fit(tmp_path / "run", config(learning_rate=1e30, clip_norm=1e30))


def test_a_run_that_was_cut_off_is_refused_until_it_is_finished(tmp_path, monkeypatch):
    """As after `kill -9`: best.pt is there, its behaviour read-out was never fitted."""
    with monkeypatch.context() as cut:
        cut.setattr("rtdsae.train.fit.finish", lambda *args: None)
        fit(tmp_path / "run", report=interrupt_after(1))
    with pytest.raises(TrainingError, match="cut off before its read-out was fitted: finish it with"):
        Run.open(tmp_path / "run").model()
    fit(tmp_path / "run", resume=True)
    assert Run.open(tmp_path / "run").model().behaviour.weight.abs().sum() > 0


def test_a_run_that_was_ended_in_its_first_epoch_begins_anew(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as early:
        early.setattr("rtdsae.train.fit.train_epoch", interrupt)
        info = fit(tmp_path / "run").info
    assert (info["state"], info["epochs_done"]) == ("interrupted", 0)
    json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
    assert_equal(weights(fit(tmp_path / "run", resume=True)), weights(fit(tmp_path / "whole")))


def test_resuming_a_finished_run_changes_nothing_but_what_it_says(tmp_path):
    patient = config(epochs=500, patience=3, learning_rate=0.3, clip_norm=100.0)
    before = fit(tmp_path / "run", patient, command="one")
    epochs, kept = before.info["epochs_done"], weights(before)
    before.info["scores"] = {"bps": 1.0}
    before.save_info()
    after = fit(tmp_path / "run", patient, command="two", resume=True)
    assert (after.info["epochs_done"], after.info["commands"]) == (epochs, ["one", "two"])
    assert "scores" not in after.info
    assert_equal(weights(after), kept)


def test_resuming_needs_the_same_config_and_data(tmp_path):
    path = tmp_path / "run"
    fit(path, report=interrupt_after(0))
    with pytest.raises(TrainingError, match=r"begun with fit.seed=0, not 3"):
        fit(path, config(seed=3), resume=True)
    with pytest.raises(TrainingError, match="other data"):
        fit(path, data=recording(seed=1), resume=True)
    assert fit(path, config(epochs=9), resume=True).info["epochs_done"] == 9
    assert Run.open(path).config.fit.epochs == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_leaves_nothing_behind(tmp_path):
    with pytest.raises(TrainingError, match=r"fit.accelerator=cuda cannot be had"):
        fit(tmp_path / "run", config(accelerator="cuda"))
    assert list(tmp_path.iterdir()) == []


def test_damaged_runs_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="is not a run"):
        Run.open(tmp_path)
    run = fit(tmp_path / "run", report=interrupt_after(0))
    with pytest.raises(TrainingError, match="exists: choose another --out"):
        fit(run.path)
    (run.path / "best.pt").write_bytes((run.path / "best.pt").read_bytes()[:500])
    with pytest.raises(TrainingError, match="damaged"):
        run.model()
    (run.path / "best.pt").unlink()
    with pytest.raises(TrainingError, match=r"no best\.pt: no epoch"):
        run.model()
    (run.path / "run.json").write_text("{}")
    with pytest.raises(TrainingError, match="damaged"):
        Run.open(run.path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        Run.open(run.path)

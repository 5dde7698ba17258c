import contextlib
import csv
import gc
import json
import threading
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rtdsae.train.fit
from rtdsae.errors import ConfigError, TrainingError
from rtdsae.evaluate.metrics import r2
from rtdsae.model.families.dsae_factorized import DSAEFactorizedConfig
from rtdsae.model.families.dsae_full import DSAEFullConfig
from rtdsae.model.families.fdmm import FDMMConfig
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Neurons
from rtdsae.model.priors import Labelled, Sequence
from rtdsae.recordings import Recording
from rtdsae.train.config import (
    AnnealedVAE,
    BetaTCVAE,
    BetaVAE,
    Data,
    FactorVAE,
    Fit,
    Objective,
    TrainConfig,
    Window,
)
from rtdsae.train.export import manifest
from rtdsae.train.failures import memory_explained
from rtdsae.train.fit import learning_rate, train
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.objective import Loss
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare
from rtdsae.train.windows import Tensors

FACTORS = {"f_dim": 4, "z_dim": 2, "gen_dim": 16, "fac_dim": 4}
FAMILIES = {  # all defaults but the sizes
    "lfads": LFADSConfig(**FACTORS, ic_enc_dim=8, ci_enc_dim=8, con_dim=8),
    "dsae_full": DSAEFullConfig(**FACTORS, f_enc_dim=8, z_enc_dim=8, z_rnn_dim=8),
    "dsae_factorized": DSAEFactorizedConfig(**FACTORS, f_enc_dim=8, z_enc_dim=8),
    "fhvae": FHVAEConfig(**FACTORS, f_enc_dim=8, z_enc_dim=8),
    "fdmm": FDMMConfig(**FACTORS, f_enc_dim=8, z_enc_dim=8),
}
acausal = msgspec.structs.replace(FAMILIES["lfads"], causal=False)
RAMPED = Objective(ramp_epochs=2)


def recording(seed=0, bins=400, neurons=8, **parts):
    """A slow wave that drives some neurons and is itself the behaviour."""
    rng = np.random.default_rng(seed)
    wave = np.stack([np.sin(np.arange(bins) / 9), np.cos(np.arange(bins) / 9)], 1)
    rates = np.exp(wave @ rng.normal(size=(2, neurons)))
    parts = {"behaviour": wave, "behaviour_labels": ("x", "y"), "true_rates": rates / 0.02, "bin_width_s": 0.02} | parts
    return Recording(rng.poisson(rates), **parts)


def config(model=FAMILIES["lfads"], objective=RAMPED, path="wave.h5", heldout_every=0, **fit):
    return TrainConfig(
        model=model,
        data=Data(path=path, heldout_every=heldout_every),
        window=Window(anchor_bins=5, horizon_bins=15),
        objective=objective,
        fit=Fit(**({"epochs": 6, "batch_size": 8, "accelerator": "cpu", "learning_rate": 1e-2} | fit)),
    )


def fit(path, c=None, report=lambda p: None, data=None, **options):
    """Train on one recording, or on a list of them."""
    c = c or config()
    data = data or recording()
    recordings = data if isinstance(data, list) else [data]
    return train(path, c, [prepare(r, c) for r in recordings], report, **options)


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


def losses_of(monkeypatch, nth, change):
    """Changes the terms of the nth loss of a training: the batches that its losses are of, as they come."""
    taken = []

    class Changed(Loss):
        def forward(self, parts, *rest):
            taken.append(parts)
            terms, f = super().forward(parts, *rest)
            weight = self.family.gen.cell.weight_h.flatten()[0]
            return (change(terms, weight) if len(taken) == nth else terms), f

    monkeypatch.setattr("rtdsae.train.fit.Loss", Changed)
    return taken


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(tmp_path):
    a, b, c = (weights(fit(tmp_path / name, config(seed=seed))) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert_equal(a, b)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing came between."""
    return fit(tmp_path_factory.mktemp("whole") / "run")


def test_resume_continues_bit_for_bit(tmp_path, whole):
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
    assert run.data_hashes == [prepare(recording(), run.config).hash]
    assert any((run.path / "tensorboard").iterdir())


@pytest.mark.parametrize("ends", [None, TrainingError, ValueError])
def test_a_training_leaves_nothing_running_however_it_ends(tmp_path, monkeypatch, ends):
    def report(progress):
        if ends:
            raise ends

    before = set(threading.enumerate())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ends) if ends else contextlib.nullcontext():
        fit(Path("run"), config(epochs=2), report)
    assert not set(threading.enumerate()) - before
    curves = EventAccumulator("run/tensorboard").Reload()
    assert len(curves.Scalars("train/loss")) == (1 if ends else 2)


def test_what_was_there_before_a_training_is_out_of_the_collectors_sight_until_it_ends(tmp_path, thawed):
    seen = []
    fit(tmp_path / "run", config(epochs=1), lambda _: seen.append(gc.get_freeze_count()))
    assert seen[0] > 10_000
    assert gc.get_freeze_count() == 0


def test_heldout_neurons_select_and_are_never_seen(tmp_path):
    seen = []
    run = fit(tmp_path / "run", config(heldout_every=4, epochs=2), seen.append)
    assert run.dims.sessions == (Neurons("wave", 6, 8),)
    assert run.info["best_score"] == min(p.metrics["valid/nll_heldout"] for p in seen)


def test_patience_stops_early(tmp_path):
    info = fit(tmp_path / "run", config(epochs=500, patience=3, learning_rate=0.3, clip_norm=100.0)).info
    assert info["epochs_done"] < 500
    assert info["epochs_done"] - 1 - max(info["best_epoch"], 2) == 3


def test_patience_begins_after_the_warm_up_and_the_first_of_equal_scores_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr("rtdsae.train.fit.valid_scores", lambda *_: {"nll": 1.0, "nll_masked": 1.0})
    c = config(objective=Objective(ramp_epochs=4), epochs=50, patience=2)
    info = fit(tmp_path / "run", c).info
    assert (info["best_epoch"], info["epochs_done"]) == (0, c.objective.warm_up + 2 + 1)
    assert c.objective.warm_up == 4


def test_the_average_is_what_is_validated_and_kept(tmp_path, monkeypatch):
    seen = []

    def better_and_better(model, *_):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"nll": 1.0, "nll_masked": -len(seen)}

    monkeypatch.setattr("rtdsae.train.fit.valid_scores", better_and_better)
    run = fit(tmp_path / "run", config(epochs=3))
    last, kept = run.load_checkpoint("last.pt"), weights(run, "best.pt")
    learnt = [name for name in last["model"] if not name.startswith("behaviour.")]
    for name in learnt:
        average = last["average"][f"module.{name}"]
        assert torch.equal(seen[-1][name], average)
        assert torch.equal(kept[name], average)
    for other in (last["model"], seen[0]):  # neither the newest weights nor the first
        assert not all(torch.equal(kept[name], other[name]) for name in learnt)


def test_the_learning_rate_falls_by_half_a_cosine_to_a_tenth(tmp_path):
    rates = [learning_rate(Fit(epochs=11, learning_rate=2.0), epoch) for epoch in (0, 5, 10)]
    assert rates == pytest.approx([2.0, 1.1, 0.2])
    seen = []
    run = fit(tmp_path / "run", config(epochs=2, weight_decay=0.07), seen.append)
    assert [p.metrics["learning_rate"] for p in seen] == pytest.approx([1e-2, 1e-3])
    (group,) = run.load_checkpoint("last.pt")["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1e-3), 0.07)


def test_a_loss_that_is_not_finite_stops_with_what_to_lower(tmp_path):
    c = config(learning_rate=1e30, clip_norm=1e30, heldout_every=4)
    with pytest.raises(TrainingError, match=r"in epoch \d+: lower fit.learning_rate .*, and begin anew; the batch"):
        fit(tmp_path / "run", c)
    assert Run.open(tmp_path / "run").info["state"] == "failed"
    failed = Run.open(tmp_path / "run").load_arrays("failed.npz")
    assert failed.keys() == {"first.0", "counts.0", "inputs.0"}
    data = prepare(recording(), c)
    np.testing.assert_array_equal(failed["counts.0"], np.stack([data.counts[a : a + 20] for a in failed["first.0"]]))
    np.testing.assert_array_equal(failed["inputs.0"], failed["counts.0"][..., data.heldin])


@pytest.mark.parametrize(("shards", "nth"), [(1, 2), (3, 5)])  # the second batch: its only shard, its second of three
@pytest.mark.parametrize("made", ["of a teacher", "moved"])
def test_the_batch_that_failed_is_kept_as_it_went_in(tmp_path, monkeypatch, made, shards, nth):
    moved = Objective(spike_jitter_bins=2, shift_bins=1)
    c = config(objective=moved if made == "moved" else RAMPED, shards=shards, heldout_every=4)
    if made == "of a teacher":
        fit(tmp_path / "teacher", config(acausal, heldout_every=4, epochs=1))
        c = msgspec.structs.replace(c, data=msgspec.structs.replace(c.data, teacher=str(tmp_path / "teacher")))
    taken = losses_of(monkeypatch, nth, lambda terms, weight: terms | {"loss": terms["loss"] / 0})
    with pytest.raises(TrainingError, match="loss is not finite in epoch 0"):
        fit(tmp_path / "run", c)
    failed = Run.open(tmp_path / "run").load_arrays("failed.npz")
    assert len(failed["first.0"]) == len(failed["counts.0"]) == 8
    went_in = taken[shards:]  # without the shard that was not taken any more
    for name in ("counts", "inputs"):
        seen = np.concatenate([getattr(part.windows, name).numpy() for (part,) in went_in])
        np.testing.assert_array_equal(failed[f"{name}.0"][: len(seen)], seen)


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path, monkeypatch):
    """Of a loss that is finite itself, by a root whose slope at 0 is not."""

    def steep(terms, weight):
        return terms | {"loss": terms["loss"] + (weight - weight.detach()).sqrt()}

    taken = losses_of(monkeypatch, 3, steep)
    with pytest.raises(TrainingError, match="the gradient is not finite in epoch 0: lower "):
        fit(tmp_path / "run")
    assert len(taken) == 3
    failed = Run.open(tmp_path / "run").load_arrays("failed.npz")
    np.testing.assert_array_equal(failed["counts.0"], taken[2][0].windows.counts.numpy())


@pytest.mark.parametrize(
    "fails", [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 62), lambda: exec("raise torch.OutOfMemoryError")]
)
def test_out_of_memory_says_what_to_lower(fails):
    with (
        pytest.raises(TrainingError, match=r"of memory on a batch of 64 windows of 50 bins in fit\.shards=1: raise"),
        memory_explained(Fit(), 50),
    ):
        fails()


@pytest.mark.parametrize(
    ("where", "state"),
    [
        ((Loss, "to"), "training"),  # the model goes to its device
        ((Loss, "forward"), "failed"),
        ((torch.optim.AdamW, "step"), "failed"),  # which makes what it keeps of the gradients
        ((rtdsae.train.fit, "valid_scores"), "failed"),
    ],
)
def test_a_training_that_is_out_of_memory_says_it_wherever_it_is(tmp_path, monkeypatch, where, state):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(*where, fails)
    with pytest.raises(TrainingError, match=r"of memory on a batch of 8 windows of 20 bins in fit\.shards=1: raise"):
        fit(tmp_path / "run")
    assert Run.open(tmp_path / "run").info["state"] == state


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="cannot be multiplied"), memory_explained(Fit(), 50):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_run_says_when_it_was_begun_and_how_long_it_took(tmp_path):
    first = fit(tmp_path / "run", config(epochs=3), interrupt_after(1)).info
    assert datetime.fromisoformat(first["begun"]).tzinfo is not None
    assert first["seconds"] > 0
    assert first["versions"].keys() == {"rtdsae", "torch", "numpy", "python"}
    resumed = fit(tmp_path / "run", config(epochs=3), resume=True).info
    assert resumed["begun"] == first["begun"]
    assert resumed["seconds"] > first["seconds"]


def test_a_run_keeps_the_versions_that_it_was_gone_on_with(tmp_path):
    begun = fit(tmp_path / "run", report=interrupt_after(0))
    here = begun.info["versions"]
    begun.info["versions"] = old = here | {"torch": "1.0", "python": "3.1"}
    begun.save_info()
    for _ in range(2):  # the second time by the same
        resumed = Run.open(fit(tmp_path / "run", report=interrupt_after(1), resume=True).path)
        assert (resumed.info["versions"], resumed.info["earlier_versions"]) == (here, [old])
    told = manifest(resumed, resumed.model(), "wave", 1).provenance
    assert (told["versions"]["torch"], told["earlier_versions"]) == (here["torch"], [old])


def test_a_run_that_was_cut_off_is_refused_until_it_is_finished(tmp_path, monkeypatch):
    """As after `kill -9`: best.pt is there, its behaviour read-out was never fitted."""
    with monkeypatch.context() as cut:
        cut.setattr("rtdsae.train.fit.finish", lambda *args: None)
        fit(tmp_path / "run", report=interrupt_after(1))
    with pytest.raises(
        TrainingError, match="run is being trained, or was cut off before its end: wait for it, or finish"
    ):
        Run.open(tmp_path / "run").model()
    fit(tmp_path / "run", resume=True)
    assert Run.open(tmp_path / "run").model().behaviour.weight.abs().sum() > 0


def test_a_run_that_was_killed_after_its_last_epoch_is_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as cut:
        cut.setattr("rtdsae.train.fit.finish", lambda *args: None)
        whole = fit(tmp_path / "run")
    assert fit(tmp_path / "run", resume=True).info["epochs_done"] == whole.config.fit.epochs
    assert Run.open(tmp_path / "run").model().behaviour.weight.abs().sum() > 0


def test_a_run_that_was_ended_in_its_first_epoch_begins_anew(tmp_path, monkeypatch, whole):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as early:
        early.setattr("rtdsae.train.fit.train_epoch", interrupt)
        info = fit(tmp_path / "run").info
    assert (info["state"], info["epochs_done"]) == ("interrupted", 0)
    json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)
    assert_equal(weights(fit(tmp_path / "run", resume=True)), weights(whole))


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_ctrl_c_between_an_epochs_score_and_its_checkpoint(tmp_path, monkeypatch, whole, name, nth):
    """What run.json says is of what was saved, and the next resume goes on as if nothing had happened."""
    saved, save = [], Run.save_checkpoint

    def interrupted(run, to, content):
        saved.append(to)
        if saved.count(name) == nth and to == name:
            raise KeyboardInterrupt
        save(run, to, content)

    with monkeypatch.context() as cut:
        cut.setattr(Run, "save_checkpoint", interrupted)
        run = fit(tmp_path / "run")
    best = run.load_checkpoint("best.pt") if (run.path / "best.pt").exists() else {"epoch": -1}
    last = run.load_checkpoint("last.pt")["standing"] if (run.path / "last.pt").exists() else {"epoch": -1}
    told = json.loads((run.path / "run.json").read_text())
    assert (told["state"], told["best_epoch"]) == ("interrupted", best["epoch"])
    assert told["epochs_done"] == max(last["epoch"], best["epoch"]) + 1
    assert told.get("best_score") == best.get("score")
    resumed = fit(tmp_path / "run", resume=True)
    for checkpoint in ("best.pt", "last.pt"):
        assert_equal(weights(whole, checkpoint), weights(resumed, checkpoint))
    assert whole.info["best_score"] == resumed.info["best_score"]


@pytest.mark.parametrize(("name", "key"), [("last.pt", "average"), ("best.pt", "score")])
def test_a_run_of_an_earlier_version_cannot_be_gone_on_with(tmp_path, name, key):
    run = fit(tmp_path / "run", config(epochs=1))
    content = run.load_checkpoint(name)
    del content[key]
    run.save_checkpoint(name, content)
    with pytest.raises(TrainingError, match="of an earlier version of rtdsae, which cannot be gone on with"):
        fit(tmp_path / "run", config(epochs=1), resume=True)


def test_resuming_a_finished_run_changes_nothing_but_what_it_says(tmp_path):
    patient = config(epochs=500, patience=3, learning_rate=0.3, clip_norm=100.0)
    before = fit(tmp_path / "run", patient, command="one")
    epochs, kept = before.info["epochs_done"], weights(before)
    before.info["scores"] = {"bps": 1.0}
    before.save_info()
    after = fit(tmp_path / "run", patient, command="two", resume=True)
    assert (after.info["epochs_done"], after.info["commands"]) == (epochs, ["one", "two"])
    assert after.info["scores"] == {"bps": 1.0}  # of the same weights
    assert_equal(weights(after), kept)


def test_scores_of_an_earlier_best_are_dropped_by_a_later_one(tmp_path):
    before = fit(tmp_path / "run", config(epochs=1))
    before.info["scores"] = {"bps": 1.0}
    before.save_info()
    after = fit(tmp_path / "run", config(epochs=3), resume=True)
    assert after.info["best_epoch"] > 0
    assert "scores" not in after.info


def test_a_full_disk_is_a_line_that_says_how_to_go_on(tmp_path, monkeypatch):
    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    def report(progress):
        monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(
        TrainingError, match=r"best.pt: cannot be written: No space left .*; a training goes on with --resume"
    ):
        fit(tmp_path / "run", config(epochs=3), report=report)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob("*.partial"))
    assert fit(tmp_path / "run", config(epochs=3), resume=True).info["state"] == "finished"


def test_one_training_at_a_time_works_on_a_run(tmp_path):
    refused = []

    def report(progress):
        with pytest.raises(TrainingError, match="run is in use by another training") as caught:
            fit(tmp_path / "run", resume=True)
        refused.append(caught)

    fit(tmp_path / "run", config(epochs=1), report)
    assert len(refused) == 1
    fit(tmp_path / "run", config(epochs=2), resume=True)


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


# --------------------------------------------------------------------------------------------- families and objectives


def rows(run):
    table = csv.DictReader((run.path / "metrics.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items()} for row in table]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_resumes_bit_for_bit(tmp_path, name):
    """With an objective whose discriminator is trained beside it, and has to be restored as well."""
    c = config(FAMILIES[name], Objective(ramp_epochs=2, f_objective=FactorVAE(units=8, learning_rate=1e-2)), epochs=2)
    whole = fit(tmp_path / "whole", c)
    parts = fit(tmp_path / "parts", c, interrupt_after(0))
    first = parts.load_checkpoint("last.pt")["adversary"]["net"]
    resumed = fit(tmp_path / "parts", c, resume=True)
    assert_equal(weights(whole), weights(resumed))
    assert (whole.path / "metrics.csv").read_text() == (resumed.path / "metrics.csv").read_text()
    ends = [run.load_checkpoint("last.pt")["adversary"] for run in (whole, resumed)]
    assert_equal(ends[0]["net"], ends[1]["net"])
    assert not any(torch.equal(first[key], ends[0]["net"][key]) for key in first)
    for a, b in zip(ends[0]["optimizer"]["state"].values(), ends[1]["optimizer"]["state"].values(), strict=True):
        assert_equal(a, b)
    assert np.isfinite([list(row.values()) for row in rows(whole)]).all()
    assert resumed.model().behaviour.weight.abs().sum() > 0


labelled = msgspec.structs.replace(FAMILIES["lfads"], f_prior=Labelled())
sequences = msgspec.structs.replace(FAMILIES["lfads"], f_prior=Sequence())
OBJECTIVES = {
    "beta_vae": BetaVAE(),
    "annealed_vae": AnnealedVAE(epochs=2),
    "beta_tcvae": BetaTCVAE(),
    "beta_tcvae, weighted": BetaTCVAE(estimator="weighted"),
    "factor_vae": FactorVAE(units=8),
}


@pytest.mark.parametrize("name", ["lfads", "fdmm"])
def test_full_posteriors_in_mixed_precision(tmp_path, name):
    model = msgspec.structs.replace(FAMILIES[name], f_posterior="full")
    if hasattr(model, "z_posterior") and name == "lfads":
        model = msgspec.structs.replace(model, z_posterior="full")
    run = fit(tmp_path / "run", config(model, epochs=2, precision="bf16-mixed"))
    assert np.isfinite([list(row.values()) for row in rows(run)]).all()


def test_a_score_that_comes_later_has_a_column_of_its_own(tmp_path):
    """A population may begin to keep entries apart, whose score the epochs before have not."""
    run = fit(tmp_path / "run", config(epochs=1))
    before = rows(run)[0]
    run.append_metrics({"epoch": 1, "train/nll_cv": 0.5} | {name: 2.0 for name in before if name != "epoch"})
    run.append_metrics(dict.fromkeys(before, 3.0))
    table = rows(run)
    assert table[0] == pytest.approx(before | {"train/nll_cv": np.nan}, nan_ok=True)
    assert (table[1]["train/nll_cv"], table[1]["train/nll"]) == (0.5, 2.0)
    assert np.isnan(table[2]["train/nll_cv"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_leaves_its_terms_in_the_metrics(tmp_path, name, precision):
    """Finite even where an epoch's last batch is of one window, and their sum is the loss at each step of the ramp."""
    chosen = OBJECTIVES[name]
    o = Objective(f_objective=chosen, ramp_epochs=2, cv_mask=0.1, discriminative=0.2, kl_f_scale=0.3, kl_z_scale=0.4)
    data = recording(segments=[[0, 150], [150, 300], [300, 400]], splits=np.array(["train", "train", "valid"]))
    run = fit(tmp_path / "run", config(sequences, o, epochs=3, batch_size=19, precision=precision), data=data)
    assert run.dims.n_sequences == 2  # of 10 windows each
    table = rows(run)
    terms = ["nll", "nll_cv", "kl_f", "kl_z", "f_mi", "f_tc", "f_dim_kl", "f_objective", "discriminative", "l2", "loss"]
    terms += ["discriminator"] if name == "factor_vae" else []
    scores = ["valid/nll", "valid/nll_masked"]
    assert table[0].keys() == {"epoch", "learning_rate", *scores, *(f"train/{term}" for term in terms)}
    for epoch, row in enumerate(table):
        assert np.isfinite(list(row.values())).all()
        t = {key.removeprefix("train/"): value for key, value in row.items()}
        ramp = (epoch + 1) / 3
        weight = 1.0 if name == "annealed_vae" else ramp * 0.3
        loss = t["nll"] + weight * t["f_objective"] + ramp * (0.4 * t["kl_z"] + t["l2"] + 0.2 * t["discriminative"])
        assert t["loss"] == pytest.approx(loss, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ sessions


def sessions(**second):
    """Two sessions of one wave, by neurons that are others and more or fewer."""
    parts = {"seed": 1, "bins": 500, "neurons": 6, "session": "Tuesday (2nd)"} | second
    return [recording(), recording(**parts)]


def two(model=FAMILIES["lfads"], **parts):
    model = msgspec.structs.replace(model, readin_dim=3)
    return config(model, path=("data/monday.h5", "data/tuesday.h5"), **parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_sessions_train_one_model(tmp_path, name):
    """Each by its own read-in and read-out, which its own batches teach; all else is shared."""
    seen = []
    run = fit(tmp_path / "run", two(FAMILIES[name], epochs=2), seen.append, sessions())
    assert run.dims.sessions == (Neurons("monday", 8, 8), Neurons("Tuesday-2nd", 6, 6))
    described = Run.open(run.path).info["sessions"]
    assert [s["name"] for s in described] == ["monday", "Tuesday-2nd"]
    assert [s["source"] for s in described] == ["monday.h5", "tuesday.h5"]
    assert [s["data_hash"] for s in described] == [prepare(r, run.config).hash for r in sessions()]
    assert [len(s["channels"]) for s in described] == [len(s["neurons"]) for s in described] == [8, 6]
    assert [run.session_index(s["name"]) for s in described] == [0, 1]
    with pytest.raises(ConfigError, match="no session 'sunday': it has monday, Tuesday-2nd"):
        run.session_index("sunday")
    assert [run.sample(i, 7)["x"].shape for i in (0, 1)] == [(7, 8), (7, 6)]
    assert run.alignment() is None  # nothing is known that they share

    torch.manual_seed(run.config.fit.seed)
    before, after = run.build().state_dict(), weights(run)
    for key in after:
        if "linear" in key and key.startswith("sessions"):
            assert not torch.equal(before[key], after[key]), key
    assert_equal(weights(fit(tmp_path / "again", two(FAMILIES[name], epochs=2), data=sessions())), after)


def test_sessions_share_the_behaviour_read_out(tmp_path):
    """What is fitted on all of them decodes each, and `r2_valid` is over all of their bins."""
    run = fit(tmp_path / "run", two(epochs=20), data=sessions())
    family, s = run.model(), run.dims.anchor_bins
    assert [key for key in weights(run) if "behaviour" in key] == ["behaviour.weight", "behaviour.bias"]
    truths, decoded = [], []
    for i, r in enumerate(prepare(r, run.config) for r in sessions()):
        segments = r.segments[r.splits == "valid"]
        truths.append(r.behaviour[modelled_bins(segments, s)])
        decoded.append(segment_outputs(family.use(i), Tensors(r), segments)["behaviour"])
        assert r2(truths[-1], decoded[-1]).mean() > 0.3
    together = r2(np.concatenate(truths), np.concatenate(decoded)).mean()
    assert together == pytest.approx(run.info["behaviour_fit"]["r2_valid"], abs=1e-4)


def test_two_sessions_resume_bit_for_bit_and_know_their_data(tmp_path):
    whole = fit(tmp_path / "whole", two(epochs=3), data=sessions())
    fit(tmp_path / "parts", two(epochs=3), interrupt_after(0), sessions())
    with pytest.raises(TrainingError, match=r"begun on other data than data/monday\.h5, data/tuesday\.h5"):
        fit(tmp_path / "parts", two(epochs=3), data=sessions(seed=2), resume=True)
    with pytest.raises(TrainingError, match="begun on other data"):
        fit(tmp_path / "parts", two(epochs=3), data=sessions()[::-1], resume=True)
    resumed = fit(tmp_path / "parts", two(epochs=3), data=sessions(), resume=True)
    assert_equal(weights(whole), weights(resumed))


def trials(seed, **parts):
    """Eight trials of 40 bins, in two conditions."""
    parts = {"conditions": np.array(["a", "b"] * 4), "segments": np.arange(0, 320, 40)[:, None] + [0, 40]} | parts
    return recording(seed=seed, bins=320, **parts)


def test_what_the_conditions_came_to_is_kept_for_a_session_that_comes_later(tmp_path):
    """Their averages through the trained read-ins, the mean over sessions; of one session too."""
    single = config(msgspec.structs.replace(FAMILIES["lfads"], readin_dim=3), epochs=1)
    for run, data in (
        (fit(tmp_path / "two", two(epochs=1), data=[trials(0), trials(1)]), [trials(0), trials(1)]),
        (fit(tmp_path / "one", single, data=trials(0)), [trials(0)]),
    ):
        alignment, model = Run.open(run.path).alignment(), run.model()
        assert alignment.conditions == ("a", "b")
        assert alignment.averages.shape == (2, 40, 3)
        mapped = []
        for i, r in enumerate(prepare(each, run.config) for each in data):
            inputs = model.use(i).readin(model.readin.normalise(torch.from_numpy(r.counts.astype(np.float32))))
            firsts = [r.segments[(r.splits == "train") & (r.conditions == c), 0] for c in ("a", "b")]
            mapped.append([[inputs[a : a + 40].detach().numpy() for a in at] for at in firsts])
        means = np.mean([[np.mean(trials_of_one, 0) for trials_of_one in of_session] for of_session in mapped], 0)
        np.testing.assert_allclose(alignment.averages, means, atol=1e-5)


@pytest.mark.parametrize(
    ("c", "data", "said"),
    [
        (
            two(),
            sessions(session="monday"),
            "two recordings are of the session 'monday': give each its own `session`, or file name",
        ),
        (
            two(),
            sessions(bin_width_s=0.01),
            "data/tuesday.h5 has bin_width_s 0.01, data/monday.h5 has 0.02: sessions of a model share them",
        ),
        (two(), sessions(behaviour_labels=("x", "speed")), "data/tuesday.h5 has behaviour_labels ('x', 'speed')"),
        (two(), sessions(external=np.zeros((500, 1))), "data/tuesday.h5 has external_labels ('external0',)"),
        (config(labelled), recording(), "model.f_prior.kind: labelled needs recordings with `conditions`"),
        (two(labelled), [trials(0), sessions()[1]], "model.f_prior.kind: labelled needs recordings with `conditions`"),
        (
            config(sequences, Objective(discriminative=1.0)),
            recording(),
            "objective.discriminative tells segments apart, and there is one",
        ),
        (config(heldout_every=9), recording(), "data.heldout_every=9 holds out none of 8 neurons"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_leaves_nothing_behind(tmp_path, c, data, said):
    with pytest.raises(ConfigError) as error:
        fit(tmp_path / "run", c, data=data)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_labelled_prior_has_a_row_for_each_condition_of_any_session(tmp_path):
    data = [trials(0), trials(1, conditions=np.array(["b", "c"] * 4))]
    run = fit(tmp_path / "run", two(labelled, epochs=1), data=data)
    assert run.dims.n_labels == 3
    moved = weights(run)["f_prior.mean"]
    assert moved.shape == (3, 4)
    assert moved.abs().sum(1).min() > 0


def test_every_training_segment_of_every_session_is_a_sequence(tmp_path):
    run = fit(tmp_path / "run", two(FAMILIES["fhvae"], epochs=1), data=[trials(0), trials(1)])
    n = sum((prepare(trials(seed), run.config).splits == "train").sum() for seed in (0, 1))
    moved = weights(run)["f_prior.mean"]
    assert moved.shape == (n, 4) == (run.dims.n_sequences, 4)
    assert moved.abs().sum(1).min() > 0

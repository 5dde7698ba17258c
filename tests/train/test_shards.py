"""A batch in shards: the same run, whether one process takes them all or several share them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from rtdsae.errors import ConfigError, TrainingError
from rtdsae.recordings import load, save, synthetic
from rtdsae.train.config import Fit, make_config
from rtdsae.train.failures import Gone, NotFinite, bad_gradient
from rtdsae.train.fit import train
from rtdsae.train.processes import follow
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare

SMALL = {
    "model.gen_dim": 12,
    "model.fac_dim": 6,
    "model.ic_enc_dim": 8,
    "model.ci_enc_dim": 8,
    "model.con_dim": 8,
    "fit.accelerator": "cpu",
    "fit.batch_size": 16,
    "fit.epochs": 3,
    "window.horizon_bins": 20,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "data.h5"
    save(synthetic.lorenz(n_conditions=4, n_trials=9, n_neurons=10), path)
    return path


def command(data, out, **settings):
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    recordings = [part for path in (data if isinstance(data, list) else [data]) for part in ("--data", str(path))]
    return [sys.executable, "-m", "rtdsae", "train", *recordings, "--out", str(out), *sets]


def run(data, out, *flags, **settings):
    done = subprocess.run([*command(data, out, **settings), *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def curves(out: Path) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


@pytest.mark.parametrize(
    "case", ["two sessions", *(pytest.param(c, marks=pytest.mark.slow) for c in ("one", "taught"))]
)
def test_two_processes_give_the_curve_of_one(data, tmp_path, case):
    shared = {**SMALL, "fit.shards": 2}
    if case == "two sessions":  # of which the last shard of an epoch may have one alone
        shared |= {"model.readin_dim": 5}
        save(synthetic.lorenz(n_conditions=3, n_trials=5, n_neurons=8, seed=1), tmp_path / "second.h5")
        data = [data, tmp_path / "second.h5"]
    if case == "taught":
        run(data, tmp_path / "teacher", **SMALL, **{"model.causal": "false"})
        shared["data.teacher"] = tmp_path / "teacher"
    alone = run(data, tmp_path / "one", **shared)
    both = run(data, tmp_path / "two", **shared, **{"fit.devices": 2})
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, values in one.items():
        np.testing.assert_allclose(two[key], values, rtol=2e-4, atol=1e-7, err_msg=key)
    lines = [said.stdout.replace("two", "one").splitlines() for said in (alone, both)]
    assert lines[0] == lines[1]  # the second process says nothing


@pytest.mark.slow
def test_a_run_of_two_processes_is_gone_on_with_by_one(data, tmp_path):
    shared = {**SMALL, "fit.shards": 2}
    run(data, tmp_path / "whole", **shared)
    run(data, tmp_path / "parts", **{**shared, "fit.epochs": 2, "fit.devices": 2})
    half = curves(tmp_path / "parts")["train/loss"]
    assert len(half) == 2
    run(data, tmp_path / "parts", "--resume", **shared)
    assert len(curves(tmp_path / "parts")["train/loss"]) == 3
    assert curves(tmp_path / "parts")["epoch"].tolist() == [0, 1, 2]


def test_a_batch_in_shards_is_the_batch(data, tmp_path, monkeypatch):
    """Without noise, the mean of shards of 6, 5 and 5 windows, weighted by their windows, is the batch of 16."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    still = ("objective.coordinated_dropout=0", "objective.gap_rate=0", "model.dropout=0", "model.family=dsae_full")
    kept = tuple(f"{key}={value}" for key, value in SMALL.items() if not key.startswith("model."))
    losses = []
    for shards in (1, 3):
        config = make_config({}, "test", (*still, *kept, f"fit.shards={shards}"), (str(data),))
        losses.append(train(tmp_path / str(shards), config, [prepare(load(data), config)], lambda _: None))
    one, three = (curves(run.path) for run in losses)
    for key in ("train/nll", "train/kl_z", "valid/nll"):
        np.testing.assert_allclose(three[key], one[key], rtol=1e-3, err_msg=key)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_the_run_is_usable(data, tmp_path):
    out, many = tmp_path / "run", {**SMALL, "fit.shards": 2, "fit.devices": 2, "fit.epochs": 100_000}
    with subprocess.Popen(
        command(data, out, **many, **{"fit.patience": 100_000}), start_new_session=True, stdout=subprocess.PIPE
    ) as process:
        wait_for(lambda: (out / "metrics.csv").exists())
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 0
    assert "interrupted after" in said
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    wait_for(lambda: not members(process.pid))
    assert Run.open(out).model()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all_with_one_line(data, tmp_path):
    sets = {**SMALL, "fit.shards": 2, "fit.devices": 2, "fit.learning_rate": 1e30, "fit.clip_norm": 1e30}
    done = subprocess.run(command(data, tmp_path / "run", **sets), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("is not finite in epoch") == 1
    assert (tmp_path / "run/failed.npz").exists()


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (Gone("another is gone"), None),
        (NotFinite("nll", []), None),
        (RuntimeError("CUDA\nerror"), "CUDA error"),
    ],
)
def test_what_is_wrong_with_a_process_that_another_started(monkeypatch, error, problem):
    """It ends well, since the first one would be killed, and has to be told, where nobody else says it."""
    run = SimpleNamespace(info={})

    def epochs():
        yield
        raise error

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    follow(epochs(), run)
    assert run.info.get("problem") == problem
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(type(error)):
        follow(epochs(), run)


@pytest.mark.slow
def test_a_run_that_cannot_begin_is_one_line_too(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/something").touch()
    sets = {**SMALL, "fit.shards": 2, "fit.devices": 2}
    done = subprocess.run(command(data, tmp_path / "run", **sets), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("choose another --out, or go on with --resume")
    assert done.stderr.count("choose another --out") == 1


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("fit.devices=2",), "set fit.shards=2"),
        (("fit.shards=4", "fit.devices=3"), "set fit.shards=3"),
        (("fit.shards=65",), "above fit.batch_size"),
        (("fit.shards=2", "fit.devices=2", "objective.f_objective.kind=factor_vae"), "in one process"),
    ],
)
def test_what_cannot_be_shared_is_refused(sets, said):
    with pytest.raises(ConfigError, match=said):
        make_config({}, "test", ("model.family=lfads", *sets), ("data.h5",))


def test_more_shards_than_windows_are_refused(data, tmp_path):
    sets = {"model.family": "lfads", **SMALL, "fit.batch_size": 64}
    config = make_config({}, "test", tuple(f"{k}={v}" for k, v in sets.items()), (str(data),))
    config = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, shards=60))
    with pytest.raises(TrainingError, match=r"fit.shards=60, but an epoch has \d\d windows: set fit.shards to that"):
        train(tmp_path / "run", config, [prepare(load(data), config)], lambda _: None)


def test_a_date_is_a_seed_of_shards_too(data, tmp_path):
    sets = {"model.family": "lfads", **SMALL, "fit.shards": 2, "fit.seed": 20261127, "fit.epochs": 1}
    config = make_config({}, "test", tuple(f"{k}={v}" for k, v in sets.items()), (str(data),))
    assert train(tmp_path / "run", config, [prepare(load(data), config)], lambda _: None).info["epochs_done"] == 1


def test_a_gradient_that_is_no_number_is_bad_but_in_half_precision():
    norm = torch.tensor(float("inf"))
    assert bad_gradient(Fit(), norm, 3).startswith("the gradient is not finite in epoch 3: lower")
    assert not bad_gradient(Fit(precision="16-mixed"), norm, 3)  # its scaler leaves the step out
    assert not bad_gradient(Fit(), torch.tensor(1.0), 3)


@pytest.mark.slow
def test_processes_share_batches_of_several_sessions(data, tmp_path):
    """Each batch is of one session, and leaves the others' read-ins without a gradient."""
    save(synthetic.lorenz(n_conditions=4, n_trials=9, n_neurons=14, seed=3), tmp_path / "other.h5")
    sets = {**SMALL, "fit.shards": 2, "fit.epochs": 2, "model.readin_dim": 4}
    more = ("--data", str(tmp_path / "other.h5"))
    run(data, tmp_path / "one", *more, **sets)
    run(data, tmp_path / "two", *more, **sets, **{"fit.devices": 2})
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    np.testing.assert_allclose(two["train/loss"], one["train/loss"], rtol=2e-4)
    np.testing.assert_allclose(two["valid/nll"], one["valid/nll"], rtol=2e-4)


def wait_for(condition, seconds=100.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def members(group: int) -> list[str]:
    """The processes of a group that are still there, but for those that are only waited for."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]

"""A training that two computers share, which know one another by address alone."""

import csv
import sys

import numpy as np
import pytest
from computers import Network

from rtdsae.recordings import save, synthetic

SIZES = {"gen_dim": 12, "fac_dim": 6, "ic_enc_dim": 8, "ci_enc_dim": 8, "con_dim": 8}
SMALL = {f"model.{name}": size for name, size in SIZES.items()} | {
    "window.horizon_bins": 20,
    "fit.accelerator": "cpu",
    "fit.batch_size": 16,
    "fit.epochs": 3,
    "fit.shards": 2,
}
TAKES_S = 100


@pytest.fixture
def computers():
    with Network() as network:
        yield [network.computer("first"), network.computer("second")]


@pytest.fixture
def data(tmp_path):
    save(synthetic.lorenz(n_conditions=4, n_trials=9, n_neurons=10), tmp_path / "data.h5")
    return tmp_path / "data.h5"


def train(data, out, *flags, **fit):
    settings = SMALL | {f"fit.{key}": value for key, value in fit.items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "rtdsae", "train", "--data", str(data), "--out", str(out), *sets, *flags]


def on_both(computers, data, out, **fit):
    meet = [f"MASTER_ADDR={computers[0].address}", "MASTER_PORT=29500"]
    command = train(data, out, nodes=2, **fit)
    return [c.start("env", f"NODE_RANK={rank}", *meet, *command) for rank, c in enumerate(computers)]


def said(program, code=0):
    """All that it said; it has to have ended with the code."""
    words = program.communicate(timeout=TAKES_S)[0]
    assert program.returncode == code, words
    return words


def curves(out):
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


def test_two_computers_give_the_curve_of_one(computers, data, tmp_path):
    alone = computers[0].start(*train(data, tmp_path / "one"))
    assert "finished after 3 epochs" in said(alone)
    first, second = on_both(computers, data, tmp_path / "two")
    assert "finished after 3 epochs" in said(first)
    words = said(second)
    assert "followed the training to its end" in words
    assert "epoch 1/3" not in words
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, values in one.items():
        np.testing.assert_allclose(two[key], values, rtol=2e-4, atol=1e-7, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1])
def test_one_of_them_is_gone(computers, data, tmp_path, gone):
    """The other says so in one line, and one computer can go on alone."""
    programs = on_both(computers, data, tmp_path / "run", epochs=10_000, patience=10_000)
    for line in programs[0].stdout:
        if "epoch 1/" in line:
            break
    programs[gone].kill()
    words = said(programs[1 - gone], 2).strip().splitlines()
    assert "another process of this training is gone" in words[-1]
    assert "--resume" in words[-1]
    done = len(curves(tmp_path / "run")["epoch"])
    on = computers[0].start(*train(data, tmp_path / "run", "--resume", epochs=done + 2, patience=10_000))
    assert f"finished after {done + 2} epochs" in said(on)

"""The programs in tools/ that train and measure: what they keep, how they end, and what they say of a mistake."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
SOON_S = 60.0


def until(true):
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(pid):
    """Processes that it began, and theirs."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [further for child in own for further in children_of(child)]


def gone(pids):
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


# what is kept ---------------------------------------------------------------------------------------------------------


class TrainedAnewError(Exception):
    pass


def trains(*_, **__):
    raise TrainedAnewError


def test_a_result_of_another_budget_is_not_taken_for_this_ones(tmp_path, monkeypatch):
    families = importlib.import_module("compare_families")
    monkeypatch.setattr(families, "train", trains)
    assert families.make_data("lorenz", tmp_path)
    kept = families.folder("lorenz", "lfads", 0.3, 0.1, tmp_path)
    kept.mkdir()
    (kept / "result.json").write_text('{"validation": 1.0}')
    assert families.run_cell(("lorenz", "lfads", 0.3, 0.1, tmp_path)) == {"validation": 1.0}
    with pytest.raises(TrainedAnewError):
        families.run_cell(("lorenz", "lfads", 0.3, 1.0, tmp_path))


def test_a_model_of_fewer_epochs_or_half_a_training_is_not_taken_for_one(tmp_path, monkeypatch):
    anchoring = importlib.import_module("anchoring")
    model, seen = anchoring.Model("lorenz8"), []
    (anchoring.folder(model, 2, tmp_path) / "bundle").mkdir(parents=True)
    half = anchoring.folder(model, 100, tmp_path) / "run"
    half.mkdir(parents=True)
    (half / "config.yaml").write_text("")

    def interrupted(path, *_):
        seen.append(path.exists())
        return SimpleNamespace(info={"state": "interrupted", "best_epoch": 0})

    monkeypatch.setattr(anchoring, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        anchoring.trained(model, 100, tmp_path)
    assert seen == [False]  # what was left there is out of the way: `train` refuses it


def test_scores_of_other_bins_are_not_taken_for_these(tmp_path, monkeypatch):
    quality, made = importlib.import_module("bench_quality"), []

    def run(command, **_):
        made.append(command[-1])
        return SimpleNamespace(returncode=0, stdout="{}")

    monkeypatch.setattr(quality.subprocess, "run", run)
    for changes, anew in (
        ([], ["oracle", "rtdsae"]),
        ([], []),
        (["objective.kl_f_scale=1"], ["rtdsae"]),  # of rtdsae alone
        (["window.anchor_bins=20"], ["oracle", "rtdsae"]),  # other bins are scored
        (["data.teacher=/a/run"], ["oracle", "rtdsae"]),
    ):
        made.clear()
        args = SimpleNamespace(out=tmp_path, minutes=4.0, set=changes)
        for model in ("oracle", "rtdsae"):
            quality.cell(args, "lorenz", model)
        assert made == anew, changes


# how they end ---------------------------------------------------------------------------------------------------------


def test_a_comparison_that_is_ended_leaves_no_process_and_no_result(tmp_path):
    flags = ["--sets", "lorenz", "--families", "lfads", "--out", tmp_path]
    command = [sys.executable, TOOLS / "compare_families.py", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: list(tmp_path.glob("*/timing/run.json")))
        children = children_of(process.pid)
        for pid in (process.pid, *children):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        assert (process.wait(SOON_S), "Traceback" in process.stderr.read()) == (130, False)
    until(lambda: gone(children))
    assert not list(tmp_path.glob("*/result.json"))

"""The programs in tools/ that train and measure: what they keep, how they end, and what they say of a mistake."""

import importlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy_bundle import Toy

TOOLS = Path(__file__).parent.parent / "tools"
SOON_S = 120.0


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


# what they measure ----------------------------------------------------------------------------------------------------


def measured(bundle, *flags):
    """What a short measurement of the latency says, and its exit code."""
    command = [sys.executable, TOOLS / "bench_latency.py", bundle, "--seconds", "1", "--blocks", "1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done, json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


@pytest.mark.parametrize("kind", ["counts", "samples=3", "events=40"])
def test_the_load_has_the_bundles_own_rate_and_reaches_floor_and_daemon(kind, tmp_path):
    done, found = measured(Toy(bin_width_s=0.03).write(tmp_path / "toy"), "--daemon", "", "--input", kind)  # 33.3 Hz
    assert done.returncode == 0, done.stderr
    ((title, each),) = found.items()
    assert title.startswith("33.3333 Hz, 6 channels")
    assert title.endswith(kind) == (kind != "counts")
    assert [each[name]["lost"] for name in ("floor", "daemon")] == [0, 0]
    least = 1000 if kind.startswith("events") else 0  # µs; 2 ms are the allowance for late spikes
    assert min(each[name]["push -> in"]["p50"] for name in ("floor", "daemon")) > least


def test_what_a_program_that_failed_said_is_told(tmp_path):
    done, _ = measured(Toy().write(tmp_path / "toy"), "--daemon=--bogus")
    assert (done.returncode, "Unrecognized options: --bogus" in done.stderr) == (1, True)


# how they end ---------------------------------------------------------------------------------------------------------


def test_a_comparison_that_is_ended_leaves_no_process_and_no_result(tmp_path):
    flags = ["--sets", "lorenz", "--families", "lfads", "--out", tmp_path]
    command = [sys.executable, TOOLS / "compare_families.py", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: list(tmp_path.glob("*/timing/run.json")))
        except AssertionError:
            process.kill()  # else it goes on for many minutes, and this waits for its end
            raise
        children = children_of(process.pid)
        for pid in (process.pid, *children):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        assert (process.wait(SOON_S), "Traceback" in process.stderr.read()) == (130, False)
    until(lambda: gone(children))
    assert not list(tmp_path.glob("*/result.json"))


def test_a_measurement_that_is_ended_leaves_no_process_and_no_folder(tmp_path):
    flags = ["--rates", "50", "--channels", "8", "--hidden", "8", "--seconds", "60"]
    command = [sys.executable, TOOLS / "bench_latency.py", *flags]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(children_of(process.pid)) > 1)  # the source, and what is measured
        children = children_of(process.pid)
        process.terminate()
        assert (process.wait(SOON_S), process.stderr.read()) == (130, "")
    until(lambda: gone(children))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("bench_latency.py --seconds 0", "--seconds must be above 0"),
        ("bench_latency.py nowhere", "no bundle is there"),
        ("bench_latency.py --input events", "events=30"),
        ("bench_latency.py --scale 1 --rates 50 100", "--scale is one run"),
        ("bench_monitor.py --browser", "there is no chromium"),
        ("bench_training.py --lfads-torch nowhere", "there is no lfads_torch/ in it"),
        ("bench_training.py --lfads-torch nowhere --family fhvae", "lfads-torch has LFADS alone"),
        ("compare_families.py --kl 0.3 -1", "--kl must be 0 or more"),
        ("bench_loader.py --batches 0", "must be"),
        ("soak.py --rate 0", "must be"),
    ],
)
def test_a_mistake_is_one_line(command, said):
    program, *flags = command.split()
    environment = {**os.environ, "PATH": ""}
    done = subprocess.run(
        [sys.executable, TOOLS / program, *flags], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, said in done.stderr.splitlines()[-1]) == (2, True), done.stderr


def test_the_loader_bench_sees_memory_that_is_given_back_and_fits_behaviour_too():
    loader = importlib.import_module("bench_loader")
    before, found = loader.own_memory(), {}
    # Memory of the system itself: what malloc has from other tests it hands out again, and keeps once one has trained.
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with loader.peak_memory(found, "peak"), mmap.mmap(-1, 1 << 28, own) as taken:
        np.frombuffer(taken, np.uint8).fill(1)
        time.sleep(10 * loader.LOOK_S)
    assert found["peak"] > before + 100 > loader.own_memory()
    flags = ["--hours", "0.01", "--channels", "4", "--batches", "1"]
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_loader.py", *flags], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert min(found[name] for name in ("behaviour_s", "load_peak_mb", "steps_peak_mb", "behaviour_peak_mb")) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("bench_training.py --batch 2 --blocks 1 --steps 1", "rtdsae"),
        ("bench_training.py --family fhvae --batch 2 --blocks 1 --steps 1", "rtdsae"),
        ("bench_quality.py --sets lorenz --models rtdsae --minutes 0.05 --out", "sets"),
    ],
)
def test_a_benchmark_of_training_ends_with_json(tmp_path, command, told):
    program, *flags = command.split()
    out = [tmp_path] if flags[-1] == "--out" else []
    done = subprocess.run(
        [sys.executable, TOOLS / program, *flags, *out], capture_output=True, text=True, timeout=800, check=True
    )
    assert told in done.stdout.splitlines()[-1]
    assert json.loads(done.stdout.splitlines()[-1])

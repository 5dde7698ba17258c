"""The closed loop: game, user and scores in simulated time, and the processes with a decoder that needs no training."""

import argparse
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TOOLS = Path(__file__).parent.parent / "tools"
tool = importlib.import_module("closed_loop")
game = importlib.import_module("closed_loop_parts.game")
neurons = importlib.import_module("closed_loop_parts.neurons")
rehearsal = importlib.import_module("closed_loop_parts.rehearsal")
scores = importlib.import_module("closed_loop_parts.scores")
users = importlib.import_module("closed_loop_parts.user")
ideal_filter = importlib.import_module("closed_loop_parts.ideal_filter")

SOON_S = 30.0
SEEDS = st.integers(0, 2**31)
TASK = game.Task()


def as_intended(velocity):
    return velocity


def still(velocity):
    return np.zeros(2)


# the game -------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=SEEDS, latency_s=st.sampled_from([0.0, 0.05, 0.1]))
def test_who_decodes_without_error_reaches_every_target(seed, latency_s):
    _, trials = rehearsal.rehearse(as_intended, 30, latency_s=latency_s, seed=seed)
    assert len(trials) >= 10
    assert all(trial.acquired for trial in trials)
    assert min(trial.straight_cm / trial.travelled_cm for trial in trials) > 0.8


@settings(max_examples=20)
@given(seed=SEEDS)
def test_who_decodes_nothing_reaches_what_comes_to_them_alone(seed):
    _, trials = rehearsal.rehearse(still, 30, seed=seed)
    assert len(trials) >= 4  # a timeout each
    for trial, place in zip(trials, game.targets(TASK, seed), strict=False):
        assert trial.travelled_cm == 0
        assert trial.acquired == (math.hypot(*place) <= TASK.radius_cm)


def test_latency_costs_a_user_who_does_not_know_of_it():
    times = []
    for latency_s in (0.0, 0.05, 0.1, 0.2, 0.4):
        _, trials = rehearsal.rehearse(as_intended, 120, latency_s=latency_s)
        times.append(np.mean([trial.time_s for trial in trials[:25]]))
    costs = np.diff(times)
    assert np.all(costs > 0.03), times  # each 50 ms comes at least once into every reach


@given(seed=SEEDS)
def test_targets_are_within_reach_and_apart_and_depend_on_the_seed_alone(seed):
    places = list(islice(game.targets(TASK, seed), 30))
    assert np.abs(places).max() <= TASK.half_width_cm - TASK.radius_cm
    assert all(math.dist(a, b) >= TASK.apart_cm for a, b in pairwise([np.zeros(2), *places]))
    played = game.Game(TASK, seed)
    for place in places[:3]:
        assert (played.target == place).all()
        while played.advance(np.array([3.0, -2.0]), 0.05) is None:
            pass


def test_a_target_counts_once_the_cursor_has_stayed_and_the_way_is_what_it_went():
    played = game.Game(TASK, seed=1)
    way, dt = played.target.copy(), 0.01
    assert played.advance(way / dt, dt) is None  # there in one step
    assert played.advance(-way / dt, dt) is None  # and back: it has not stayed
    trial = played.advance(way / dt, dt)
    while trial is None:
        trial = played.advance(np.zeros(2), dt)
    assert trial.acquired
    assert trial.time_s == pytest.approx(TASK.dwell_s + 2 * dt, abs=dt)
    assert trial.dial_in_s == pytest.approx(2 * dt)
    assert trial.travelled_cm == pytest.approx(3 * np.linalg.norm(way))
    assert trial.straight_cm == pytest.approx(np.linalg.norm(way))


@given(
    times=st.lists(st.floats(0, 100), max_size=40).map(sorted),
    delay_s=st.floats(0, 10),
    looks=st.lists(st.floats(0, 120), max_size=40).map(sorted),
)
def test_a_delay_line_gives_everything_in_order_and_exactly_so_late(times, delay_s, looks):
    line, waiting, taken = game.DelayLine(delay_s), list(enumerate(times)), []
    for now in [*looks, 120.0]:
        while waiting and waiting[0][1] <= now:
            i, at = waiting.pop(0)
            line.put(at, i)
        came = line.take(now)
        assert all(due <= now for due, _ in came)
        assert line.next_due > now
        taken += came
    assert taken == [(at + delay_s, i) for i, at in enumerate(times)]


@given(latency_s=st.floats(0, 0.5), speed=st.floats(-10, 10), looks=st.lists(st.floats(0, 1), max_size=30).map(sorted))
def test_a_velocity_moves_the_cursor_from_when_it_is_due_until_it_is_too_old(latency_s, speed, looks):
    steering = game.Steering(game.Game(TASK, seed=0), latency_s, at=0.0)
    steering.hear(0.0, np.array([speed, 0.0]))
    for now in looks:
        steering.advance(now)
        moved_s = min(max(now - latency_s, 0.0), game.HOLD_S)
        assert steering.game.position == pytest.approx([speed * moved_s, 0.0], abs=1e-9)


# user and neurons -----------------------------------------------------------------------------------------------------
@given(x=st.floats(-20, 20), y=st.floats(-20, 20), feedback_s=st.floats(0, 0.5))
def test_the_user_wants_to_the_target_not_too_fast_and_not_before_it_is_seen(x, y, feedback_s):
    user, way = users.User(feedback_s), np.array([x, y])
    user.see(1.0, np.array([1.0, 2.0]), np.array([1.0, 2.0]) + way)
    if feedback_s > 1e-3:
        assert not user.intend(1.0 + 0.9 * feedback_s).any()
    wanted = user.intend(1.0 + feedback_s)
    assert np.linalg.norm(wanted) <= neurons.SPEED_CM_S * (1 + 1e-9)
    assert wanted @ way >= 0
    assert abs(wanted[0] * way[1] - wanted[1] * way[0]) < 1e-6


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("n_bins", [1, 10])
def test_the_bins_that_are_lost_are_the_fraction_asked_for_so_many_at_a_time(fraction, n_bins):
    losses = users.Losses(fraction, n_bins, np.random.default_rng(0))
    lost = np.array([losses.next() for _ in range(50_000)])
    assert lost.mean() == pytest.approx(fraction, abs=0.02)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lost])))
    lengths = np.diff(edges)[::2]
    assert (lengths % n_bins == 0).all()


@pytest.mark.parametrize("kind", ["cosine", "network"])
def test_neurons_say_what_is_intended_and_are_the_same_for_a_seed(kind):
    block, again = (
        rehearsal.calibration_block(neurons.KINDS[kind](64, seed=3), 64, minutes=1.0, seed=0) for _ in range(2)
    )
    assert block.hash == again.hash
    assert 2 < block.counts.mean() / neurons.BIN_WIDTH_S < 40  # spikes/s
    x = np.log(block.true_rates)
    x = np.column_stack([x, np.ones(len(x))])
    weights, *_ = np.linalg.lstsq(x, block.behaviour, rcond=None)
    assert np.corrcoef((x @ weights).ravel(), block.behaviour.ravel())[0, 1] > 0.95


def test_the_ideal_filter_steers_and_without_directions_in_the_spikes_it_does_not(tmp_path):
    from rtdsae import bundle
    from rtdsae.serve.engine import Engine

    cells, rng = neurons.CosineNeurons(64, seed=0), np.random.default_rng(0)
    block = rehearsal.calibration_block(cells, 64, minutes=2.0, seed=0)
    decoder = ideal_filter.IdealFilter(cells, block.behaviour)
    Engine(bundle.load(decoder.write(tmp_path / "filter")))  # the bundle gives what numpy does, or this raises

    def spikes(velocity):
        return rng.poisson(cells.expected(velocity / neurons.SPEED_CM_S))

    decoder.start()
    _, trials = rehearsal.rehearse(lambda velocity: decoder.step(spikes(velocity)), 30)
    assert sum(trial.acquired for trial in trials) >= 10
    decoder.start()
    _, trials = rehearsal.rehearse(lambda velocity: decoder.step(rng.permutation(spikes(velocity))), 30)
    assert sum(trial.acquired for trial in trials) <= 2


# scores ---------------------------------------------------------------------------------------------------------------

TRIALS = st.lists(
    st.builds(
        lambda acquired, time_s, straight_cm, detour: game.Trial(
            acquired, time_s, 0.1 * time_s, straight_cm, straight_cm * (1 + detour)
        ),
        st.booleans(),
        st.floats(0.3, 6),
        st.floats(0.1, 20),
        st.floats(0, 5),
    ),
    max_size=20,
)


@settings(max_examples=25)
@given(trials=TRIALS, more_s=st.floats(0, 1))
def test_scores_are_of_what_was_played(trials, more_s):
    found, n = scores.scores(trials), sum(trial.acquired for trial in trials)
    assert found["targets"] - found["missed"] == n
    if trials:
        assert found["targets_per_minute"] == pytest.approx(60 * n / sum(t.time_s for t in trials), abs=1e-3)
        median, low, high = found["time_to_target_s"]
        assert low <= median <= high
    assert (found["path_efficiency"] is None) == (n == 0)
    if n:
        assert 0 < found["path_efficiency"][1] <= found["path_efficiency"][2] <= 1
    slower = [game.Trial(t.acquired, t.time_s + more_s, t.dial_in_s, t.straight_cm, t.travelled_cm) for t in trials]
    if trials:
        assert scores.cost(slower, trials)["cost_s"] == pytest.approx(more_s, abs=1e-3)
        assert scores.cost(trials, trials)["cost_s"] == 0


def test_nothing_played_is_no_score():
    found = scores.scores([]) | scores.cost([], [])
    assert {name for name, value in found.items() if value is not None} == {"targets", "missed"}
    assert "-" in tool.table({"nothing": found | {"r2": [0.0, 0.0], "delay_ms": {"p50": 1.0}}})


# the processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    args = argparse.Namespace(neurons="cosine", seed=0, minutes=2.0, out=tmp_path_factory.mktemp("out"))
    args.conditions = ["filter"]
    return tool.prepare(args)["filter"]


def played(condition, bundle, folder, seconds=8.0):
    args = argparse.Namespace(seconds=seconds, seed=0, neurons="cosine", game=f"ipc://{folder}/game")
    return tool.play(condition, bundle, args, folder / "daemon.log")


def test_user_daemon_and_control_program_reach_targets_together(bundle, tmp_path):
    trials, result = played(tool.Condition("filter"), bundle, tmp_path)
    assert sum(trial.acquired for trial in trials) >= 3, trials
    assert result["holes"] == 0
    assert min(result["r2"]) > 0.6  # what the daemon decodes is what the user wants, bin for bin


def test_added_latency_and_lost_bins_reach_the_loop(bundle, tmp_path):
    trials, result = played(tool.Condition("filter", latency_s=4.0, lost=0.5, lost_bins=25), bundle, tmp_path)
    assert all(trial.time_s > 4 for trial in trials[:1])
    assert result["skipped"] > 60  # of some 200 gaps, which come 25 at a time when the next sample does


@pytest.mark.slow
def test_without_directions_in_the_spikes_they_do_not(bundle, tmp_path):
    trials, result = played(tool.Condition("filter", shuffled=True), bundle, tmp_path)
    assert sum(trial.acquired for trial in trials) <= 1, trials
    assert max(result["r2"]) < 0.2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_ends_it_ends_every_process(tmp_path, number, code):
    command = [sys.executable, TOOLS / "closed_loop.py", "--conditions", "intention", "--seconds", "600"]
    command += ["--game", f"ipc://{tmp_path}/game", "--out", tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert any("target" in line for line in process.stdout)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(SOON_S) == code
    end = time.monotonic() + SOON_S
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_decoder_that_was_trained_on_the_calibration_block_steers(tmp_path):
    flags = [
        "--conditions",
        "rtdsae,shuffled",
        "--seconds",
        "20",
        "--game",
        f"ipc://{tmp_path}/game",
        "--out",
        tmp_path,
    ]
    command = [sys.executable, TOOLS / "closed_loop.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["conditions"]
    assert found["rtdsae"]["targets"] - found["rtdsae"]["missed"] >= 10
    assert found["shuffled"]["targets"] - found["shuffled"]["missed"] <= 2
    assert found["shuffled"]["cost_s"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--conditions", "+60ms"], "no condition '+60ms'"),
        (["--seconds", "0"], "1 or more"),
        (["--minutes", "inf"], "1 or more"),
    ],
)
def test_flags_that_cannot_be_are_one_line(flags, said):
    done = subprocess.run(
        [sys.executable, TOOLS / "closed_loop.py", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]

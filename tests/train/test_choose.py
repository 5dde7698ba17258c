"""What is chosen for a recording that nobody wrote a configuration for."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdsae import recordings
from rtdsae.cli import main
from rtdsae.recordings import Recording, synthetic
from rtdsae.recordings.segments import scraps
from rtdsae.train.choose import choose
from rtdsae.train.config import make_config
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare

CONFIG = make_config({"model": {"family": "lfads", "readin_dim": 1}}, "test", (), ("data.h5",))


def chosen(*made):
    """The configuration by its keys, which a configuration takes."""
    choices = choose([prepare(recording, CONFIG) for recording in made])
    assert all(choice.why for choice in choices)
    make_config({}, "test", tuple(f"{c.key}={c.value}" for c in choices), tuple(f"{i}.h5" for i in range(len(made))))
    return {choice.key: choice.value for choice in choices}


def trials(n=40, bins=60, neurons=30, width=0.02, **parts):
    firsts = bins * np.arange(n)
    counts = np.random.default_rng(0).poisson(0.2, (n * bins, neurons))
    return Recording(counts, width, segments=np.stack([firsts, firsts + bins], 1), **parts)


@pytest.mark.parametrize(
    ("recording", "window", "lanes"),
    [
        (synthetic.lorenz(n_conditions=8, n_trials=16), (10, 40), 1),  # as configs/lorenz.yaml
        (synthetic.chaotic_rnn(n_conditions=20, n_trials=4), (20, 80), 1),  # as configs/chaotic_rnn.yaml
        (trials(bins=30), (6, 24), 1),
        (trials(bins=3000, n=4), (10, 40), 2),
        (trials(bins=3000, n=4, width=0.001), (40, 160), 2),
        (trials(bins=60, width=0.1), (10, 40), 1),
        (trials(bins=253, n=1), (6, 24), 2),  # of one short segment 30 bins are for validation
    ],
)
def test_the_window_fits_the_bins_and_the_segments(recording, window, lanes):
    found = chosen(recording)
    assert (found["window.anchor_bins"], found["window.horizon_bins"]) == window
    assert found["window.lanes"] == lanes


def test_lanes_are_for_segments_of_a_length_that_is_told():
    why = {choice.key: choice.why for choice in choose([prepare(trials(bins=300), CONFIG)])}
    assert why["window.lanes"] == "segments of up to 300 bins: two copies take turns at the anchor"


def test_what_comes_again_and_again_is_held_down_more():
    often = chosen(trials(conditions=np.arange(40) % 4))
    seldom = chosen(trials(conditions=np.arange(40)))
    assert (often["model.dropout"], seldom["model.dropout"]) == (0.3, 0.1)
    assert often["objective.l2_gen"] == 1
    assert "objective.l2_gen" not in seldom


def test_sizes_grow_with_the_channels_and_sessions_meet():
    few, many = (chosen(trials(neurons=n)) for n in (20, 120))
    assert few["model.fac_dim"] < many["model.fac_dim"]
    assert few["objective.coordinated_dropout"] < many["objective.coordinated_dropout"]
    assert "model.readin_dim" not in few
    assert chosen(trials(), trials(neurons=20))["model.readin_dim"] > 0


def test_sizes_change_at_the_numbers_of_channels_that_are_told():
    found = [chosen(trials(neurons=n)) for n in (39, 40, 79, 80)]
    assert [each["model.fac_dim"] for each in found] == [16, 40, 40, 64]
    assert [each["model.gen_dim"] for each in found] == [100, 128, 128, 128]
    assert [each["model.z_dim"] for each in found] == [4, 4, 4, 16]
    assert [each["objective.coordinated_dropout"] for each in found] == [0.3, 0.3, 0.3, 0.5]


@pytest.mark.parametrize(("bins", "lanes"), [(99, 1), (100, 2)])
def test_two_copies_take_turns_where_a_segment_holds_two_windows(bins, lanes):
    assert chosen(trials(bins=bins))["window.lanes"] == lanes


def test_epochs_come_to_so_many_steps_and_to_fewer_where_trials_would_be_learnt_by_heart():
    plain = trials(n=1000, bins=90, neurons=2)
    often = prepare(dataclasses.replace(plain, conditions=np.arange(1000) % 4), CONFIG)
    windows = 680 * 2  # of 680 training trials
    for recording, taught, steps in ((prepare(plain, CONFIG), False, 3000), (often, False, 1000), (often, True, 3000)):
        found = {choice.key: choice.value for choice in choose([recording], taught=taught)}
        assert found["fit.epochs"] == steps * 64 // windows
        assert found["fit.patience"] == max(20, found["fit.epochs"] // 4)


def test_conditions_come_often_from_five_times_on_in_every_session():
    def repeated(times):
        splits = ["train"] * (4 * times) + ["valid"] * 4
        return trials(n=4 * times + 4, conditions=np.arange(4 * times + 4) % 4, splits=splits)

    assert [chosen(repeated(times))["model.dropout"] for times in (4, 5)] == [0.1, 0.3]
    assert chosen(repeated(10), repeated(2))["model.dropout"] == 0.1


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(2, 400), min_size=12, max_size=30),
    width=st.floats(0.001, 0.2),
    neurons=st.integers(1, 120),
)
def test_nine_windows_in_ten_fit_whatever_the_recording(lengths, width, neurons):
    ends = np.cumsum(lengths)
    counts = np.random.default_rng(0).poisson(0.2, (int(ends[-1]), neurons))
    recording = Recording(counts, width, segments=np.stack([ends - lengths, ends], 1))
    found = chosen(recording)
    bins = found["window.anchor_bins"] + found["window.horizon_bins"]
    prepared = prepare(recording, CONFIG)
    there = np.diff(prepared.segments)[prepared.splits == "train", 0]
    there = there[~scraps(there)]
    assert (there >= bins).mean() >= 0.85
    assert found["window.lanes"] <= found["window.horizon_bins"]


def test_blocks_that_were_cut_in_time_are_not_trials_that_come_again():
    counts = np.random.default_rng(0).poisson(0.2, (9_000, 4))
    blocks = Recording(counts, 0.02, segments=[[0, 3000], [3000, 6000], [6000, 9000]], conditions=["task"] * 3)
    assert chosen(blocks)["model.dropout"] == 0.1


def test_a_lag_is_judged_by_the_window_that_is_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recordings.save(trials(n=20, bins=400, width=0.005), tmp_path / "fine.h5")
    small = ["--set", "model.gen_dim=9", "--set", "fit.epochs=1", "--set", "fit.accelerator=cpu"]
    assert main(["train", "--data", "fine.h5", "--set", "model.z_lag=15", *small, "--out", "run"]) == 0
    assert Run.open(tmp_path / "run").config.window.anchor_bins == 40
    assert main(["train", "--data", "fine.h5", "--set", "model.z_lag=50", *small, "--out", "other"]) == 2


def test_scraps_that_gaps_left_over_choose_no_window():
    counts = np.random.default_rng(0).poisson(0.2, (60_000, 4))
    spans = [[0, 20_000], [20_001, 20_004], [20_010, 40_000], [40_001, 40_003], [40_010, 60_000]]
    found = chosen(Recording(counts, 0.02, segments=spans))
    assert (found["window.anchor_bins"], found["window.horizon_bins"], found["window.lanes"]) == (10, 40, 2)


def test_train_needs_a_recording_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recordings.save(dataclasses.replace(trials(), session="day"), tmp_path / "day.h5")
    small = ["--set", "model.gen_dim=9", "--set", "fit.epochs=2", "--set", "fit.accelerator=cpu"]
    assert main(["train", "--data", "day.h5", *small]) == 0
    said = capsys.readouterr().out
    assert "chosen for this recording" in said
    assert "window.anchor_bins             10     0.2 s of 20 ms bins" in said
    run = Run.open(tmp_path / "out/runs/chosen-day")
    assert (run.config.model.gen_dim, run.config.fit.epochs, run.config.window.lanes) == (9, 2, 1)
    assert main(["train", "--data", "day.h5", *small, "--resume"]) == 0
    assert main(["train"]) == 2
    assert "names no recording: give --data PATH" in capsys.readouterr().err
    assert main(["train", "--data", "day.h5", "--set", "model.sise=3"]) == 2
    assert "unknown field `sise`" in capsys.readouterr().err

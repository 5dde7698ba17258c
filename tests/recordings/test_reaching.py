"""Reaches: the factors are in the counts as told, pushes owe nothing to them, and sessions share the hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rtdsae.errors import RecordingError
from rtdsae.recordings import Recording, load, save
from rtdsae.recordings.reaching import reaching

GO = 10  # the first bin after the go signal
SMALL = {"n_trials": 2, "n_bins": 40, "n_neurons": 8}
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def made() -> Recording:
    return reaching()


def by_trial(recording: Recording, series: np.ndarray) -> np.ndarray:
    return series.reshape(recording.n_segments, -1, series.shape[1]).astype(float)


def unpushed(recording: Recording) -> np.ndarray:
    return (by_trial(recording, recording.behaviour)[..., 2] == 0).all(axis=1)


def r2(true: np.ndarray, guessed: np.ndarray) -> float:
    return 1 - np.square(true - guessed).sum() / np.square(true - true.mean()).sum()


def test_the_set_has_the_sizes_that_are_told(made):
    assert (made.n_segments, made.n_bins, made.n_channels, made.bin_width_s) == (864, 43_200, 40, 0.02)
    assert 10 < made.counts.mean() / made.bin_width_s < 15
    assert made.true_rates.max() < 400
    assert made.behaviour_labels == ("vel_x", "vel_y", "perturbation")
    assert made.label_names == ("direction", "speed", "gain")
    assert made.external is None


def test_conditions_are_all_combinations_of_the_factors(made):
    levels = [np.unique(column) for column in made.labels.T]
    assert levels[0].tolist() == list(range(0, 360, 45))
    assert levels[1].tolist() == [0.6, 1.0, 1.4]
    assert levels[2] / levels[2][1] == pytest.approx([0.7, 1.0, 1.4])
    assert len(np.unique(made.labels, axis=0)) == 72
    assert np.array_equal(made.conditions, np.repeat(np.arange(72), 12))
    assert np.array_equal(made.labels, made.labels[::12].repeat(12, axis=0))
    assert (np.diff(made.labels[:, 2]) != 0).sum() == 2  # gains come in blocks


def test_every_condition_is_in_every_part(made):
    assert made.splits.reshape(72, 12).tolist() == [["train"] * 8 + ["valid"] * 2 + ["test"] * 2] * 72


def test_labels_are_true(made):
    velocity = by_trial(made, made.behaviour)[unpushed(made), :, :2]
    labels = made.labels[unpushed(made)]
    way = velocity.sum(axis=1) @ (1, 1j) * made.bin_width_s
    assert np.abs(way) == pytest.approx(8, rel=1e-3)  # cm
    assert np.exp(1j * np.deg2rad(labels[:, 0])) == pytest.approx(way / np.abs(way))
    assert np.linalg.norm(velocity, axis=2).max(axis=1) == pytest.approx(33.3 * labels[:, 1], rel=0.02)  # cm/s
    at_gain_1 = by_trial(made, made.true_rates)[:, 0] / made.labels[:, 2:]
    assert at_gain_1 == pytest.approx(np.tile(at_gain_1[:288], (3, 1)), rel=1e-5)  # trials come in three blocks of gain


def test_a_bin_has_what_is_in_its_middle(made):
    """Of a reach of speed 1 that begins after 0.2 s and takes 0.45 s, by minimum jerk."""
    chosen = unpushed(made) & (made.labels[:, 1] == 1)
    speed = np.linalg.norm(by_trial(made, made.behaviour)[chosen, :, :2], axis=2)
    phase = ((np.arange(50) + 0.5) * 0.02 - 0.2).clip(0, 0.45) / 0.45
    np.testing.assert_allclose(speed, np.tile(8 / 0.45 * 30 * phase**2 * (1 - phase) ** 2, (len(speed), 1)), atol=1e-3)


def test_sessions_have_gains_of_their_own():
    gains = [np.unique(reaching(**SMALL, session=session).labels[:, 2])[1] for session in range(4)]
    assert len(set(gains)) == 4
    assert all(np.exp(-0.2) <= gain <= np.exp(0.2) for gain in gains)


def test_half_of_the_trials_are_pushed_once_after_the_go_signal_to_either_side(made):
    force = by_trial(made, made.behaviour)[..., 2]
    assert (force[:, :GO] == 0).all()
    assert (~unpushed(made)).mean() == pytest.approx(0.5, abs=0.05)
    assert np.sign(force[:, -1]).mean() == pytest.approx(0, abs=0.1)
    rises = np.diff(np.abs(force)) > 0
    assert np.array_equal(rises.sum(axis=1), ~unpushed(made))
    assert rises.any(axis=0).tolist() == [False] * (GO - 1) + [True] * 40  # at any bin from go to the end
    assert np.allclose(np.abs(force[:, 1:][rises]), np.exp(-0.1))  # 1 as it comes, this in the middle of its bin


def test_a_push_moves_the_hand_to_its_side_and_is_corrected(made):
    moves = by_trial(made, made.behaviour).reshape(72, 12, 50, 3)
    still = unpushed(made).reshape(72, 12).argmax(axis=1)
    moved = moves[..., :2] - moves[np.arange(72), still][:, None, :, :2]
    left = 1j * np.exp(1j * np.deg2rad(made.labels[:, 0])).reshape(72, 12, 1)
    drift = (moved @ (1, 1j)).cumsum(axis=2) * made.bin_width_s / left
    assert np.abs(drift.imag).max() < 1e-6
    side = np.sign(moves[:, :, -1, 2])
    early = (moves[:, :, 15, 2] != 0) & (side != 0)
    greatest = np.abs(drift.real).max(axis=2)[early]
    assert greatest == pytest.approx(1.8, rel=0.02)  # cm
    assert (np.sign(drift.real.sum(axis=2)) == side)[early].all()
    assert np.abs(drift.real[..., -1])[early].max() < 0.2


def test_pushes_owe_nothing_to_the_static_factors(made):
    force = by_trial(made, made.behaviour)[..., 2]
    for known in (*made.labels.T, made.splits):
        for level in np.unique(known):
            chosen = force[known == level]
            assert (chosen[:, -1] != 0).mean() == pytest.approx(0.5, abs=2 / np.sqrt(len(chosen)))
            assert np.sign(chosen[:, -1]).mean() == pytest.approx(0, abs=4 / np.sqrt(2 * len(chosen)))
    train, test = made.splits == "train", made.splits == "test"
    expected = np.stack([force[train & (made.conditions == c)].mean(axis=0) for c in made.conditions[test]])
    assert r2(force[test], expected) < 0.02


@pytest.mark.parametrize(("factor", "levels", "least"), [(0, 8, 0.7), (1, 3, 0.8), (2, 3, 0.8)])
def test_the_first_bins_tell_the_static_factors(made, factor, levels, least):
    first = np.sqrt(by_trial(made, made.counts)[:, :GO].sum(axis=1))
    level = np.unique(made.labels[:, factor], return_inverse=True)[1]
    assert level.max() == levels - 1
    train, test = made.splits == "train", made.splits != "train"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(first[train], level[train])
    assert model.score(first[test], level[test]) > least


def test_recent_bins_tell_velocity_and_push(made):
    counts, targets = np.sqrt(by_trial(made, made.counts)), by_trial(made, made.behaviour)[:, GO:]
    history = np.concatenate([counts[:, GO - lag : 50 - lag] for lag in range(GO)], axis=2)
    train, test = made.splits == "train", made.splits != "train"
    model = Ridge(30.0).fit(history[train].reshape(-1, 400), targets[train].reshape(-1, 3))
    decoded = model.predict(history[test].reshape(-1, 400))
    for column, least in enumerate((0.5, 0.5, 0.3)):
        assert r2(targets[test].reshape(-1, 3)[:, column], decoded[:, column]) > least


@settings(max_examples=15)
@given(seed=SEEDS, session=SEEDS, take=SEEDS, seconds=st.sampled_from([None, 1.7]))
def test_the_same_numbers_are_the_same_recording(seed, session, take, seconds):
    def make(**other):
        return reaching(**SMALL | {"seed": seed, "session": session, "take": take, "seconds": seconds} | other)

    others = ({}, {"seed": seed ^ 1}, {"session": session ^ 1}, {"take": take ^ 1})
    assert make().hash == make().hash
    assert len({make(**other).hash for other in others}) == 4


@settings(max_examples=15)
@given(seed=SEEDS, sessions=st.lists(SEEDS, min_size=2, max_size=2, unique=True), take=SEEDS)
@pytest.mark.parametrize("seconds", [None, 5.0])
def test_sessions_share_the_hand_and_have_other_neurons(seconds, seed, sessions, take):
    one, two = (reaching(**SMALL, seconds=seconds, seed=seed, session=session, take=take) for session in sessions)
    assert np.array_equal(one.behaviour, two.behaviour)
    assert np.array_equal(one.conditions, two.conditions)
    assert one.session != two.session
    alike = np.corrcoef(np.log(one.true_rates.T), np.log(two.true_rates.T))[:8, 8:]
    assert np.diag(alike).max() < 0.999
    if seconds is None:
        assert np.array_equal(one.labels[:, :2], two.labels[:, :2])
        ratio = one.labels[:, 2] / two.labels[:, 2]
        assert ratio == pytest.approx(ratio[0])
        assert abs(np.log(ratio[0])) <= 0.4


def test_takes_share_the_neurons():
    one, two = (reaching(**SMALL, take=take) for take in (0, 1))
    assert one.session == two.session
    assert np.array_equal(by_trial(one, one.true_rates)[:, :GO], by_trial(two, two.true_rates)[:, :GO])
    assert not np.array_equal(one.behaviour, two.behaviour)
    assert not np.array_equal(one.counts, two.counts)
    endless = reaching(**SMALL, seconds=0.2).true_rates  # begins as a trial of the middle gain does
    assert np.isclose(by_trial(one, one.true_rates)[48:96, :GO], endless).all(axis=(1, 2)).sum() == 2


def test_counts_are_poisson_with_the_true_rates(made):
    expected = made.true_rates.astype(float) * made.bin_width_s
    assert abs((made.counts - expected).sum() / np.sqrt(expected.sum())) < 4
    assert np.square(made.counts - expected).sum() / expected.sum() == pytest.approx(1, abs=0.02)


def test_seconds_make_one_continuous_segment_of_reaches_out_and_back():
    made = reaching(seconds=60.5, take=1)
    assert made.segments.tolist() == [[0, 3025]]
    assert made.labels is made.conditions is made.splits is None
    assert made.label_names == ()
    assert made.split().splits.tolist() == ["train", "valid", "test"]
    position = made.behaviour[:, :2].cumsum(axis=0) * made.bin_width_s
    ends = np.linalg.norm(position[49:3000:50], axis=1)
    calm = np.abs(made.behaviour[49:3000:50, 2]) < 1e-3  # pushed so late, a hand is still away from its goal
    assert calm.sum() > 30
    assert np.abs(ends - np.tile([8, 0], 30))[calm].max() < 0.3
    assert ends.max() < 10
    assert np.abs(made.behaviour[:, 2]).max() <= 1.2


def test_labels_survive_select_split_and_files(made, tmp_path):
    part = made.select(made.splits == "test")
    assert np.array_equal(part.labels, made.labels[made.splits == "test"])
    assert made.split() is made
    for name in ("a.h5", "a.npz"):
        save(part, tmp_path / name)
        again = load(tmp_path / name)
        assert again.hash == part.hash
        assert again.label_names == part.label_names


def test_single_trials_have_no_splits_of_their_own():
    assert reaching(**SMALL | {"n_trials": 1}).splits is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n_trials": 0}, "72 conditions x 0 trials"),
        ({"n_bins": 0}, "0 bins"),
        ({"n_bins": 0, "seconds": 1}, "n_bins is 0"),
        ({"seconds": 0.001}, "1 trials x 0 bins"),
        ({"seconds": np.inf}, "seconds is inf"),
        ({"bin_width_s": 0}, "bin_width_s is 0"),
        ({"n_neurons": 0}, "n_neurons is 0"),
        ({"rate_hz": -1}, "rate_hz is -1"),
        ({"valid": 1.0}, "valid is 1.0"),
        ({"test": -0.1}, "test is -0.1"),
        ({"valid": 0.9, "test": 0.9}, "valid=0.9 and test=0.9 are more than all 2 trials"),
        ({"seed": -1}, "seeds and takes are integers"),
        ({"session": -1}, "seeds and takes are integers"),
        ({"take": 2**32}, "seeds and takes are integers"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(RecordingError, match=says) as caught:
        reaching(**SMALL | wrong)
    assert "\n" not in str(caught.value)

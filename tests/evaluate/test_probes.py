"""Linear probes on codes that hold a label, hold it with known noise, or do not."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from rtdsae.evaluate.probes import Probe, label_probe, series_probe

N = 240
DIRECTION = np.tile(np.arange(8) * 45.0, N // 8)
ANGLE = np.deg2rad(DIRECTION)
NOISE = np.random.default_rng(0).normal(size=(N, 6))
CIRCLE = np.column_stack([np.cos(ANGLE), np.sin(ANGLE)]) + 0.05 * NOISE[:, :2]


def test_a_direction_is_a_class():
    assert label_probe(CIRCLE, DIRECTION) == Probe("accuracy", 1.0, 0.125)


def test_noise_is_at_chance():
    probe = label_probe(NOISE, DIRECTION)
    assert probe.chance == 0.125
    assert probe.score == pytest.approx(0.125, abs=0.08)
    assert label_probe(NOISE[:, 1:], NOISE[:, 0]).score == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("labels", [DIRECTION, NOISE[:, 0]])
def test_folds_are_drawn_by_their_seed(labels):
    scores = [label_probe(NOISE[:, 1:], labels, seed).score for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_chance_is_the_commonest_level():
    labels = np.repeat(["left", "right"], [N * 3 // 4, N // 4])
    assert label_probe(np.full((N, 3), 0.1), labels) == Probe("accuracy", 0.75, 0.75)


def test_a_continuous_label_is_regressed():
    label = NOISE @ [2.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    assert label_probe(NOISE, label) == ("r2", pytest.approx(1, abs=1e-3), 0.0)
    assert label_probe(NOISE[:, 1:], label).score == pytest.approx(1 / 5, abs=0.1)  # a variance of 1 in 4 + 1 is left


def test_rotation_and_scale_do_not_hide_a_label():
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    codes = np.column_stack([CIRCLE, NOISE]) @ rotation * 1e-3 + 7
    assert label_probe(codes, DIRECTION).score > 0.95
    assert label_probe(codes, NOISE[:, 3]).score > 0.95


def test_a_seed_is_a_result():
    assert label_probe(NOISE, DIRECTION, seed=3) == label_probe(NOISE, DIRECTION, seed=3)


@pytest.mark.parametrize(
    ("codes", "labels", "match"),
    [
        (np.ones((10, 2)), np.ones(9), "must be"),
        (np.ones(10), np.ones(10), "must be"),
        (np.ones((10, 2)), np.ones((10, 1)), "must be"),
        (np.ones((10, 2)), np.ones(10), "one level only"),
        (np.ones((10, 2)), np.repeat(["a", "b"], [7, 3]), "level b of a factor has 3 trials"),
        (np.full((10, 2), np.inf), np.repeat(["a", "b"], 5), "finite"),
        (np.ones((10, 2)), np.repeat([1.0, np.nan], 5), "finite"),
    ],
)
def test_labels_that_cannot_be_probed_are_refused(codes, labels, match):
    with pytest.raises(ValueError, match=match):
        label_probe(codes, labels)


def series(n: int = 30, bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Latents `(n, T, 4)`, and three columns: the latents' own, half noise, all noise."""
    rng = np.random.default_rng(2)
    z, noise = rng.normal(size=(n, bins, 4)), rng.normal(size=(n, bins, 2))
    return z, np.stack([z[..., 0] - 2 * z[..., 3], z[..., 1] + noise[..., 0], noise[..., 1]], -1)


def test_a_series_is_decoded_column_by_column():
    scores = series_probe(*series())
    assert scores.shape == (3,)
    assert scores == pytest.approx([1, 0.5, 0], abs=0.08)


def test_trials_are_held_out_whole():
    # Each trial has an offset of its own in the series and a mark of its own in z: of no use for trials not yet seen.
    n, bins = 10, 30
    z = np.repeat(np.eye(n)[:, None], bins, 1)
    offsets = np.repeat(np.random.default_rng(0).normal(size=(n, 1, 1)), bins, 1)
    flat = z.reshape(n * bins, n), offsets.reshape(n * bins, 1)
    assert r2_score(flat[1], LinearRegression().fit(*flat).predict(flat[0])) == pytest.approx(1)
    assert series_probe(z, offsets)[0] < 0.1


def test_a_column_that_does_not_vary_has_no_score():
    z, _ = series()
    assert math.isnan(series_probe(z, np.zeros((*z.shape[:2], 1)))[0])


@pytest.mark.parametrize(
    ("z", "target", "match"),
    [
        (np.ones((6, 3, 2)), np.ones((6, 4, 1)), "both must be"),
        (np.ones((6, 3, 2)), np.ones((6, 3)), "both must be"),
        (np.ones((4, 3, 2)), np.ones((4, 3, 1)), "4 trials"),
        (np.ones((6, 3, 2)), np.full((6, 3, 1), np.nan), "finite"),
    ],
)
def test_series_that_cannot_be_probed_are_refused(z, target, match):
    with pytest.raises(ValueError, match=match):
        series_probe(z, target)

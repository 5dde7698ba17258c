"""Tangling against a loop over all pairs, and of curves whose tangling is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rtdsae.evaluate.tangling import tangling, tangling_score

BIN_S = 0.01
PERIOD_S = 2.0
OMEGA = 2 * np.pi / PERIOD_S
PHASE = np.arange(200) * BIN_S * OMEGA
CIRCLE = np.stack([np.cos(PHASE), np.sin(PHASE)], 1)[None]
EIGHT = np.stack([np.sin(PHASE), np.sin(2 * PHASE)], 1)[None]


def by_loops(x, bin_width_s):
    """Q of trajectories that need no reduction, one pair of moments at a time."""
    velocity = np.stack([np.gradient(trial, bin_width_s, axis=0, edge_order=2) for trial in x]).reshape(-1, x.shape[-1])
    x = x.reshape(-1, x.shape[-1])
    epsilon = 0.1 * np.square(x - x.mean(0)).sum(1).mean()
    pairs = [[(a, b) for b in range(len(x))] for a in range(len(x))]
    return np.array(
        [
            max(((velocity[a] - velocity[b]) ** 2).sum() / (((x[a] - x[b]) ** 2).sum() + epsilon) for a, b in row)
            for row in pairs
        ]
    )


def test_a_circle_has_the_analytic_value():
    # |x'(t) - x'(t')| = ω |x(t) - x(t')| at every pair, most at the far side of the circle: 4 / (4 + .1).
    assert tangling(CIRCLE, BIN_S) == pytest.approx(OMEGA**2 * 4 / 4.1, rel=0.01)
    assert tangling_score(CIRCLE, BIN_S) == pytest.approx(OMEGA**2 * 4 / 4.1, rel=0.005)


def test_a_figure_of_eight_is_tangled_where_it_crosses():
    q = tangling(EIGHT, BIN_S)[0]
    # At the crossing x = 0 twice, and the first velocity is ω, then -ω; ε is .1 of a variance of 1.
    assert q[0] == pytest.approx((2 * OMEGA) ** 2 / 0.1, rel=0.01)
    assert q[100] == pytest.approx(q[0], rel=0.01)
    assert tangling_score(EIGHT, BIN_S) > 5 * tangling_score(CIRCLE, BIN_S)


def test_a_third_dimension_untangles_the_eight():
    lifted = np.concatenate([EIGHT, 2 * np.cos(PHASE)[None, :, None]], 2)
    assert tangling_score(lifted, BIN_S) < tangling_score(EIGHT, BIN_S) / 3


def test_conditions_tangle_with_one_another():
    there_and_back = np.concatenate([CIRCLE, CIRCLE[:, ::-1]])
    assert tangling_score(CIRCLE.repeat(2, 0), BIN_S) == pytest.approx(tangling_score(CIRCLE, BIN_S))
    assert tangling(there_and_back, BIN_S) == pytest.approx((2 * OMEGA) ** 2 / 0.1, rel=0.05)


@settings(max_examples=15)
@given(x=hnp.arrays(float, (2, 5, 3), elements=st.integers(-20, 20)).filter(lambda x: np.ptp(x, (0, 1)).any()))
def test_every_pair_is_looked_at(x):
    assert tangling(x, 0.05).ravel() == pytest.approx(by_loops(x, 0.05), abs=1e-6)


def test_chunks_are_not_seen(monkeypatch):
    x = np.random.default_rng(0).normal(size=(4, 30, 6)).cumsum(1)
    whole = tangling(x, 0.02)
    monkeypatch.setattr("rtdsae.evaluate.tangling.CHUNK", 7)
    assert tangling(x, 0.02) == pytest.approx(whole, rel=1e-12)
    assert whole.ravel() == pytest.approx(by_loops(x, 0.02))


@settings(max_examples=20)
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), slower=st.floats(0.1, 10))
def test_only_time_has_a_unit(scale, shift, slower):
    assert tangling(EIGHT * scale + shift, BIN_S) == pytest.approx(tangling(EIGHT, BIN_S), rel=1e-6)
    assert tangling(EIGHT, BIN_S * slower) == pytest.approx(tangling(EIGHT, BIN_S) / slower**2)


def test_eight_components_are_kept():
    draws = np.random.default_rng(0).normal(size=(60, 12))
    orthogonal, _ = np.linalg.qr(draws - draws.mean(0))  # its columns times 12 ... 1 are their own components
    x = (orthogonal * np.arange(12, 0, -1)).reshape(3, 20, 12)
    assert tangling(x, 0.02).ravel() == pytest.approx(by_loops(x[..., :8], 0.02))


def test_the_score_is_passed_by_a_tenth():
    q = tangling(np.random.default_rng(0).normal(size=(5, 40, 3)), BIN_S)
    assert np.mean(q > tangling_score(np.random.default_rng(0).normal(size=(5, 40, 3)), BIN_S)) == 0.1


@pytest.mark.parametrize(
    ("x", "bin_width_s", "match"),
    [
        (np.ones((5, 3)), 0.02, "must be"),
        (np.ones((2, 2, 3)), 0.02, "at least 3 bins"),
        (np.ones((0, 5, 3)), 0.02, "must be"),
        (np.full((1, 5, 3), np.nan), 0.02, "finite"),
        (np.full((1, 5, 3), 0.1), 0.02, "do not vary"),
        (CIRCLE, 0.0, "positive"),
        (CIRCLE, float("nan"), "positive"),
    ],
)
def test_what_has_no_tangling_is_refused(x, bin_width_s, match):
    with pytest.raises(ValueError, match=match):
        tangling(x, bin_width_s)

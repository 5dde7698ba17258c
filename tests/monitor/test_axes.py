"""The state's directions: the true ones, steady, with a sign that stays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdsae.monitor.axes import Axes, Directions
from rtdsae.monitor.ring import Ring
from rtdsae.wire import Array, Flags, Latents, Schema


def rows(n, scales, turn, seed=0):
    """Gaussian rows with these standard deviations along the columns of `turn`, around a mean that is not 0."""
    drawn = np.random.default_rng(seed).standard_normal((n, len(scales))) * scales
    return (drawn @ turn.T + 3.0).astype(np.float32)


def rotation(n, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def test_they_are_the_leading_principal_directions():
    turn = rotation(8)
    directions = Directions(8)
    directions.turn(rows(5000, np.array([8, 4, 2, 0.1, 0.1, 0.1, 0.1, 0.1]), turn))
    agreement = np.abs(turn[:, :3].T @ directions.basis)
    np.testing.assert_allclose(agreement, np.eye(3), atol=0.03)
    projected = directions.project(rows(2000, np.array([8, 4, 2, 0.1, 0.1, 0.1, 0.1, 0.1]), turn, seed=2))
    np.testing.assert_allclose(projected.std(axis=0), [8, 4, 2], rtol=0.1)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=0.5)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 12))
def test_they_never_jump(seed, n_columns):
    rng = np.random.default_rng(seed)
    directions, came = Directions(n_columns), rng.standard_normal((500, n_columns)).astype(np.float32)
    directions.turn(came[:200])
    for i in range(210, 410, 10):  # all variances are alike: ordinary principal components would change places
        before = directions.basis.copy()
        directions.turn(came[max(0, i - 300) : i])
        assert (np.sum(before * directions.basis, axis=0) > 0.8).all()
        np.testing.assert_allclose(directions.basis.T @ directions.basis, np.eye(directions.basis.shape[1]), atol=1e-9)


def test_they_follow_what_changes():
    directions = Directions(3)
    for scales in ([5, 1, 0.1], [0.1, 1, 5]):
        for seed in range(60):
            directions.turn(rows(50, np.array(scales), np.eye(3), seed))
    assert abs(directions.basis[2, 0]) > 0.99


def test_rows_that_are_not_finite_teach_nothing():
    directions = Directions(2)
    directions.turn(np.array([[np.nan, 1], [np.inf, 2]] * 20, np.float32))
    assert not directions.ready
    assert np.isfinite(directions.basis).all()


def test_still_factors_have_directions_too():
    directions = Directions(4)
    directions.turn(np.full((50, 4), 2.5, np.float32))
    np.testing.assert_allclose(directions.project(np.full((1, 4), 2.5, np.float32)), 0, atol=1e-5)


@pytest.mark.parametrize("place", [0, 3, 9, 150, 399])
@pytest.mark.parametrize("value", [1e6, 1e30, -3e38])
def test_a_row_beyond_all_sense_changes_nothing(place, value):
    usual = rows(400, np.array([8, 4, 2, 0.1]), rotation(4))
    broken, with_it, without = usual.copy(), Directions(4), Directions(4)
    broken[place, 1] = value
    for n in (10, 100, 400):
        with_it.turn(broken[:n])
        without.turn(usual[:n])
    np.testing.assert_allclose(with_it.mean, without.mean, atol=0.1)
    np.testing.assert_allclose(with_it.basis, without.basis, atol=0.1)


def added(ring, rows, swapped_at=()):
    """These rows at the end of a ring."""
    schema, width_s = ring.schema, ring.schema.bin_width_s
    for i, row in enumerate(rows, ring.end):
        flags = Flags.SWAPPED if i in swapped_at else Flags(0)
        ring.add(Latents(flags, 7, i, i, width_s * i, 0.0, 0.0, schema.id, row, schema), width_s * i, 0)
    return ring


def ring_of(rows, swapped_at=(), width_s=0.001):
    """A ring that has these rows, at 1 kHz."""
    return added(Ring(Schema("toy", "00ff", width_s, (Array("factors", (rows.shape[1],)),)), 1), rows, swapped_at)


def test_what_was_shown_a_minute_ago_is_forgotten():
    """Also where it was so much, and so large, that nothing can be known of it but that it is the model's."""
    turn, scales = rotation(4), np.array([8, 4, 2, 0.1])
    axes, ring = Axes(), ring_of(1e30 * rows(900, scales[::-1], turn), width_s=0.02)
    axes.follow(ring, 0.0)
    for second in range(1, 90):
        axes.follow(added(ring, rows(50, scales, turn, second)), second)
    agreement = np.abs(turn[:, :3].T @ axes._directions.basis)
    np.testing.assert_allclose(agreement, np.eye(3), atol=0.05)
    assert np.abs(axes.trail(ring, 4.0, 200)).max() < 40


def test_they_begin_anew_after_a_swap_that_nobody_watched():
    """Also where more has come since than is caught up with."""
    before, after = rows(1000, np.array([5, 1, 0.1]), np.eye(3)), rows(6000, np.array([0.1, 1, 5]), np.eye(3), 1) + 30
    axes, ring = Axes(), ring_of(np.concatenate([before, after]), swapped_at=[1000])
    first = ring_of(before)
    axes.follow(first, 0.0)
    axes.follow(ring, 7.0)
    assert axes.since == 1000
    trail = axes.trail(ring, 5.0, 100)
    assert np.abs(trail.mean(0)).max() < 1  # centred on what the new model gives

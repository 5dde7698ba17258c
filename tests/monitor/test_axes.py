"""The state's directions: the true ones, steady, with a sign that stays."""

import numpy as np
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
    directions = Directions(8, half_life=1e4)
    directions.learn(rows(5000, np.array([8, 4, 2, 0.1, 0.1, 0.1, 0.1, 0.1]), turn))
    directions.turn()
    agreement = np.abs(turn[:, :3].T @ directions.basis)
    np.testing.assert_allclose(agreement, np.eye(3), atol=0.03)
    projected = directions.project(rows(2000, np.array([8, 4, 2, 0.1, 0.1, 0.1, 0.1, 0.1]), turn, seed=2))
    np.testing.assert_allclose(projected.std(axis=0), [8, 4, 2], rtol=0.1)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=0.5)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 12))
def test_they_never_jump(seed, n_columns):
    rng = np.random.default_rng(seed)
    directions = Directions(n_columns, half_life=500.0)
    directions.learn(rng.standard_normal((200, n_columns)).astype(np.float32))
    directions.turn()
    for _ in range(20):  # all variances are alike: ordinary principal components would change places at every look
        before = directions.basis.copy()
        directions.learn(rng.standard_normal((10, n_columns)).astype(np.float32))
        directions.turn()
        assert (np.sum(before * directions.basis, axis=0) > 0.8).all()
        np.testing.assert_allclose(directions.basis.T @ directions.basis, np.eye(directions.basis.shape[1]), atol=1e-9)


def test_they_follow_what_changes():
    directions = Directions(3, half_life=100.0)
    for scales in ([5, 1, 0.1], [0.1, 1, 5]):
        for seed in range(60):
            directions.learn(rows(50, np.array(scales), np.eye(3), seed))
            directions.turn()
    assert abs(directions.basis[2, 0]) > 0.99


def test_rows_that_are_not_finite_teach_nothing():
    directions = Directions(2, half_life=100.0)
    directions.learn(np.array([[np.nan, 1], [np.inf, 2]] * 20, np.float32))
    assert not directions.ready
    directions.turn()
    assert np.isfinite(directions.basis).all()


def test_still_factors_have_directions_too():
    directions = Directions(4, half_life=100.0)
    directions.learn(np.full((50, 4), 2.5, np.float32))
    directions.turn()
    np.testing.assert_allclose(directions.project(np.full((1, 4), 2.5, np.float32)), 0, atol=1e-5)


def ring_of(rows, swapped_at=()):
    """A ring that has these rows, at 1 kHz."""
    schema = Schema("toy", "00ff", 0.001, (Array("factors", (rows.shape[1],)),))
    ring = Ring(schema, 1)
    for i, row in enumerate(rows):
        flags = Flags.SWAPPED if i in swapped_at else Flags(0)
        ring.add(Latents(flags, 7, i, i, 0.001 * i, 0.0, 0.0, schema.id, row, schema), 0.001 * i, 0)
    return ring


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

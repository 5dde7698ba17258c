"""Anticipation: up shortly before a sample, never after it, and without a trace."""

import numpy as np
import pytest
from toy_bundle import Toy

from rtdsae import bundle
from rtdsae.serve.engine import Engine
from rtdsae.serve.wake import LEAD_S, Rehearsal, Wake
from rtdsae.wire import Array, Schema

DELAY_S = 0.003  # from a sample's stamp to the daemon


NOW = 1000.0


class World:
    """The clock stands still at NOW, unless somebody sleeps."""

    def __init__(self):
        self.now, self.slept, self.rehearsed_at = NOW, [], []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr("rtdsae.serve.wake.pylsl.local_clock", lambda: world.now)
    monkeypatch.setattr("rtdsae.serve.wake.time.sleep", world.sleep)
    return world


def steady(period_s, world, *, jitter_s=0.0, **options):
    """A wake that has seen a hundred samples, the last of them just now."""
    wake = Wake(period_s, lambda: world.rehearsed_at.append(world.now), **options)
    for i in range(100, -1, -1):
        stamp = NOW - i * period_s - DELAY_S
        wake.arrived(stamp + DELAY_S + jitter_s * (i % 2), stamp)
    return wake


def test_rises_shortly_before_the_next_sample(world):
    steady(0.1, world).rest()
    assert world.rehearsed_at == [pytest.approx(NOW + 0.1 - LEAD_S, abs=1e-4)]


def test_rises_earlier_for_a_source_that_jitters_a_little(world):
    steady(0.1, world, jitter_s=0.002).rest()
    assert NOW + 0.09 < world.rehearsed_at[0] < NOW + 0.1 - 2 * LEAD_S


def test_does_not_wait_for_what_is_overdue(world):
    wake = steady(0.1, world)
    world.now += 0.2
    wake.rest()
    assert world.slept == world.rehearsed_at == []


@pytest.mark.parametrize("late_s", [0.02, 0.09])
def test_a_sample_that_was_taken_late_moves_no_other(world, late_s):
    """The next one comes at its own time, and may not be slept through."""
    wake = steady(0.1, world)
    wake.arrived(NOW + 0.1 + late_s, NOW + 0.1 - DELAY_S)
    assert wake.due == pytest.approx(NOW + 0.2, abs=0.002)


def test_never_sleeps_longer_than_a_period_whatever_the_stamps_say(world):
    wake = steady(0.1, world)
    for jump in (100.0, -100.0, 1e6, 0.0):
        wake.arrived(NOW, NOW + jump)
        assert wake.due <= NOW + 0.1 + 1e-6


@pytest.mark.parametrize(
    ("period_s", "options"),
    [(0.001, {}), (1.0, {}), (0.1, {"wanted": False}), (0.1, {"jitter_s": 0.05})],
    ids=["a fast stream", "a slow stream", "switched off", "a source that jitters"],
)
def test_lets_others_be(world, period_s, options):
    steady(period_s, world, **options).rest()
    assert world.slept == world.rehearsed_at == []


def test_a_rehearsal_leaves_the_models_state_alone(tmp_path):
    toy = Toy()
    engine = Engine(bundle.load(toy.write(tmp_path / "toy")))
    rehearse = Rehearsal(engine, toy.n_channels, 0.02, Schema("toy", "00", 0.02, (Array("z", (3,)),)))
    x = toy.counts(30)
    expected = toy.run(x)["factors"]
    engine.anchor(x[: toy.n_anchor])
    for i, counts in enumerate(x[toy.n_anchor :]):
        rehearse()
        engine.step(counts, True)
        np.testing.assert_allclose(engine.outputs["factors"], expected[i], atol=1e-4)

"""Anticipation: up shortly before a sample, never after it, and without a trace."""

import numpy as np
import pylsl
import pytest
from toy_bundle import Toy

from rtdsae import bundle
from rtdsae.serve.engine import Engine
from rtdsae.serve.wake import Rehearsal, Wake
from rtdsae.wire import Array, Schema

DELAY_S = 0.003  # from a sample's stamp to the daemon


@pytest.fixture
def rehearsals():
    return []


def steady(period_s, rehearsals, *, jitter_s=0.0, **options):
    """A wake that has seen a hundred samples, the last of them just now."""
    wake = Wake(period_s, lambda: rehearsals.append(pylsl.local_clock()), **options)
    now = pylsl.local_clock()
    for i in range(100, -1, -1):
        wake.arrived(now - i * period_s + jitter_s * (i % 2), now - i * period_s - DELAY_S)
    return wake, now


def test_rises_shortly_before_the_next_sample(rehearsals):
    wake, last = steady(0.1, rehearsals)
    wake.rest()
    assert len(rehearsals) == 1
    assert 0.05 < rehearsals[0] - last < 0.15  # the sleep itself may overrun on a busy machine


def test_does_not_wait_for_what_is_overdue(rehearsals):
    wake, last = steady(0.1, rehearsals)
    wake.arrived(last - 1.0, last - 1.0 - DELAY_S)
    wake.rest()
    assert not rehearsals


@pytest.mark.parametrize("late_s", [0.02, 0.09])
def test_a_sample_that_was_taken_late_moves_no_other(rehearsals, late_s):
    """The next one comes at its own time, and may not be slept through."""
    wake, last = steady(0.1, rehearsals)
    wake.arrived(last + late_s, last - DELAY_S)
    assert wake.due - last == pytest.approx(0.1, abs=0.002)


def test_never_sleeps_longer_than_a_period_whatever_the_stamps_say(rehearsals):
    wake, last = steady(0.1, rehearsals)
    for jump in (100.0, -100.0, 1e6, 0.0):
        wake.arrived(last, last + jump)
        assert wake.due <= last + 0.1 + 1e-6


@pytest.mark.parametrize(
    ("period_s", "options"),
    [(0.001, {}), (1.0, {}), (0.1, {"wanted": False}), (0.1, {"jitter_s": 0.05})],
    ids=["a fast stream", "a slow stream", "switched off", "a source that jitters"],
)
def test_lets_others_be(rehearsals, period_s, options):
    wake, last = steady(period_s, rehearsals, **options)
    wake.rest()
    assert not rehearsals
    assert pylsl.local_clock() - last < 0.05


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

"""Anticipation: up and ready shortly before a sample, never after it, and without a trace."""

import numpy as np
import pytest
from toy_bundle import Toy

from rtdsae import bundle
from rtdsae.errors import ConfigError
from rtdsae.serve.engine import Engine
from rtdsae.serve.wake import FIRST_LEAD_S, LONGEST_LEAD, Rehearsal, Wake
from rtdsae.wire import Array, Schema

DELAY_S = 0.003  # from a sample's stamp to the daemon
PERIOD_S = 0.1
NOW = 1000.0


class World:
    """A clock that stands still at NOW unless somebody sleeps, rehearses or looks for the sample, which takes time."""

    def __init__(self):
        self.now, self.comes_at = NOW, np.inf
        self.oversleep_s, self.rehearsal_s, self.look_s = 0.0, 0.0, 1e-5
        self.slept, self.rehearsed_at, self.looks = [], [], 0
        self.n_samples = 0

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds + self.oversleep_s

    def rehearse(self):
        self.rehearsed_at.append(self.now)
        self.now += self.rehearsal_s

    def available(self):
        self.looks += 1
        self.now += self.look_s
        return self.now >= self.comes_at


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr("rtdsae.serve.wake.local_clock", lambda: world.now)
    monkeypatch.setattr("rtdsae.serve.wake.time.sleep", world.sleep)
    return world


def steady(world, period_s=PERIOD_S, mode="warm", *, jitter_s=0.0):
    """A wake that has seen a hundred samples, the last of them just now."""
    wake = Wake(period_s, world.rehearse, mode)
    for i in range(100, -1, -1):
        stamp = NOW - i * period_s - DELAY_S
        wake.arrived(stamp + DELAY_S + jitter_s * (i % 2), stamp)
    return wake


def live(wake, world, n=400, period_s=PERIOD_S):
    """So many samples, each on time and taken when the wake has done; the times that were left before each."""
    left = []
    for _ in range(n):
        world.n_samples += 1
        world.comes_at = NOW + world.n_samples * period_s
        wake.rest(world.available)
        left.append(world.comes_at - world.now)
        world.now = max(world.now, world.comes_at)
        wake.arrived(world.now, world.comes_at - DELAY_S)
    return np.array(left)


def test_rises_shortly_before_the_next_sample_and_rehearses(world):
    steady(world).rest(world.available)
    assert world.rehearsed_at == [pytest.approx(NOW + PERIOD_S - FIRST_LEAD_S, abs=1e-4)]


@pytest.mark.parametrize("oversleep_s", [0.0, 0.0002, 0.002])
@pytest.mark.parametrize("rehearsal_s", [0.00005, 0.0003, 0.003])
def test_learns_how_early_to_rise(world, oversleep_s, rehearsal_s):
    """Ready before the sample nearly always, and not long before it."""
    world.oversleep_s, world.rehearsal_s = oversleep_s, rehearsal_s
    left = live(steady(world), world)[200:]
    assert (left > 0).mean() > 0.9
    assert np.median(left) < 0.3 * (oversleep_s + rehearsal_s) + 0.0005


def test_the_lead_stays_a_small_part_of_the_period_and_shrinks_again(world):
    wake = steady(world)
    world.oversleep_s = PERIOD_S / 2
    live(wake, world)
    world.oversleep_s = 0.0
    left = live(wake, world, n=3000)
    anticipated = left[left < PERIOD_S / 2]  # not those for which it was too late to sleep
    assert anticipated.max() == pytest.approx(LONGEST_LEAD * PERIOD_S, rel=0.1)
    assert 0 < anticipated[-1] < 0.002


def test_a_sample_that_came_while_it_slept_does_not_wait_for_a_rehearsal(world):
    world.oversleep_s, world.comes_at = 0.01, NOW + PERIOD_S
    steady(world).rest(world.available)
    assert world.slept
    assert not world.rehearsed_at


def test_does_not_wait_for_what_is_overdue(world):
    wake = steady(world)
    world.now += 0.2
    wake.rest(world.available)
    assert world.slept == world.rehearsed_at == []


@pytest.mark.parametrize("late_s", [0.02, 0.09])
def test_a_sample_that_was_taken_late_moves_no_other(world, late_s):
    """The next one comes at its own time, and may not be slept through."""
    wake = steady(world)
    wake.arrived(NOW + PERIOD_S + late_s, NOW + PERIOD_S - DELAY_S)
    assert wake.due == pytest.approx(NOW + 2 * PERIOD_S, abs=0.002)


def test_follows_a_source_that_has_become_slower(world):
    wake = steady(world)
    for i in range(500):
        stamp = NOW + i * PERIOD_S
        wake.arrived(stamp + 5 * DELAY_S, stamp)
    assert wake.due == pytest.approx(stamp + PERIOD_S + 5 * DELAY_S, abs=1e-4)


def test_never_sleeps_longer_than_a_period_whatever_the_stamps_say(world):
    wake = steady(world)
    for jump in (100.0, -100.0, 1e6, 0.0):
        wake.arrived(NOW, NOW + jump)
        assert wake.due <= NOW + PERIOD_S + 1e-6


def test_polls_until_the_sample_is_there(world):
    world.comes_at = NOW + PERIOD_S + 0.001
    steady(world, mode="poll", jitter_s=0.002).rest(world.available)
    assert world.comes_at <= world.now < world.comes_at + 2 * world.look_s


@pytest.mark.parametrize("jitter_s", [0.0, 0.0005, 0.02])
def test_gives_up_polling_for_a_sample_that_does_not_come(world, jitter_s):
    steady(world, mode="poll", jitter_s=jitter_s).rest(world.available)
    late_s = world.now - (NOW + PERIOD_S)
    assert min(jitter_s, 0.1 * PERIOD_S) <= late_s <= 0.1 * PERIOD_S + 0.001


def test_a_bin_that_is_whole_once_its_beginning_is_taken_is_not_polled_for_any_longer(world):
    wake = steady(world, mode="poll")
    due = wake.due

    def prepare():
        world.now = due + 0.001
        wake.arrived(world.now, due - DELAY_S)

    wake._prepare, lead_s = prepare, wake._lead_s
    wake.rest(world.available)
    assert world.now < due + 0.002
    assert wake._lead_s > lead_s  # it came before we were ready


def test_looks_once_only_where_it_may_block(world):
    steady(world, mode="warm").rest(world.available)
    assert world.looks == 1


@pytest.mark.parametrize(
    ("period_s", "mode", "jitter_s"),
    [(0.001, "warm", 0.0), (0.001, "poll", 0.0), (1.0, "warm", 0.0), (0.1, "off", 0.0), (0.1, "poll", 0.05)],
    ids=["a fast stream", "a fast stream, polled", "a slow stream", "switched off", "a source that jitters"],
)
def test_lets_others_be(world, period_s, mode, jitter_s):
    steady(world, period_s, mode, jitter_s=jitter_s).rest(world.available)
    assert world.slept == world.rehearsed_at == []
    assert world.looks == 0


def test_there_is_no_other_mode(world):
    with pytest.raises(ConfigError, match="wake 'spin': it must be one of warm, poll, off"):
        Wake(PERIOD_S, world.rehearse, "spin")


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

"""The ring of latencies, and their histogram."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdsae.serve.latency import BOUNDS_S, SIZE, Latency


def test_nothing_before_the_first_bin():
    assert Latency().summary() == {"p50": None, "p99": None, "p99.9": None, "max": None}
    assert Latency().histogram() == [0] * (len(BOUNDS_S) + 1)


def test_quantiles_in_microseconds():
    latency = Latency()
    for k in np.random.default_rng(0).permutation(1001):
        latency.add(1e-6 * k)
    assert latency.summary() == pytest.approx({"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}, rel=0.006)


@settings(max_examples=20)
@given(st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=60), st.integers(0, 1))
def test_quantiles_are_those_of_the_last_bins_to_half_a_percent(seconds, rounds):
    latency = Latency()
    for _ in range(rounds * SIZE):
        latency.add(5.0)
    for value in (seconds * SIZE)[:SIZE]:
        latency.add(value)
    ordered = np.sort((seconds * SIZE)[:SIZE])
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    expected = {name: 1e6 * ordered[int(share * (SIZE - 1))] for name, share in shares.items()}
    assert latency.summary() == pytest.approx(expected, rel=0.006, abs=0.06)


@pytest.mark.parametrize(("seconds", "said"), [(0.0, 1.0), (-1.0, 1.0), (1e9, 1e8)])
def test_what_is_beyond_all_sense_is_counted_too(seconds, said):
    latency = Latency()
    latency.add(seconds)
    assert latency.summary() == pytest.approx(dict.fromkeys(("p50", "p99", "p99.9", "max"), said), rel=0.01)


def test_a_summary_looks_at_no_bin_again(monkeypatch):
    """The decoding makes it, once a second: it must not cost more, the more bins there were."""
    latency = Latency()
    for k in range(SIZE):
        latency.add(1e-6 * k)
    latency._ring = None
    assert latency.summary()["max"] > 0


def test_old_bins_are_forgotten():
    latency = Latency()
    latency.add(1.0)
    for _ in range(SIZE):
        latency.add(2e-6)
    assert latency.summary()["max"] == pytest.approx(2.0, rel=0.03)


def test_the_histogram_forgets_none_however_many_come_at_once():
    latency = Latency()
    for _ in range(3 * SIZE):
        latency.add(3e-4)
    latency.add(2.0)
    below = BOUNDS_S.index(5e-4)
    assert latency.histogram() == [0] * below + [3 * SIZE] * (len(BOUNDS_S) - below) + [3 * SIZE + 1]
    np.testing.assert_allclose(latency.total_s, 3 * SIZE * 3e-4 + 2.0)


def test_the_histogram_counts_a_bin_at_a_bound_below_it():
    latency = Latency()
    for seconds in BOUNDS_S:
        latency.add(seconds)
    assert latency.histogram() == [*range(1, len(BOUNDS_S) + 1), len(BOUNDS_S)]


def test_the_histogram_is_whole_while_another_thread_writes():
    latency = Latency()
    writer = threading.Thread(target=lambda: [latency.add(1e-5 * (k % 300)) for k in range(50_000)])
    writer.start()
    before = [0] * (len(BOUNDS_S) + 1)
    while writer.is_alive():
        now = latency.histogram()
        assert all(a <= b for a, b in itertools.pairwise(now))
        assert all(a <= b for a, b in zip(before, now, strict=True))
        before = now
    writer.join()
    assert latency.histogram()[-1] == 50_000

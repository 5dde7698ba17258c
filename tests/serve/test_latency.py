"""The ring of latencies, and their histogram."""

import itertools
import threading

import numpy as np

from rtdsae.serve.latency import BOUNDS_S, SIZE, Latency


def test_nothing_before_the_first_bin():
    assert Latency().summary() == {"p50": None, "p99": None, "p99.9": None, "max": None}
    assert Latency().histogram() == [0] * (len(BOUNDS_S) + 1)


def test_quantiles_in_microseconds():
    latency = Latency()
    for k in np.random.default_rng(0).permutation(1001):
        latency.add(1e-6 * k)
    assert latency.summary() == {"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}


def test_old_bins_are_forgotten():
    latency = Latency()
    latency.add(1.0)
    for _ in range(SIZE):
        latency.add(2e-6)
    assert latency.summary()["max"] == 2.0


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

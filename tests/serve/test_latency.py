"""The ring of latencies."""

import numpy as np

from rtdsae.serve.latency import SIZE, Latency


def test_nothing_before_the_first_bin():
    assert Latency().summary() == {"p50": None, "p99": None, "p99.9": None, "max": None}


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

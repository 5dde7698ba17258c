"""Streams as a file has them, in bins as the daemon would make them."""

import numpy as np

from rtdsae.recordings.binning import bin_original
from rtdsae.recordings.original import Original

W = 0.1


def binned(*stretches):
    """Bins of spikes every 50 ms in each stretch (first, last) of the stamps, in the order given."""
    stamps = np.concatenate([np.arange(first, last, 0.05) for first, last in stretches])
    bins = bin_original(Original("day", 0.0, ("a", "b"), np.zeros((len(stamps), 1)), stamps), W)
    spans = [(bins.t_end[a] - W, bins.t_end[b - 1]) for a, b in bins.segments]
    spikes = [int(bins.counts[a:b].sum()) for a, b in bins.segments]
    return np.round(spans, 1).tolist(), spikes


def test_pauses_of_spikes_are_no_zeros():
    spans, spikes = binned((0, 10), (30, 40))
    assert spans == [[0.0, 10.9], [30.0, 39.9]]
    assert spikes == [200, 198]


def test_pauses_after_a_clock_that_was_set_back_are_none_either():
    spans, spikes = binned((1000, 1010), (0, 10), (30, 40), (60, 70))
    assert [first for first, _ in spans] == [1000.0, 0.0, 30.0, 60.0]
    assert all(last - first < 12 for first, last in spans)
    assert all(n >= 197 for n in spikes)


def test_pauses_after_a_long_one_are_none_either():
    spans, _ = binned((0, 10), (200, 210), (230, 240))
    assert [first for first, _ in spans] == [0.0, 200.0, 230.0]

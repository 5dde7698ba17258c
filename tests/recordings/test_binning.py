"""Streams as a file has them, in bins as the daemon would make them."""

import numpy as np

from rtdsae.recordings import binning
from rtdsae.recordings.binning import bin_original, compact, count_spikes
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


def test_stamps_that_are_no_times_neither_hide_a_pause_nor_take_the_end_away(caplog):
    stamps = np.concatenate([np.arange(0, 5, 0.05), [np.nan], np.arange(15, 20, 0.05), [1e12, np.inf, np.nan]])
    bins = bin_original(Original("day", 0.0, ("a",), np.zeros((len(stamps), 1)), stamps), W)
    np.testing.assert_array_equal(bins.segments, [[0, 59], [150, 199]])
    assert bins.counts.sum() >= 197
    assert "nan 4" in caplog.text


def test_spikes_out_of_order_are_not_taken_for_time_that_went_by(monkeypatch):
    """As of a rig that sends, ten times a second, the spikes of one channel after those of another."""
    monkeypatch.setattr(binning, "MAX_CELLS", 100 * 50 + 50)
    channels, stamps = np.tile(np.arange(50), 100), 0.1 * np.repeat(np.arange(100), 50)
    stamps += np.random.default_rng(0).uniform(0, 0.1, 5000)
    bins = bin_original(Original("day", 0.0, tuple(map(str, range(50))), channels[:, None], stamps), W)
    assert len(bins.counts) in (99, 100)


def test_bins_of_an_odd_width_begin_at_the_first_whole_nanosecond():
    times = np.array([33_333_333, 33_333_334, 66_666_666, 66_666_667, 99_999_999]) / 1e9
    assert count_spikes([times], 0.0, 1 / 30, 3).ravel().tolist() == [1, 2, 2]


def test_more_spikes_than_two_bytes_count_are_the_most_that_they_count():
    assert count_spikes([np.full(70_000, 0.05), np.full(3, 0.15)], 0.0, 0.1, 2).tolist() == [[65_535, 0], [0, 3]]


def test_a_negative_count_does_not_become_a_large_one():
    counts = np.array([[-1, 3]])
    assert compact(counts) is counts


def test_channels_that_are_left_out_take_their_flags_and_their_spikes_with_them():
    times = [np.array([0.1, 0.4]), np.array([0.2]), np.array([0.3])]
    spikes = Original.of_spikes("day", ("a", "b", "c"), times, np.array([False, False, True]))
    kept = spikes.select(np.array([True, False, True]))
    assert kept.channels == ("a", "c")
    assert kept.heldout.tolist() == [False, True]
    assert kept.samples.ravel().tolist() == [0, 1, 0]
    assert kept.stamps.tolist() == [0.1, 0.3, 0.4]

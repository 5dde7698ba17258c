"""Wider bins, and behaviour onto bins: nothing is lost, nothing is moved."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import RecordingError
from rtdsae.recordings import Recording
from rtdsae.recordings.behaviour import Series, attach, onto_bins
from rtdsae.recordings.rebin import rebin


def recording(lengths, gap=1, seed=0):
    rng = np.random.default_rng(seed)
    starts = np.cumsum([gap + n for n in lengths]) - lengths
    n = starts[-1] + lengths[-1]
    return Recording(
        rng.poisson(2.0, (n, 3)),
        0.01,
        segments=np.stack([starts, starts + lengths], axis=1),
        behaviour=rng.normal(size=(n, 2)),
        conditions=np.arange(len(lengths)),
        splits=["train"] * len(lengths),
    )


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 5))
def test_counts_are_added_up_and_the_rest_is_averaged(lengths, k):
    fine = recording(np.array(lengths))
    if max(lengths) < k:
        with pytest.raises(RecordingError, match="no segment is as long"):
            rebin(fine, 0.01 * k)
        return
    wide = rebin(fine, 0.01 * k)
    kept = [i for i, n in enumerate(lengths) if n >= k]
    assert wide.conditions.tolist() == kept
    for (start, stop), i in zip(wide.segments, kept, strict=True):
        first, n = fine.segments[i, 0], lengths[i] // k
        assert stop - start == n
        for bin_ in range(n):
            old = slice(first + bin_ * k, first + (bin_ + 1) * k)
            np.testing.assert_array_equal(wide.counts[start + bin_], fine.counts[old].sum(axis=0))
            np.testing.assert_allclose(wide.behaviour[start + bin_], fine.behaviour[old].mean(axis=0))


def series(stamps, values=None):
    stamps = np.asarray(stamps, float)
    return Series("hand", ("x",), np.asarray(stamps if values is None else values, float)[:, None], stamps)


def test_a_bin_has_the_mean_of_its_samples_and_a_sample_at_its_end_is_its_own():
    found = onto_bins(series([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 6]), np.array([0.2, 0.4]), 0.2)
    assert found.ravel().tolist() == [1.5, 4.5]


def test_order_does_not_matter_and_what_is_no_number_is_passed_over():
    shuffled = series([0.3, 0.1, 0.4, 0.2, 0.15, np.inf], [3, 1, 6, 2, np.nan, 5])
    assert onto_bins(shuffled, np.array([0.2, 0.4]), 0.2).ravel().tolist() == [1.5, 4.5]


def test_between_two_samples_there_is_a_straight_line_and_beyond_them_nothing():
    ends = 0.02 * np.arange(1, 11)
    found = onto_bins(series([0.05, 0.1, 0.15]), ends, 0.02).ravel()
    known = np.isfinite(found)
    assert known.tolist() == [False, False, True, True, True, True, True, True, False, False]
    # bins with a sample have that, the others what is in their middle
    np.testing.assert_allclose(found[known], [0.05, 0.07, 0.1, 0.11, 0.13, 0.15])


def test_a_long_pause_is_not_bridged():
    stamps = np.r_[np.arange(0, 1, 0.01), np.arange(2, 3, 0.01)]
    found = onto_bins(series(stamps), 0.02 * np.arange(1, 151), 0.02).ravel()
    assert np.isnan(found[50:99]).all()
    assert np.isfinite(found[:49]).all()
    assert np.isfinite(found[101:]).all()


@pytest.mark.parametrize(
    ("period", "pause", "bridged"), [(0.01, 0.09, 1), (0.01, 0.12, 0), (0.2, 0.59, 1), (0.2, 0.7, 0)]
)
def test_pauses_are_bridged_up_to_a_tenth_of_a_second_or_three_periods(period, pause, bridged):
    stamps = np.r_[np.arange(10) * period, (np.arange(10) + 9) * period + pause]
    found = onto_bins(series(stamps), 9 * period + 0.02 * np.arange(-1, 5), 0.02).ravel()
    assert np.isfinite(found[2:]).all() == bridged


def test_outside_the_segments_behaviour_is_a_straight_line_between_what_is_known():
    values = np.array([[np.nan], [1], [2], [np.nan], [np.nan], [5], [6], [np.nan]])
    parts = {"segments": np.array([[0, 8]])}
    attach(parts, "hand", ("x",), values)
    assert parts["segments"].tolist() == [[1, 3], [5, 7]]
    assert parts["behaviour"].ravel().tolist() == [1, 1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("width", [0.0095, 0.022, 0.0201])
def test_no_whole_multiple_is_refused(width):
    with pytest.raises(RecordingError, match="no whole multiple"):
        rebin(recording(np.array([20])), width)


def test_large_values_keep_their_digits():
    stamps = np.arange(1, 100001) / 1000
    found = onto_bins(series(stamps, 1e6 + np.sin(stamps)), np.arange(1, 1001) / 10, 0.1).ravel()
    expected = (1e6 + np.sin(stamps)).reshape(1000, 100).mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_long_segments_are_added_up_a_block_at_a_time(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 200, (103, 3), np.uint8)
    counts[:20] = 0
    whole = rebin(Recording(counts, 0.01, segments=[[0, 50], [51, 103]]), 0.05)
    monkeypatch.setattr(sys.modules[rebin.__module__], "BLOCK", 2)
    pieces = rebin(Recording(counts, 0.01, segments=[[0, 50], [51, 103]]), 0.05)
    np.testing.assert_array_equal(whole.counts, pieces.counts)
    assert whole.counts.dtype == pieces.counts.dtype == np.uint16

"""The binner: the same bins whatever the chunks, every bin once, every sample accounted for."""

import itertools
from dataclasses import asdict
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdsae.bins import BinCounters, Bins, EventsBinner, RegularBinner, events, input_kind
from rtdsae.bins.grid import KEPT_BYTES
from rtdsae.errors import BinError

START = 1234.5


def joined(pushes):
    """The bins of several pushes as one: copied as they come, since a push's arrays last until the next."""
    copies = [[array.copy() for array in bins] for bins in pushes]
    return Bins(*(np.concatenate(arrays) for arrays in zip(*copies, strict=True)))


def push_in_chunks(binner, values, stamps, cuts):
    edges = [0, *sorted(cuts), len(stamps)]
    return joined(binner.push(values[i:j], stamps[i:j]) for i, j in itertools.pairwise(edges))


def pushed_and_flushed(binner, channels, stamps, t_end):
    return joined(step() for step in (lambda: binner.push(channels, stamps), lambda: binner.flush(t_end)))


def assert_identical(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert x.tobytes() == y.tobytes()


def regular(n, period, start=START):
    return start + np.arange(n) * period


def ones(n, channels=2):
    return np.ones((n, channels), np.float32)


# which kind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "width", "declared", "expected"),
    [
        (50, 0.02, None, ("counts", 1)),
        (50.04, 0.02, None, ("counts", 1)),
        (3, 1 / 3, None, ("counts", 1)),
        (1000, 0.02, None, ("samples", 20)),
        (30000, 0.01, None, ("samples", 300)),
        (0, 0.02, None, ("events", 0)),
        (50, 0.02, "samples", ("samples", 1)),
        (30000, 0.02, "events", ("events", 0)),
        (0, 0.02, "counts", ("counts", 1)),
    ],
)
def test_kind_follows_from_the_rate(rate, width, declared, expected):
    assert input_kind(rate, width, declared) == expected


@pytest.mark.parametrize(
    ("rate", "width", "declared"),
    [
        (50.06, 0.02, None),
        (25, 0.02, None),
        (24414.0625, 0.02, None),
        (100, 0.02, "counts"),
        (0, 0.02, "samples"),
        (-1, 0.02, None),
        (float("nan"), 0.02, None),
        (float("inf"), 0.02, None),
        (50, 0.0, None),
        (50, float("nan"), None),
    ],
)
def test_other_rates_are_refused_with_what_was_expected(rate, width, declared):
    with pytest.raises(BinError) as caught:
        input_kind(rate, width, declared)
    assert len(str(caught.value).splitlines()) == 1


def test_a_refused_rate_says_what_would_do():
    with pytest.raises(BinError, match=r"75 Hz do not make whole bins of 0.02 s: expected 50 Hz \(counts\)"):
        input_kind(75, 0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RegularBinner(0, 0.02),
        lambda: RegularBinner(2, 0.02, 0),
        lambda: RegularBinner(2, 1e-5),
        lambda: EventsBinner(0, 0.02),
        lambda: EventsBinner(2, 11.0),
        lambda: EventsBinner(2, 0.02, lateness_s=-0.1),
        lambda: EventsBinner(2, 0.02, lateness_s=float("nan")),
        lambda: RegularBinner(2, 0.02).push(ones(3, 3), regular(3, 0.02)),
        lambda: RegularBinner(2, 0.02).push(ones(3), regular(4, 0.02)),
        lambda: EventsBinner(2, 0.02).push(np.zeros(3), regular(4, 0.02)),
    ],
)
def test_impossible_arguments_are_refused(make):
    with pytest.raises(BinError):
        make()


# regular streams ----------------------------------------------------------------------------------------------------


def test_counts_are_bins_already():
    values = np.arange(10, dtype=np.int16).reshape(5, 2)
    stamps = regular(5, 0.02)
    bins = RegularBinner(2, 0.02).push(values, stamps)
    assert bins.index.tolist() == [0, 1, 2, 3, 4]
    assert bins.t_end.tolist() == stamps.tolist()
    assert bins.counts.tolist() == values.tolist()
    assert bins.counts.dtype == np.float32
    assert bins.observed.all()


@pytest.mark.parametrize(("rate", "width", "k"), [(1000, 0.02, 20), (30000, 0.01, 300), (9, 1 / 3, 3)])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_samples_are_reduced_and_end_with_their_kth(rate, width, k, reduce):
    n = 10 * k + k - 1
    values = np.random.default_rng(0).poisson(1.0, (n, 3)).astype(np.float32)
    stamps = regular(n, 1 / rate)
    binner = RegularBinner(3, width, k, reduce)
    bins = binner.push(values, stamps)
    expected = getattr(values[: 10 * k].reshape(10, k, 3).astype(np.float64), reduce)(axis=1)
    np.testing.assert_array_equal(bins.counts, expected.astype(np.float32))
    assert bins.t_end.tolist() == stamps[k - 1 : 10 * k : k].tolist()
    assert binner.push(values[:1], stamps[-1:] + 1 / rate).index.tolist() == [10]
    assert asdict(binner.counters) == asdict(RegularBinner(1, width).counters)


def test_arrays_are_reused_by_the_next_push():
    binner = RegularBinner(2, 0.02)
    first = binner.push(ones(1), np.array([1.0]))
    second = binner.push(3 * ones(1), np.array([1.02]))
    assert np.shares_memory(first.counts, second.counts)
    assert second.counts.tolist() == [[3, 3]]
    assert binner.push(ones(0), np.zeros(0)).index.tolist() == []


def test_a_gap_becomes_unobserved_bins_at_their_expected_times():
    binner = RegularBinner(2, 0.02)
    stamps = regular(10, 0.02)
    kept = [0, 1, 2, 6, 7, 8, 9]
    bins = binner.push(ones(7), stamps[kept])
    assert bins.index.tolist() == list(range(10))
    assert bins.observed.tolist() == [i in kept for i in range(10)]
    assert bins.counts[3:6].tolist() == [[0, 0]] * 3
    np.testing.assert_allclose(bins.t_end, stamps, atol=1e-9)
    assert binner.counters.gaps == 3


def test_a_gap_within_samples_spoils_the_bins_it_touches():
    binner = RegularBinner(2, 0.02, 20)
    stamps = regular(100, 0.001)
    kept = np.r_[0:30, 55:100]  # bin 1 loses its second half, bin 2 all but its last five
    bins = binner.push(ones(75), stamps[kept])
    assert bins.observed.tolist() == [True, False, False, True, True]
    assert bins.counts[:, 0].tolist() == [20, 0, 0, 20, 20]
    np.testing.assert_allclose(bins.t_end, stamps[19::20], atol=1e-9)
    assert (binner.counters.gaps, binner.counters.partial) == (2, 15)


def test_less_than_half_a_bin_is_jitter():
    binner = RegularBinner(2, 0.02)
    jitter = np.random.default_rng(0).uniform(-0.0049, 0.0049, 2000)
    stamps = regular(2000, 0.02) + jitter
    bins = binner.push(ones(2000), stamps)
    assert len(bins.index) == 2000
    assert bins.observed.all()
    assert bins.t_end.tobytes() == stamps.tobytes()


def test_half_a_bin_is_a_gap():
    binner = RegularBinner(2, 0.02)
    bins = binner.push(ones(3), np.array([1.0, 1.02, 1.05]))
    assert bins.observed.tolist() == [True, True, False, True]


def test_a_single_bin_that_is_missing_moves_the_grid_no_more_than_jitter_does():
    binner = RegularBinner(2, 0.02)
    stamps = np.array([1.0, 1.02, 1.069, 1.071, 1.1])  # after the gap 9 ms late, then 9 ms early
    bins = binner.push(ones(5), stamps)
    assert bins.observed.tolist() == [True, True, False, True, True, True]
    assert binner.counters == BinCounters(gaps=1)


@pytest.mark.parametrize("rate", [50.01, 49.99])
def test_a_source_with_its_own_clock_has_no_gap_in_ten_hours(rate):
    binner = RegularBinner(1, 0.02)
    n, chunk, published = int(36000 * rate), 5000, 0
    values = ones(chunk, 1)
    for at in range(0, n, chunk):
        bins = binner.push(values, START + np.arange(at, at + chunk) / rate)
        published += int(bins.observed.sum())
    assert published == at + chunk
    assert asdict(binner.counters) == dict.fromkeys(asdict(binner.counters), 0)


@pytest.mark.parametrize("width", [1 / 3, 0.0175, 1 / 60, 0.001])
def test_the_grid_does_not_drift_through_gaps(width):
    binner = RegularBinner(1, width)
    exact = Fraction(width).limit_denominator(10**6)
    indices = np.arange(0, 500_000, 150)
    stamps = START + np.array([float(int(i) * exact) for i in indices])
    bins = binner.push(ones(len(stamps), 1), stamps)
    assert bins.index.tolist() == list(range(indices[-1] + 1))
    assert np.flatnonzero(bins.observed).tolist() == indices.tolist()
    np.testing.assert_allclose(bins.t_end, START + bins.index * float(exact), rtol=0, atol=1e-6)


def test_duplicates_and_late_samples_are_dropped():
    binner = RegularBinner(2, 0.02)
    stamps = np.array([1.0, 1.02, 1.02, 1.01, 1.04, 0.05, 1.045, 1.06])
    bins = binner.push(np.arange(16.0).reshape(8, 2), stamps)
    assert bins.t_end.tolist() == [1.0, 1.02, 1.04, 1.06]
    assert bins.counts[:, 0].tolist() == [0, 2, 8, 14]
    assert (binner.counters.duplicates, binner.counters.late, binner.counters.gaps) == (2, 2, 0)


@pytest.mark.parametrize("jump", [-5.0, 100.0])
@pytest.mark.parametrize("k", [1, 4])
def test_a_clock_that_jumps_is_a_reset_and_the_index_goes_on(jump, k):
    binner = RegularBinner(2, 0.02, k)
    stamps = regular(10 * k + k // 2, 0.02 / k)
    after = regular(5 * k, 0.02 / k, stamps[-1] + jump)
    bins = joined(binner.push(ones(len(s)), s) for s in (stamps, after))
    assert bins.index.tolist() == list(range(16))
    assert bins.observed.tolist() == [True] * 10 + [False] + [True] * 5
    np.testing.assert_allclose(bins.t_end[11:], after[k - 1 :: k])
    assert (binner.counters.resets, binner.counters.partial) == (1, k // 2)


def test_a_source_that_comes_back_out_of_step_loses_no_sample():
    rng, period = np.random.default_rng(0), 0.01
    for _ in range(200):
        before = np.arange(50) + rng.uniform(-0.1, 0.1, 50)
        after = np.arange(100) + 60 + rng.uniform() + rng.uniform(-0.1, 0.1, 100)
        binner = RegularBinner(2, period)
        bins = binner.push(ones(150), START + period * np.r_[before, after])
        assert bins.observed.sum() == 150
        assert np.diff(bins.index[bins.observed]).max() == binner.counters.gaps + 1  # one gap, where it was


BAD_VALUES = [np.nan, np.inf, -np.inf, -1.0, 2.0**24 + 2]


@pytest.mark.parametrize("bad", BAD_VALUES)
@pytest.mark.parametrize("k", [1, 3])
def test_a_value_that_is_no_count_spoils_its_bin_only(bad, k):
    values = ones(5 * k)
    values[2 * k, 1] = bad
    binner = RegularBinner(2, 0.03, k)
    stamps = regular(5 * k, 0.03 / k)
    bins = binner.push(values, stamps)
    assert bins.observed.tolist() == [True, True, False, True, True]
    assert bins.counts.tolist() == [[k, k], [k, k], [0, 0], [k, k], [k, k]]
    assert bins.t_end.tolist() == stamps[k - 1 :: k].tolist()
    counters = binner.counters
    assert (counters.nan, counters.overflow) == ((0, 1) if bad > 0 and np.isfinite(bad) else (1, 0))
    assert (counters.gaps, counters.partial) == (1, k - 1)


def test_the_largest_count_and_zero_of_either_sign_are_counts():
    binner = RegularBinner(3, 0.02)
    assert binner.push(np.array([[2.0**24, 0.0, -0.0]]), np.array([1.0])).observed.all()


def test_a_count_that_float32_would_round_to_the_largest_is_above_it():
    binner = RegularBinner(1, 0.02)
    bins = joined(binner.push(np.array([[2**24 + 1]]), np.array([stamp])) for stamp in (1.0, 1.02))
    assert not bins.observed.any()
    assert binner.counters.overflow == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_stamp_that_is_no_time_is_counted(bad):
    for binner in (RegularBinner(2, 0.02), EventsBinner(2, 0.02)):
        binner.push(ones(3), np.array([bad, 1.0, bad]))
        assert binner.counters.nan == 2


@st.composite
def streams(draw):
    """A regular stream with everything that may befall one: stamps and values."""
    period = draw(st.sampled_from([0.02, 0.001, 1 / 3, 1 / 30000]))
    step = st.one_of(
        st.just(1.0),
        st.floats(0.4, 1.6),  # jitter
        st.integers(2, 40).map(float),  # gap
        st.just(0.0),  # duplicate
        st.floats(-3.0, 0.0),  # backward
        st.sampled_from([-1.5 / period, 61.0 / period]),  # reset clock
    )
    steps = draw(st.lists(st.just(1.0) | st.just(1.0) | step, min_size=1, max_size=60))
    stamps = START + np.cumsum(steps) * period
    stamps[draw(st.lists(st.integers(0, len(steps) - 1), max_size=2))] = np.nan
    # Of all magnitudes, so that a sum in another order, or of another width, is another sum.
    values = 10 ** np.random.default_rng(draw(st.integers(0, 99))).uniform(-8, 7, (len(steps), 2))
    values = values.astype(draw(st.sampled_from([np.float64, np.float32])))
    for at in draw(st.lists(st.integers(0, len(steps) - 1), max_size=3)):
        values[at, draw(st.integers(0, 1))] = draw(st.sampled_from(BAD_VALUES))
    return period, values, stamps


cuts = st.lists(st.integers(0, 60), max_size=8)


@settings(max_examples=400)
@given(streams(), st.sampled_from([1, 2, 3, 5]), st.sampled_from(["sum", "mean"]), cuts)
def test_any_chunking_gives_the_same_bins_and_every_sample_is_accounted_for(stream, k, reduce, cuts):
    period, values, stamps = stream
    n = len(stamps)
    if not 1e-4 <= period * k <= 10:
        period, k = 0.02, 1
    cuts = [min(c, n) for c in cuts]

    def run(cuts):
        binner = RegularBinner(2, period * k, k, reduce)
        return push_in_chunks(binner, values, stamps, cuts), binner.counters

    one_by_one, counters = run(range(1, n))
    chunked, chunked_counters = run(cuts)
    assert_identical(one_by_one, chunked)
    assert counters == chunked_counters

    assert one_by_one.index.tolist() == list(range(len(one_by_one.index)))
    assert counters.gaps == (~one_by_one.observed).sum()
    assert not one_by_one.counts[~one_by_one.observed].any()
    assert np.isfinite(one_by_one.counts).all()
    assert np.isfinite(one_by_one.t_end).all()
    dropped = counters.late + counters.duplicates + counters.nan + counters.overflow + counters.partial
    pending = n - k * int(one_by_one.observed.sum()) - dropped
    assert 0 <= pending < k


@pytest.mark.parametrize("drift", [0.02, 0.04, -0.02, -0.04], ids="{:+}".format)
def test_the_grid_follows_a_sample_at_a_time_as_it_does_in_chunks(drift):
    """At 4 % the source runs away from the grid now and then, and it is seen at the same sample."""
    values, stamps = ones(200), regular(200, 0.02 * (1 + drift))
    binners = [RegularBinner(2, 0.02) for _ in range(2)]
    singly, chunked = (push_in_chunks(b, values, stamps, c) for b, c in zip(binners, (range(1, 200), []), strict=True))
    assert_identical(singly, chunked)
    assert binners[0].counters == binners[1].counters
    assert (binners[0].counters.gaps + binners[0].counters.duplicates > 0) == (abs(drift) > 0.03)


@pytest.mark.parametrize("n_channels", [1, 2, 96])
def test_many_samples_are_added_up_in_their_order_however_many_come_at_a_time(n_channels):
    k = 300
    values = np.full((k, n_channels), 2.0**-53)  # each is lost on what is there already; not so all together
    values[:2] = [[1.0], [2.0**-24]]
    for cuts in ([], range(1, k)):
        bins = push_in_chunks(RegularBinner(n_channels, 0.02, k), values, regular(k, 0.02 / k), cuts)
        assert bins.counts.tolist() == [[1.0] * n_channels]


@pytest.mark.parametrize("n_channels", [1, 2])
def test_negative_zeros_add_up_to_zero(n_channels):
    for cuts in ([], [1]):
        bins = push_in_chunks(RegularBinner(n_channels, 0.02, 2), -0.0 * ones(2, n_channels), regular(2, 0.01), cuts)
        assert not np.signbit(bins.counts).any()


def test_samples_are_added_up_in_their_order_in_chunks_too():
    values = np.array([2.0**-53, 2.0**-53, 2.0**-53, 2.0**-24, 1.0])[:, None]  # 1.0 if the last were added first
    for cuts in ([], range(1, 5)):
        bins = push_in_chunks(RegularBinner(1, 0.02, 5), values, regular(5, 0.004), cuts)
        assert bins.counts[0, 0] == np.float32(1 + 2.0**-23)


@given(st.integers(1, 7), st.integers(0, 99), cuts)
def test_every_good_value_is_in_its_bin(k, seed, cuts):
    values = np.random.default_rng(seed).poisson(2.0, (60, 3)).astype(np.float64)
    bins = push_in_chunks(RegularBinner(3, 0.02, k), values, regular(60, 0.02 / k), cuts)
    m = 60 // k
    np.testing.assert_array_equal(bins.counts, values[: m * k].reshape(m, k, 3).sum(axis=1))


# spikes -------------------------------------------------------------------------------------------------------------


def test_spikes_belong_to_the_bin_they_are_in():
    binner = EventsBinner(3, 0.02)
    bins = pushed_and_flushed(binner, np.array([0, 1, 1, 2, 2]), np.array([1.0, 1.005, 1.019, 1.02, 1.0799]), 1.08)
    assert bins.index.tolist() == [0, 1, 2, 3]
    assert bins.counts.tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert bins.observed.all()
    np.testing.assert_allclose(bins.t_end, [1.02, 1.04, 1.06, 1.08], rtol=0, atol=1e-12)


def test_a_bin_waits_for_spikes_out_of_order_by_the_lateness():
    binner = EventsBinner(2, 0.02, lateness_s=0.01)
    assert binner.push(np.array([0, 0, 0]), np.array([1.0, 1.029, 1.015])).index.tolist() == []
    bins = binner.push(np.array([1, 1]), np.array([1.03, 1.016]))
    assert bins.counts.tolist() == [[2, 0]]
    assert binner.counters.late == 1


def test_the_clock_publishes_silence():
    binner = EventsBinner(2, 0.02, lateness_s=0.01)
    assert binner.advance(5.0).index.tolist() == []  # no grid before the first spike
    binner.push(np.array([[1, 77]]), np.array([10.0]))  # a second column is the unit's, and not looked at
    assert binner.due == pytest.approx(10.03)
    assert binner.advance(10.0299).index.tolist() == []
    assert binner.advance(10.0701).counts.tolist() == [[0, 1], [0, 0], [0, 0]]
    assert binner.advance(10.0).index.tolist() == []
    assert binner.push(np.array([0]), np.array([10.045])).index.tolist() == []
    assert binner.counters.late == 1


def test_while_the_stream_is_away_silence_is_no_news():
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([1]), np.array([10.0]))
    bins = binner.advance(10.05, observed=False)
    assert bins.observed.tolist() == [False, False]
    assert not bins.counts.any()
    assert (binner.counters.gaps, binner.counters.partial) == (2, 1)


def test_a_stream_that_was_away_spoils_the_open_bin_and_none_after_it():
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]))
    binner.miss()
    bins = pushed_and_flushed(binner, np.array([0, 1]), np.array([10.055, 10.065]), 10.08)
    assert bins.observed.tolist() == [False, False, False, True]
    assert bins.counts.tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]
    assert (binner.counters.gaps, binner.counters.partial) == (3, 2)


def test_a_stream_that_was_away_is_back_with_its_first_spike():
    binner = EventsBinner(1, 0.02)
    binner.push(np.zeros(1), np.array([10.0]), 10.001)
    binner.miss()
    assert binner.advance(10.05).observed.tolist() == [False, False]
    assert binner.push(np.zeros(1), np.array([10.055]), 10.075).observed.tolist() == []
    assert binner.push(np.zeros(1), np.array([10.085]), 10.086).observed.tolist() == [False, False]
    assert binner.push(np.zeros(1), np.array([10.105]), 10.106).observed.tolist() == [True]


def test_a_stream_that_is_back_with_later_stamps_had_no_bins_of_silence_before_them():
    binner = EventsBinner(1, 0.02)
    binner.push(np.zeros(1), np.array([10.0]), 13.0)
    assert binner.advance(13.03).observed.tolist() == [True]
    binner.miss()
    bins = binner.push(np.zeros(2), np.array([13.501, 13.521]), 13.522)
    assert len(bins.index) == 175
    assert not bins.observed.any()
    assert binner.push(np.zeros(1), np.array([13.541]), 13.542).observed.tolist() == [True]


def test_after_a_reset_the_bins_that_were_missed_before_it_are_forgotten():
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]))
    binner.miss()
    binner.push(np.array([1]), np.array([5.0]))
    bins = binner.flush(5.04)
    assert binner.counters.resets == 1
    assert bins.counts.tolist() == [[0, 1], [0, 0]]
    assert bins.observed.all()


def test_a_reset_leaves_no_spike_behind_in_the_bins_that_waited_for_late_ones():
    binner = EventsBinner(1, 0.02, lateness_s=0.1)
    binner.push(np.zeros(3), np.array([10.0, 10.03, 10.07]))
    bins = pushed_and_flushed(binner, np.zeros(1), np.array([5.0]), 5.2)
    assert binner.counters.resets == 1
    assert bins.counts.ravel().tolist() == [1, 1, 0, 0, 1, *[0] * 9]
    assert bins.observed.tolist() == [True] * 3 + [False] + [True] * 10
    assert binner.counters.partial == 1


def test_how_far_back_a_stamp_is_counts_from_the_newest():
    binner = EventsBinner(1, 0.02)
    binner.push(np.zeros(3), np.array([10.0, 9.4, 8.9]))
    assert (binner.counters.late, binner.counters.resets) == (1, 1)


def test_a_burst_after_a_stall_is_late_and_no_reset():
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]))
    assert len(binner.advance(14.0).index) == 200
    binner.push(np.zeros(3), np.array([10.5, 11.0, 14.001]))
    assert (binner.counters.late, binner.counters.resets) == (2, 0)
    assert binner.advance(14.021).counts.tolist() == [[1, 0]]


@pytest.mark.parametrize("jump", [-5.0, 100.0])
def test_spikes_whose_clock_jumps_go_on_and_the_clock_follows(jump):
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]))
    assert binner.advance(10.03).index.tolist() == [0]
    bins = binner.push(np.array([1]), np.array([10.03 + jump]))
    assert bins.index.tolist() == [1]
    assert not bins.observed[0]
    bins = binner.advance(10.0501)
    assert bins.index.tolist() == [2]
    assert bins.counts.tolist() == [[0, 1]]
    assert bins.t_end[0] == pytest.approx(10.05 + jump)
    assert binner.counters.resets == 1
    binner.push(np.array([0]), np.array([10.0501 + 2 * jump]))
    assert binner.due == pytest.approx(10.0701)


@pytest.mark.parametrize("apart", [-1000.0, -5.0, 5.0, 1000.0])
def test_stamps_of_another_clock_are_gone_along_with(apart):
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([1, 1]), np.array([10.0, 10.001]) + apart, 10.002)
    assert binner.due == pytest.approx(10.021)
    assert binner.advance(10.02).index.tolist() == []
    bins = binner.advance(10.0411)
    assert bins.counts.tolist() == [[0, 2], [0, 0]]
    assert bins.t_end.tolist() == pytest.approx([10.02 + apart, 10.04 + apart])
    binner.push(np.array([0]), np.array([10.045 + apart]), 10.046)
    assert binner.advance(10.0611).counts.tolist() == [[1, 0]]
    assert binner.counters == BinCounters()


@pytest.mark.parametrize("apart", [0.0, 1000.0])
def test_stamps_that_were_set_ahead_are_a_reset_and_the_clock_goes_on(apart):
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0 + apart]), 10.0)
    bins = binner.push(np.array([1]), np.array([15.001 + apart]), 10.01)
    assert (bins.index.tolist(), bins.observed.tolist()) == ([0], [False])
    assert binner.counters.resets == 1
    bins = binner.advance(10.0301)
    assert bins.counts.tolist() == [[0, 1]]
    assert bins.t_end[0] == pytest.approx(15.021 + apart)


def test_one_stamp_that_is_ahead_costs_two_bins():
    binner = EventsBinner(1, 0.02)
    observed = []
    for now, stamp in [(10.0, 10.0), (10.01, 40.0), (10.015, 10.015)]:
        observed += binner.push(np.zeros(1), np.array([stamp]), now).observed.tolist()
    observed += binner.advance(10.0551).observed.tolist()
    assert observed == [False, False, True, True]
    assert binner.counters.resets == 2


def test_a_stall_is_not_taken_for_another_clock():
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]), 10.0)
    binner.push(np.zeros(2), np.array([10.1, 11.9]), 14.0)
    assert len(binner.advance(14.021).index) == 106
    assert binner.counters.resets == 0


def test_first_spikes_that_waited_for_long_make_no_reset_of_those_after_them():
    """They look like another clock, behind this one; spikes that come at once are ahead of that, but not of time."""
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]), 11.5)
    bins = binner.push(np.array([1]), np.array([11.601]), 11.602)
    assert len(bins.index) == 80
    assert bins.observed.all()
    assert binner.counters.resets == 0


def test_a_clock_that_leaps_makes_no_flood_of_bins():
    binner = EventsBinner(2, 0.02)
    binner.push(np.array([0]), np.array([10.0]))
    assert len(binner.advance(30_000.0).index) == 1
    assert binner.counters.resets == 1
    assert binner.advance(30_000.0201).index.tolist() == [1]


def test_bad_spikes_spoil_no_bin():
    binner = EventsBinner(2, 0.02)
    channels = np.array([0, -1, 0.5, np.nan, np.inf, 2, 1])
    binner.push(channels, regular(7, 0.001, 1.0))
    bins = binner.flush(1.02)
    assert bins.counts.tolist() == [[1, 1]]
    assert bins.observed.all()
    assert (binner.counters.nan, binner.counters.overflow) == (4, 1)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.001, 0.02, 0.3]) | st.floats(-0.1, 0.1) | st.sampled_from([-1.5, 61.5, np.nan]),
            st.sampled_from([0, 0, 1, 1, 2, -1]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([0.0, 0.01, 0.1]),
    st.sampled_from([0.02, 1 / 3]),
    cuts,
)
def test_any_chunking_of_spikes_gives_the_same_bins_and_accounts_for_all(spikes, lateness, width, cuts):
    steps = np.array([s for s, _ in spikes])
    stamps = np.where(np.isnan(steps), np.nan, START + np.cumsum(np.nan_to_num(steps)))
    channels = np.array([c for _, c in spikes], np.float32)
    n, timed = len(stamps), ~np.isnan(stamps) & (channels >= 0) & (channels < 2)
    end = stamps[timed][-1:].sum() + 2  # all bins are closed by then

    def run(cuts):
        binner = EventsBinner(2, width, lateness)
        bins = push_in_chunks(binner, channels, stamps, cuts)
        return joined([bins, binner.flush(end)]), binner.counters

    one_by_one, counters = run(range(1, n))
    chunked, chunked_counters = run([min(c, n) for c in cuts])
    assert_identical(one_by_one, chunked)
    assert counters == chunked_counters
    assert one_by_one.index.tolist() == list(range(len(one_by_one.index)))
    assert counters.gaps == (~one_by_one.observed).sum()
    dropped = counters.late + counters.duplicates + counters.nan + counters.overflow + counters.partial
    assert n == int(one_by_one.counts.sum()) + dropped


CLOCK = 500.0  # how far the stamps' clock is ahead of the daemon's in some examples


@st.composite
def live_spikes(draw):
    """A binner's width and lateness, and what a daemon does with it: pushes, bins closed by the clock, connections."""
    width, lateness = draw(st.sampled_from([0.02, 1 / 3, 8.0])), draw(st.sampled_from([0.0, 0.002, 0.1]))
    stamp, ahead, done = START, draw(st.sampled_from([0.0, CLOCK])), []
    for what in draw(st.lists(st.sampled_from(["push"] * 4 + ["advance", "flush", "miss"]), min_size=1, max_size=8)):
        rng = np.random.default_rng(draw(st.integers(0, 999)))
        n, bad = int(rng.integers(1, 120)), draw(st.sampled_from([0.0, 0.02]))
        steps = rng.exponential(draw(st.sampled_from([1e-5, 3e-4, 0.02])), n) * rng.choice([1, 1, 1, 1, -1], n)
        steps[rng.integers(n)] = draw(st.sampled_from([0.0, 0.03, 1.3, -0.05, -0.9, -1.5, 61.5]))
        steps[0] *= stamp > START
        stamps, stamp = stamp + np.cumsum(steps), stamp + steps.sum()
        edges = START + width * np.rint((stamps - START) / width) + rng.choice([-1e-9, 0, 1e-9], n)
        edges += lateness * rng.integers(0, 2, n)
        stamps = np.where(rng.random(n) < draw(st.sampled_from([0.0, 0.1])), edges, stamps)
        stamps[rng.random(n) < bad] = np.nan
        channels = np.where(rng.random(n) < bad, rng.choice([2, 0.5, -1, np.nan], n), rng.integers(0, 2, n))
        delay = draw(st.sampled_from([0.0, 0.004, 2.0, 9.0, -1.2]))
        done.append((what, channels.astype(np.float32), stamps, stamp - ahead + delay))
    return width, lateness, done


@settings(max_examples=500)
@given(live_spikes(), st.sampled_from([7, 1024]))
def test_spikes_that_are_added_together_make_what_they_make_one_by_one(live, together):
    width, lateness, done = live

    def run(many):
        binner = EventsBinner(2, width, lateness)

        def bins():
            for what, channels, stamps, now in done:
                if what == "push":
                    yield binner.push(channels, stamps, now)
                elif what == "advance":
                    yield binner.advance(now)
                elif what == "flush":
                    yield binner.flush(stamps[np.isfinite(stamps)].max(initial=START) + 50.0, observed=False)
                else:
                    binner.miss()
            yield binner.advance(now + 1.0, observed=False)

        with mock.patch.multiple(events, MANY=many, FEW=many, TOGETHER=together):
            return joined(bins()), binner.counters

    one_by_one, counters = run(1_000_000)
    at_once, counters_at_once = run(1)
    assert_identical(one_by_one, at_once)
    assert counters == counters_at_once


def test_many_spikes_at_once_say_that_the_stream_is_back():
    binner = EventsBinner(1, 0.02)
    binner.push(np.zeros(1), np.array([START]))
    binner.miss()
    binner.push(np.zeros(500), START + np.linspace(0.005, 0.015, 500))
    assert binner.advance(START + 0.07).observed.tolist() == [False, True, True]


def test_many_spikes_at_once_long_after_a_flush_are_a_reset_too():
    binner = EventsBinner(1, 0.02)
    binner.push(np.zeros(1), np.array([START]))
    binner.flush(START + 100.0, observed=False)
    binner.push(np.zeros(500), START + 100.0 + np.linspace(0.001, 0.015, 500))
    assert binner.counters.resets == 1


def test_sorted_spikes_are_a_histogram():
    rng = np.random.default_rng(0)
    stamps = np.sort(rng.uniform(100.0, 110.0, 5000))
    stamps[0] = 100.0
    channels = rng.integers(0, 8, 5000)
    binner = EventsBinner(8, 0.25)
    bins = pushed_and_flushed(binner, channels, stamps, 110.0)
    expected = np.histogram2d(stamps, channels, bins=[np.arange(41) * 0.25 + 100, np.arange(9)])[0]
    np.testing.assert_array_equal(bins.counts, expected)


def test_room_for_a_long_gap_is_given_back():
    binner = RegularBinner(1000, 0.001, 1)
    stamps = np.array([0.001, 0.002, 20.002])  # 20 s of gaps between
    bins = binner.push(np.ones((3, 1000), np.float32), stamps)
    assert len(bins.index) == 20_002
    assert bins.counts.nbytes > KEPT_BYTES
    bins = binner.push(np.ones((1, 1000), np.float32), np.array([20.003]))
    assert (bins.index.tolist(), bins.counts.sum()) == ([20_002], 1000)
    assert bins.counts.base is None or bins.counts.base.nbytes < KEPT_BYTES

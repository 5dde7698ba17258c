"""Decimation: extremes are kept, in their order, and what is not finite hides nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rtdsae.monitor.decimate import MAX_GROUPS, any_flag, bins_a_point, extremes, group_columns, means, point_times

VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


@st.composite
def groups(draw):
    k, n, columns = draw(st.integers(1, 7)), draw(st.integers(0, 5)), draw(st.integers(1, 3))
    return draw(arrays.arrays(np.float32, (n * k, columns), elements=VALUES)), k


@given(groups())
def test_each_groups_extremes_are_kept_in_their_order_in_time(case):
    values, k = case
    found = extremes(values, k)
    if k == 1:
        np.testing.assert_array_equal(found, np.where(np.isfinite(values), values, np.nan))
        return
    assert found.shape == (2 * len(values) // k, values.shape[1])
    for i, group in enumerate(values.reshape(-1, k, values.shape[1])):
        for column in range(values.shape[1]):
            first, second = found[2 * i : 2 * i + 2, column]
            finite = group[np.isfinite(group[:, column]), column]
            if not len(finite):
                assert np.isnan([first, second]).all()
                continue
            assert {first, second} == {finite.min(), finite.max()}
            where = [np.flatnonzero(group[:, column] == value) for value in (first, second)]
            assert where[0].min() <= where[1].max()


@given(groups())
def test_means_are_of_what_is_finite(case):
    values, k = case
    for group, found in zip(values.reshape(-1, k, values.shape[1]), means(values, k), strict=True):
        for column, mean in enumerate(found):
            finite = group[np.isfinite(group[:, column]), column].astype(float)
            np.testing.assert_allclose(mean, finite.mean() if len(finite) else np.nan, rtol=1e-5, atol=1e-3)


@given(st.floats(1, 60), st.sampled_from([0.0005, 0.001, 0.005, 0.02, 0.05, 1.0]))
def test_a_window_never_has_more_points_than_a_screen_shows(window_s, width_s):
    k = bins_a_point(window_s, width_s)
    assert window_s / width_s / k * (1 if k == 1 else 2) <= 1000
    assert k == 1 or window_s / width_s > 1000


def test_times_are_those_of_each_groups_first_bin_and_its_middle():
    t = np.arange(12) * 0.5
    np.testing.assert_array_equal(point_times(t, 4), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(point_times(t, 1), t)


def test_no_flag_is_lost():
    np.testing.assert_array_equal(any_flag(np.array([0, 1, 0, 8, 2, 0], np.uint16), 3), [1, 10])


@pytest.mark.parametrize(("n", "rows", "first"), [(3, 3, 0.0), (256, 256, 0.0), (257, 129, 0.5), (1024, 256, 1.5)])
def test_wide_arrays_have_neighbours_averaged(n, rows, first):
    found = group_columns(np.arange(n, dtype=np.float32)[None])
    assert found.shape == (1, rows)
    assert rows <= MAX_GROUPS
    assert found[0, 0] == first
    assert found[0, -1] == pytest.approx(n - 1, abs=2)

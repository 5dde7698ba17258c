"""Many bins as few points: extremes are kept, and so is their order in time.

Rows come k at a time, and k is a function of the time window alone: the same bins make the same points, however often
the page is drawn.
"""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["any_flag", "bins_a_point", "extremes", "group_columns", "means", "point_times"]

MAX_POINTS = 1000  # of a time window: more than a screen shows
MAX_GROUPS = 256  # rows of the heat map

Float32 = NDArray[np.float32]


def bins_a_point(window_s: float, bin_width_s: float) -> int:
    """How many bins become one point, or, if several do, two: the least k with which a window fits in MAX_POINTS."""
    n = min(window_s / bin_width_s, 1e12)
    return 1 if n <= MAX_POINTS else math.ceil(n / (MAX_POINTS // 2))


def extremes(values: Float32, k: int) -> Float32:
    """The smallest and the largest of each k rows, the earlier one first; k = 1 leaves them as they are.

    Args:
        values: `(n * k, columns)`. What is not finite is passed over.
        k: rows in a group.

    Returns:
        `(2 * n, columns)`, NaN where nothing in the group was finite; `(n, columns)` where k is 1.
    """
    finite = np.where(np.isfinite(values), values, np.float32(np.nan))
    if k == 1:
        return finite
    groups = finite.reshape(-1, k, values.shape[1])
    missing = np.isnan(groups)
    low_at = np.where(missing, np.inf, groups).argmin(axis=1, keepdims=True)
    high_at = np.where(missing, -np.inf, groups).argmax(axis=1, keepdims=True)
    pairs = np.concatenate([np.minimum(low_at, high_at), np.maximum(low_at, high_at)], axis=1)
    return np.take_along_axis(groups, pairs, axis=1).reshape(-1, values.shape[1])


def point_times(t: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The times of the points that `extremes` makes: of a group's first row and of the one in its middle."""
    return t if k == 1 else t.reshape(-1, k)[:, [0, k // 2]].ravel()


def means(values: Float32, k: int) -> Float32:
    """The mean of each k rows `(n, columns)`, of what is finite in them; NaN where nothing is."""
    groups = values.reshape(-1, k, values.shape[1])
    return _mean(groups, axis=1)


def group_columns(values: Float32) -> Float32:
    """Neighbouring columns averaged, so that no more than MAX_GROUPS are left; the last group may be smaller."""
    n = values.shape[1]
    size = math.ceil(n / MAX_GROUPS)
    if size == 1:
        return values
    padded = np.pad(values, ((0, 0), (0, -n % size)), constant_values=np.nan)
    return _mean(padded.reshape(len(values), -1, size), axis=2)


def any_flag(flags: NDArray[np.uint16], k: int) -> NDArray[np.uint16]:
    """All flags that are set in each k rows."""
    together: NDArray[np.uint16] = np.bitwise_or.reduce(flags.reshape(-1, k), axis=1)
    return together


def _mean(groups: Float32, axis: int) -> Float32:
    finite = np.isfinite(groups)
    total = np.where(finite, groups, 0).sum(axis=axis, dtype=np.float64)
    count = finite.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

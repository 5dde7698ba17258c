"""How good inferred rates and decoded behaviour are, as numbers. Plain numpy; each formula stands once, here.

Rates are expected spikes a bin (spikes/s times the bin width), `(T, C)` like the counts they are held against. A rate
of exactly 0 would make one unexpected spike infinitely bad, so rates are floored at 1e-9 spikes a bin.
"""

import math
from collections.abc import Iterator

import numpy as np

__all__ = ["bits_per_spike", "poisson_nll", "r2"]

FLOOR = 1e-9
BLOCK = 1 << 20  # entries


def poisson_nll(rates: np.ndarray, counts: np.ndarray) -> float:
    """Mean negative log-likelihood of counts under Poisson rates, in nats per bin per neuron, nothing left out.

        mean over bins and neurons of  r - n log r + log n!

    Args:
        rates: expected spikes a bin, `(T, C)`; floored at 1e-9.
        counts: spikes, `(T, C)`; averaged ones may be fractions, whose n! is the gamma function's.

    Raises:
        ValueError: shapes differ, or a count is negative.

    >>> round(poisson_nll(np.array([[1.0, 2.0]]), np.array([[0, 2]])), 6)  # (1 + (2 - 2 log 2 + log 2)) / 2
    1.153426
    """
    counts = _checked(rates, counts)
    total = 0.0
    for some, spikes in _blocks(rates, counts):
        total += float(np.sum(some - spikes * np.log(some) + _log_factorial(spikes)))
    return total / counts.size


def bits_per_spike(rates: np.ndarray, counts: np.ndarray) -> float:
    """How much better than each neuron's mean the rates predict the spikes, in bits per spike.

        (log-likelihood(rates) - log-likelihood(means)) / (spikes * log 2)

    The null model is each neuron's mean over the *scored* counts, as in the Neural Latents Benchmark (Pei et al. 2021,
    arXiv 2109.04463); on held-out neurons this is co-bps. 0 is the mean's own score, below 0 is worse than the mean.

    Args:
        rates: expected spikes a bin, `(T, C)`; floored at 1e-9.
        counts: spikes, `(T, C)`.

    Returns:
        Bits per spike; NaN where there is no spike at all.

    Raises:
        ValueError: shapes differ, or a count is negative.

    >>> counts = np.array([[0], [2]])
    >>> bits_per_spike(np.array([[1.0], [1.0]]), counts)
    0.0
    >>> round(bits_per_spike(np.array([[0.0], [2.0]]), counts), 6)  # knows where both spikes are: one bit each
    1.0
    """
    counts = _checked(rates, counts)
    spikes = float(counts.sum(dtype=float))  # half precision would be at its end with 65,504
    if spikes == 0:
        return math.nan
    null = np.broadcast_to(counts.mean(0), counts.shape)
    gain = poisson_nll(null, counts) - poisson_nll(rates, counts)
    return float(gain * counts.size / (spikes * math.log(2)))


def r2(actual: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Coefficient of determination of each column; `r2(...).mean()` is the usual single figure.

        1 - sum (actual - predicted)^2 / sum (actual - mean actual)^2

    It is not a correlation: a prediction of the right shape but the wrong size scores low, and below 0 is worse than
    the column's mean over the scored bins.

    Args:
        actual: what happened, `(T, K)`.
        predicted: what was predicted, `(T, K)`.

    Returns:
        `(K,)`; NaN for a column that does not vary.

    Raises:
        ValueError: shapes differ.

    >>> r2(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [2.0]]))
    array([0.5])
    """
    actual, predicted = np.asarray(actual, float), np.asarray(predicted, float)
    _same_shape(actual, predicted)
    residual = np.square(actual - predicted).sum(0)
    total = np.square(actual - actual.mean(0)).sum(0)
    varies = np.ptp(actual, axis=0) > 0  # the total of a constant column may be a rounding error
    return 1 - np.divide(residual, total, out=np.full_like(total, np.nan), where=varies & (total > 0))


def _blocks(rates: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Floored rates and counts, some bins at a time: a recording of hours is not to be held once more as floats."""
    bins = max(1, BLOCK // counts.shape[1])
    for first in range(0, len(counts), bins):
        some = slice(first, first + bins)
        yield np.maximum(rates[some], FLOOR, dtype=float), counts[some]


def _checked(rates: np.ndarray, counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    _same_shape(np.asarray(rates), counts)
    if counts.min() < 0:
        raise ValueError("counts cannot be negative")
    return counts


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"shapes {a.shape} and {b.shape}: both must be (bins, columns), equal and not empty")


def _log_factorial(counts: np.ndarray) -> np.ndarray:
    values, where = np.unique(counts, return_inverse=True)  # counts take few values, and numpy has no lgamma
    return np.array([math.lgamma(value + 1) for value in values.tolist()])[where].reshape(counts.shape)

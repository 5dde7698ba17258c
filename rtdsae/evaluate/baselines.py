"""The simple models that a latent model is held against: arrays in, predictions or scores out.

    lagged             the last bins of spikes, from which a ridge regression decodes behaviour
    shifted_scores     what a read-out scores where behaviour has nothing to do with what it is read from
    traces, glm        neurons from the recent spikes of others, by a Poisson regression
    smoothed           a neuron's rate from its own past spikes
    psth               the mean of other trials of the same condition

All of them are causal but the PSTH, which knows the condition.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.recordings.segments import lengths_of

__all__ = ["Line", "best_line", "best_of", "glm", "lagged", "psth", "shifted_scores", "smoothed", "traces"]

SHIFTED_ALPHA = 1.0  # of one whose behaviour was shifted
PENALTIES = (1e-4, 1e-3, 1e-2)  # of the Poisson regression, on standardised columns, per entry
STEPS = 25  # of Newton
MAX_LOG_RATE = 5.0  # in spikes a bin
PIECE = 4096  # bins that fade at a time
LEAST_SHIFT = 10  # a shift is at least one part in so many of the series


def lagged(counts: np.ndarray, segments: np.ndarray, lags: int, skip: int) -> np.ndarray:
    """The last `lags` bins of every channel side by side, for each segment's bins after its first `skip`.

    Before a segment's first bin there are no spikes.

    Args:
        counts: `(T, C)`.
        segments: `(n, 2)`.
        lags: bins, the present one included.
        skip: S.

    Returns:
        `(bins, lags * C)` float32, the newest bin first.
    """
    parts = []
    for a, b in segments.tolist():
        padded = np.concatenate([np.zeros((lags - 1, counts.shape[1]), np.float32), counts[a:b].astype(np.float32)])
        parts.append(np.concatenate([padded[lags - 1 - k + skip : lags - 1 - k + b - a] for k in range(lags)], 1))
    return np.concatenate(parts)


def shifted_scores(fit: tuple[np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray, shifts: int) -> np.ndarray:
    """Mean R2 of read-outs that were fitted to behaviour shifted in time against what they read.

    The shift is circular and at random, at least a tenth of the series: slow changes and the size of the read-out
    are what they are, and only the relation is gone. Each read-out is a ridge regression, scored on other data whose
    behaviour is as it was. Behaviour that repeats itself exactly is related to itself after a shift as well.

    Args:
        fit: `(n, D)` and `(n, K)`.
        x: `(m, D)`, of the scored bins.
        y: `(m, K)`.
        shifts: how many.

    Returns:
        `(shifts,)`.
    """
    mean, scale = standards(fit[0])
    z, scored = (fit[0] - mean) / scale, (x - mean) / scale
    solve = np.linalg.solve(z.T @ z + SHIFTED_ALPHA * np.eye(z.shape[1]), z.T)
    n, offset = len(z), fit[1].mean(0)
    least = max(1, n // LEAST_SHIFT)
    drawn = np.random.default_rng(0).integers(least, max(n - least, least + 1), shifts)
    predicted = [scored @ (solve @ np.roll(fit[1] - offset, shift, 0)) + offset for shift in drawn.tolist()]
    return np.array([np.nanmean(r2(y, p)) for p in predicted])


def traces(counts: np.ndarray, segments: np.ndarray, tau: float, skip: int) -> Iterator[np.ndarray]:
    """Exponentially fading spike counts, Σ_k exp(-k / tau) n_{t-k}, of each segment's bins after its first `skip`.

    One after another in pieces, since a segment may be hours long.

    Args:
        counts: `(T, C)`.
        segments: `(n, 2)`.
        tau: in bins.
        skip: S.

    Yields:
        `(bins, C)` float32.
    """
    keep = np.exp(-1 / tau)
    for a, b in segments.tolist():
        faded = np.zeros((1, counts.shape[1]))
        for first in range(a, b, PIECE):
            some = counts[first : min(first + PIECE, b)].astype(float)
            values, faded = lfilter([1], [1, -keep], some, axis=0, zi=faded)
            yield values[max(0, a + skip - first) :].astype(np.float32)


def glm(
    fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray]
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Rates by Poisson regression, log rate = W x + b, whose L2 penalty other data choose.

    Args:
        fit: columns `(n, D)` and counts `(n, N)`.
        choose: the same of other bins; the penalty with the most bits per spike there is taken.

    Returns:
        What it predicts, expected counts `(m, N)` from columns `(m, D)`, and the bits per spike on `choose`.
    """
    mean, scale = standards(fit[0])
    z = (fit[0] - mean) / scale
    values, axes = np.linalg.eigh(z.T @ z / len(z))

    def along(x: np.ndarray) -> np.ndarray:
        return ((x - mean) / scale @ axes).astype(np.float32)

    z, trial = along(fit[0]), along(choose[0])
    weights = [poisson_weights(z, fit[1].astype(np.float32), values, penalty) for penalty in PENALTIES]
    scores = [bits_per_spike(log_linear(trial, w), choose[1]) for w in weights]
    best = best_of(scores)
    return lambda x: log_linear(along(x), weights[best]), scores[best]


def poisson_weights(z: np.ndarray, counts: np.ndarray, variances: np.ndarray, penalty: float) -> np.ndarray:
    """Weights `(D + 1, N)`, the offsets last, of least mean negative log-likelihood and penalty / 2 |W|².

    Newton's steps for all neurons at once, with the Hessian that a neuron would have at its mean rate: the columns of z
    are uncorrelated, so that it is diagonal. A neuron that a step makes worse goes back and takes half of it.
    """
    mean = np.maximum(counts.mean(0), 1e-4)
    curvature = np.vstack([np.outer(np.maximum(variances, 0), mean) + penalty, mean])
    w = np.vstack([np.zeros((z.shape[1], counts.shape[1])), np.log(mean)])
    stride, least = np.ones(counts.shape[1]), np.full(counts.shape[1], np.inf)
    kept = step = w
    for _ in range(STEPS):
        logs = z @ w[:-1].astype(np.float32) + w[-1].astype(np.float32)
        rates = np.exp(np.minimum(logs, MAX_LOG_RATE))
        loss = (rates - counts * logs).mean(0, dtype=float) + 0.5 * penalty * np.square(w[:-1]).sum(0)
        better = loss < least
        least, kept = np.where(better, loss, least), np.where(better, w, kept)
        off = (rates - counts) / len(z)
        slope = np.vstack([z.T @ off + penalty * w[:-1], off.sum(0)])
        step = np.where(better, slope / curvature, step)
        stride = np.where(better, stride, stride / 2)
        w = kept - stride * step
    return kept


def log_linear(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """exp(W z + b), bounded."""
    rates: np.ndarray = np.exp(np.minimum(z @ w[:-1] + w[-1], MAX_LOG_RATE))
    return rates


def smoothed(counts: np.ndarray, segments: np.ndarray, tau: float, skip: int, before: np.ndarray) -> np.ndarray:
    """Each neuron's rate as the exponentially weighted mean of its counts so far.

    Args:
        counts: `(T, C)`.
        segments: `(n, 2)`.
        tau: in bins.
        skip: S.
        before: mean counts a bin, `(C,)`, which stand for what was before a segment.

    Returns:
        Expected counts a bin, `(bins, C)`.
    """
    keep = np.exp(-1 / tau)
    start = keep * before[None]
    parts = [lfilter([1 - keep], [1, -keep], counts[a:b], axis=0, zi=start)[0][skip:] for a, b in segments.tolist()]
    return np.concatenate(parts)


class Line(NamedTuple):
    """A straight line for each column, `(C,)` each."""

    slope: np.ndarray
    offset: np.ndarray


def best_line(x: np.ndarray, y: np.ndarray) -> Line:
    """The straight lines from each column of x to that of y, `(T, C)` both, with the least squared error."""
    apart = x - x.mean(0)
    variance = np.square(apart).mean(0)
    slope = np.divide((apart * y).mean(0), variance, out=np.zeros_like(variance), where=variance > 0)
    return Line(slope, y.mean(0) - slope * x.mean(0))


def psth(
    counts: np.ndarray,
    fit: tuple[np.ndarray, np.ndarray],
    segments: np.ndarray,
    conditions: np.ndarray,
    skip: int,
    sd: float = 0.0,
) -> np.ndarray:
    """Each bin's mean count over other trials of the same condition.

    Args:
        counts: `(T, C)`.
        fit: `(n, 2)` trials that are averaged, and their conditions `(n,)`.
        segments: `(m, 2)` the trials that are asked for, all trials of one length.
        conditions: theirs, `(m,)`.
        skip: S.
        sd: of a Gaussian that the means are smoothed by, in bins.

    Returns:
        Expected counts a bin, `(bins, C)`.

    Raises:
        ValueError: trials differ in length, or no other trial has the condition.
    """
    trials, known = fit
    lengths = np.unique(lengths_of(np.concatenate([trials, segments])))
    if len(lengths) > 1:
        raise ValueError(f"trials have {lengths.min()} to {lengths.max()} bins: there is no mean over trials")
    stacked = np.stack([counts[a:b] for a, b in trials.tolist()]).astype(np.float32)
    means = {}
    for name in np.unique(conditions).tolist():
        if not (known == name).any():
            raise ValueError(f"no training trial is of condition {name}")
        mean = stacked[known == name].mean(0)
        means[name] = (gaussian_filter1d(mean, sd, axis=0) if sd else mean)[skip:]
    return np.concatenate([means[name] for name in conditions.tolist()])


def standards(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; 1 where it does not vary."""
    scale = x.std(0)
    return x.mean(0), np.where(scale > 1e-6, scale, 1.0)


def best_of(scores: Sequence[float]) -> int:
    """The index of the best score, the first one where none is a number."""
    return int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))

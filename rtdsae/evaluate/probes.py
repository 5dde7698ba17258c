"""What can be read off latents with a straight line, cross-validated: linear probes (Alain & Bengio, arXiv 1610.01644).

A static label (condition, direction, speed) is probed on f, and on the time-mean of z to see how much of it leaks
there; a dynamic one (hand velocity) on z bin by bin. The codes are standardised on the trials that a probe is fitted
on, every trial is predicted once, by a probe that has not seen it, and one score is taken over all predictions.
"""

from typing import Literal, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from rtdsae.evaluate.disentanglement import is_continuous, level_of
from rtdsae.evaluate.metrics import r2
from rtdsae.train.ridge import ALPHAS

__all__ = ["Probe", "label_probe", "series_probe"]

FOLDS = 5


class Probe(NamedTuple):
    """How well a label was decoded.

    Attributes:
        measure: `accuracy` or `r2`.
        score: accuracy in 0 to 1, or R2, which is below 0 where the label's mean would do better.
        chance: the accuracy of always naming the commonest level; for R2, 0.
    """

    measure: Literal["accuracy", "r2"]
    score: float
    chance: float


def label_probe(codes: np.ndarray, labels: np.ndarray, seed: int = 0) -> Probe:
    """How well one label of each trial is decoded linearly from its codes, in 5 folds.

        accuracy = trials whose level is predicted / trials    logistic regression, C = 1; integers, text, few floats
        r2 = 1 - sum (label - predicted)² / sum (label - mean)²    ridge; floats of more than 20 distinct values

    A direction in degrees is a class label, so that its circle is no matter. Some of the accuracy is always chance:
    read it beside that.

    Args:
        codes: `(n, D)`.
        labels: `(n,)`, numbers or text.
        seed: of the folds.

    Raises:
        ValueError: shapes differ, values are not finite, or there is one level only or one of fewer than 5 trials.
    """
    codes, labels = np.asarray(codes, float), np.asarray(labels)
    if codes.ndim != 2 or labels.ndim != 1 or len(codes) != len(labels) or codes.size == 0:
        raise ValueError(f"shapes {codes.shape} and {labels.shape}: must be (trials, codes) and (trials,)")
    _finite(codes, labels)
    level = level_of(labels)
    if is_continuous(labels):
        folds = KFold(FOLDS, shuffle=True, random_state=seed)
        predicted = cross_val_predict(_ridge(), codes, labels, cv=folds)
        return Probe("r2", float(r2(labels[:, None], predicted[:, None])[0]), 0.0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(model, codes, level, cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed))
    return Probe("accuracy", float(np.mean(predicted == level)), float(np.bincount(level).max() / level.size))


def series_probe(z: np.ndarray, series: np.ndarray, seed: int = 0) -> np.ndarray:
    """How well a series is decoded linearly from the latents of the same bin, in 5 folds of trials.

        R2 of each column over all bins of all trials, each trial predicted by one ridge fitted on other trials' bins

    Bins of one trial resemble one another, so that folds of bins would let a probe see what it is asked.

    Args:
        z: `(n, T, D)`, n of at least 5.
        series: `(n, T, K)`.
        seed: of the folds.

    Returns:
        R2, `(K,)`; NaN for a column that does not vary.

    Raises:
        ValueError: shapes differ, there are fewer than 5 trials, or values are not finite.
    """
    z, series = np.asarray(z, float), np.asarray(series, float)
    if z.ndim != 3 or series.ndim != 3 or z.shape[:2] != series.shape[:2] or 0 in (z.size, series.size):
        raise ValueError(f"shapes {z.shape} and {series.shape}: both must be (trials, bins, columns)")
    if len(z) < FOLDS:
        raise ValueError(f"{len(z)} trials: at least {FOLDS} are needed")
    _finite(z, series)
    rows = np.arange(z.shape[0] * z.shape[1]).reshape(z.shape[:2])
    folds = KFold(FOLDS, shuffle=True, random_state=seed).split(rows)
    actual = series.reshape(rows.size, -1)
    of_bins = [(rows[fitted].ravel(), rows[held].ravel()) for fitted, held in folds]
    predicted = cross_val_predict(_ridge(), z.reshape(rows.size, -1), actual, cv=of_bins)
    return r2(actual, predicted.reshape(actual.shape))


def _ridge() -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeCV(ALPHAS))


def _finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays if np.issubdtype(array.dtype, np.floating)):
        raise ValueError("values must be finite")

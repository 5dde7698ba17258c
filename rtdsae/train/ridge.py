"""Ridge regression whose penalty other data choose; of hours, since only some bins at a time are float64."""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from sklearn.metrics import r2_score

__all__ = ["ALPHAS", "Fitted", "Pair", "mean_r2", "ridge"]

ALPHAS = np.logspace(-2, 5, 15)  # penalties, on standardised columns, be they factors, latents or spikes
ENTRIES = 1 << 21  # that are float64 at a time

Pair = tuple[np.ndarray, np.ndarray]  # columns (bins, D), and targets (bins, K)


class Fitted(NamedTuple):
    """Targets from columns, y = W x + b.

    Attributes:
        weight: W, (K, D).
        bias: b, (K,).
        alpha: the chosen penalty.
        score: mean R² of the data that chose it.
    """

    weight: np.ndarray
    bias: np.ndarray
    alpha: float
    score: float

    def predict(self, columns: np.ndarray) -> np.ndarray:
        """Targets, (bins, K)."""
        return columns @ self.weight.T + self.bias


def ridge(fit: Sequence[Pair], choose: Sequence[Pair]) -> Fitted:
    """Fit to standardised columns.

    Args:
        fit: what it is fitted to, part by part.
        choose: other parts; the penalty of ALPHAS with the best mean R² of them together is taken.
    """
    n, k = sum(len(x) for x, _ in fit), fit[0][0].shape[1]
    mean = reduce(np.add, (rows.sum(0) for rows in pieces(fit))) / n
    products = reduce(np.add, ((rows - mean).T @ (rows - mean) for rows in pieces(fit)))
    scale = np.sqrt(products.diagonal()[:k] / n) + 1e-6
    gram, cross = products[:k, :k] / np.outer(scale, scale), products[:k, k:] / scale[:, None]
    actual = np.concatenate([y for _, y in choose])
    found = []
    for alpha in ALPHAS.tolist():
        weight = np.linalg.solve(gram + alpha * np.eye(k), cross).T / scale
        line = Fitted(weight, mean[k:] - weight @ mean[:k], alpha, 0.0)
        predicted = np.concatenate([line.predict(rows[:, :k]) for rows in pieces(choose)])
        found.append(line._replace(score=mean_r2(actual, predicted)))
    return max(found, key=lambda line: line.score)


def mean_r2(actual: np.ndarray, predicted: np.ndarray) -> float:
    """Mean R² of the columns that vary; 0 where none does."""
    varies = np.ptp(actual, axis=0) > 0
    return float(r2_score(actual[:, varies], predicted[:, varies])) if varies.any() else 0.0


def pieces(pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
    """Columns and, beside them, targets, (bins, D + K), in float64, some bins at a time."""
    for pair in pairs:
        size = max(1, ENTRIES // sum(values.shape[1] for values in pair))
        for first in range(0, len(pair[0]), size):
            yield np.hstack([values[first : first + size] for values in pair], dtype=np.float64)

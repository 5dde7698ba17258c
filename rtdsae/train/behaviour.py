"""The linear read-out from factors to behaviour: ridge regression on streamed factors."""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from sklearn.metrics import r2_score

from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.windows import Tensors

__all__ = ["factors_and_behaviour", "fit_behaviour", "mean_r2"]

ALPHAS = np.logspace(-2, 5, 15)  # on standardised factors
PIECE = 1 << 15  # bins that are float64 at a time


def fit_behaviour(family: Family, sessions: Sequence[Tensors], min_bins: int) -> dict[str, float]:
    """Fit `family.behaviour` in place on the training segments, from the factors as a stream gives them.

    Args:
        family: a trained model with a behaviour read-out.
        sessions: its recordings, whose behaviour is one read-out's.
        min_bins: segments that are shorter are left out.

    Returns:
        The chosen `alpha`, and `r2_valid`, the mean over the behaviour columns that vary.
    """
    assert family.behaviour is not None
    train, valid = (of_sessions(family, sessions, split, min_bins) for split in ("train", "valid"))
    n, k = sum(len(x) for x, _ in train), train[0][0].shape[1]
    mean = reduce(np.add, (rows.sum(0) for rows in pieces(train))) / n
    products = reduce(np.add, ((rows - mean).T @ (rows - mean) for rows in pieces(train)))
    scale = np.sqrt(products.diagonal()[:k] / n) + 1e-6
    gram, cross = products[:k, :k] / np.outer(scale, scale), products[:k, k:] / scale[:, None]
    weights = [np.linalg.solve(gram + alpha * np.eye(k), cross).T / scale for alpha in ALPHAS]
    biases = [mean[k:] - weight @ mean[:k] for weight in weights]
    actual = np.concatenate([y for _, y in valid])
    scores = [
        mean_r2(actual, np.concatenate([rows[:, :k] @ weight.T + bias for rows in pieces(valid)]))
        for weight, bias in zip(weights, biases, strict=True)
    ]
    best = int(np.argmax(scores))
    with torch.no_grad():
        family.behaviour.weight.copy_(torch.from_numpy(weights[best]))
        family.behaviour.bias.copy_(torch.from_numpy(biases[best]))
    return {"alpha": float(ALPHAS[best]), "r2_valid": scores[best]}


def mean_r2(actual: np.ndarray, predicted: np.ndarray) -> float:
    """Mean R² of the columns that vary; 0 where none does."""
    varies = np.ptp(actual, axis=0) > 0
    return float(r2_score(actual[:, varies], predicted[:, varies])) if varies.any() else 0.0


def of_sessions(
    family: Family, sessions: Sequence[Tensors], split: str, min_bins: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`factors_and_behaviour` of each session."""
    return [factors_and_behaviour(family.use(i), tensors, split, min_bins) for i, tensors in enumerate(sessions)]


def pieces(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """Factors and, beside them, behaviour, (bins, F + K), in float64: some bins at a time, for there may be hours."""
    for pair in pairs:
        for first in range(0, len(pair[0]), PIECE):
            yield np.hstack([values[first : first + PIECE] for values in pair], dtype=np.float64)


def factors_and_behaviour(family: Family, tensors: Tensors, split: str, min_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors, float32, and behaviour, float64, of a split's modelled bins, (bins, F) and (bins, K); session in use."""
    recording = tensors.recording
    assert recording.behaviour is not None
    segments = split_segments(recording, split, min_bins)
    factors = segment_outputs(family, tensors, segments, ["factors"])["factors"]
    behaviour = recording.behaviour[modelled_bins(segments, family.dims.anchor_bins)]
    return factors, behaviour.astype(np.float64, copy=False)


def split_segments(recording: Recording, split: str, min_bins: int) -> np.ndarray:
    """The segments of a split that have at least so many bins, (n, 2)."""
    segments = recording.segments[recording.in_split(split)]
    return segments[lengths_of(segments) >= min_bins]

"""The linear read-out from factors to behaviour: ridge regression on streamed factors."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.windows import Tensors

__all__ = ["factors_and_behaviour", "fit_behaviour", "mean_r2"]

ALPHAS = np.logspace(-2, 5, 15)  # on standardised factors


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
    x, y = of_sessions(family, sessions, "train", min_bins)
    x_valid, y_valid = of_sessions(family, sessions, "valid", min_bins)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    fits = [Ridge(alpha=alpha).fit((x - mean) / scale, y) for alpha in ALPHAS]
    scores = [mean_r2(y_valid, fit.predict((x_valid - mean) / scale)) for fit in fits]
    best = fits[int(np.argmax(scores))]
    weight = np.atleast_2d(best.coef_) / scale
    with torch.no_grad():
        family.behaviour.weight.copy_(torch.from_numpy(weight))
        family.behaviour.bias.copy_(torch.from_numpy(np.atleast_1d(best.intercept_) - weight @ mean))
    return {"alpha": float(best.alpha), "r2_valid": max(scores)}


def mean_r2(actual: np.ndarray, predicted: np.ndarray) -> float:
    """Mean R² of the columns that vary; 0 where none does."""
    predicted = predicted.reshape(actual.shape)  # Ridge leaves the axis of a single column out
    varies = np.ptp(actual, axis=0) > 0
    return float(r2_score(actual[:, varies], predicted[:, varies])) if varies.any() else 0.0


def of_sessions(
    family: Family, sessions: Sequence[Tensors], split: str, min_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """`factors_and_behaviour` of all sessions, one after another."""
    pairs = [factors_and_behaviour(family.use(i), tensors, split, min_bins) for i, tensors in enumerate(sessions)]
    xs, ys = zip(*pairs, strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def factors_and_behaviour(family: Family, tensors: Tensors, split: str, min_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and behaviour of a split's modelled bins, (bins, F) and (bins, K), in float64; the session in use."""
    recording = tensors.recording
    assert recording.behaviour is not None
    segments = split_segments(recording, split, min_bins)
    factors = segment_outputs(family, tensors, segments, ["factors"])["factors"]
    behaviour = recording.behaviour[modelled_bins(segments, family.dims.anchor_bins)]
    return factors.astype(np.float64), behaviour.astype(np.float64)


def split_segments(recording: Recording, split: str, min_bins: int) -> np.ndarray:
    """The segments of a split that have at least so many bins, (n, 2)."""
    segments = recording.segments[recording.in_split(split)]
    return segments[lengths_of(segments) >= min_bins]

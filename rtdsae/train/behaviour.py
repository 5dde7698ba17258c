"""The linear read-out from factors to behaviour: ridge regression on streamed factors."""

from collections.abc import Sequence

import numpy as np
import torch

from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.ridge import Pair, ridge
from rtdsae.train.windows import Tensors

__all__ = ["factors_and_behaviour", "fit_behaviour"]


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
    fitted = ridge(train, valid)
    with torch.no_grad():
        family.behaviour.weight.copy_(torch.from_numpy(fitted.weight))
        family.behaviour.bias.copy_(torch.from_numpy(fitted.bias))
    return {"alpha": fitted.alpha, "r2_valid": fitted.score}


def of_sessions(family: Family, sessions: Sequence[Tensors], split: str, min_bins: int) -> list[Pair]:
    """`factors_and_behaviour` of each session."""
    return [factors_and_behaviour(family.use(i), tensors, split, min_bins) for i, tensors in enumerate(sessions)]


def factors_and_behaviour(family: Family, tensors: Tensors, split: str, min_bins: int) -> Pair:
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

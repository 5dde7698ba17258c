"""Trials as a model sees them: outputs, labels and behaviour, cut to one length."""

from dataclasses import dataclass

import numpy as np

from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.train.latents import segment_outputs
from rtdsae.train.windows import Tensors

__all__ = ["SHORT_TRIALS", "Trials", "conditions_of", "trials_of"]

SHORT_TRIALS = 10  # per cent of the trials, the shortest, do without a place where all are cut to one length


@dataclass
class Trials:
    """Trials of one length, as a model sees them.

    Attributes:
        outputs: by name, (n, T, size).
        labels: by name, (n,).
        behaviour: by name, (n, T).
        u: (n, T, U) external inputs, or None.
    """

    outputs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    behaviour: dict[str, np.ndarray]
    u: np.ndarray | None = None

    @property
    def f(self) -> np.ndarray:
        """What is known of f at the trials' end, (n, f_dim)."""
        return self.outputs["f"][:, -1]

    @property
    def z_mean(self) -> np.ndarray:
        """The mean of each trial's z, (n, z_dim)."""
        return self.outputs["z"].mean(1)


def trials_of(family: Family, tensors: Tensors, segments: np.ndarray, modelled: int) -> Trials:
    """The first `modelled` bins after the S anchor bins of each segment."""
    s, recording = family.dims.anchor_bins, tensors.recording
    cut = np.stack([segments[:, 0], segments[:, 0] + s + modelled], 1)
    outputs = segment_outputs(family, tensors, cut)
    bins = cut[:, :1] + s + np.arange(modelled)
    series = () if recording.behaviour is None else recording.behaviour.T
    columns = dict(zip(recording.behaviour_labels, series, strict=True))
    return Trials(
        {name: values.reshape(len(cut), modelled, -1) for name, values in outputs.items()},
        labels_of(recording, segments),
        {name: column[bins] for name, column in columns.items()},
        None if recording.external is None else recording.external[bins],
    )


def labels_of(recording: Recording, segments: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of each segment, by name."""
    if recording.labels is not None:
        labels = recording.labels[index_of(recording, segments)]
        return dict(zip(recording.label_names, labels.T, strict=True))
    return {} if recording.conditions is None else {"condition": conditions_of(recording, segments)}


def conditions_of(recording: Recording, segments: np.ndarray) -> np.ndarray:
    """The condition of each segment, (n,), of a recording that has them."""
    assert recording.conditions is not None
    return recording.conditions[index_of(recording, segments)]


def index_of(recording: Recording, segments: np.ndarray) -> np.ndarray:
    """Which of the recording's segments each of some is, (n,), by its first bin."""
    return np.searchsorted(recording.segments[:, 0], segments[:, 0])

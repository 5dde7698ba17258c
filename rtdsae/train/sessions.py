"""Recordings as the sessions of a model: split, checked against one another, and described."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdsae.errors import ConfigError
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.priors import Labelled
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.config import TrainConfig

__all__ = [
    "check_together",
    "describe",
    "dims_of",
    "last_bins",
    "neurons_of",
    "prepare",
    "session_name",
    "vocabulary",
]

SAMPLE_BINS = 1200


def prepare(recording: Recording, config: TrainConfig) -> Recording:
    """The recording as a run uses it: split, and with the neurons flagged that the configuration holds out.

    Raises:
        ConfigError: no neuron would be held out, or no validation part be left.
        RecordingError: a part would be empty.
    """
    d = config.data
    if d.heldout_every:
        flags = np.arange(recording.n_channels) % d.heldout_every == d.heldout_every - 1
        if not flags.any():
            raise ConfigError(f"data.heldout_every={d.heldout_every} holds out none of {recording.n_channels} neurons")
        recording = dataclasses.replace(recording, heldout=flags)
    own = recording.splits is not None
    recording = recording.split(d.valid, d.test)
    if "valid" not in np.asarray(recording.splits):
        mend = "name one among its splits" if own else "set data.valid above 0"
        raise ConfigError(f"the recording has no validation part, which selects the model: {mend}")
    return recording


def dims_of(recordings: Sequence[Recording], config: TrainConfig) -> Dims:
    """The sizes of a model for these recordings."""
    first = recordings[0]
    least = config.window.anchor_bins + config.window.horizon_bins
    trained = [r.segments[r.in_split("train")] for r in recordings]
    return Dims(
        sessions=tuple(neurons_of(r, path) for r, path in zip(recordings, config.data.paths, strict=True)),
        n_external=len(first.external_labels),
        n_behaviour=len(first.behaviour_labels),
        n_labels=len(vocabulary(recordings)),
        n_sequences=int(sum((lengths_of(segments) >= least).sum() for segments in trained)),
        bin_width_s=first.bin_width_s,
        anchor_bins=config.window.anchor_bins,
        horizon_bins=config.window.horizon_bins,
        lanes=config.window.lanes,
    )


def neurons_of(recording: Recording, path: str) -> Neurons:
    """A session's name and sizes."""
    return Neurons(session_name(recording, path), int(recording.heldin.sum()), recording.n_channels)


def session_name(recording: Recording, path: str) -> str:
    """The recording's own name for its session, or its file's, as a bundle can have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", recording.session or Path(path).stem).strip("-._")[:100] or "session"


def describe(recording: Recording, path: str) -> dict[str, Any]:
    """What run.json keeps of a session."""
    seen = [channel for channel, kept in zip(recording.channels, recording.heldin, strict=True) if kept]
    return {
        "name": session_name(recording, path),
        "source": Path(path).name,
        "data_hash": recording.hash,
        "channels": seen,
        "neurons": list(recording.channels),
    }


def check_together(recordings: Sequence[Recording], config: TrainConfig) -> None:
    """Refuse sessions that cannot share a model, and a prior that they cannot feed.

    Raises:
        ConfigError: with the first difference.
    """
    paths = config.data.paths
    names = [session_name(*pair) for pair in zip(recordings, paths, strict=True)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two recordings are of the session {twice[0]!r}: give each its own `session`, or file name")
    for path, recording in zip(paths[1:], recordings[1:], strict=True):
        for what in ("bin_width_s", "behaviour_labels", "external_labels"):
            mine, first = getattr(recording, what), getattr(recordings[0], what)
            if mine != first:
                raise ConfigError(f"{path} has {what} {mine}, {paths[0]} has {first}: sessions of a model share them")
    if isinstance(config.model.f_prior, Labelled) and not vocabulary(recordings):
        raise ConfigError("model.f_prior.kind: labelled needs recordings with `conditions`: choose another prior")
    if config.objective.discriminative and dims_of(recordings, config).n_sequences < 2:
        raise ConfigError(
            "objective.discriminative tells segments apart, and there is one: cut the recording, or set 0"
        )


def vocabulary(recordings: Sequence[Recording]) -> list[str]:
    """The conditions of all sessions, sorted; empty where a session has none."""
    if any(r.conditions is None for r in recordings):
        return []
    return sorted({str(c) for r in recordings for c in np.asarray(r.conditions)})


def last_bins(recording: Recording) -> dict[str, np.ndarray]:
    """The last bins of a recording, repeated where it is short: `x` as the encoders see it, and `u`."""
    bins = np.resize(np.arange(recording.n_bins)[-SAMPLE_BINS:], SAMPLE_BINS)
    arrays = {"x": recording.counts[bins][:, recording.heldin].astype(np.float32)}
    return arrays if recording.external is None else arrays | {"u": recording.external[bins].astype(np.float32)}

"""FALCON's decoder interface on a bundle: `reset`, `predict`, `observe` and `on_done`, without falcon_challenge itself.

task = FalconConfig(FalconTask.m2)
decoder = FalconDecoder("models/m2", batch_size=4, session_of=task.hash_dataset)
FalconEvaluator(split="m2").evaluate(decoder, phase="minival")
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtdsae import bundle as bundles
from rtdsae.errors import ConfigError, RecordingError
from rtdsae.serve.pipeline import Pipeline
from rtdsae.serve.settings import Model

__all__ = ["FalconDecoder"]

BEHAVIOUR = "behaviour"


class FalconDecoder:
    """Predicts behaviour bin by bin, as FALCON's evaluator asks for it, of the regression tasks (H1, M1, M2).

    Each data file of a batch has a model of its own, run by the daemon's pipeline: a prediction is what `rtdsae serve`
    publishes as `behaviour` for the same bins, bit for bit. A model is anchored on a file's first S bins; the
    predictions for these are zeros.

    Args:
        bundle: folder of the model; its bins and channels must be the task's, and its behaviour what is scored.
        batch_size: how many files the evaluator shall serve at once.
        session_of: from a tag, the path of a data file, to the session of the bundle whose neurons it has; None where
            the files are named like the sessions. Not asked where the bundle has one session.

    Attributes:
        batch_size: as above.
        out_dim: how many values are predicted.

    Raises:
        BundleError: the bundle is not one, or has no behaviour.
        ConfigError: the batch size is no number of files.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        batch_size: int = 1,
        session_of: Callable[[Path], str] | None = None,
    ) -> None:
        self._path = Path(bundle)
        manifest = bundles.load(self._path).manifest
        self.out_dim = int(np.prod(manifest.output(BEHAVIOUR).shape))
        self._by_tag = len(manifest.sessions) > 1
        self._session_of = session_of or (lambda file: file.stem)
        self._rows: list[Pipeline] = []
        self.set_batch_size(batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """How many files the evaluator shall serve at once, from the next reset on.

        Raises:
            ConfigError: it is no number of files.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: it must be 1 or more")
        self.batch_size = batch_size

    def reset(self, dataset_tags: Sequence[str | os.PathLike[str]] = ("",)) -> None:
        """Begins anew, with a file for each tag: nothing is kept of the bins before.

        Raises:
            BundleError: the bundle has no session for a tag, or does not come out right on this machine.
            ConfigError: there is no tag, or the model needs external inputs.
        """
        if not dataset_tags:
            raise ConfigError("dataset_tags is empty: it must have a tag for each file of the batch")
        model = Model(publish=(BEHAVIOUR,), history_s=0)
        sessions = [self._session_of(Path(tag)) if self._by_tag else None for tag in dataset_tags]
        self._rows = [Pipeline(self._path, session, model, run=0) for session in sessions]

    def predict(self, neural_observations: ArrayLike) -> NDArray[np.float32]:
        """Takes the next bin of each file.

        Args:
            neural_observations: spike counts `(batch, n_channels)`, a row for each tag.

        Returns:
            The behaviour `(batch, out_dim)`; zeros for a file's first S bins.

        Raises:
            RecordingError: these are no counts, or not of this batch.
        """
        self.observe(neural_observations)
        return np.stack([row.encoder.payload[BEHAVIOUR].ravel() for row in self._rows])

    def observe(self, neural_observations: ArrayLike) -> None:
        """Takes the next bin of each file, for which no prediction is wanted; as `predict` does.

        Raises:
            RecordingError: these are no counts, or not of this batch.
        """
        for row, counts in zip(self._rows, self._checked(neural_observations), strict=True):
            row.decode(counts, observed=True)
            row.decoder.anchor_if_due()

    def on_done(self, dones: ArrayLike) -> None:
        """Trials have ended: the model runs on, since the bins of the next trial follow those of the last one.

        Args:
            dones: true for each file whose trial has ended, `(batch,)`.

        Raises:
            RecordingError: these are not of this batch.
        """
        shape = np.shape(dones)
        if shape != (len(self._rows),):
            raise RecordingError(f"dones has the shape {shape}: it must be ({len(self._rows)},), one for each tag")

    def _checked(self, neural_observations: ArrayLike) -> NDArray[np.float32]:
        if not self._rows:
            raise RecordingError("nothing can be predicted yet: call reset(dataset_tags) first")
        counts = np.asarray(neural_observations, np.float32)
        for row in self._rows:
            expected = (len(self._rows), len(row.channels))
            if counts.shape != expected:
                raise RecordingError(
                    f"neural_observations has the shape {counts.shape}: it must be {expected}, a row for each tag and "
                    f"a column for each channel of {row.bundle.path}"
                )
        wrong = np.argwhere(~(np.isfinite(counts) & (counts >= 0)))
        if len(wrong):
            i, channel = wrong[0]
            raise RecordingError(
                f"neural_observations[{i}, {channel}] is {counts[i, channel]}: it must be a spike count"
            )
        return counts

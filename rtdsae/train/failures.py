"""What ends a training before its time: a loss that is no number, too little memory, a process that is gone."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric

from rtdsae.errors import TrainingError, one_line
from rtdsae.train.config import Fit
from rtdsae.train.windows import Part

__all__ = ["Gone", "NotFinite", "absence_explained", "bad_gradient", "bad_loss", "memory_explained"]


class NotFinite(TrainingError):
    """The loss of a batch is no number.

    Attributes:
        parts: the batch as the model got it, by session.
    """

    def __init__(self, message: str, parts: list[Part]) -> None:
        super().__init__(message)
        self.parts = parts


def bad_loss(fabric: Fabric, terms: dict[str, torch.Tensor], epoch: int) -> str:
    """What to say where the loss is no number in one of the processes, in all of them; else nothing."""
    finite: Any = torch.isfinite(terms["loss"]).float()
    if fabric.world_size > 1:
        finite = fabric.all_reduce(finite, reduce_op="mean")
    if finite == 1:
        return ""
    bad = ", ".join(name for name, value in terms.items() if not torch.isfinite(value)) or "another process's loss"
    return f"{bad} is not finite in epoch {epoch}: lower fit.learning_rate or fit.clip_norm, and begin anew"


def bad_gradient(fit: Fit, norm: Any, epoch: int) -> str:
    """What to say where the gradient's norm, which is the same in all processes, is no number; else nothing.

    Half precision's own scaler finds and leaves out those that are too large.
    """
    if fit.precision == "16-mixed" or torch.isfinite(norm):
        return ""
    return f"the gradient is not finite in epoch {epoch}: lower fit.learning_rate or the loss's weights, and begin anew"


@contextlib.contextmanager
def memory_explained(fit: Fit, bins: int) -> Iterator[None]:
    """Says what to lower where memory does not suffice.

    Raises:
        TrainingError: it does not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in words:
            raise
        raise TrainingError(
            f"out of memory on a batch of {fit.batch_size} windows of {bins} bins in fit.shards={fit.shards}: raise "
            "that, or lower fit.batch_size, window.horizon_bins or the model's sizes, and begin anew"
        ) from None


class Gone(TrainingError):
    """Another process of the training is gone."""


@contextlib.contextmanager
def absence_explained(fabric: Fabric) -> Iterator[None]:
    """Says how to go on where another process of the training is gone.

    Raises:
        Gone: it is.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)
        if fabric.world_size == 1 or not lost:
            raise
        raise Gone(
            f"another process of this training is gone ({one_line(error)}): see what it said, then go on with --resume"
        ) from error

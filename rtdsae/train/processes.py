"""The processes that share a training, on several devices or hosts."""

import atexit
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from rtdsae.errors import RtdsaeError, TrainingError
from rtdsae.train.config import Fit
from rtdsae.train.run import Run

__all__ = ["add_up", "begin", "follow", "make_fabric"]


def make_fabric(fit: Fit, logger: TensorBoardLogger | None = None, n_sessions: int = 1) -> Fabric:
    """Fabric on the wanted devices, with curves where a logger is given; several processes begin here.

    Raises:
        TrainingError: a device is not there.
    """
    # a batch is of one session, and leaves the others' parameters unused
    strategy = DDPStrategy(find_unused_parameters=n_sessions > 1) if fit.devices * fit.nodes > 1 else "auto"
    places: dict[str, Any] = {"devices": fit.devices, "num_nodes": fit.nodes, "strategy": strategy}
    try:
        fabric = Fabric(accelerator=fit.accelerator, precision=fit.precision, loggers=logger, **places)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"fit.accelerator={fit.accelerator} cannot be had ({reason}): choose cpu or auto") from None
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(leave_group)
    return fabric


def leave_group() -> None:
    """Ends the processes' connections; their threads abort an interpreter that ends before them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def begin(fabric: Fabric, path: Path, make: Callable[[], Run]) -> Run:
    """The run, which the first process makes; the others open it.

    Raises:
        RtdsaeError: what `make` raised, in all of them.
    """
    refused = None
    if fabric.is_global_zero:
        try:
            run = make()
        except RtdsaeError as error:
            refused = error
    if refused := fabric.broadcast(refused):
        raise refused
    return run if fabric.is_global_zero else Run.open(path)


def follow(epochs: Iterator[object]) -> None:
    """What the processes beside the first one do: their part of each epoch, and no word of success or failure.

    Ctrl-C is the first one's to answer; when it is gone, so are they.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(TrainingError, RuntimeError):
        for _ in epochs:
            pass


def add_up(fabric: Fabric, sums: dict[str, float]) -> dict[str, float]:
    """The sums of all processes, added."""
    if fabric.world_size == 1:
        return sums
    total = fabric.all_reduce(torch.tensor(list(sums.values()), dtype=torch.float64), reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return dict(zip(sums, total.tolist(), strict=True))

"""The processes that share a training, on several devices or hosts."""

import atexit
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from rtdsae.errors import RtdsaeError, TrainingError, one_line
from rtdsae.train.config import Fit
from rtdsae.train.failures import Gone, NotFinite
from rtdsae.train.run import Run

__all__ = ["FOLLOWED", "add_up", "begin", "follow", "make_fabric"]

FOLLOWED = "followed"  # what a training is to a process that did not lead it
PATIENCE = timedelta(minutes=10)  # with the others: to be started, and with each step


def make_fabric(fit: Fit, logger: TensorBoardLogger | None = None, n_sessions: int = 1) -> Fabric:
    """Fabric on the wanted devices, with curves where a logger is given; several processes begin here.

    Raises:
        TrainingError: a device is not there, or the processes do not find one another.
    """
    strategy: DDPStrategy | str = "auto"
    if fit.devices * fit.nodes > 1:
        # a shard need not have windows of every session, and then leaves the others' parameters unused
        strategy = DDPStrategy(find_unused_parameters=n_sessions > 1, timeout=PATIENCE)
    if fit.nodes > 1:
        choose_card(os.environ.get("MASTER_ADDR", ""))
    places: dict[str, Any] = {"devices": fit.devices, "num_nodes": fit.nodes, "strategy": strategy}
    try:
        fabric = Fabric(accelerator=fit.accelerator, precision=fit.precision, loggers=logger, **places)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"fit.accelerator={fit.accelerator} cannot be had ({reason}): choose cpu or auto") from None
    try:
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        cure = (
            ": start it on each computer, with MASTER_ADDR and MASTER_PORT of the first; where they have several "
            "network cards, GLOO_SOCKET_IFNAME (for GPUs NCCL_SOCKET_IFNAME) names the right one"
        )
        raise TrainingError(
            f"the {fit.devices * fit.nodes} processes of this training do not find one another ({one_line(error)})"
            f"{cure if fit.nodes > 1 else ''}"
        ) from error
    if fabric.world_size > 1:
        atexit.register(leave_group)
    return fabric


def choose_card(leader: str) -> None:
    """Has Gloo use the network card by which the first computer is reached, unless it is told which.

    By itself it takes the one that has the address of this computer's name, which is that of loopback on many: then no
    other computer gets through, and all of them wait.

    Raises:
        TrainingError: the first computer's name is that of its loopback.
    """
    if not leader or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(leader, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return  # who connects to it next says what is wrong
    if ipaddress.ip_address(own).is_loopback and leader not in ("localhost", own):
        raise TrainingError(
            f"MASTER_ADDR={leader} is {address[0]} on this computer, which no other reaches: set it to the address "
            "that this computer has on the network, on all of them"
        )
    for card, addresses in psutil.net_if_addrs().items():
        if own in [found.address for found in addresses]:
            os.environ["GLOO_SOCKET_IFNAME"] = card
            return


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


def follow(epochs: Iterator[object], run: Run) -> None:
    """What the processes beside the first one do: their part of each epoch.

    Those that the first one started leave Ctrl-C to it, and must not fail: it would be killed. `run.info` then has what
    was wrong with this one alone.

    Raises:
        TrainingError: the training failed, where somebody started this process.
    """
    if not started_here():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in epochs:
            pass
    except Exception as error:
        if started_here():
            raise
        if not isinstance(error, Gone | NotFinite):
            run.info["problem"] = one_line(error)
    run.info["state"] = FOLLOWED


def started_here() -> bool:
    """Whether this process is the one that somebody started on this computer; that one starts the others here."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def add_up(fabric: Fabric, sums: dict[str, float]) -> dict[str, float]:
    """The sums of all processes, added."""
    if fabric.world_size == 1:
        return sums
    total = fabric.all_reduce(torch.tensor(list(sums.values()), dtype=torch.float64), reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return dict(zip(sums, total.tolist(), strict=True))

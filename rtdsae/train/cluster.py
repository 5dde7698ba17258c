"""The computers that a search's trials run on, by Ray: this one, or those of a cluster."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rtdsae.errors import TrainingError, one_line

__all__ = ["check_room", "running_ray"]

RAY = {  # what Ray reads of the environment, where it is not set there
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
    "RAY_AIR_NEW_OUTPUT": "0",  # whose verbosity 0 still prints
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics.csv and run.json are the log
}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}  # of ray.init


@contextmanager
def running_ray(cpus: int | None, address: str | None) -> Iterator[None]:
    """Ray, quiet: what runs already, or else the cluster at the address or one of this computer, until the end.

    Args:
        cpus: how many of this computer to use, without an address; all where None.
        address: a cluster's.

    Raises:
        TrainingError: there is no cluster at the address, or Ray does not start.
    """
    for key, value in RAY.items():
        os.environ.setdefault(key, value)
    for said_here in ("ray.tune.tune", "ray.tune.analysis.experiment_analysis"):
        logging.getLogger(said_here).setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    if address:
        join(address)
    else:
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, **QUIET)
        except Exception as error:  # Ray raises the base class too
            raise TrainingError(f"Ray does not start on this computer: {one_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def join(address: str) -> None:
    """Join a cluster.

    Raises:
        TrainingError: there is none at the address.
    """
    try:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if host:  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address, **QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        mend = "start one with ray start; if there is one that wants a token, begin this with RAY_AUTH_MODE=token"
        raise TrainingError(f"no Ray cluster at {address}: {one_line(error)}; {mend}") from None


def check_room(threads: int, gpus: float) -> None:
    """Refuse trials that no computer has room for: Ray would wait for another one, for ever and in silence.

    Args:
        threads: that a trial takes, a CPU each.
        gpus: that it takes.

    Raises:
        TrainingError: none has.
    """
    takes = {"CPU": threads, "GPU": gpus}
    computers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(has.get(kind, 0) >= n for kind, n in takes.items()) for has in computers):
        most = " and ".join(f"{max(has.get(kind, 0) for has in computers):g} {kind}s" for kind in takes)
        raise TrainingError(
            f"a trial takes {threads} CPUs (fit.threads) and {gpus:g} GPUs (gpus), and no computer has "
            f"these: {most} at most; lower them"
        )

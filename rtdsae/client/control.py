"""The Python control client: asks a daemon for its status and history, or to anchor, swap or stop.

with Control() as control:
    control.status()["bins"]
    control.history(100, 120)       # bins that were missed
    control.swap("bundles/tuesday")
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import zmq

from rtdsae.client.connection import LONGEST_WAIT_S, Connection
from rtdsae.defaults import CONTROL
from rtdsae.errors import ControlError, EndpointError, WireError
from rtdsae.wire import Latents, Schema, Status, decode

__all__ = ["CONTROL", "Control"]

SWAP_TIMEOUT_S = 120.0  # a bundle is loaded, checked and anchored


class Control(Connection):
    """Sends requests to a daemon, one after another.

    Args:
        endpoint: where the daemon takes requests.
        timeout_s: how long to wait for a reply.
        keys: this client's folder of keys, where the daemon asks for them.

    Raises:
        EndpointError: the endpoint is not one, or the keys are not there.
    """

    def __init__(
        self, endpoint: str = CONTROL, *, timeout_s: float = 5.0, keys: str | os.PathLike[str] | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._schemas: dict[int, Schema] = {}
        super().__init__(endpoint, zmq.DEALER, keys, _prepare)

    def status(self) -> Status:
        """The daemon's last status."""
        status = self.ask("status")[0].get("status")
        if not isinstance(status, dict):
            raise ControlError(f"{self.endpoint} sent no status")
        return Status(status)

    def schema(self) -> Schema:
        """What is published now."""
        _, frames = self.ask("schema")
        schema = self._decode(frames[0]) if frames else None
        if not isinstance(schema, Schema):
            raise ControlError(f"{self.endpoint} sent no schema")
        self._schemas[schema.id] = schema
        return schema

    def history(self, first: int, last: int) -> list[Latents]:
        """Bins of `seq` first to last again, as many of them as the daemon still has, in order.

        They have names where they are of a schema that `schema` gave; `bind` the others.
        """
        return list(self.iter_history(first, last))

    def iter_history(self, first: int, last: int) -> Iterator[Latents]:
        """The same as they come, a thousand at a time: for more than fits in memory."""
        while first <= last:
            reply, frames = self.ask("history", **{"from": first, "to": last})
            yield from map(self._read, frames)
            if not frames or not isinstance(reply.get("last"), int) or reply["last"] < first:
                return
            first = reply["last"] + 1

    def anchor(self) -> None:
        """Has the model anchored anew, soon."""
        self.ask("anchor")

    def swap(self, bundle: str | os.PathLike[str], session: str | None = None) -> dict[str, Any]:
        """Has another bundle, a folder on the daemon's computer, take over; returns when it has.

        Returns:
            `seq`, the first bin of the new model, and more.
        """
        return self.ask("swap", timeout_s=SWAP_TIMEOUT_S, bundle=os.fspath(bundle), session=session)[0]

    def stop(self) -> None:
        """Ends the daemon, as SIGTERM does."""
        self.ask("stop")

    def ask(
        self, request: str, *, timeout_s: float | None = None, **fields: object
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Any request: its reply, and the frames that came with it.

        Args:
            request: its name.
            timeout_s: how long to wait for the reply, where not as long as for other requests; a daemon that is not
                there is waited for only as long as ever.
            fields: what else the request has.

        Raises:
            EndpointError: there is no daemon, or no reply in time.
            ControlError: the daemon says no; its reason is the message.
        """
        sent_by = time.monotonic() + self.timeout_s
        deadline = sent_by if timeout_s is None else time.monotonic() + timeout_s
        identity = next(self._ids)
        text = json.dumps({"request": request, "id": identity, **fields}).encode()
        try:
            self._wait(min(sent_by, deadline), zmq.POLLOUT)  # to a daemon that is there: see `_prepare`
            self._socket.send(text, zmq.NOBLOCK)
            while True:
                self._wait(deadline, zmq.POLLIN)
                reply, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                found = _parse(reply, self.endpoint)
                if found.get("id") == identity:  # else it is the reply to what was given up on
                    break
        except zmq.ZMQError as error:
            raise EndpointError(f"the control client of {self.endpoint} is closed: {error}") from error
        if not found["ok"]:
            raise ControlError(str(found.get("error")))
        return found, frames

    def _wait(self, deadline: float, event: int) -> None:
        remaining = max(0.0, deadline - time.monotonic())
        if not self._socket.poll(math.ceil(1e3 * min(remaining, LONGEST_WAIT_S)), event):
            raise EndpointError(
                f"no reply from {self.endpoint} in time: is rtdsae serve running with --control {self.endpoint}, "
                "and with the same keys?"
            )

    def _read(self, frame: bytes) -> Latents:
        message = self._decode(frame)
        if not isinstance(message, Latents):
            raise ControlError(f"{self.endpoint} sent something else than bins as its history")
        schema = self._schemas.get(message.schema_id)
        return message.bind(schema) if schema else message

    def _decode(self, frame: bytes) -> Latents | Schema | Status:
        try:
            return decode(frame)
        except WireError as error:
            raise ControlError(f"{self.endpoint} sent what cannot be read: {error}") from error


def _prepare(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.IMMEDIATE, 1)  # what is given up on must not be kept for the next daemon: a stop, say


def _parse(reply: bytes, endpoint: str) -> dict[str, Any]:
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"{endpoint} does not answer in JSON: is it a daemon's control endpoint?") from error
    if not isinstance(found, dict) or type(found.get("ok")) is not bool:
        raise ControlError(f"{endpoint} does not answer as a daemon does: is it a control endpoint?")
    return found

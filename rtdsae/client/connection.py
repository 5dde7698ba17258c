"""A client's connection to one of the daemon's endpoints: its socket, its keys, and its end."""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from rtdsae.client.keys import guard
from rtdsae.errors import EndpointError
from rtdsae.wire import MAX_FRAME

__all__ = ["LONGEST_WAIT_S", "Connection"]

LONGEST_WAIT_S = 1e6  # that ZeroMQ can be told

Socket = zmq.Socket[bytes]

# A daemon's computer that fails says no goodbye, and who only listens would wait for it for ever. So its kernel is
# asked for a sign of life, which it gives where the daemon is only stopped. And after a cable was out, TCP goes on as
# late again as it was out for: a connection that was given up is made anew at once.
GONE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 2,  # s of silence until it asks
    zmq.TCP_KEEPALIVE_INTVL: 1,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 5000,  # ms without an answer, to this or to a request, until it gives up
    zmq.CONNECT_TIMEOUT: 2000,  # ms; TCP itself would try for two minutes, ever more seldom
}


class Connection:
    """What every client has.

    Args:
        endpoint: the daemon's; it need not be there yet.
        kind: ZeroMQ's type of socket.
        keys: this client's folder of keys, where the daemon asks for them.
        prepare: what to set before it connects.

    Raises:
        EndpointError: the endpoint is not one, or the keys are not there.
    """

    def __init__(
        self, endpoint: str, kind: int, keys: str | os.PathLike[str] | None, prepare: Callable[[Socket], None]
    ) -> None:
        self.endpoint = endpoint
        self._context: zmq.Context[Socket] = zmq.Context()
        self._socket: Socket = self._context.socket(kind)
        try:
            prepare(self._socket)
            self._connect(Path(keys) if keys else None)
        except EndpointError:
            self.close()
            raise

    def close(self) -> None:
        """Frees the socket; what is still queued is gone."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, keys: Path | None) -> None:
        for option, value in {zmq.LINGER: 0, zmq.MAXMSGSIZE: MAX_FRAME, **GONE}.items():
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.IPV6, self.endpoint.startswith("tcp://["))
        if keys:
            guard(self._socket, keys)
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            reason = error.strerror or error
            raise EndpointError(
                f"cannot connect to {self.endpoint}: {reason}; use tcp://HOST:PORT or ipc://PATH"
            ) from error

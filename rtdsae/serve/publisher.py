"""The publishing socket: one frame a message, the schema to every new subscriber."""

import socket
from pathlib import Path

import zmq

from rtdsae.errors import EndpointError
from rtdsae.wire import Schema

__all__ = ["Publisher"]

HIGH_WATER = 10_000  # messages kept for a slow subscriber; it then misses the newest, and sees the hole in `seq`
DRAIN_MS = 500  # of sending what is still queued, when closing
LOOPBACK = ("127.", "localhost:", "[::1]:")


class Publisher:
    """Binds `endpoint` and publishes on it.

    Attributes:
        endpoint: as bound: `tcp://127.0.0.1:*` has become a port.

    Raises:
        EndpointError: it is in use, is not an endpoint, or can be reached from other machines.
    """

    def __init__(self, endpoint: str, schema: Schema) -> None:
        _check_local(endpoint)
        self._schema = schema.encode()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # tell of every subscription, not only of each topic's first
        self._socket.setsockopt(zmq.IPV6, endpoint.startswith("tcp://["))
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy()
            raise EndpointError(f"cannot publish on {endpoint}: {error.strerror or error}") from error
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.send(self._schema)

    def send(self, frame: bytes | bytearray) -> None:
        """Publishes one frame; never blocks, and the frame may be overwritten afterwards."""
        self._socket.send(frame)

    def greet(self) -> None:
        """Sends the schema again if somebody has subscribed since the last call."""
        somebody = False
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            somebody |= self._socket.recv().startswith(b"\x01")  # 0 is the end of a subscription
        if somebody:
            self.send(self._schema)

    def close(self) -> None:
        """Sends what is queued, for half a second at most, and frees the endpoint."""
        self._socket.close(linger=DRAIN_MS)
        self._context.term()
        if self.endpoint.startswith("ipc://"):
            Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)  # libzmq leaves it behind


def _check_local(endpoint: str) -> None:
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc" and address:
        return _check_free(Path(address))
    if scheme != "tcp" or not address:
        raise EndpointError(f"{endpoint!r} is not an endpoint: use tcp://127.0.0.1:PORT or ipc://PATH")
    if not address.startswith(LOOPBACK):
        raise EndpointError(
            f"{endpoint} can be reached from other machines and would be open to all of them: "
            "use tcp://127.0.0.1:PORT or ipc://PATH"
        )


def _check_free(path: Path) -> None:
    """ZeroMQ takes an ipc path over from whoever listens on it, without a word."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise EndpointError(f"cannot publish on ipc://{path}: another program listens there; stop it or choose another")

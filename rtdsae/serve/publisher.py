"""The publishing socket: one frame a message, the schema to every new subscriber."""

import contextlib

import zmq

from rtdsae.serve.endpoint import Endpoints, bound_at, free
from rtdsae.wire import Schema

__all__ = ["Publisher"]

HIGH_WATER = 10_000  # messages kept for a slow subscriber; it then misses the newest, and sees the hole in `seq`
MAX_SUBSCRIPTION = 1024  # bytes: all that a subscriber may send; the handshake of one with keys needs 300
FEW = 4  # messages of a subscriber that wait here: what it sends faster backs up on its side, not in our memory
MAX_GREETED = 256  # subscriptions looked at in one go
DRAIN_MS = 500  # of sending what is still queued, when closing
VERBOSE = 1  # tell of every subscription, not only of each topic's first


class Publisher:
    """Binds `endpoint` and publishes on it.

    Attributes:
        endpoint: as bound: `tcp://127.0.0.1:*` has become a port.

    Raises:
        EndpointError: it is in use, is not an endpoint, or can be reached from other machines without keys.
    """

    def __init__(self, endpoint: str, schema: Schema, endpoints: Endpoints) -> None:
        options = {zmq.SNDHWM: HIGH_WATER, zmq.RCVHWM: FEW, zmq.MAXMSGSIZE: MAX_SUBSCRIPTION, zmq.XPUB_VERBOSE: VERBOSE}
        self._socket = endpoints.bind(zmq.XPUB, endpoint, "publish", options)
        self.endpoint = bound_at(self._socket)
        self._to_itself, self._from_itself = (endpoints.context.socket(kind) for kind in (zmq.PUB, zmq.SUB))
        self._to_itself.bind(f"inproc://{id(self)}")
        self._from_itself.connect(f"inproc://{id(self)}")
        self._from_itself.subscribe(b"")
        self.announce(schema)

    def announce(self, schema: Schema) -> None:
        """From here on this is the schema of what is published, and of what new subscribers get."""
        self._schema = schema.encode()
        self.send(self._schema)

    def send(self, frame: bytes | bytearray) -> None:
        """Publishes one frame; never blocks, and the frame may be overwritten afterwards."""
        self._socket.send(frame)

    def rehearse(self, frame: bytes | bytearray) -> None:
        """Sends a frame to nobody but itself, so that what a send needs is in the caches when a bin's is due."""
        self._to_itself.send(frame)
        with contextlib.suppress(zmq.Again):  # the first are sent before it is known who listens
            self._from_itself.recv(zmq.NOBLOCK)

    def greet(self) -> None:
        """Sends the schema again if somebody has subscribed since the last call."""
        somebody = False
        with contextlib.suppress(zmq.Again):
            for _ in range(MAX_GREETED):
                somebody |= self._socket.recv(zmq.NOBLOCK).startswith(b"\x01")  # 0 is the end of a subscription
        if somebody:
            self.send(self._schema)

    def close(self) -> None:
        """Sends what is queued, for half a second at most, and frees the endpoint."""
        self._socket.close(linger=DRAIN_MS)
        self._to_itself.close(linger=0)
        self._from_itself.close(linger=0)
        free(self.endpoint)

"""The Python subscriber: latents as they are published, with every hole counted.

    with Subscriber() as subscriber:
        for message in subscriber:              # every bin, in order
            factors = message["factors"]

    with Subscriber(timeout_s=0.1) as subscriber:
        while message := subscriber.latest():   # a controller: the newest bin, and none that is late
            if not message.flags & Flags.LATE:
                act(message["behaviour"], message.t_bin)

It may be started before the daemon, outlives the daemon's restarts, and never reads a bin by the wrong schema.
"""

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator

import zmq

from rtdsae.client.connection import LONGEST_WAIT_S, Connection
from rtdsae.defaults import ENDPOINT
from rtdsae.errors import EndpointError, WireError
from rtdsae.wire import LATENTS, SCHEMA, STATUS, Flags, Latents, Schema, Status, decode

__all__ = ["ENDPOINT", "Subscriber"]

HIGH_WATER = 10_000  # messages kept for a program that does not read: 200 s of 20 ms bins, 10 s of 1 ms bins
MAX_WAITING = 1000  # bins kept until their schema comes
MAX_SCHEMAS = 16  # a model swapped back and forth is known again
STOPPED_S = 0.5  # who wakes so much too late was stopped, and ZeroMQ's thread with it
ASK_AGAIN_S = 1.0  # between requests for a schema that was missed
GONE_S = 3.0  # without a word from a daemon, which says its status once a second


class Subscriber(Connection):
    """Receives what a daemon publishes.

    A message that is not of the wire format, or that goes back in `seq`, is counted in `errors` and passed over: a
    controller goes on while the publisher is broken, and can see that it is.

    Args:
        endpoint: where the daemon publishes; it need not be there yet.
        timeout_s: how long to wait for a bin where no other time is given; None for ever.
        on_hole: called with the first missing `seq` and how many are missing, before the bin after the hole is given.
        keys: this client's folder of keys, where the daemon asks for them.
        spin: seconds before and after the time when the next bin is expected in which `receive` polls and does not
            sleep: a program that sleeps is woken late and with cold caches. It costs a core for this long in each bin,
            for all of the time where a bin is no longer than twice `spin`; 0.0005 is a good start, on a computer that
            has a core to spare. 0 for never.

    Attributes:
        schema: the newest one received, None before.
        schemas: those received, the newest ones, by their id.
        status: the daemon's last status, None before.
        holes: bins of the present and earlier runs that were published but never came, since the first that did.
        skipped: bins that came but that `latest` passed over for newer ones.
        restarts: how often another run of the daemon took over.
        errors: messages that were refused; `last_error` says why the last one was.

    Raises:
        EndpointError: the endpoint is not one, or the keys are not there.
    """

    def __init__(
        self,
        endpoint: str = ENDPOINT,
        *,
        timeout_s: float | None = None,
        on_hole: Callable[[int, int], None] | None = None,
        keys: str | os.PathLike[str] | None = None,
        spin: float = 0.0,
    ) -> None:
        self.timeout_s = timeout_s
        self.spin_s = spin
        self.schema: Schema | None = None
        self.status: Status | None = None
        self.holes = self.skipped = self.restarts = self.errors = 0
        self.last_error = ""
        self._on_hole = on_hole
        self._run: int | None = None
        self._next_seq = 0
        self.schemas: dict[int, Schema] = {}
        self._waiting: deque[Latents] = deque(maxlen=MAX_WAITING)
        self._ready: deque[Latents] = deque()
        self._waited_s = timeout_s  # for a bin, the last time
        self._asked_at = -math.inf
        self._arrived_at = -math.inf  # when the last bin did
        self._heard_at = -math.inf  # when the last message did, of any kind
        super().__init__(endpoint, zmq.SUB, keys, _prepare)

    def receive(self, timeout_s: float | None = None) -> Latents | None:
        """The next bin, with its schema; None if there is none in time.

        Raises:
            EndpointError: the subscriber is closed.
        """
        deadline = self._deadline(timeout_s)
        for taken in itertools.count():
            if self._ready:
                return self._ready.popleft()
            remaining = max(0.0, deadline - time.monotonic())
            if not remaining and taken > HIGH_WATER:  # a flood of anything but bins
                return None
            if not self._take(remaining):
                if time.monotonic() < deadline + STOPPED_S:
                    return None
                deadline = time.monotonic() + STOPPED_S  # what came meanwhile arrives now
        raise AssertionError("unreachable")

    def latest(self, timeout_s: float | None = None) -> Latents | None:
        """The newest bin that has come and was not given before; waits for one if there is none, None if not in time.

        Raises:
            EndpointError: the subscriber is closed.
        """
        message = self.receive(timeout_s)
        if message is None:
            return None
        for _ in range(10 * HIGH_WATER):  # bounded, should the publisher be faster than this program
            if not self._take(0.0):
                break
        if self._ready:
            self.skipped += len(self._ready)
            message = self._ready.pop()
            self._ready.clear()
        return message

    def __iter__(self) -> Iterator[Latents]:
        """Every bin, in order, for as long as they come.

        Raises:
            EndpointError: none came for `timeout_s`.
        """
        while (message := self.receive()) is not None:
            yield message
        raise EndpointError(self.why_silent())

    def _deadline(self, timeout_s: float | None) -> float:
        self._waited_s = self.timeout_s if timeout_s is None else timeout_s
        return math.inf if self._waited_s is None else time.monotonic() + self._waited_s

    def _take(self, wait_s: float) -> bool:
        """Takes one message; False if none comes in time."""
        try:
            if not wait_s and not int(self._socket.getsockopt(_EVENTS)) & _READABLE:
                return False  # in a third of the time that an exception takes
            frame = self._receive(wait_s)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise EndpointError(f"the subscriber to {self.endpoint} is closed: {error}") from error
        try:
            self._sort(decode(frame, self.schemas))
        except WireError as error:
            self._refuse(error)
        return True

    def _receive(self, wait_s: float) -> bytes:
        """One message; raises zmq.Again if none comes in time."""
        if wait_s and self.spin_s and self.schema:
            deadline = time.monotonic() + wait_s
            due = self._arrived_at + self.schema.bin_width_s
            asleep_s = min(due - self.spin_s, deadline) - time.monotonic()
            if asleep_s >= 1e-3:
                asleep_ms = int(1e3 * min(asleep_s, LONGEST_WAIT_S))  # whole ones: awake a little early
                self._socket.poll(asleep_ms)
            while time.monotonic() < min(due + self.spin_s, deadline):
                with contextlib.suppress(zmq.Again):
                    return self._socket.recv(zmq.NOBLOCK)
            wait_s = max(0.0, deadline - time.monotonic())
        if wait_s:
            wait_ms = -1 if wait_s == math.inf else math.ceil(1e3 * min(wait_s, LONGEST_WAIT_S))
            self._socket.setsockopt(zmq.RCVTIMEO, wait_ms)
        return self._socket.recv(0 if wait_s else zmq.NOBLOCK)

    def _refuse(self, error: WireError) -> None:
        self.errors += 1
        self.last_error = str(error)

    def _sort(self, message: Latents | Schema | Status) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Latents):
            self._arrived_at = self._heard_at
            self._take_latents(message)
        elif isinstance(message, Schema):
            self._take_schema(message)
        else:
            self.status = message

    def _take_latents(self, message: Latents) -> None:
        schema = self.schemas.get(message.schema_id)
        if schema is not None:
            self._waiting.clear()  # older ones whose schema never came; they show as a hole
            self._deliver(message, schema)
            return
        self._waiting.append(message)
        if time.monotonic() - self._asked_at > ASK_AGAIN_S:
            self._asked_at = time.monotonic()
            # The daemon answers every subscription with the schema.
            self._socket.unsubscribe(SCHEMA)
            self._socket.subscribe(SCHEMA)

    def _take_schema(self, schema: Schema) -> None:
        self.schema = schema
        self.schemas.pop(schema.id, None)
        self.schemas[schema.id] = schema
        if len(self.schemas) > MAX_SCHEMAS:
            del self.schemas[next(iter(self.schemas))]
        waiting, self._waiting = self._waiting, deque(maxlen=MAX_WAITING)
        for message in waiting:
            if message.schema_id == schema.id:
                self._deliver(message, schema)
            else:
                self._waiting.append(message)

    def _deliver(self, message: Latents, schema: Schema) -> None:
        try:
            bound = message.bind(schema)
            if not int(message.flags) & _BACKFILL:
                self._count(message)
        except WireError as error:
            self._refuse(error)
        else:
            self._ready.append(bound)

    def _count(self, message: Latents) -> None:
        """Keeps account of what is missing. A run that began while this subscriber was listening began at 0."""
        if self._run is None:
            self._next_seq = message.seq
        elif message.run != self._run:
            self.restarts += 1
            self._next_seq = 0
        self._run = message.run
        missing = message.seq - self._next_seq
        if missing < 0:
            raise WireError(f"bin seq {message.seq} came after {self._next_seq - 1} of the same run: is it sent twice?")
        first, self._next_seq = self._next_seq, message.seq + 1
        if missing:
            self.holes += missing
            if self._on_hole:
                self._on_hole(first, missing)

    def why_silent(self, waited_s: float | None = None) -> str:
        """What is known of why no bin came, the last time that one was waited for.

        Args:
            waited_s: for how long, where it was waited for in several calls.
        """
        waited_s = self._waited_s if waited_s is None else waited_s
        waited = f"no bin from {self.endpoint}"
        if waited_s is not None:
            waited = f"no bin from {self.endpoint} for {waited_s:g} s"
        quiet_s = time.monotonic() - self._heard_at
        if GONE_S <= quiet_s < math.inf:
            return f"{waited}, nothing at all for {quiet_s:.0f} s: has it stopped, or its computer, or is a cable out?"
        if self._waiting:
            return f"{waited} that could be read: {len(self._waiting)} came without their schema"
        if self.errors:
            return f"{waited}, but {self.errors} other messages: {self.last_error}"
        if self.status is not None:
            return f"{waited}: the daemon is there, but publishes none; look at its status (stream, anchors)"
        return f"{waited}: is rtdsae serve running and publishing there, and with these keys?"


# Plain: what enumerations do costs microseconds.
_BACKFILL, _EVENTS, _READABLE = int(Flags.BACKFILL), int(zmq.EVENTS), int(zmq.POLLIN)


def _prepare(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
    for topic in (LATENTS, SCHEMA, STATUS):
        socket.subscribe(topic)

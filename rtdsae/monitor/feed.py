"""A subscriber in a thread: bins into a ring, and what is known of the daemon."""

import math
import threading
import time

import numpy as np

from rtdsae.client import Subscriber
from rtdsae.monitor.ring import HOLE, RESTART, Ring
from rtdsae.wire import Latents, Schema, Status

__all__ = ["Arrivals", "Feed"]

TICK_S = 0.1  # between two looks at whether to end
TENTHS = 600  # of seconds, of which the bins are counted


class Arrivals:
    """How many bins came in each tenth of the last minute, whatever their arrays: one thread adds, others look."""

    def __init__(self) -> None:
        self._counts = np.zeros(TENTHS + 10, int)
        self._tenth = np.full(len(self._counts), -1)  # which one it is that a slot has counted

    def add(self, now: float) -> None:
        """A bin came now, by `time.monotonic`."""
        tenth = int(10 * now)
        slot = tenth % len(self._counts)
        if self._tenth[slot] != tenth:
            self._counts[slot], self._tenth[slot] = 0, tenth
        self._counts[slot] += 1

    def per_second(self, now: float) -> list[int]:
        """Bins in each of the last 60 seconds, the newest last, until the tenth of a second that is not over."""
        wanted = np.arange(int(10 * now) - TENTHS, int(10 * now))
        slots = wanted % len(self._counts)
        came = np.where(self._tenth[slots] == wanted, self._counts[slots], 0)
        return list(came.reshape(-1, 10).sum(1).tolist())


class Feed:
    """Takes in what the subscriber receives, from `start` to `close`.

    Attributes:
        ring: the bins, None before the first; another one after a change of arrays or a clock that went back.
        schema: of the newest bin, or of those that are to come.
        status: the daemon's last one, and when it came by `time.monotonic`.
        arrivals: how many bins came when.
        received: how many bins came.
        refused: how many of them had no times, and are not in the ring.
    """

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.ring: Ring | None = None
        self.schema: Schema | None = None
        self.status: tuple[Status, float] | None = None
        self.arrivals = Arrivals()
        self.received = self.refused = self._rings = self._holes = self._restarts = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """Begins to receive."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and frees the subscriber's socket."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.subscriber.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            message = self.subscriber.receive(TICK_S)
            now = time.monotonic()
            status = self.subscriber.status
            if status is not None and (self.status is None or self.status[0] is not status):
                self.status = status, now
            if message is not None:
                self.take(message, now)
            elif self.ring is None:
                self.schema = self.subscriber.schema

    def take(self, message: Latents, now: float) -> None:
        """One bin, which came now."""
        marks = HOLE * (self.subscriber.holes > self._holes) | RESTART * (self.subscriber.restarts > self._restarts)
        self._holes, self._restarts = self.subscriber.holes, self.subscriber.restarts
        if math.isfinite(message.t_bin + message.t_in + message.t_out):
            self._keep(message, now, marks)
        else:
            self.refused += 1
        self.arrivals.add(now)
        self.received += 1  # last: whoever sees the count finds the bin in the ring

    def _keep(self, message: Latents, now: float, marks: int) -> None:
        ring = self.ring
        if ring is None or not ring.takes(message):
            assert message.schema is not None  # a subscriber gives none without
            self._rings += 1
            ring = Ring(message.schema, self._rings)
        ring.add(message, now, marks)
        self.ring, self.schema = ring, message.schema

"""Publishes generated bins as a daemon would, on a real socket: some at once, or all the time from a thread.

`fill(seq, payload)` writes the values of a bin into the arrays by name and may return flags.
"""

import contextlib
import threading
import time

import numpy as np

from rtdsae.serve.endpoint import Endpoints
from rtdsae.serve.publisher import Publisher
from rtdsae.wire import Array, Encoder, Flags, Schema, encode_status

ARRAYS = (
    Array("factors", (5,)),
    Array("z", (2,)),
    Array("behaviour", (2,), "mm/s", ("vel_x", "vel_y")),
    Array("rates", (30,), "spikes/s", tuple(f"ch{i}" for i in range(30))),
)


def count_up(seq, payload):
    """Each value tells its bin and its place."""
    for values in payload.values():
        values[:] = seq % 4096 + np.arange(values.size) / 8


class Broadcast:
    def __init__(
        self,
        arrays=ARRAYS,
        *,
        width_s=0.02,
        fill=count_up,
        endpoint="tcp://127.0.0.1:*",
        run=7,
        bundle="toy",
        keys=None,
    ):
        self.endpoints = Endpoints(keys)
        self.schema = Schema(bundle, "00ff", width_s, tuple(arrays))
        self.publisher = Publisher(endpoint, self.schema, self.endpoints)
        self.endpoint = self.publisher.endpoint
        self.fill, self.run, self.width_s, self.seq = fill, run, width_s, 0
        self.encoder = Encoder(self.schema, run)
        self.t_bin = time.monotonic()
        self.counters = {"gaps": 0, "late": 0, "duplicates": 0, "nan": 0, "overflow": 0, "anchors": 0}
        self.connected = True
        self.closing = threading.Event()
        self.silent = threading.Event()
        self.thread = None

    def use(self, arrays, bundle):
        """From here on its bins have these arrays; the first of them says that the model was swapped."""
        self.schema = Schema(bundle, "11ee", self.width_s, tuple(arrays))
        self.encoder = Encoder(self.schema, self.run)
        self.publisher.announce(self.schema)

    def publish(self, n=1, *, flags=0, lost=False):
        """The next n bins at once; their times follow one another."""
        for _ in range(n):
            found = self.fill(self.seq, self.encoder.payload) or 0
            self.t_bin += self.width_s
            self.counters["gaps"] += bool((flags | found) & Flags.GAP)
            self.counters["anchors"] += bool((flags | found) & Flags.ANCHORED)
            now = time.monotonic()
            frame = self.encoder.encode(self.seq, self.seq + 50, self.t_bin, now - 2e-4, now, flags | found)
            if not lost:
                self.publisher.send(frame)
            self.seq += 1

    def say_status(self):
        stream = {
            "connected": self.connected,
            "source_id": "rig1",
            "clock_offset_s": 1.2e-5,
            "losses": 0,
            "problem": "",
        }
        latency = {"p50": 180.2, "p99": 410.9, "p99.9": 1205.0, "max": 2210.7}
        fields = {"run": self.run, "bundle": self.schema.bundle, "session": "monday", "bins": self.seq}
        self.publisher.send(encode_status({**fields, **self.counters, "stream": stream, "latency_us": latency}))

    @contextlib.contextmanager
    def on_time(self):
        """Publishes a bin whenever one ends, and a status a second."""
        self.t_bin = time.monotonic()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self.thread.join(20)

    def _run(self):
        next_status = 0.0
        while not self.closing.wait(max(0.0, self.t_bin + self.width_s - time.monotonic())):
            self.publisher.greet()
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + 1.0
                self.say_status()
            if self.silent.is_set():
                self.t_bin += self.width_s
            else:
                self.publish()

    def close(self):
        self.publisher.close()
        self.endpoints.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

"""A daemon for tests of its clients: it publishes and takes requests as the real one, and loses what it is told to."""

import time

from rtdsae.errors import ControlError
from rtdsae.serve.control import Control
from rtdsae.serve.endpoint import Endpoints
from rtdsae.serve.publisher import Publisher
from rtdsae.wire import Array, Encoder, Flags, Schema, encode_status

SCHEMA = Schema("toy", "00", 0.02, (Array("factors", (3,), "", ("a", "b", "c")), Array("z", (2, 2), "mm")))
OTHER = Schema("other", "11", 0.02, (Array("z", (5,)),))
SOON_S = 20.0  # nothing here needs so long


def until(true, what="it"):
    """Waits for an event; bounded."""
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


class Station:
    def __init__(self, pub="tcp://127.0.0.1:*", control="tcp://127.0.0.1:*", run=7, keys=None):
        self.endpoints = Endpoints(keys)
        self.publisher = Publisher(pub, SCHEMA, self.endpoints)
        self.control = Control(control, self, self.endpoints)
        self.pub, self.ask = self.publisher.endpoint, self.control.endpoint
        self.run, self.next_seq, self.frames, self.asked = run, 0, {}, []
        self.use(SCHEMA)

    def use(self, schema):
        """From here on its bins are of this schema."""
        self.encoder = Encoder(schema, self.run)
        self.publisher.announce(schema)

    def greet(self, there, what="a greeting"):
        """Answers subscribers until `there()`."""
        until(lambda: self.publisher.greet() or there(), what)

    def bins(self, n, *, lost=False, flags=0, forgotten=False):
        """The next n bins: published, or lost on the way; kept in the history, or forgotten."""
        for _ in range(n):
            seq, self.next_seq = self.next_seq, self.next_seq + 1
            self.encoder.values[:] = seq
            frame = self.encoder.encode(seq, seq + 100, seq * 0.02, seq * 0.02 + 0.001, seq * 0.02 + 0.002, flags)
            if not forgotten:
                self.frames[seq] = bytearray(frame)
            if not lost:
                self.publisher.send(frame)

    def say_status(self):
        self.publisher.send(encode_status(self.status()))

    def status(self):
        return {"run": self.run, "bins": self.next_seq}

    def schema(self):
        return self.encoder.schema

    def kept(self):
        return (min(self.frames), max(self.frames)) if self.frames else None

    def history(self, first, last):
        frames = [bytearray(self.frames[seq]) for seq in range(first, last + 1) if seq in self.frames]
        for frame in frames:
            frame[10] |= Flags.BACKFILL
        return [bytes(frame) for frame in frames]

    def anchor(self):
        self.asked.append("anchor")

    def swap(self, bundle, session):
        self.asked.append((str(bundle), session))
        if str(bundle).endswith("bad"):
            raise ControlError(f"{bundle}: is no bundle")
        return {"seq": self.next_seq}

    def stop(self):
        self.asked.append("stop")

    def close(self):
        self.control.close()
        self.publisher.close()
        self.endpoints.close()

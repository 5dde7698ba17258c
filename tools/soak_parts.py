"""Programs that `soak.py` runs beside the daemon: a source that misbehaves when told to, a crowd of subscribers.

    python tools/soak_parts.py source NAME SOURCE_ID KIND CHANNELS RATE LOG SEED
    python tools/soak_parts.py crowd ENDPOINT

Each takes its orders from stdin, a line each, and answers with a line when one has been carried out. They end with
stdin. The source writes every sample to LOG before it pushes it, in records of `RECORD`.
"""

import contextlib
import random
import select
import sys
import time
from typing import Any

import numpy as np

GOOD, NAN, HUGE, DUPLICATE, BACKWARD = range(5)  # what kind of sample it is

CROWD = 50  # subscribers that stay
GREETED_S = 10.0  # within which a daemon has to send a new subscriber its schema; it takes milliseconds
BEHIND_S = 3.0  # that a source may be; what was due for longer it leaves out, as a rig does whose buffer is full
JITTER = {"counts": 0.1, "samples": 0.1, "events": 0.5}  # of a period


def record_type(n_values: int) -> np.dtype:
    """A sample in the log: its stamp, its values, its kind, when it was pushed, and whether somebody was connected."""
    return np.dtype([("stamp", "f8"), ("x", "f4", n_values), ("kind", "u1"), ("pushed", "f8"), ("heard", "?")])


def source(name: str, source_id: str, kind: str, n_channels: int, rate: float, log: str, seed: int) -> None:
    """Pushes Poisson counts, or spikes, at a rate.

    Orders are `gap N`, `nan`, `huge`, `duplicate`, `backward S`, `reset S`. A huge spike is one of a channel that does
    not exist.
    """
    import pylsl

    events = kind == "events"
    n_values, nominal = (1, pylsl.IRREGULAR_RATE) if events else (n_channels, rate)
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Spikes", n_values, nominal, "float32", source_id))
    rng, record = np.random.default_rng(seed), np.zeros(1, record_type(n_values))
    jitter, huge = JITTER[kind], n_channels if events else 1e30
    say("ready")
    with open(log, "wb", buffering=0) as file:

        def push(stamp: float, x: np.ndarray, kind: int) -> None:
            record["stamp"], record["x"], record["kind"] = stamp, x, kind
            record["pushed"], record["heard"] = pylsl.local_clock(), outlet.have_consumers()
            file.write(record.tobytes())
            outlet.push_chunk(record["x"].tolist(), stamp)

        start, shift, at = pylsl.local_clock(), 0.0, 0
        while True:
            at += 1
            if pylsl.local_clock() > start + at / rate + BEHIND_S:
                at = round((pylsl.local_clock() - start) * rate)
            order = next_order(start + at / rate - pylsl.local_clock())
            what, _, value = order.partition(" ")
            if what == "gap":
                at += int(value)
                time.sleep(max(0.0, start + at / rate - pylsl.local_clock()))
            elif what == "reset":  # from now on, not from what is still due
                shift, at = shift + float(value), max(at, round((pylsl.local_clock() - start) * rate))
            stamp = start + shift + (at + rng.uniform(-jitter, jitter)) / rate
            x = (rng.integers(n_channels, size=1) if events else rng.poisson(1.0, n_channels)).astype(np.float32)
            if what in ("nan", "huge"):
                x[rng.integers(n_values)] = np.nan if what == "nan" else huge
                push(stamp, x, NAN if what == "nan" else HUGE)
            else:
                push(stamp, x, GOOD)
            if what == "duplicate":
                push(stamp, x if events else x + 1, GOOD if events else DUPLICATE)  # two units may well fire at once
            elif what == "backward":
                push(stamp - float(value), x if events else x + 1, BACKWARD)
            if what:
                say(repr(pylsl.local_clock()))


def next_order(timeout_s: float) -> str:
    """Sleeps until a sample is due; the order that has come by then, or nothing."""
    time.sleep(max(0.0, timeout_s))
    if not select.select([sys.stdin], [], [], 0)[0]:
        return ""
    return order if (order := sys.stdin.readline().strip()) else sys.exit()


def crowd(endpoint: str) -> None:
    """Subscribers that come, hear something and go; an order is how many are to come.

    The answer is how many of them asked for a schema and were sent none.
    """
    import zmq

    context, sockets = zmq.Context(), []
    say("ready")
    for order in sys.stdin:
        curious = []
        for _ in range(int(order)):
            sockets.append(context.socket(zmq.SUB))
            sockets[-1].connect(endpoint)
            topic = random.choice([b"", b"latents", b"schema", b"status"])
            sockets[-1].subscribe(topic)
            if b"schema".startswith(topic):
                curious.append(sockets[-1])
        end = time.monotonic() + GREETED_S
        ungreeted = sum(not hears(socket, b"schema", end) for socket in curious)
        for socket in random.sample(sockets, len(sockets) // 2):
            while socket.poll(0):
                socket.recv()
        while len(sockets) > CROWD:
            sockets.pop(random.randrange(len(sockets))).close(0)
        say(str(ungreeted))
    context.destroy(0)


def hears(socket: Any, prefix: bytes, end: float) -> bool:
    """Whether a subscriber gets a message that begins so, until a time."""
    while socket.poll(max(0, round(1e3 * (end - time.monotonic())))):
        if socket.recv().startswith(prefix):
            return True
    return False


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    match sys.argv[1:]:
        case ["source", name, source_id, kind, n_channels, rate, log, seed]:
            source(name, source_id, kind, int(n_channels), float(rate), log, int(seed))
        case ["crowd", endpoint]:
            crowd(endpoint)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

"""The control program: takes decoded velocities with rtdsae.Subscriber, moves the cursor, and shows the game.

    python -m closed_loop_parts.control '{"decoder": ..., "game": ..., "seconds": 60}'       fields of ControlSettings

The game begins with the first bin that comes. It is published SCREEN_HZ times a second in the wire format, so that
`rtdsae monitor` can watch it: `behaviour` is the cursor's position, `target` the target's. On stdout there is a JSON
line for each target when it ends, and one at the end for what came in.
"""

import contextlib
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from closed_loop_parts.game import Game, Steering, Task
from rtdsae import Subscriber
from rtdsae.errors import RtdsaeError, StreamError
from rtdsae.wire import Array, Encoder, Schema

__all__ = ["ControlSettings"]

SCREEN_HZ = 100.0
SPIN_S = 0.0005  # around the time when a bin is due, the subscriber polls
PATIENCE_S = 30.0  # for the first bin
LEAST_WAIT_S = 1e-4


@dataclass(frozen=True)
class ControlSettings:
    """What the process is told.

    Attributes:
        decoder: endpoint where velocities are published.
        game: endpoint on which to show the game.
        seconds: how long to play.
        latency_s: how much later than it could to act on each bin.
        seed: of the targets.
    """

    decoder: str
    game: str
    seconds: float
    latency_s: float = 0.0
    seed: int = 0


class Screen:
    """Publishes cursor and target, frame by frame."""

    def __init__(self, endpoint: str) -> None:
        from rtdsae.serve.endpoint import Endpoints
        from rtdsae.serve.publisher import Publisher

        arrays = (Array("behaviour", (2,), "cm", ("pos_x", "pos_y")), Array("target", (2,), "cm", ("x", "y")))
        schema = Schema("closed-loop", "", 1 / SCREEN_HZ, arrays)
        self._encoder = Encoder(schema, int.from_bytes(os.urandom(4), "little"))
        self._endpoints, self._frames = Endpoints(), 0
        self._publisher = Publisher(endpoint, schema, self._endpoints)

    def show(self, game: Game, due: float, now: float) -> None:
        """One frame of the game as it is now, which was due a little before."""
        self._encoder.payload["behaviour"][:], self._encoder.payload["target"][:] = game.position, game.target
        self._publisher.send(self._encoder.encode(self._frames, self._frames, due, due, now))
        self._frames += 1
        self._publisher.greet()

    def close(self) -> None:
        """Frees the endpoint."""
        self._publisher.close()
        self._endpoints.close()


def play(settings: ControlSettings) -> None:
    """Plays, and prints each target's end and what came in."""
    from pylsl import local_clock

    game = Game(Task(), settings.seed)
    with (
        contextlib.closing(Screen(settings.game)) as screen,
        Subscriber(settings.decoder, timeout_s=PATIENCE_S, spin=SPIN_S) as subscriber,
    ):
        if subscriber.receive() is None:
            raise StreamError(subscriber.why_silent())
        start = frame_due = local_clock()
        steering, delays = Steering(game, settings.latency_s, at=start), []
        while (now := local_clock()) < start + settings.seconds:
            wait_s = min(frame_due, steering.next_due) - now
            message = subscriber.latest(wait_s) if wait_s > LEAST_WAIT_S else subscriber.latest(0.0)
            now = local_clock()
            if message is not None:
                delays.append(now - message.t_bin)
                steering.hear(now, message["behaviour"].astype(float))
            for trial in steering.advance(now):
                say(dataclasses.asdict(trial))
            if now >= frame_due:
                screen.show(game, frame_due, now)
                frame_due += 1 / SCREEN_HZ
        say(account(subscriber, np.array(delays)))


def account(subscriber: Subscriber, delays: np.ndarray) -> dict[str, Any]:
    """What came in: bins, those that `latest` passed over, holes, and milliseconds from a bin's end to the cursor."""
    p50, p99, most = (round(1e3 * float(np.percentile(delays, q)), 2) for q in (50, 99, 100))
    heard = {"bins": len(delays), "skipped": subscriber.skipped, "holes": subscriber.holes}
    return heard | {"delay_ms": {"p50": p50, "p99": p99, "max": most}}


def say(line: dict[str, Any]) -> None:
    """One line of JSON."""
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        play(ControlSettings(**json.loads(sys.argv[1])))
    except RtdsaeError as error:
        sys.exit(f"control program: {error}")

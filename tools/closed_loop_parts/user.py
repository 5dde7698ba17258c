"""The simulated user: sees cursor and target late, intends a velocity, and its neurons' spikes go out over LSL.

    python -m closed_loop_parts.user '{"source_id": ..., "game": ..., "intention": ...}'     fields of UserSettings

It plays until the game has ended. A bin's spikes come from what was intended at the bin's beginning, and are pushed at
its end. What was intended is published in the same moment, in the wire format, as a decoder would that makes no error.
"""

import contextlib
import json
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from closed_loop_parts.game import DelayLine
from closed_loop_parts.neurons import BIN_WIDTH_S, KINDS, SPEED_CM_S, labels

__all__ = ["FEEDBACK_S", "Losses", "User", "UserSettings"]

FEEDBACK_S = 0.1  # from the screen to the intention
APPROACH_HZ = 3.0  # near the target the intended speed is this times the distance
PATIENCE_S = 60.0  # without a game


@dataclass(frozen=True)
class UserSettings:
    """What the process is told.

    Attributes:
        source_id: of the LSL stream.
        game: endpoint where the game is shown.
        intention: endpoint on which to publish what is intended.
        kind: of neurons.
        n: how many.
        seed: of the neurons.
        take: of their spikes, and of what is lost.
        lost: fraction of the bins that are not pushed.
        lost_bins: how many at a time.
        shuffled: each bin's counts are dealt out anew among the neurons: as many spikes, and no direction in them.
    """

    source_id: str
    game: str
    intention: str
    kind: str = "cosine"
    n: int = 64
    seed: int = 0
    take: int = 1
    lost: float = 0.0
    lost_bins: int = 1
    shuffled: bool = False


class User:
    """Wants the cursor on the target, which it sees `feedback_s` late: full speed from afar, slower when near.

    It does not adapt: neither to the decoder nor to the latency.
    """

    def __init__(self, feedback_s: float = FEEDBACK_S) -> None:
        self._seen: DelayLine[np.ndarray] = DelayLine(feedback_s)
        self._velocity = np.zeros(2)

    def see(self, at: float, position: np.ndarray, target: np.ndarray) -> None:
        """What the screen shows at a time."""
        self._seen.put(at, target - position)

    def intend(self, now: float) -> np.ndarray:
        """The velocity that is wanted now, cm/s `(2,)`: none before anything was seen."""
        for _, way in self._seen.take(now):
            distance = math.hypot(*way)
            self._velocity = way * min(APPROACH_HZ, SPEED_CM_S / max(distance, 1e-9))
        return self._velocity


class Losses:
    """Which bins are lost: a fraction of all, so many at a time, at random."""

    def __init__(self, fraction: float, n_bins: int, rng: np.random.Generator) -> None:
        self._begins = fraction / (fraction + n_bins * (1 - fraction))  # a bin after one that was not lost
        self._n_bins, self._rng, self._left = n_bins, rng, 0

    def next(self) -> bool:
        """Whether the next bin is lost."""
        if not self._left and self._rng.random() < self._begins:
            self._left = self._n_bins
        lost = self._left > 0
        self._left = max(0, self._left - 1)
        return lost


def play(settings: UserSettings) -> None:
    """Plays until the game has been silent for some time."""
    import pylsl

    from rtdsae import Subscriber
    from rtdsae.serve.endpoint import Endpoints
    from rtdsae.serve.publisher import Publisher
    from rtdsae.wire import Array, Encoder, Schema

    neurons = KINDS[settings.kind](settings.n, settings.seed)
    rng, losses_rng = (np.random.default_rng((settings.seed, settings.take, i)) for i in (0, 1))
    losses = Losses(settings.lost, settings.lost_bins, losses_rng)
    velocity = Array("behaviour", (2,), "cm/s", ("vel_x", "vel_y"))
    encoder = Encoder(Schema("intention", "", BIN_WIDTH_S, (velocity,)), run=settings.take)
    user, outlet = User(), _outlet(settings)
    with (
        contextlib.closing(Endpoints()) as endpoints,
        contextlib.closing(Publisher(settings.intention, encoder.schema, endpoints)) as publisher,
        Subscriber(settings.game) as screen,
    ):
        start = looked = pylsl.local_clock()
        for bin_ in range(sys.maxsize):
            end = start + (bin_ + 1) * BIN_WIDTH_S
            while (shown := screen.receive(0.0)) is not None:
                user.see(shown.t_bin, shown["behaviour"].astype(float), shown["target"].astype(float))
                looked = end
            if end - looked > PATIENCE_S:
                return
            intended = user.intend(end - BIN_WIDTH_S)
            counts = rng.poisson(neurons.expected(intended / SPEED_CM_S)).astype(np.float32)
            if settings.shuffled:
                rng.shuffle(counts)
            encoder.payload["behaviour"][:] = intended
            time.sleep(max(0.0, end - pylsl.local_clock()))
            now = pylsl.local_clock()
            if not losses.next():
                outlet.push_chunk(counts[None], end)
            publisher.send(encoder.encode(bin_, bin_, end, end, now))
            publisher.greet()


def _outlet(settings: UserSettings) -> Any:
    import pylsl

    rate = 1 / BIN_WIDTH_S
    info = pylsl.StreamInfo("user", "Spikes", settings.n, rate, pylsl.cf_float32, settings.source_id)
    info.set_channel_labels(labels(settings.n))
    return pylsl.StreamOutlet(info)


if __name__ == "__main__":
    from rtdsae.errors import RtdsaeError

    try:
        play(UserSettings(**json.loads(sys.argv[1])))
    except RtdsaeError as error:
        sys.exit(f"user: {error}")

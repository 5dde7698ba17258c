"""User and game in simulated time: no process, no socket, no waiting."""

from collections.abc import Callable

import numpy as np

from closed_loop_parts.game import Game, Steering, Task, Trial
from closed_loop_parts.neurons import BIN_WIDTH_S, SPEED_CM_S, Neurons, labels
from closed_loop_parts.user import User
from rtdsae.recordings import Recording

__all__ = ["calibration_block", "rehearse"]

Decode = Callable[[np.ndarray], np.ndarray]


def rehearse(
    decode: Decode, seconds: float, *, latency_s: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, list[Trial]]:
    """Plays in simulated time.

    Args:
        decode: from the intended velocity of a bin, cm/s `(2,)`, to the decoded one.
        seconds: how long.
        latency_s: added latency.
        seed: of the targets.

    Returns:
        What was intended in each bin, `(bins, 2)`, and the trials that ended.
    """
    user, game = User(), Game(Task(), seed)
    steering, trials = Steering(game, latency_s, at=0.0), []
    intended = np.empty((round(seconds / BIN_WIDTH_S), 2))
    for i in range(len(intended)):
        begin, end = i * BIN_WIDTH_S, (i + 1) * BIN_WIDTH_S
        user.see(begin, game.position, game.target)
        intended[i] = user.intend(begin)
        trials += steering.advance(end)
        steering.hear(end, decode(intended[i]))
    return intended, trials


def calibration_block(neurons: Neurons, n: int, minutes: float, seed: int) -> Recording:
    """The recording to train on: the user watches a cursor that does what is intended, and intends along.

    Args:
        neurons: the user's.
        n: how many they are.
        minutes: how long.
        seed: of the targets and the spikes.
    """
    intended, _ = rehearse(lambda velocity: velocity, 60 * minutes, seed=seed)
    expected = np.stack([neurons.expected(velocity) for velocity in intended / SPEED_CM_S])
    return Recording(
        counts=np.random.default_rng(seed).poisson(expected).astype(np.uint8),
        bin_width_s=BIN_WIDTH_S,
        channels=tuple(labels(n)),
        behaviour=intended.astype(np.float32),
        behaviour_labels=("vel_x", "vel_y"),
        true_rates=(expected / BIN_WIDTH_S).astype(np.float32),
        session="calibration",
    )

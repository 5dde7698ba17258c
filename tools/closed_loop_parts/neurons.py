"""Spiking neurons that an intended velocity drives: Poisson counts, a bin at a time.

Both kinds are made by a seed; velocities enter in units of SPEED, `(2,)` or `(bins, 2)`.
"""

from typing import Protocol

import numpy as np

__all__ = ["BIN_WIDTH_S", "KINDS", "SPEED_CM_S", "CosineNeurons", "NetworkNeurons", "Neurons", "labels"]

BIN_WIDTH_S = 0.02
SPEED_CM_S = 15.0  # the fastest that is intended
BASE_HZ = (4.0, 12.0)  # rates at rest
DEPTH = (0.5, 1.5)  # of a log rate, at full speed

TAU_S, GAIN, DRIVE = 0.05, 0.9, 1.5  # of the network


class Neurons(Protocol):
    """What drives the decoder."""

    def expected(self, velocity: np.ndarray) -> np.ndarray:
        """Expected spikes `(N,)` in a bin in which this velocity `(2,)` is intended."""


def labels(n: int) -> list[str]:
    """The channels' names on the stream and in the bundle."""
    return [f"neuron{i}" for i in range(n)]


class CosineNeurons:
    """Log rate = bias + weights · velocity: cosine tuning to the direction, in proportion to the speed.

    Attributes:
        weights: `(2, N)`.
        bias: log of expected spikes a bin at rest, `(N,)`.
    """

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        angle, depth = rng.uniform(0, 2 * np.pi, n), rng.uniform(*DEPTH, n)
        self.weights = depth * np.stack([np.cos(angle), np.sin(angle)])
        self.bias = np.log(BIN_WIDTH_S * rng.uniform(*BASE_HZ, n))

    def expected(self, velocity: np.ndarray) -> np.ndarray:
        """Expected spikes `(N,)` in a bin in which this velocity `(2,)` is intended."""
        return np.exp(self.bias + velocity @ self.weights)


class NetworkNeurons:
    """A recurrent network that the intention drives: what it does now depends on what was intended before.

    tau dx/dt = -x + gain W tanh(x) + B velocity;  log rate = bias + depth tanh(x)
    """

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._recurrent = GAIN * rng.standard_normal((n, n)) / np.sqrt(n)
        self._inputs = DRIVE * rng.standard_normal((2, n))
        self._depth = rng.uniform(*DEPTH, n)
        self._bias = np.log(BIN_WIDTH_S * rng.uniform(*BASE_HZ, n))
        self._x = np.zeros(n)

    def expected(self, velocity: np.ndarray) -> np.ndarray:
        """Expected spikes `(N,)` in the next bin, in which this velocity `(2,)` is intended."""
        drive = np.tanh(self._x) @ self._recurrent + velocity @ self._inputs
        self._x = self._x + BIN_WIDTH_S / TAU_S * (drive - self._x)
        return np.exp(self._bias + self._depth * np.tanh(self._x))


KINDS: dict[str, type[CosineNeurons] | type[NetworkNeurons]] = {"cosine": CosineNeurons, "network": NetworkNeurons}

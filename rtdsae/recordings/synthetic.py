"""Synthetic neurons with known rates: the Lorenz system and a chaotic recurrent network.

Both are the literature's standard tests of latent dynamics. The defaults make the sets of their published scores:

    lorenz()         65 conditions x 20 trials x 50 bins of 20 ms, 30 neurons at 5 spikes/s        seed 0
    chaotic_rnn()    400 conditions x 10 trials x 100 bins of 10 ms, 50 neurons up to 30 spikes/s  seed 5

`seed` makes the system (read-out, network), `take` one recording of it (initial states, pulses, spikes): another take
of the same seed is fresh data from the very same neurons. The generator is numpy's RandomState, whose numbers are
frozen, so that a seed means the same recording with every version of numpy.

A recording's `generator` is the arguments that made it; `system_of` has the system back from them, for an observer that
is to know it.

Sources: Sussillo et al. 2016 (arXiv 1608.06315) and Pandarinath et al. 2018 (Nature Methods 15, 805) for both systems.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.recording import Recording
from rtdsae.recordings.sampling import positive, random_state, recording, sizes, splits

__all__ = ["Lorenz", "Network", "attractor", "chaotic_rnn", "lorenz", "system_of"]

SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3
STEP, STEP_S = 0.006, 0.002  # a Runge-Kutta step in Lorenz time, and how much of the recording's time it is
BURN_IN = 1000
REFERENCE = (500, 50)  # trajectories and bins over which a system's latents are standardised and its rates set

TAU_S = 0.025
PULSE = 20.0
PULSE_EVERY = 100  # bins; the pulse comes in the middle half of them


@dataclass(frozen=True)
class Lorenz:
    """The Lorenz system, read out by neurons: rate = exp((state - mean) / std @ weights + bias).

    Attributes:
        weights: `(3, C)`.
        bias: log of spikes/s, `(C,)`.
        mean: the attractor's, `(3,)`.
        std: the attractor's, `(3,)`.
        bin_width_s: a multiple of 2 ms, the integration step.
    """

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    bin_width_s: float

    def rates(self, states: np.ndarray) -> np.ndarray:
        """Rates in spikes/s, `(..., C)`, where the states' means over a bin are `(..., 3)`."""
        return np.exp((states - self.mean) / self.std @ self.weights + self.bias)

    def advance(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States of `(3, n)` a bin later, and their means over that bin."""
        return _lorenz_bin(state, _steps_per_bin(self.bin_width_s))


@dataclass(frozen=True)
class Network:
    """A chaotic network, read out unit by unit: rate = max_rate_hz (tanh(x) - least) / (greatest - least).

    Attributes:
        weights: recurrent ones, of (to, from), `(C, C)`.
        input_weights: `(C,)`.
        gain: of the recurrent weights.
        bin_width_s: an Euler step.
        pulses: first and one-past-last bin of each stretch of a trial in which one pulse comes, at any bin alike.
        max_rate_hz: highest rate, in spikes/s.
        least: the tanh(x) whose rate is 0, in each condition, `(conditions, C)`.
        greatest: the tanh(x) whose rate is the highest, likewise.
        rates: those of each condition, in spikes/s, `(conditions, bins, C)`.
    """

    weights: np.ndarray
    input_weights: np.ndarray
    gain: float
    bin_width_s: float
    pulses: list[tuple[int, int]]
    max_rate_hz: float
    least: np.ndarray
    greatest: np.ndarray
    rates: np.ndarray


def lorenz(
    *,
    n_conditions: int = 65,
    n_trials: int = 20,
    n_bins: int = 50,
    seconds: float | None = None,
    bin_width_s: float = 0.02,
    n_neurons: int = 30,
    rate_hz: float = 5.0,
    valid: float = 0.2,
    seed: int = 0,
    take: int = 0,
) -> Recording:
    """Neurons that read out a Lorenz attractor: rate = exp(W z + b), z the standardised state.

    Weights are U(0.4, 1) with random signs, times 0.75. Standardisation and the mean rate hold over the attractor, so
    one recording's own means differ a little.

    Args:
        n_conditions: initial states.
        n_trials: trials of each initial state, which share its rates.
        n_bins: bins of a trial.
        seconds: one continuous segment of this length, in place of trials.
        bin_width_s: a multiple of 2 ms, the integration step.
        n_neurons: how many neurons.
        rate_hz: each neuron's mean rate over the attractor, in spikes/s.
        valid: fraction of each condition's trials (its last) that are the validation set.
        seed: makes the system.
        take: makes the recording.

    Returns:
        A Recording with `true_rates`; trials also have `conditions` and `splits`.

    Raises:
        RecordingError: sizes or seeds that cannot be.
    """
    arguments = dict(locals())
    n_conditions, n_trials, n_bins = sizes(n_conditions, n_trials, n_bins, seconds, bin_width_s)
    system, rng = _lorenz(**arguments), random_state(seed, take)
    rates = system.rates(_lorenz_states(rng, n_conditions, n_bins, bin_width_s))
    name = f"lorenz seed {seed} take {take}"
    return _recorded(rng, rates, n_trials, bin_width_s, valid, name, _generator("lorenz", arguments))


def chaotic_rnn(
    *,
    n_conditions: int = 400,
    n_trials: int = 10,
    n_bins: int = 100,
    seconds: float | None = None,
    bin_width_s: float = 0.01,
    n_neurons: int = 50,
    gain: float = 1.5,
    pulses: bool = True,
    max_rate_hz: float = 30.0,
    scaling: Literal["trial", "system"] | None = None,
    valid: float = 0.2,
    seed: int = 5,
    take: int = 0,
) -> Recording:
    """Neurons that are the units of a chaotic network: tau dx/dt = -x + gain W tanh(x) + w_in u, one Euler step a bin.

    W is N(0, 1/n), w_in N(0, 1), tau 25 ms, the initial state N(0, 1). The input u is 0 but for one pulse of 20 at a
    random bin in the middle half of every 100; no model is told of it (`external` is None).

    Args:
        n_conditions: initial states and pulse times.
        n_trials: trials of each condition, which share its rates.
        n_bins: bins of a trial.
        seconds: one continuous segment of this length, in place of trials.
        bin_width_s: bin width, below tau.
        n_neurons: how many neurons, all of them recorded.
        gain: 1.5 or 2.5 in the literature.
        pulses: whether there is any input.
        max_rate_hz: highest rate, in spikes/s.
        scaling: how tanh(x) becomes a rate. `trial`: each unit's least and greatest value in each trial become 0 and
            `max_rate_hz`, as published. `system`: -1 and 1 do, the same in all trials and takes. None: `trial` for
            trials, `system` for a continuous segment.
        valid: fraction of each condition's trials (its last) that are the validation set.
        seed: makes the system.
        take: makes the recording.

    Returns:
        A Recording with `true_rates`; trials also have `conditions` and `splits`.

    Raises:
        RecordingError: sizes or seeds that cannot be.
    """
    arguments = dict(locals())
    rng = random_state(seed, take)
    rates = _chaotic_rnn(rng, **arguments).rates
    n_trials, name = n_trials if seconds is None else 1, f"chaotic rnn seed {seed} take {take}"
    return _recorded(rng, rates, n_trials, bin_width_s, valid, name, _generator("chaotic_rnn", arguments))


def system_of(generator: str) -> Lorenz | Network:
    """The system that made a recording.

    Args:
        generator: the recording's own.

    Raises:
        RecordingError: it names no generator in here, or arguments that cannot be.
    """
    try:
        told = json.loads(generator)
        name = told.pop("name")
        if name == "lorenz":
            return _lorenz(**told)
        if name == "chaotic_rnn":
            return _chaotic_rnn(random_state(told["seed"], told["take"]), **told)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordingError(f"generator is {generator!r}: {error}") from None
    raise RecordingError(f"generator is {generator!r}: neither lorenz nor chaotic_rnn")


def _generator(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"name": name, **arguments}, default=lambda value: value.item())  # numpy's numbers


def _lorenz(*, n_neurons: int, rate_hz: float, bin_width_s: float, seed: int, **_: object) -> Lorenz:
    positive(n_neurons=n_neurons, rate_hz=rate_hz)
    system = random_state(seed)
    weights = 0.75 * system.uniform(0.4, 1.0, (3, n_neurons)) * system.choice((-1.0, 1.0), (3, n_neurons))
    reference = _lorenz_states(system, *REFERENCE, bin_width_s)
    mean, std = reference.mean((0, 1)), reference.std((0, 1))
    bias = np.log(rate_hz) - np.log(np.exp((reference - mean) / std @ weights).mean((0, 1)))
    return Lorenz(weights, bias, mean, std, bin_width_s)


def _chaotic_rnn(
    rng: np.random.RandomState,
    *,
    n_conditions: int,
    n_trials: int,
    n_bins: int,
    seconds: float | None,
    bin_width_s: float,
    n_neurons: int,
    gain: float,
    pulses: bool,
    max_rate_hz: float,
    scaling: Literal["trial", "system"] | None,
    seed: int,
    **_: object,
) -> Network:
    """The network of a recording, run through its conditions; what it draws from `rng` comes before the spikes."""
    scaling = scaling or ("system" if seconds is not None else "trial")
    n_conditions, n_trials, n_bins = sizes(n_conditions, n_trials, n_bins, seconds, bin_width_s)
    positive(n_neurons=n_neurons, max_rate_hz=max_rate_hz)
    if bin_width_s >= TAU_S:
        raise RecordingError(f"bin_width_s is {bin_width_s}: the network needs bins narrower than {TAU_S} s")
    weights, input_weights = _network(seed, n_neurons)

    x = rng.randn(n_conditions, n_neurons)
    inputs = _pulses(rng, n_conditions, n_bins) * pulses
    activity = np.empty((n_conditions, n_bins, n_neurons))
    for t in range(n_bins):
        activity[:, t] = np.tanh(x)
        drive = gain * activity[:, t] @ weights.T + inputs[:, t, None] * input_weights
        x = x + bin_width_s / TAU_S * (drive - x)
    if scaling == "trial":
        least, greatest = activity.min(1), activity.max(1)
    else:
        least, greatest = -np.ones((n_conditions, n_neurons)), np.ones((n_conditions, n_neurons))
    spans = np.maximum(greatest - least, np.finfo(float).tiny)
    rates = max_rate_hz * ((activity - least[:, None]) / spans[:, None])
    return Network(
        weights=weights,
        input_weights=input_weights,
        gain=gain,
        bin_width_s=bin_width_s,
        pulses=_pulse_windows(n_bins) if pulses else [],
        max_rate_hz=max_rate_hz,
        least=least,
        greatest=greatest,
        rates=rates,
    )


def _network(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The recurrent weights, of (to, from), and the input weights.

    >>> weights, _ = _network(5, 50)
    >>> float(weights[0, 0].round(8))  # the check value of the published data set
    0.06239899
    """
    system = random_state(seed)
    return system.randn(n, n) / np.sqrt(n), system.randn(n)


def _pulse_windows(n_bins: int) -> list[tuple[int, int]]:
    """First and one-past-last bin of where pulses come: the middle half of every 100 bins, or of a shorter trial."""
    every = min(PULSE_EVERY, n_bins)
    middle = every // 4, max(3 * every // 4, 1)
    return [(start + middle[0], start + middle[1]) for start in range(0, n_bins - every + 1, every)]


def _pulses(rng: np.random.RandomState, n_conditions: int, n_bins: int) -> np.ndarray:
    inputs = np.zeros((n_conditions, n_bins))
    for first, stop in _pulse_windows(n_bins):
        inputs[np.arange(n_conditions), rng.randint(first, stop, n_conditions)] = PULSE
    return inputs


def _lorenz_states(rng: np.random.RandomState, n: int, n_bins: int, bin_width_s: float) -> np.ndarray:
    """States of `(n, n_bins, 3)`, each the mean of its bin, from random initial states on the attractor."""
    steps = _steps_per_bin(bin_width_s)
    state = attractor(rng.randn(3, n))
    states = np.empty((n_bins, 3, n))
    for t in range(n_bins):
        state, states[t] = _lorenz_bin(state, steps)
    return states.transpose(2, 0, 1)


def attractor(noise: np.ndarray) -> np.ndarray:
    """States of `(3, n)` on the Lorenz attractor, from standard normal noise of `(3, n)`."""
    state = noise + np.array([[0.0], [0.0], [25.0]])
    for _ in range(BURN_IN):
        state = _runge_kutta(state)
    return state


def _lorenz_bin(state: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States so many steps later, and the mean over these steps."""
    mean = np.zeros_like(state)
    for _ in range(steps):
        state = _runge_kutta(state)
        mean += state / steps
    return state, mean


def _steps_per_bin(bin_width_s: float) -> int:
    steps = round(bin_width_s / STEP_S)
    if steps < 1 or not np.isclose(steps * STEP_S, bin_width_s):
        raise RecordingError(f"bin_width_s is {bin_width_s}: the Lorenz system needs a multiple of {STEP_S} s")
    return steps


def _runge_kutta(state: np.ndarray) -> np.ndarray:
    k1 = _lorenz_flow(state)
    k2 = _lorenz_flow(state + STEP / 2 * k1)
    k3 = _lorenz_flow(state + STEP / 2 * k2)
    k4 = _lorenz_flow(state + STEP * k3)
    return state + STEP / 6 * (k1 + 2 * (k2 + k3) + k4)


def _lorenz_flow(state: np.ndarray) -> np.ndarray:
    x, y, z = state
    return np.array((SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z))


def _recorded(
    rng: np.random.RandomState,
    rates: np.ndarray,
    n_trials: int,
    bin_width_s: float,
    valid: float,
    session: str,
    generator: str,
) -> Recording:
    """Poisson counts of `n_trials` trials for each condition's rates `(conditions, bins, neurons)`."""
    conditions = np.repeat(np.arange(len(rates)), n_trials)
    return recording(
        rng,
        np.repeat(rates.astype(np.float32), n_trials, axis=0),
        bin_width_s,
        conditions=conditions if len(conditions) > 1 else None,
        session=session,
        splits=splits(len(rates), n_trials, valid),
        generator=generator,
    )

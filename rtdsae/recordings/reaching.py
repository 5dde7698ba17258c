"""Reaches whose factors are known, so that what a disentangled model finds can be held against them.

A hand goes from the middle to one of 8 targets. Three static factors hold for a whole trial and show in its counts from
the first bin: the target's `direction`, the `speed`, and the `gain` of all neurons. One dynamic factor comes on top: in
half of the trials, at a random moment after the go signal, the hand is pushed to its left or right, which fades within
0.3 s and is corrected. Nothing static tells whether, when or to which side.

Eight latents; the first three are planes, and complex numbers in here:

    prepared   the direction, from the first bin on; turns by half a circle and fades as the hand moves
    position   in reach lengths: minimum jerk from the go signal on, and where pushes moved it
    velocity   in peak velocities of a reach of speed 1
    vigour     the speed, -1 to 1, from the first bin on; fades as the hand moves
    push       the force: 1 or -1 when it comes, then fading

Each neuron has a preferred direction in each plane (cosine tuning) and a sign for each of the others, all of them
drawn: rate = gain exp(W latents + b).

Sources: Flash & Hogan 1985 (minimum jerk), Georgopoulos et al. 1982 (cosine tuning), Churchland et al. 2012 (the
prepared state that turns).
"""

import numpy as np

from rtdsae.recordings.recording import Recording
from rtdsae.recordings.sampling import positive, random_state, recording, sizes, splits

__all__ = ["reaching"]

DIRECTIONS = 45.0 * np.arange(8)  # degrees, counterclockwise from x
SPEEDS = np.array((0.6, 1.0, 1.4))
GAINS = np.array((0.7, 1.0, 1.4))
FACTORS = ("direction", "speed", "gain")
CONDITIONS = np.stack([grid.ravel() for grid in np.meshgrid(GAINS, SPEEDS, DIRECTIONS, indexing="ij")][::-1], axis=1)

GO_S = 0.2  # the target is known from the trial's start, the hand waits so long
REACH_S = 0.45  # of a reach of speed 1
REACH_CM = 8.0
PEAK = 1.875 / REACH_S  # reach lengths a second: the peak velocity of minimum jerk
PUSH_S = 0.1  # time constant of the force, and of its correction
PUSH = 2.0  # peak velocities per PUSH_S at a force of 1: as it fades, it moves the hand by 1.8 cm at most
PUSH_ENDS = 20  # time constants after which nothing of it is left

BEHAVIOUR = {"vel_x": (2, REACH_CM * PEAK), "vel_y": (5, REACH_CM * PEAK), "perturbation": (7, 1.0)}  # latent, its unit
DEPTHS = np.array((1.0, 0.4, 1.0, 0.5, 1.5))  # of each latent in a log rate, at most
SESSION_GAIN = 0.2  # of a session's log gain, at most
REFERENCE = (50, 0.02)  # bins and their width of the reaches over which a neuron's mean rate is set
NEURONS, HAND, SPIKES = range(3)  # each is drawn by a generator of its own


def reaching(
    *,
    n_trials: int = 12,
    n_bins: int = 50,
    seconds: float | None = None,
    bin_width_s: float = 0.02,
    n_neurons: int = 40,
    rate_hz: float = 13.0,
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    session: int = 0,
    take: int = 0,
) -> Recording:
    """Neurons of a reaching hand: 8 directions x 3 speeds x 3 gains, gains in blocks, and pushes in half of the trials.

    Args:
        n_trials: trials of each of the 72 conditions.
        n_bins: bins of a trial; a reach of the lowest speed is over after 0.95 s.
        seconds: one continuous segment of this length, in place of trials: every `n_bins` a reach of random speed, out
            to a random target and back in turn, all at the session's gain.
        bin_width_s: bin width.
        n_neurons: how many neurons.
        rate_hz: each neuron's mean rate over reaches without pushes at gain 1, in spikes/s.
        valid: fraction of each condition's trials (before its last) that are the validation set.
        test: fraction of each condition's trials (its last) that are the test set.
        seed: another seed, other neurons and another hand.
        session: other neurons and another overall gain, for the very same hand where seed and take are the same.
        take: another recording of the same neurons: other pushes and spikes, and in a continuous segment other reaches.

    Returns:
        A Recording with `true_rates` and, as `behaviour`, `vel_x` and `vel_y` in cm/s and `perturbation`, the pushing
        force (1 when it comes, positive to the left of the reach). Trials also have `labels`, namely direction in
        degrees, speed and gain, `conditions` (0 to 71) and `splits`.

    Raises:
        RecordingError: sizes or seeds that cannot be.
    """
    n_conditions, n_trials, length = sizes(len(CONDITIONS), n_trials, n_bins, seconds, bin_width_s)
    positive(n_bins=n_bins, n_neurons=n_neurons, rate_hz=rate_hz)
    weights, bias, session_gain = _neurons(seed, session, n_neurons, rate_hz)
    hand = random_state(seed, take, HAND)
    factors, starts = _trials(n_trials) if seconds is None else _out_and_back(hand, -(-length // n_bins))
    factors = factors * (1, 1, session_gain)
    pushes = _pushes(hand, len(factors), n_bins, bin_width_s)
    latents = _latents(factors, starts, pushes, bin_width_s, n_conditions * n_trials)[:, :length]

    known = {
        "behaviour": np.stack([unit * latents[..., i].ravel() for i, unit in BEHAVIOUR.values()], axis=1),
        "behaviour_labels": tuple(BEHAVIOUR),
        "session": f"reaching seed {seed} session {session}",
    }
    if seconds is None:
        known |= {"labels": factors, "label_names": FACTORS, "splits": splits(n_conditions, n_trials, valid, test)}
        known["conditions"] = np.arange(n_conditions).repeat(n_trials)
    rates = factors[: len(latents), 2, None, None] * np.exp(latents @ weights + bias)
    return recording(random_state(seed, session, take, SPIKES), rates, bin_width_s, **known)


def _neurons(seed: int, session: int, n: int, rate_hz: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights of the latents `(8, n)`, offsets of the log rates `(n,)`, and the session's gain."""
    rng = random_state(seed, session, NEURONS)
    gain = np.exp(rng.uniform(-SESSION_GAIN, SESSION_GAIN))
    depths = rng.uniform(0.5, 1, (5, n)) * DEPTHS[:, None]
    preferred = depths[:3] * np.exp(2j * np.pi * rng.uniform(size=(3, n)))
    weights = np.concatenate([preferred.real, preferred.imag, depths[3:] * rng.choice((-1.0, 1.0), (2, n))])
    n_bins, width = REFERENCE
    factors, starts = _trials(1)
    reference = _latents(factors, starts, np.zeros((len(factors), n_bins)), width, len(factors))
    return weights, np.log(rate_hz) - np.log(np.exp(reference @ weights).mean((0, 1))), gain


def _trials(n_trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(n, 3)` and starts `(n,)` of reaches from the middle, condition by condition."""
    return CONDITIONS.repeat(n_trials, axis=0), np.zeros(len(CONDITIONS) * n_trials)


def _out_and_back(rng: np.random.RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(n, 3)` and starts `(n,)` of reaches of which each begins where the last one ended."""
    back = np.arange(n) % 2
    targets = rng.choice(DIRECTIONS, n)[np.arange(n) - back]
    factors = np.stack([targets + 180 * back, rng.choice(SPEEDS, n), np.ones(n)], axis=1)
    return factors, back * np.exp(1j * np.deg2rad(targets))


def _pushes(rng: np.random.RandomState, n: int, n_bins: int, bin_width_s: float) -> np.ndarray:
    """1 or -1 at one bin after the go signal in half of the reaches, else 0, `(n, n_bins)`."""
    go = min(round(GO_S / bin_width_s), n_bins - 1)
    pushes = np.zeros((n, n_bins))
    pushes[np.arange(n), rng.randint(go, n_bins, n)] = rng.choice((-1.0, 0.0, 0.0, 1.0), n)
    return pushes


def _latents(
    factors: np.ndarray, starts: np.ndarray, pushes: np.ndarray, bin_width_s: float, n_segments: int
) -> np.ndarray:
    """Latents in the middles of the bins, `(n_segments, bins, 8)`: reaches follow one another within a segment.

    In the order prepared, position and velocity along x, the same along y, vigour, push.
    """
    way = np.exp(1j * np.deg2rad(factors[:, :1]))
    planned = _planned(way, starts[:, None], factors[:, 1:2], pushes.shape[1], bin_width_s)
    prepared, position, velocity, vigour = planned.reshape(4, n_segments, -1)
    force, displacement, response = _responses(bin_width_s)
    aside = (1j * way * pushes).reshape(n_segments, -1)
    planes = np.stack([prepared, position + _convolved(aside, displacement), velocity + _convolved(aside, response)])
    push = _convolved(pushes.reshape(n_segments, -1), force)
    return np.stack([*planes.real, *planes.imag, vigour.real, push], axis=-1)


def _planned(way: np.ndarray, start: np.ndarray, speed: np.ndarray, n_bins: int, bin_width_s: float) -> np.ndarray:
    """Prepared state, position, velocity and vigour without pushes, `(4, n, n_bins)`, of arguments `(n, 1)`."""
    t = (np.arange(n_bins) + 0.5) * bin_width_s
    phase = np.clip((t - GO_S) * speed / REACH_S, 0, 1)
    done = phase**3 * (10 - 15 * phase + 6 * phase**2)
    prepared = (1 - done) * np.exp(1j * np.pi * phase) * way
    velocity = 16 * speed * phase**2 * (1 - phase) ** 2 * way
    vigour = (1 - done) * (speed - 1) / np.ptp(SPEEDS / 2)
    return np.stack([prepared, start + done * way, velocity, vigour])


def _responses(bin_width_s: float) -> np.ndarray:
    """Force, displacement and velocity after a push of 1, `(3, bins)`: force and hand have one time constant."""
    t = (np.arange(np.ceil(PUSH_ENDS * PUSH_S / bin_width_s)) + 0.5) * bin_width_s / PUSH_S
    return np.exp(-t) * np.stack([np.ones_like(t), PUSH * PEAK * PUSH_S * t**2 / 2, PUSH * t * (1 - t / 2)])


def _convolved(series: np.ndarray, response: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(np.convolve, 1, series, response)[:, : series.shape[1]]

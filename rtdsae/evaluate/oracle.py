"""The rates that an ideal observer infers, who knows the system that made the neurons and is fed the same spikes.

No causal model can be expected to do better, so this is the ceiling of its scores. The observer sees the held-in
neurons' counts from a segment's first bin on, and says at every bin the posterior mean of all neurons' rates given the
counts up to and including that bin. It knows the dynamics, the read-out and what the initial states are drawn from;
the initial state itself, and when an input pulse comes, it infers: of Lorenz by a particle filter, of a chaotic network
by a sum of Gaussians. Where rates are scaled trial by trial, it is told each trial's scale, as no model is.
"""

from collections.abc import Iterator

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.evaluate.gaussian_sum import network_filter
from rtdsae.evaluate.particle_filter import lorenz_filter
from rtdsae.evaluate.trials import conditions_of
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of
from rtdsae.recordings.synthetic import Lorenz, Network, system_of

__all__ = ["oracle_rates"]

PARTICLES = 3000
PARTICLES_AT_ONCE = 30_000  # what a core's cache holds
NETWORK_TRIALS_AT_ONCE = 100


def oracle_rates(
    recording: Recording, segments: np.ndarray, anchor_bins: int, particles: int = PARTICLES
) -> np.ndarray:
    """The ideal observer's rates, in spikes/s, for the bins that a model gives outputs for.

    Args:
        recording: generated neurons.
        segments: (n, 2), some of the recording's segments.
        anchor_bins: S; a segment's first S bins are observed, and left out of the answer.
        particles: how many; of a chaotic network none are used.

    Returns:
        (bins, C) float32, in the order of `train.latents.modelled_bins`.

    Raises:
        ValueError: the recording does not say what made it, or is no longer what was made, in words for `reasons`.
    """
    if not recording.generator:
        raise ValueError("the recording names no generator whose system is known")
    try:
        system = system_of(recording.generator)
    except RecordingError as error:
        raise ValueError(str(error)) from None
    heldin = np.flatnonzero(recording.heldin)
    one = recording.conditions is None  # then all segments are of the same
    conditions = np.zeros(len(segments), int) if one else conditions_of(recording, segments)
    check_made_by(system, recording, segments, conditions)
    found: list[np.ndarray] = [np.empty(0)] * len(segments)
    per_block = max(1, PARTICLES_AT_ONCE // particles) if isinstance(system, Lorenz) else NETWORK_TRIALS_AT_ONCE
    for number, some in enumerate(blocks(lengths_of(segments), per_block)):
        counts = np.stack([recording.counts[a:b, heldin] for a, b in segments[some]]).astype(np.float32)
        if isinstance(system, Lorenz):
            rates = lorenz_filter(system, counts, heldin, particles, number)
        else:
            rates = network_filter(system, counts, heldin, conditions[some])
        for i, each in zip(some.tolist(), rates, strict=True):
            found[i] = each[anchor_bins:]
    return np.concatenate(found)


def check_made_by(system: Lorenz | Network, recording: Recording, segments: np.ndarray, conditions: np.ndarray) -> None:
    """Refuse a recording that this system did not make: neurons were left out, or bins joined, since it was made.

    Raises:
        ValueError: in words for `reasons`.
    """
    changed = "the recording is no longer what its generator made"
    if recording.true_rates is None:
        raise ValueError("the recording has no true rates")
    if system.weights.shape[1] != recording.n_channels or system.bin_width_s != recording.bin_width_s:
        raise ValueError(changed)
    if isinstance(system, Lorenz):
        logs = np.log(np.concatenate([recording.true_rates[a:b] for a, b in segments])) - system.bias
        around = logs - logs @ np.linalg.pinv(system.weights) @ system.weights
        if not np.abs(around).max() < 1e-3:
            raise ValueError(changed)
        return
    if (lengths_of(segments) != system.rates.shape[1]).any():
        raise ValueError("of a chaotic network, the oracle knows whole trials only")
    for (a, b), condition in zip(segments.tolist(), conditions.tolist(), strict=True):
        made = system.rates[condition] if condition < len(system.rates) else np.nan
        if not np.allclose(recording.true_rates[a:b], made, rtol=1e-3, atol=1e-3):
            raise ValueError(changed)


def blocks(lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Indices of segments of equal lengths, no more than `size` at a time."""
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        yield from (same[i : i + size] for i in range(0, len(same), size))

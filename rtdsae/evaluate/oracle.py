"""The rates that an ideal observer infers, who knows the system that made the neurons and is fed the same spikes.

No causal model can be expected to do better, so this is the ceiling of its scores. The observer sees the held-in
neurons' counts from a segment's first bin on, and says at every bin the posterior mean of all neurons' rates given the
counts up to and including that bin. It knows the dynamics, the read-out and what the initial states are drawn from;
the initial state itself, and when an input pulse comes, it infers. How depends on the system:

Lorenz: a particle filter. Particles begin all over the attractor, are run by the true dynamics and weighted by the
Poisson likelihood of each bin's counts. Where fewer than half of them count (effective sample size), they are drawn
anew by weight, systematically, each moved by a Gaussian of a tenth of the posterior's width, without which copies of
one particle would stay copies: the dynamics are deterministic. With 1,000, 3,000 and 10,000 particles R² to the true
rates is .886, .888 and .889 on the published set; on another 300 trials, 3,000 have .884 where 150,000 prior
trajectories that are only weighted, never drawn anew, have .886.

Chaotic network: its state has as many dimensions as there are neurons, too many for particles. In place of them, one
Gaussian for each bin at which the pulse may have come, weighted by its evidence and dropped where that is below 1e-3.
A Gaussian passes the tanh by the exact moments of each unit (statistical linearisation), takes in a bin's counts by
those of each unit's Poisson likelihood (assumed density filtering), and is widened by 3 % a bin against its
overconfidence. That is an approximation, and may fall short of the real ceiling: of 12 units at gain 1.5 it has R² .690
to the true rates where weighted prior trajectories have .697, of 10 units at gain 2.5 .741 against .778. Where rates
are scaled trial by trial, the observer is told each trial's scale, which is no model's to know.

Sources: Gordon, Salmond & Smith 1993 (IEE Proceedings F 140, 107); Kitagawa 1996 (Journal of Computational and
Graphical Statistics 5, 1), systematic resampling; Musso, Oudjane & Le Gland 2001 (in Sequential Monte Carlo Methods in
Practice), the kernel; Opper 1998 (in On-line Learning in Neural Networks), assumed density filtering; Gelb 1974
(Applied Optimal Estimation), statistical linearisation; Anderson & Anderson 1999 (Monthly Weather Review 127, 2741),
inflation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.evaluate.trials import conditions_of
from rtdsae.recordings import Recording
from rtdsae.recordings.synthetic import PULSE, TAU_S, Lorenz, Network, attractor, system_of

__all__ = ["oracle_rates"]

PARTICLES = 3000
KERNEL = 0.1  # of the posterior's standard deviation: how far a particle moves that is drawn anew
BLOCK = 30_000  # particles side by side: what a core's cache holds

INFLATION = 1.03  # of the covariance, each bin: what makes up for linearising, as the dynamics are deterministic
DROPPED = 1e-3  # of a trial's weight: below it, a hypothesis of when the pulse came
LEAST_RATE = 1e-3  # of the highest one, in the likelihood: an observer that is a Gaussian never quite rules a spike out
NETWORK_BLOCK = 100  # trials side by side
NODES = 9  # of Gauss-Hermite quadrature


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
    lengths = segments[:, 1] - segments[:, 0]
    found: list[np.ndarray] = [np.empty(0)] * len(segments)
    per_block = max(1, BLOCK // particles) if isinstance(system, Lorenz) else NETWORK_BLOCK
    for number, some in enumerate(blocks(lengths, per_block)):
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
    if (segments[:, 1] - segments[:, 0] != system.rates.shape[1]).any():
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


def lorenz_filter(system: Lorenz, counts: np.ndarray, heldin: np.ndarray, particles: int, seed: int) -> np.ndarray:
    """The particle filter of some trials of equal length.

    Every bin's random numbers have a seed of their own, so that no bin's rates depend on later counts in any way.

    Args:
        system: the true one.
        counts: of the held-in neurons, (n, T, H) float32.
        heldin: which neurons these are, (H,).
        particles: of each trial.
        seed: of the particles.

    Returns:
        Posterior mean rates in spikes/s, (n, T, C) float32.
    """
    n, n_bins, _ = counts.shape
    weights = (system.weights / system.std[:, None]).astype(np.float32)
    bias = (system.bias - system.mean / system.std @ system.weights).astype(np.float32)
    seen = np.zeros(len(bias), np.float32)
    seen[heldin] = system.bin_width_s
    spikes = counts @ weights[:, heldin].T
    begun = attractor(np.random.default_rng((seed, 0)).standard_normal((3, particles)))
    state = np.tile(begun.astype(np.float32), n)
    log_weights = np.zeros((n, particles), np.float32)
    found = np.empty((n, n_bins, len(bias)), np.float32)
    for t in range(n_bins):
        state, mean = system.advance(state)
        rates = np.exp(mean.T @ weights + bias)
        log_weights += np.einsum("nd,dnp->np", spikes[:, t], mean.reshape(3, n, particles))
        log_weights -= (rates @ seen).reshape(n, particles)
        log_weights -= log_weights.max(1, keepdims=True)
        posterior = np.exp(log_weights)
        posterior /= posterior.sum(1, keepdims=True)
        found[:, t] = (posterior[:, None] @ rates.reshape(n, particles, -1))[:, 0]
        few = np.flatnonzero(np.square(posterior).sum(1) > 2 / particles)
        if len(few):
            clouds = state.reshape(3, n, particles)
            rng = np.random.default_rng((seed, 1 + t))
            clouds[:, few] = drawn_anew(clouds[:, few], posterior[few], rng)
            log_weights[few] = 0
    return found


def drawn_anew(clouds: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Particles (3, n, P) drawn by their weights (n, P), each moved a little."""
    _, n, particles = clouds.shape
    mean = np.einsum("np,dnp->dn", weights, clouds)
    apart = clouds - mean[..., None]
    covariance = np.einsum("dnp,enp->nde", apart * weights, apart) + 1e-6 * np.eye(3)
    spread = KERNEL * np.linalg.cholesky(covariance).astype(np.float32)
    trial = np.arange(n)[:, None]
    total = np.cumsum(weights, 1, dtype=float)
    at = (np.arange(particles) + rng.random((n, 1))) / particles
    chosen = np.searchsorted((total / total[:, -1:] + trial).ravel(), (at + trial).ravel()).reshape(n, particles)
    chosen = np.clip(chosen - trial * particles, 0, particles - 1)
    noise = rng.standard_normal((n, 3, particles), np.float32)
    return np.take_along_axis(clouds, chosen[None], 2) + (spread @ noise).transpose(1, 0, 2)


@dataclass
class Hypotheses:
    """Gaussians of the state of some trials, one for each time at which the pulse may have come: h in all.

    Attributes:
        trial: whose each is, (h,).
        mean: (h, C).
        covariance: (h, C, C).
        evidence: in logs, (h,).
        due: whether a pulse is still to come, (h,).
        pulsed: whether it comes in this bin, (h,).
    """

    trial: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    evidence: np.ndarray
    due: np.ndarray
    pulsed: np.ndarray

    def shares(self) -> np.ndarray:
        """Each one's share of its trial's evidence, (h,)."""
        largest = np.full(self.trial.max() + 1, -np.inf)
        np.maximum.at(largest, self.trial, self.evidence)
        shares = np.exp(self.evidence - largest[self.trial])
        return shares / np.bincount(self.trial, shares)[self.trial]

    def only(self, which: np.ndarray) -> "Hypotheses":
        """Some of them."""
        return Hypotheses(*(part[which] for part in vars(self).values()))

    def branched(self, chance: float) -> "Hypotheses":
        """Where a pulse is due, it comes in this bin with so much probability, or else later."""
        came = self.only(self.due)
        came = replace(came, evidence=came.evidence + np.log(chance), due=~came.due, pulsed=came.due)
        later = np.log1p(-chance) if chance < 1 else -np.inf
        waiting = replace(self, evidence=self.evidence + np.where(self.due, later, 0.0))
        found = Hypotheses(*map(np.concatenate, zip(vars(waiting).values(), vars(came).values(), strict=True)))
        return found.only(np.isfinite(found.evidence))


def network_filter(system: Network, counts: np.ndarray, heldin: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """The sum of Gaussians of some trials.

    Args:
        system: the true one.
        counts: of the held-in units, (n, T, H) float32.
        heldin: which units these are, (H,).
        conditions: of each trial, (n,): whose scale its rates have.

    Returns:
        Posterior mean rates in spikes/s, (n, T, C) float32.
    """
    n, n_bins, _ = counts.shape
    size = len(system.weights)
    least = system.least[conditions].astype(np.float32)
    span = np.maximum(system.greatest[conditions] - system.least[conditions], 1e-6).astype(np.float32)
    highest = np.float32(system.max_rate_hz * system.bin_width_s)
    leak = np.float32(system.bin_width_s / TAU_S)
    recurrent = (leak * system.gain * system.weights).astype(np.float32)
    kick = (leak * PULSE * system.input_weights).astype(np.float32)
    bins_left = {t: stop - t for first, stop in system.pulses for t in range(first, stop)}
    firsts = {first for first, _ in system.pulses}

    covariance = np.tile(np.eye(size, dtype=np.float32), (n, 1, 1))
    mean, no = np.zeros((n, size), np.float32), np.zeros(n, bool)
    now = Hypotheses(np.arange(n), mean, covariance, evidence=np.zeros(n), due=no, pulsed=no)
    found = np.zeros((n, n_bins, size), np.float32)
    for t in range(n_bins):
        scale = least[now.trial], span[now.trial]
        now.evidence += take_in(now.mean, now.covariance, counts[now.trial, t], heldin, scale, highest)
        shares = now.shares()
        nodes, masses = quadrature(now.mean, now.covariance)
        rates = system.max_rate_hz * scaled(np.tanh(nodes), scale, 0) @ masses
        np.add.at(found[:, t], now.trial, (shares[:, None] * rates).astype(np.float32))

        kept = shares > DROPPED
        now = now.only(kept)
        now.evidence = np.log(shares[kept])
        now.due |= t in firsts
        if t in bins_left:
            now = now.branched(1 / bins_left[t])
        now.mean, now.covariance = propagated(now.mean, now.covariance, recurrent, leak)
        now.mean[now.pulsed] += kick
        now.pulsed[:] = False
    return found


def quadrature(mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to look at each unit's marginal, (h, C, NODES), and what each look counts, (NODES,)."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(NODES)
    variance = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 1e-10)
    at = mean[..., None] + np.sqrt(variance)[..., None] * nodes.astype(np.float32)
    return at, (masses / masses.sum()).astype(np.float32)


def scaled(activity: np.ndarray, scale: tuple[np.ndarray, np.ndarray], lowest: float) -> np.ndarray:
    """Tanh(x) of (h, C, NODES) as a part of the highest rate, between `lowest` and 1."""
    least, span = scale
    return np.clip((activity - least[..., None]) / span[..., None], np.float32(lowest), 1)


def take_in(
    mean: np.ndarray,
    covariance: np.ndarray,
    counts: np.ndarray,
    heldin: np.ndarray,
    scale: tuple[np.ndarray, np.ndarray],
    highest: np.float32,
) -> np.ndarray:
    """Condition Gaussians (h, C), (h, C, C), in place, on the counts (h, H) of a bin; gives their log evidence, (h,).

    Each unit's likelihood becomes the Gaussian that has its effect on the unit's own mean and variance.
    """
    nodes, masses = quadrature(mean[:, heldin], covariance[:, heldin[:, None], heldin])
    part = scaled(np.tanh(nodes), (scale[0][:, heldin], scale[1][:, heldin]), LEAST_RATE)
    logs = counts[..., None] * np.log(part) - highest * part
    top = logs.max(2)
    masses = masses * np.exp(logs - top[..., None])
    total = masses.sum(2)
    masses /= total[..., None]
    centre, variance = mean[:, heldin], np.diagonal(covariance, axis1=1, axis2=2)[:, heldin]
    moved = (masses * (nodes - centre[..., None])).sum(2)
    after = (masses * np.square(nodes - centre[..., None])).sum(2) - np.square(moved)
    precision = np.maximum(1 / np.maximum(after, 1e-8) - 1 / np.maximum(variance, 1e-10), 0)
    after = variance / (1 + precision * variance)
    pull = moved / np.maximum(after, 1e-8)

    root = np.sqrt(precision)
    columns = covariance[:, :, heldin]
    inner = np.eye(len(heldin), dtype=np.float32) + root[:, :, None] * columns[:, heldin] * root[:, None]
    outer = columns * root[:, None]
    covariance -= outer @ np.linalg.inv(inner) @ outer.transpose(0, 2, 1)
    covariance += covariance.transpose(0, 2, 1).copy()
    covariance *= 0.5
    step = (covariance[:, :, heldin] @ pull[..., None])[..., 0]
    mean += step
    alone = np.log(total) + top - 0.5 * np.square(pull) * after + 0.5 * np.log1p(precision * variance)
    together = 0.5 * (pull * step[:, heldin]).sum(1) - 0.5 * np.linalg.slogdet(inner)[1]
    return alone.sum(1) + together


def propagated(
    mean: np.ndarray, covariance: np.ndarray, recurrent: np.ndarray, leak: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians (h, C), (h, C, C) a bin later, without a pulse."""
    nodes, masses = quadrature(mean, covariance)
    activity = np.tanh(nodes)
    expected = activity @ masses
    slope = (1 - np.square(activity)) @ masses
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    rest = np.maximum(np.square(activity) @ masses - np.square(expected) - np.square(slope) * variance, 0)
    flow = recurrent * slope[:, None]
    flow += (1 - leak) * np.eye(len(recurrent), dtype=np.float32)
    covariance = flow @ covariance @ flow.transpose(0, 2, 1) + (recurrent * rest[:, None]) @ recurrent.T
    return (1 - leak) * mean + expected @ recurrent.T, np.float32(INFLATION) * covariance

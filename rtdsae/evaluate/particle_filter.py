"""The ideal observer of Lorenz neurons: a particle filter.

Particles begin all over the attractor, are run by the true dynamics and weighted by the Poisson likelihood of each
bin's counts. Where fewer than half of them count (effective sample size), they are drawn anew by weight,
systematically, each moved by a Gaussian of a tenth of the posterior's width, without which copies of one particle would
stay copies: the dynamics are deterministic. With 1,000, 3,000 and 10,000 particles R² to the true rates is .886, .888
and .889 on the published set; on another 300 trials, 3,000 have .884 where 150,000 prior trajectories that are only
weighted, never drawn anew, have .886.

Sources: Gordon, Salmond & Smith 1993 (IEE Proceedings F 140, 107); Kitagawa 1996 (Journal of Computational and
Graphical Statistics 5, 1), systematic resampling; Musso, Oudjane & Le Gland 2001 (in Sequential Monte Carlo Methods in
Practice), the kernel.
"""

import numpy as np

from rtdsae.recordings.synthetic import Lorenz, attractor

__all__ = ["lorenz_filter"]

KERNEL = 0.1  # of the posterior's standard deviation: how far a particle moves that is drawn anew


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

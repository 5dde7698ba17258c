"""Whether a state says where it goes next: trajectory tangling (Russo et al. 2018, doi 10.1016/j.neuron.2018.01.004).

Tangling is high where two moments have nearly the same state and different velocities, which no smooth autonomous
dynamics could do. Trajectories are condition averages of factors or latents; firing rates should be soft-normalised
first (each neuron over its range plus a few spikes/s), or the fastest neurons are all that counts.
"""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

__all__ = ["tangling", "tangling_score"]

COMPONENTS = 8  # principal components that are kept
EPSILON = 0.1  # of the total variance
CHUNK = 256  # moments held against all others at once: 20 MB for 100 conditions of 100 bins


def tangling(x: np.ndarray, bin_width_s: float) -> np.ndarray:
    """Tangling Q of each moment of condition-averaged trajectories, in 1/s².

        Q(t) = max over t' of  |x'(t) - x'(t')|² / (|x(t) - x(t')|² + ε),   ε = 0.1 total variance of x

    t' runs over every bin of every condition; x is in its first 8 principal components (all it has, if fewer); the
    velocity x' is by central differences within a condition, by second-order one-sided ones at its ends.
    A circle at ω rad/s has ω² 4 / 4.1 everywhere.

    Args:
        x: trajectories, `(conditions, T, D)`, T of at least 3.
        bin_width_s: seconds between bins.

    Returns:
        Q, `(conditions, T)`, at least 0.

    Raises:
        ValueError: x has another shape, is not finite or does not vary, or the bin width is not positive.
    """
    x = _checked(x, bin_width_s)
    points = x.reshape(-1, x.shape[-1])
    states = PCA(min(COMPONENTS, *points.shape), svd_solver="full").fit_transform(points)
    velocity = np.gradient(states.reshape(*x.shape[:2], -1), bin_width_s, axis=1, edge_order=2).reshape(states.shape)
    epsilon = EPSILON * states.var(0).sum()
    q = [
        (cdist(velocity[part], velocity, "sqeuclidean") / (cdist(states[part], states, "sqeuclidean") + epsilon)).max(1)
        for part in (slice(start, start + CHUNK) for start in range(0, len(states), CHUNK))
    ]
    return np.concatenate(q).reshape(x.shape[:2])


def tangling_score(x: np.ndarray, bin_width_s: float) -> float:
    """One figure for `tangling`: the 90th percentile of Q over all bins and conditions, in 1/s²; same arguments."""
    return float(np.percentile(tangling(x, bin_width_s), 90))


def _checked(x: np.ndarray, bin_width_s: float) -> np.ndarray:
    x = np.asarray(x, float)
    if x.ndim != 3 or x.size == 0 or x.shape[1] < 3:
        raise ValueError(f"shape {x.shape}: trajectories must be (conditions, bins, dimensions) of at least 3 bins")
    if not np.isfinite(x).all():
        raise ValueError("trajectories must be finite")
    if not np.ptp(x, (0, 1)).any():
        raise ValueError("trajectories do not vary")
    if not bin_width_s > 0:
        raise ValueError(f"a bin width of {bin_width_s} s: it must be positive")
    return x

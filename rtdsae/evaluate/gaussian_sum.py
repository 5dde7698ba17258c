"""The ideal observer of a chaotic network: a sum of Gaussians.

The state has as many dimensions as there are neurons, too many for particles. In place of them, one Gaussian for each
bin at which the pulse may have come, weighted by its evidence and dropped where that is below 1e-3. A Gaussian passes
the tanh by the exact moments of each unit (statistical linearisation), takes in a bin's counts by those of each unit's
Poisson likelihood (assumed density filtering), and is widened by 3 % a bin against its overconfidence. That is an
approximation, and may fall short of the real ceiling: of 12 units at gain 1.5 it has R² .690 to the true rates where
weighted prior trajectories have .697, of 10 units at gain 2.5 .741 against .778.

Sources: Opper 1998 (in On-line Learning in Neural Networks), assumed density filtering; Gelb 1974 (Applied Optimal
Estimation), statistical linearisation; Anderson & Anderson 1999 (Monthly Weather Review 127, 2741), inflation.
"""

from dataclasses import dataclass, replace

import numpy as np

from rtdsae.recordings.synthetic import PULSE, TAU_S, Network

__all__ = ["network_filter"]

INFLATION = 1.03  # of the covariance, each bin: what makes up for linearising, as the dynamics are deterministic
DROPPED = 1e-3  # of a trial's weight: below it, a hypothesis of when the pulse came
LEAST_RATE = 1e-3  # of the highest one, in the likelihood: an observer that is a Gaussian never quite rules a spike out
NODES = 9  # of Gauss-Hermite quadrature


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

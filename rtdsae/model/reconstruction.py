"""Reconstructions: what is drawn from the read-out's values, for each neuron and bin.

    poisson               counts, one value: log mean
    negative_binomial     counts that vary more than a Poisson's: log mean; dispersion r learnt for each neuron
    gaussian              anything: mean and log-variance
    zero_inflated_gamma   deconvolved events, mostly zero: logits of shape, rate and probability of an event

Sources: lfads-torch's reconstructions for the last (Wander et al. 2022, RADICaL), of which the shape and rate are
bounded by a scale that is learnt for each neuron. Left out of it are `gamma_loc`, the smallest event, from which theirs
are counted, and the penalty on scales that leave their prior.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Reconstruction", "ReconstructionKind", "make_reconstruction"]

ReconstructionKind = Literal["poisson", "negative_binomial", "gaussian", "zero_inflated_gamma"]

MIN_MEAN = 1e-4  # counts a bin, where a neuron is silent
MIN_PROBABILITY = 1e-5
MAX_LOG_DISPERSION = 7.0  # r of 1,100, all but a Poisson's; beyond, log Γ(n + r) - log Γ(r) drowns in single precision


class Reconstruction(nn.Module, ABC):
    """A distribution of each neuron's value, from `n_values` numbers that the read-out gives.

    Args:
        n_neurons: how many neurons.
    """

    n_values = 1

    def __init__(self, n_neurons: int) -> None:
        super().__init__()
        self.n_neurons = n_neurons

    @abstractmethod
    def start(self, counts: Tensor) -> Tensor:
        """What the read-out's bias begins at, (n_values, N), from training counts (T, N)."""

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """Expected counts a bin: (..., n_values, N) -> (..., N)."""

    @abstractmethod
    def nll(self, values: Tensor, counts: Tensor) -> Tensor:
        """-log p(counts) in nats, constants included: (..., n_values, N), (..., N) -> (..., N)."""


class LogMean(Reconstruction):
    """Spike counts whose log mean is the one value."""

    def start(self, counts: Tensor) -> Tensor:
        """Log means."""
        return counts.mean(0).clamp_min(MIN_MEAN).log()[None]

    def mean(self, values: Tensor) -> Tensor:
        """The log mean's exponential."""
        return values[..., 0, :].exp()


class Poisson(LogMean):
    """Spike counts of mean and variance λ."""

    def nll(self, values: Tensor, counts: Tensor) -> Tensor:
        """λ - n log λ + log n!."""
        log_mean = values[..., 0, :]
        return log_mean.exp() - counts * log_mean + torch.lgamma(counts + 1)


class NegativeBinomial(LogMean):
    """Spike counts of mean m and variance m + m² / r."""

    def __init__(self, n_neurons: int) -> None:
        super().__init__(n_neurons)
        self.log_dispersion = nn.Parameter(torch.full((n_neurons,), math.log(10.0)))

    def nll(self, values: Tensor, counts: Tensor) -> Tensor:
        """-log of Γ(n + r) / (n! Γ(r)) · (r / (r + m))^r · (m / (r + m))^n."""
        log_r = self.log_dispersion.clamp_max(MAX_LOG_DISPERSION)
        r, log_ratio = log_r.exp(), values[..., 0, :] - log_r
        choose = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
        softplus = nn.functional.softplus  # log(1 + m / r) and log(1 + r / m), precise where m / r is small
        return r * softplus(log_ratio) + counts * softplus(-log_ratio) - choose


class GaussianValues(Reconstruction):
    """Real values, or counts taken as such."""

    n_values = 2

    def start(self, counts: Tensor) -> Tensor:
        """Means and log-variances."""
        return torch.stack([counts.mean(0), counts.var(0).clamp_min(MIN_MEAN).log()])

    def mean(self, values: Tensor) -> Tensor:
        """The mean, not below 0: it is given out as a rate."""
        return values[..., 0, :].clamp_min(0)

    def nll(self, values: Tensor, counts: Tensor) -> Tensor:
        """½ [(n - μ)² / σ² + log 2πσ²]."""
        mean, logvar = values[..., 0, :], values[..., 1, :].clamp(-10, 10)
        return 0.5 * ((counts - mean) ** 2 * (-logvar).exp() + logvar + math.log(2 * math.pi))


class ZeroInflatedGamma(Reconstruction):
    """0 with probability 1 - p, else Gamma(shape, rate); shape and rate lie between 0 and a learnt scale."""

    n_values = 3

    def __init__(self, n_neurons: int) -> None:
        super().__init__(n_neurons)
        self.log_scale = nn.Parameter(torch.full((2, n_neurons), math.log(5.0)))

    def start(self, counts: Tensor) -> Tensor:
        """Half of both scales, and how often each neuron is active."""
        active = (counts > 0).float().mean(0).clamp(0.01, 0.99)
        return torch.stack([torch.zeros_like(active), torch.zeros_like(active), torch.logit(active)])

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shape, rate and probability of an event, each (..., N)."""
        shape, rate = (torch.sigmoid(values[..., :2, :]) * self.log_scale.exp()).clamp_min(MIN_PROBABILITY).unbind(-2)
        return shape, rate, torch.sigmoid(values[..., 2, :]).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)

    def mean(self, values: Tensor) -> Tensor:
        """How often there is an event, times its mean."""
        shape, rate, p = self.parts(values)
        return p * shape / rate

    def nll(self, values: Tensor, counts: Tensor) -> Tensor:
        """-log(1 - p) at 0, -log p - log Gamma(n) elsewhere."""
        shape, rate, p = self.parts(values)
        event = torch.where(counts > 0, counts, torch.ones_like(counts))  # no log of 0, whose gradient is not finite
        density = shape * rate.log() + (shape - 1) * event.log() - rate * event - torch.lgamma(shape)
        return torch.where(counts > 0, -p.log() - density, -torch.log1p(-p))


def make_reconstruction(kind: ReconstructionKind, n_neurons: int) -> Reconstruction:
    """A new reconstruction of a kind."""
    kinds: dict[str, type[Any]] = {
        "poisson": Poisson,
        "negative_binomial": NegativeBinomial,
        "gaussian": GaussianValues,
        "zero_inflated_gamma": ZeroInflatedGamma,
    }
    made: Reconstruction = kinds[kind](n_neurons)
    return made

"""The Gaussians of the family: a posterior head, and the priors that posteriors are held against.

Every KL is analytic, in nats, summed over the latent's dimensions.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["AR1Prior", "Gaussian", "GaussianHead", "LearnableGaussian", "kl"]


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean and log-variance of one shape."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor | None) -> Tensor:
        """The reparametrised sample for standard normal noise, or the mean for None."""
        return self.mean if noise is None else self.mean + (0.5 * self.logvar).exp() * noise


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of diagonal Gaussians, summed over the last axis."""
    ratio = (q.logvar - p.logvar).exp() + (q.mean - p.mean) ** 2 / p.logvar.exp()
    return 0.5 * (ratio - 1 + p.logvar - q.logvar).sum(-1)


class GaussianHead(nn.Module):
    """A linear map to the mean and log-variance of a diagonal posterior.

    Args:
        in_dim: size of the input.
        dim: size of the latent.
        min_var: floor of the variance, which keeps log-variances finite (lfads-torch: ic_post_var_min).
    """

    def __init__(self, in_dim: int, dim: int, min_var: float = 1e-4) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, 2 * dim)
        nn.init.normal_(self.linear.weight, std=in_dim**-0.5)
        nn.init.zeros_(self.linear.bias)
        self.min_var = min_var

    def forward(self, h: Tensor) -> Gaussian:
        """(..., in_dim) -> mean and log-variance, each (..., dim)."""
        mean, logvar = self.linear(h).chunk(2, -1)
        return Gaussian(mean, (logvar.exp() + self.min_var).log())


class LearnableGaussian(nn.Module):
    """N(μ, κ I) with learnable μ and fixed κ: the prior of LFADS's initial condition (variance 0.1 as published)."""

    def __init__(self, dim: int, variance: float = 0.1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim))
        self.register_buffer("logvar", torch.full((dim,), math.log(variance)))
        self.logvar: Tensor

    def forward(self) -> Gaussian:
        """The prior, of shape (dim,)."""
        return Gaussian(self.mean, self.logvar)


class AR1Prior(nn.Module):
    """z_t = α z_{t-1} + ε_t with α = exp(-1/τ) and ε_t ~ N(0, v); τ (bins) and v are learnable, per dimension.

    The chain starts from its stationary distribution N(0, v / (1 - α²)). Its KL is taken along *posterior* samples, as
    the evidence lower bound asks (Pandarinath et al. 2018, eq. 6 of the methods).

    Args:
        dim: size of z.
        tau: first value of τ in bins.
        variance: first value of v.
    """

    def __init__(self, dim: int, tau: float = 10.0, variance: float = 0.1) -> None:
        super().__init__()
        self.log_tau = nn.Parameter(torch.full((dim,), math.log(tau)))
        self.logvar = nn.Parameter(torch.full((dim,), math.log(variance)))

    def alpha(self) -> Tensor:
        """The chain's factor from one bin to the next, (dim,), within (0, 1)."""
        return (-torch.exp(-self.log_tau)).exp()

    def first(self) -> Gaussian:
        """The stationary distribution, of shape (dim,)."""
        return Gaussian(torch.zeros_like(self.logvar), self.logvar - (1 - self.alpha() ** 2).log())

    def next(self, z: Tensor) -> Gaussian:
        """p(z_t | z_{t-1} = z), of z's shape."""
        mean = self.alpha() * z
        return Gaussian(mean, self.logvar.expand_as(mean))

    def kl(self, q: Gaussian, z: Tensor, observed: Tensor) -> Tensor:
        """Σ_t KL(q_t || p(z_t | z_{t-1})) over the observed bins: q and z (B, T, dim), observed (B, T, 1) -> (B,)."""
        p = self.next(z[:, :-1])
        start = self.first()
        mean = torch.cat([start.mean.expand(len(z), 1, -1), p.mean], 1)
        logvar = torch.cat([start.logvar.expand(len(z), 1, -1), p.logvar], 1)
        return (kl(q, Gaussian(mean, logvar)) * observed[..., 0]).sum(1)

"""The family's Gaussians: a distribution, its KL, and the head that makes a posterior.

Every KL is analytic, in nats, summed over the latent's dimensions.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Covariance", "Gaussian", "GaussianHead", "kl", "linear"]

Covariance = Literal["diagonal", "full"]


class Gaussian(NamedTuple):
    """N(mean, L Lᵀ), L lower triangular.

    Attributes:
        mean: (..., D).
        logvar: (..., D), the logarithm of L's squared diagonal: of the variances where L is diagonal.
        lower: (..., D, D), L below its diagonal and zero elsewhere; None where L is diagonal.
    """

    mean: Tensor
    logvar: Tensor
    lower: Tensor | None = None

    def sample(self, noise: Tensor | None) -> Tensor:
        """The reparametrised sample for standard normal noise, or the mean for None."""
        if noise is None:
            return self.mean
        spread = (0.5 * self.logvar).exp() * noise
        return self.mean + (spread if self.lower is None else spread + (self.lower @ noise[..., None])[..., 0])

    def draw(self, sample: bool) -> Tensor:
        """A sample, or the mean."""
        return self.sample(torch.randn_like(self.mean) if sample else None)

    def variance(self) -> Tensor:
        """The marginal variances, the diagonal of L Lᵀ: (..., D)."""
        own = self.logvar.exp()
        return own if self.lower is None else own + self.lower.square().sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, (...)."""
        off = z - self.mean
        if self.lower is None:
            return self._density(off * (-0.5 * self.logvar).exp())
        return self._density(self._whitened(off[..., None])[..., 0])

    def log_prob_of_each(self, z: Tensor) -> Tensor:
        """Log density of samples (N, D) under each of M Gaussians, (N, M): each L is solved for all samples at once."""
        off = z[:, None] - self.mean
        if self.lower is None:
            return self._density(off * (-0.5 * self.logvar).exp())
        return self._density(self._whitened(off.permute(1, 2, 0)).permute(2, 0, 1))

    def _whitened(self, off: Tensor) -> Tensor:
        """L⁻¹ of columns (..., D, n), where L is not diagonal; PyTorch solves in no type of two bytes."""
        assert self.lower is not None
        scale = self.lower + torch.diag_embed((0.5 * self.logvar).exp())
        wide = torch.promote_types(off.dtype, torch.float32)
        return torch.linalg.solve_triangular(scale.to(wide), off.to(wide), upper=False)

    def _density(self, white: Tensor) -> Tensor:
        """Log density of what L⁻¹ makes of the distance from the mean."""
        return -0.5 * (white.square() + self.logvar + math.log(2 * math.pi)).sum(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Gaussian":
        """The same change, such as an index, made to each part."""
        return Gaussian(change(self.mean), change(self.logvar), None if self.lower is None else change(self.lower))

    def at(self, t: int) -> "Gaussian":
        """The Gaussian at index t of axis 1."""
        return self.map(lambda part: part[:, t])


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) summed over the last axis; p is diagonal."""
    ratio = (q.variance() + (q.mean - p.mean) ** 2) / p.logvar.exp()
    return 0.5 * (ratio - 1 + p.logvar - q.logvar).sum(-1)


class GaussianHead(nn.Module):
    """A linear map to a posterior.

    Args:
        in_dim: size of the input.
        dim: size of the latent.
        covariance: `full` has off-diagonal terms.
        min_var: floor of L's squared diagonal, which keeps its logarithm finite (lfads-torch: ic_post_var_min).
    """

    def __init__(self, in_dim: int, dim: int, covariance: Covariance = "diagonal", min_var: float = 1e-4) -> None:
        super().__init__()
        self.dim, self.min_var = dim, min_var
        self.linear = linear(in_dim, 2 * dim)
        self.off_diagonal = linear(in_dim, dim * (dim - 1) // 2) if covariance == "full" and dim > 1 else None
        if self.off_diagonal is not None:
            nn.init.normal_(self.off_diagonal.weight, std=0.1 * in_dim**-0.5)  # begin close to diagonal

    def forward(self, h: Tensor) -> Gaussian:
        """(..., in_dim) -> the posterior of (..., dim)."""
        diagonal = self.posterior(self.linear(h))
        if self.off_diagonal is not None:
            rows, columns = torch.tril_indices(self.dim, self.dim, -1, device=h.device)
            below = self.off_diagonal(h)
            lower = below.new_zeros(*h.shape[:-1], self.dim, self.dim)
            lower[..., rows, columns] = below
            return diagonal._replace(lower=lower)
        return diagonal

    def posterior(self, says: Tensor) -> Gaussian:
        """The diagonal Gaussian of what `linear` says, (..., 2 dim)."""
        mean, logvar = says.chunk(2, -1)
        return Gaussian(mean, (logvar.exp() + self.min_var).log())


def linear(in_dim: int, dim: int, bias: bool = True) -> nn.Linear:
    """A linear map with weights of standard deviation 1 / √in_dim and no offset, as in LFADS."""
    layer = nn.Linear(in_dim, dim, bias=bias)
    nn.init.normal_(layer.weight, std=in_dim**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer

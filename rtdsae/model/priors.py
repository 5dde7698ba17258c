"""The priors: what posteriors are held against, and what a latent does where nothing was observed.

Of the static latent f, given what training knows of a window:

    gaussian   N(μ, κ I), μ and κ each fixed or learnt
    labelled   N(μ_c, diag κ_c), learnt for each label c: iVAE (Khemakhem et al. 2020, arXiv:1907.04809)
    sequence   N(μ_i, κ I), μ_i ~ N(0, I) learnt for each sequence i: FHVAE (Hsu et al. 2017, arXiv:1709.07902)

Labels and sequences are known in training only: the stream infers f from the data alone.

Of the dynamic latent z_t, given the bins before:

    ar1        z_t = α z_{t-1} + ε_t: LFADS (Pandarinath et al. 2018, eq. 6 of the methods)
    rnn        N(μ(h_t), σ(h_t)), h_t = RNN(z_{t-1}, h_{t-1}): DSAE (Li & Mandt 2018, arXiv:1803.02991)
    gated      gated transition of the deep Markov model (Krishnan et al. 2017, arXiv:1609.09869): FDMM
    tiled      one Gaussian for every bin

A dynamic prior is conditioned on *posterior* samples, as the evidence lower bound asks: Σ_t KL(q_t || p(z_t | z_<t)).
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, NamedTuple

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from rtdsae.model.cells import CellKind, make_cell
from rtdsae.model.distributions import Gaussian, kl, linear

__all__ = [
    "AR1",
    "RNN",
    "AR1Prior",
    "Context",
    "DynamicPrior",
    "DynamicPriorConfig",
    "Gated",
    "Labelled",
    "LearnableGaussian",
    "Normal",
    "Sequence",
    "StaticPriorConfig",
    "dynamic_prior",
    "static_prior",
]

Positive = Annotated[float, Meta(gt=0)]
Size = Annotated[int, Meta(ge=1)]

MAX_MEAN = 100.0  # of a gated transition; latents that a KL holds down are far below it


class Context(NamedTuple):
    """What training knows of each window of a batch.

    Attributes:
        label: (B,) index of its condition, or None where the recordings have none.
        sequence: (B,) index of its sequence (the segment that it was cut from).
        windows: (B,) how many windows that sequence has.
    """

    label: Tensor | None
    sequence: Tensor
    windows: Tensor


# ---------------------------------------------------------------------------------------------------- static latent f


class Normal(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="gaussian", tag_field="kind"):
    """N(μ, κ I).

    Attributes:
        variance: κ, or its first value.
        train_mean: whether μ, first 0, is learnt.
        train_variance: whether κ is learnt, for each dimension.
    """

    variance: Positive = 1.0
    train_mean: bool = False
    train_variance: bool = False


class Labelled(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="labelled", tag_field="kind"):
    """A Gaussian for each condition of the recording; `variance` is its first one."""

    variance: Positive = 1.0


class Sequence(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="sequence", tag_field="kind"):
    """A mean for each sequence, itself N(0, I); `variance` is that of f around it (FHVAE: 0.5²)."""

    variance: Positive = 0.25


StaticPriorConfig = Normal | Labelled | Sequence


class StaticPrior(nn.Module, ABC):
    """p(f), given what training knows."""

    @abstractmethod
    def forward(self, context: Context) -> Gaussian:
        """The prior of each window, (B, D)."""

    def penalty(self, context: Context) -> Tensor:
        """What else the prior adds to a window's KL, (B,)."""
        return torch.zeros_like(context.windows)


def mean_and_logvar(dim: int, config: Normal) -> tuple[nn.Parameter, nn.Parameter]:
    """The parameters of `gaussian` and `tiled`, (dim,) each: fixed or learnt."""
    mean, logvar = torch.zeros(dim), torch.full((dim,), math.log(config.variance))
    return nn.Parameter(mean, config.train_mean), nn.Parameter(logvar, config.train_variance)


class LearnableGaussian(StaticPrior):
    """`gaussian`: μ and κ, each fixed or learnt."""

    def __init__(self, dim: int, config: Normal) -> None:
        super().__init__()
        self.mean, self.logvar = mean_and_logvar(dim, config)

    def forward(self, context: Context) -> Gaussian:
        """The prior of each window, (B, D)."""
        n = len(context.sequence)
        return Gaussian(self.mean.expand(n, -1), self.logvar.expand(n, -1))


class LabelledGaussian(StaticPrior):
    """`labelled`: tables of means and log-variances, one row a label."""

    def __init__(self, dim: int, config: Labelled, n_labels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_labels, dim))
        self.logvar = nn.Parameter(torch.full((n_labels, dim), math.log(config.variance)))

    def forward(self, context: Context) -> Gaussian:
        """The prior of each window's label, (B, D)."""
        assert context.label is not None
        return Gaussian(self.mean[context.label], self.logvar[context.label])


class SequenceGaussian(StaticPrior):
    """`sequence`: a table of means μ_i, which training alone has."""

    def __init__(self, dim: int, config: Sequence, n_sequences: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_sequences, dim))
        self.variance = config.variance

    def forward(self, context: Context) -> Gaussian:
        """N(μ_i, κ I) of each window's sequence, (B, D)."""
        mean = self.mean[context.sequence]
        return Gaussian(mean, torch.full_like(mean, math.log(self.variance)))

    def penalty(self, context: Context) -> Tensor:
        """-log p(μ_i), shared by the windows of the sequence."""
        mean = self.mean[context.sequence]
        return -Gaussian(torch.zeros_like(mean), torch.zeros_like(mean)).log_prob(mean) / context.windows

    def log_posterior(self, f: Tensor, sequence: Tensor) -> Tensor:
        """Log p(i | f), i a row of the table: FHVAE's discriminative objective (eq. 8), (B, D) -> (B,)."""
        logits = -(f[:, None] - self.mean).square().sum(-1) / (2 * self.variance)
        return torch.log_softmax(logits, 1).gather(1, sequence[:, None])[:, 0]


def static_prior(config: StaticPriorConfig, dim: int, n_labels: int, n_sequences: int) -> StaticPrior:
    """A new prior of f."""
    match config:
        case Normal():
            return LearnableGaussian(dim, config)
        case Labelled():
            return LabelledGaussian(dim, config, n_labels)
        case Sequence():
            return SequenceGaussian(dim, config, n_sequences)


# --------------------------------------------------------------------------------------------------- dynamic latent z


class AR1(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="ar1", tag_field="kind"):
    """z_t = α z_{t-1} + ε_t, α = exp(-1/τ), ε_t ~ N(0, v): τ and v are learnt for each dimension.

    Attributes:
        tau: first value of τ, in bins.
        variance: first value of v.
    """

    tau: Positive = 10.0
    variance: Positive = 0.1


class RNN(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="rnn", tag_field="kind"):
    """A recurrent network over the latents before; `cell` and `units` are its own."""

    cell: CellKind = "lstm"
    units: Size = 32


class Gated(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="gated", tag_field="kind"):
    """The gated transition; `units` is the width of its two hidden layers."""

    units: Size = 32


class Tiled(Normal, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="tiled", tag_field="kind"):
    """One N(μ, κ I) for every bin."""


DynamicPriorConfig = AR1 | RNN | Gated | Tiled


class DynamicPrior(nn.Module, ABC):
    """p(z_t | z_<t), of which the past is z_{t-1} and a memory of its own.

    Args:
        dim: size of z.
    """

    memory_dim = 0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def begin(self, n: int) -> tuple[Tensor, Tensor]:
        """What stands for z before the first bin, (n, dim), and the first memory, (n, memory_dim)."""
        zeros = next(self.parameters()).new_zeros(n, self.dim)
        return zeros, zeros.new_zeros(n, self.memory_dim)

    def forward(self, z: Tensor, memory: Tensor) -> tuple[Gaussian, Tensor]:
        """The next bin's prior and memory, from z and memory of the bin before."""
        memory = self.remember(z, memory)
        return self.given(z, memory), memory

    def remember(self, z: Tensor, memory: Tensor) -> Tensor:
        """The next bin's memory, from z and memory of the bin before: (B, dim), (B, memory_dim)."""
        return memory

    @abstractmethod
    def given(self, z: Tensor, memory: Tensor) -> Gaussian:
        """The prior of a bin, from z of the bin before and its own memory: (..., dim), (..., memory_dim)."""

    def kl(self, q: Gaussian, p: Gaussian, observed: Tensor) -> Tensor:
        """Σ_t KL(q_t || p_t) over the observed bins: q and p (B, T, dim), observed (B, T, 1) -> (B,)."""
        return (kl(q, p) * observed[..., 0]).sum(1)


class AR1Prior(DynamicPrior):
    """`ar1`; the chain starts from its stationary distribution N(0, v / (1 - α²))."""

    def __init__(self, dim: int, config: AR1) -> None:
        super().__init__(dim)
        self.log_tau = nn.Parameter(torch.full((dim,), math.log(config.tau)))
        self.logvar = nn.Parameter(torch.full((dim,), math.log(config.variance)))

    def alpha(self) -> Tensor:
        """The chain's factor from one bin to the next, (dim,), within (0, 1)."""
        return (-torch.exp(-self.log_tau)).exp()

    def given(self, z: Tensor, memory: Tensor) -> Gaussian:
        """N(α z, v)."""
        return Gaussian(self.alpha() * z, self.logvar.expand_as(z))

    def kl(self, q: Gaussian, p: Gaussian, observed: Tensor) -> Tensor:
        """Σ_t KL, the first bin's against the stationary distribution."""
        stationary = self.logvar - (-torch.expm1(-2 * torch.exp(-self.log_tau))).log()
        logvar = torch.cat([stationary.expand_as(p.logvar[:, :1]), p.logvar[:, 1:]], 1)
        return super().kl(q, Gaussian(p.mean, logvar), observed)


class RNNPrior(DynamicPrior):
    """`rnn`; its memory is the network's state, first learnt; z before the first bin is 0."""

    def __init__(self, dim: int, config: RNN, clip: float) -> None:
        super().__init__(dim)
        self.cell = make_cell(config.cell, dim, config.units, clip)
        self.first = nn.Parameter(torch.zeros(self.cell.state_dim))
        self.memory_dim = self.cell.state_dim
        self.parameters_of = linear(config.units, 2 * dim)

    def begin(self, n: int) -> tuple[Tensor, Tensor]:
        """Zeros, and the network's first state."""
        return self.first.new_zeros(n, self.dim), self.first.expand(n, -1)

    def remember(self, z: Tensor, memory: Tensor) -> Tensor:
        """The network's next state, h = RNN(z, memory)."""
        return self.cell(z, memory)

    def given(self, z: Tensor, memory: Tensor) -> Gaussian:
        """N(μ(h), σ(h))."""
        mean, logvar = self.parameters_of(self.cell.out(memory)).chunk(2, -1)
        return Gaussian(mean, logvar)


class GatedPrior(DynamicPrior):
    """`gated`: μ = (1 - g) ⊙ A z + g ⊙ h(z), g and h two-layer networks; A starts as the identity.

    What stands for z before the first bin is learnt. Nothing keeps the map from growing, so that μ is bounded: a long
    gap would end in values that are not finite, and a stream does not recover from those.
    """

    def __init__(self, dim: int, config: Gated) -> None:
        super().__init__(dim)
        self.first = nn.Parameter(torch.zeros(dim))
        self.gate = nn.Sequential(linear(dim, config.units), nn.ReLU(), linear(config.units, dim), nn.Sigmoid())
        self.proposal = nn.Sequential(linear(dim, config.units), nn.ReLU(), linear(config.units, dim))
        self.straight = linear(dim, dim)
        nn.init.eye_(self.straight.weight)
        self.spread = linear(dim, dim)

    def begin(self, n: int) -> tuple[Tensor, Tensor]:
        """The learnt z before the first bin, and no memory."""
        return self.first.expand(n, -1), self.first.new_zeros(n, 0)

    def given(self, z: Tensor, memory: Tensor) -> Gaussian:
        """N(μ(z), σ(z)), σ = softplus(W relu(h(z)))."""
        g, h = self.gate(z), self.proposal(z)
        spread = nn.functional.softplus(self.spread(torch.relu(h))) + 1e-3  # no variance of 0
        mean = ((1 - g) * self.straight(z) + g * h).clamp(-MAX_MEAN, MAX_MEAN)
        return Gaussian(mean, 2 * spread.log())


class TiledPrior(DynamicPrior):
    """`tiled`: the same Gaussian for every bin, whatever came before."""

    def __init__(self, dim: int, config: Tiled) -> None:
        super().__init__(dim)
        self.mean, self.logvar = mean_and_logvar(dim, config)

    def given(self, z: Tensor, memory: Tensor) -> Gaussian:
        """N(μ, κ)."""
        return Gaussian(self.mean.expand_as(z), self.logvar.expand_as(z))


def dynamic_prior(config: DynamicPriorConfig, dim: int, clip: float) -> DynamicPrior:
    """A new prior of z."""
    match config:
        case AR1():
            return AR1Prior(dim, config)
        case RNN():
            return RNNPrior(dim, config, clip)
        case Gated():
            return GatedPrior(dim, config)
        case Tiled():
            return TiledPrior(dim, config)

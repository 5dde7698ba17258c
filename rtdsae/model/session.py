"""Between the model and the neurons: input normalisation with a read-in, and the read-out to rates."""

import torch
from torch import Tensor, nn

__all__ = ["ReadIn", "ReadOut", "UnitRowLinear"]

MIN_STD = 0.1  # counts a bin: a spike is at most 10 deviations


class ReadIn(nn.Module):
    """Standardise each channel, and optionally map the channels to fewer common inputs.

    Args:
        n_channels: channels that the encoders see.
        dim: size of the common inputs, or 0 for the channels themselves.
    """

    def __init__(self, n_channels: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_channels))
        self.register_buffer("std", torch.ones(n_channels))
        self.mean: Tensor
        self.std: Tensor
        self.dim = dim or n_channels
        self.linear = nn.Linear(n_channels, dim, bias=False) if dim else None
        if self.linear is not None:
            nn.init.normal_(self.linear.weight, std=n_channels**-0.5)

    def fit(self, counts: Tensor) -> None:
        """Take mean and standard deviation from training counts, (T, C).

        A rare channel's deviation is floored, so that one spike of it cannot drown the others; a silent channel is left
        unscaled.
        """
        self.mean.copy_(counts.mean(0))
        std = counts.std(0)
        self.std.copy_(torch.where(std > 0, std.clamp_min(MIN_STD), torch.ones_like(std)))

    def normalise(self, counts: Tensor) -> Tensor:
        """Counts (..., C) as deviations from the mean in standard deviations."""
        return (counts - self.mean) / self.std

    def forward(self, normalised: Tensor) -> Tensor:
        """Normalised channels (..., C) -> common inputs (..., dim)."""
        return normalised if self.linear is None else self.linear(normalised)


class UnitRowLinear(nn.Module):
    """A linear map without bias whose rows have unit norm: generator to factors, as in LFADS."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, in_dim) / in_dim**0.5)

    def unit_weight(self) -> Tensor:
        """The weight with rows of unit norm, (dim, in_dim)."""
        return nn.functional.normalize(self.weight, dim=1)

    def forward(self, h: Tensor) -> Tensor:
        """(..., in_dim) -> (..., dim)."""
        return nn.functional.linear(h, self.unit_weight())


class ReadOut(nn.Module):
    """Factors to log expected counts a bin, one per neuron (held-out ones too)."""

    def __init__(self, n_factors: int, n_neurons: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_factors, n_neurons)
        nn.init.normal_(self.linear.weight, std=n_factors**-0.5)

    def fit(self, counts: Tensor) -> None:
        """Start the bias at each neuron's log mean count, (T, C)."""
        with torch.no_grad():
            self.linear.bias.copy_(counts.mean(0).clamp_min(1e-4).log())

    def forward(self, factors: Tensor) -> Tensor:
        """(..., n_factors) -> log expected counts a bin, (..., n_neurons)."""
        return self.linear(factors)

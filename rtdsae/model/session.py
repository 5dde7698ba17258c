"""Between the model and one session's neurons: normalisation and read-in, read-out and reconstruction.

Sessions that share a model have read-ins and read-outs of their own, since their neurons are others.
"""

import torch
from torch import Tensor, nn

from rtdsae.model.distributions import linear
from rtdsae.model.reconstruction import ReconstructionKind, make_reconstruction

__all__ = ["ReadIn", "ReadOut", "Session"]

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
        self.linear = linear(n_channels, dim, bias=False) if dim else None

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


class ReadOut(nn.Module):
    """Factors to the reconstruction's values, for each neuron (held-out ones too)."""

    def __init__(self, n_factors: int, n_neurons: int, n_values: int) -> None:
        super().__init__()
        self.n_values, self.n_neurons = n_values, n_neurons
        self.linear = linear(n_factors, n_values * n_neurons)

    def forward(self, factors: Tensor) -> Tensor:
        """(..., n_factors) -> (..., n_values, n_neurons)."""
        return self.linear(factors).unflatten(-1, (self.n_values, self.n_neurons))


class Session(nn.Module):
    """What belongs to one session's neurons.

    Args:
        n_channels: channels that the encoders see.
        n_neurons: neurons that are modelled: the channels, and held-out ones.
        readin_dim: size of the common inputs, or 0 for the channels themselves.
        n_factors: size of the factors.
        reconstruction: how the counts are drawn.
    """

    def __init__(
        self, n_channels: int, n_neurons: int, readin_dim: int, n_factors: int, reconstruction: ReconstructionKind
    ) -> None:
        super().__init__()
        self.n_channels, self.n_neurons = n_channels, n_neurons
        self.readin = ReadIn(n_channels, readin_dim)
        self.reconstruction = make_reconstruction(reconstruction, n_neurons)
        self.readout = ReadOut(n_factors, n_neurons, self.reconstruction.n_values)

    @torch.no_grad()
    def fit(self, counts: Tensor, inputs: Tensor) -> None:
        """Take normalisation and the read-out's bias from training bins: (T, n_neurons), of which inputs (T, C)."""
        self.readin.fit(inputs)
        self.readout.linear.bias.copy_(self.reconstruction.start(counts).flatten())

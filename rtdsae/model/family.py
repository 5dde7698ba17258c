"""What every family is: two functions over one explicit state, `anchor` and `step`, and one way to train them.

    anchor(x[0:S])                     -> state
    step(state, x_t, observed_t, u_t)  -> state', outputs

A family writes `begin`, `advance` and `emit` over its own named state; here they become `anchor` and `step` over one
packed tensor, which is what is exported and streamed. Its `forward` explains whole windows, for training.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rtdsae.model.distributions import Gaussian
from rtdsae.model.readout import ReadIn, ReadOut

__all__ = ["Dims", "Family", "Outputs", "Unrolled"]


@dataclass(frozen=True)
class Dims:
    """What a model is made for: the sizes of its data and of its window.

    Attributes:
        n_channels: input channels, which the encoders see.
        n_neurons: neurons whose rates are modelled: the channels, and held-out neurons where there are any.
        n_external: known external inputs u.
        n_behaviour: columns of the behaviour read-out, 0 where the recording has none.
        bin_width_s: seconds a bin.
        anchor_bins: S, the leading bins that the static encoder sees.
        horizon_bins: R, the bins after them that training unrolls.
    """

    n_channels: int
    n_neurons: int
    n_external: int
    n_behaviour: int
    bin_width_s: float
    anchor_bins: int
    horizon_bins: int


class Outputs(NamedTuple):
    """One bin's outputs, or a window's: (..., size of each)."""

    factors: Tensor
    z: Tensor
    f: Tensor
    rates: Tensor
    behaviour: Tensor | None


class Unrolled(NamedTuple):
    """A window as the model explains it.

    Attributes:
        log_rates: (B, R, n_neurons), log expected counts a bin.
        outputs: (B, R, ...) each.
        kl: by latent (`f`, `z`), (B,), nats.
    """

    log_rates: Tensor
    outputs: Outputs
    kl: dict[str, Tensor]


class Family(nn.Module, ABC):
    """Base of the families.

    A subclass sets `state_type`, and writes `state_sizes`, `recurrent_kernels`, `begin`, `advance`, `emit`, `forward`.

    Args:
        dims: the sizes of data and window.
        readin_dim: size of the common inputs, or 0.
        n_factors: size of the factors.
    """

    state_type: Any  # the subclass's NamedTuple of tensors, one per state part
    causal: bool = True

    def __init__(self, dims: Dims, readin_dim: int, n_factors: int) -> None:
        super().__init__()
        self.dims = dims
        self.readin = ReadIn(dims.n_channels, readin_dim)
        self.readout = ReadOut(n_factors, dims.n_neurons)
        # Fitted by ridge regression once the latents are trained, so no gradient ever reaches it.
        self.behaviour = nn.Linear(n_factors, dims.n_behaviour).requires_grad_(False) if dims.n_behaviour else None

    @property
    def start(self) -> int:
        """The first bin that is modelled: S where the split is causal, 0 in the acausal reference."""
        return self.dims.anchor_bins if self.causal else 0

    @property
    @abstractmethod
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""

    @abstractmethod
    def begin(self, x: Tensor) -> Any:
        """The state after the S anchor bins, from normalised channels (B, S, C)."""

    @abstractmethod
    def advance(self, state: Any, x: Tensor, observed: Tensor, u: Tensor | None) -> Any:
        """The state one bin later, by posterior means: x (B, C) normalised, observed (B, 1), u (B, U) or None."""

    @abstractmethod
    def emit(self, state: Any) -> tuple[Tensor, Outputs]:
        """Log expected counts and outputs of a state, or of a window's states stacked along axis 1."""

    @abstractmethod
    def forward(self, x: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Unrolled:
        """Explain a window: x (B, T, C) normalised, observed (B, T, 1), u (B, T, U) or None -> bins start..T-1."""

    @abstractmethod
    def recurrent_kernels(self) -> dict[str, Tensor]:
        """The recurrent weights that an L2 term may hold down, by the part's name."""

    def anchor(self, x: Tensor) -> Tensor:
        """Counts of the first S bins, (lanes, S, C) -> packed state, (lanes, N)."""
        return torch.cat(self.begin(self.readin.normalise(x)), 1)

    def step(self, state: Tensor, x: Tensor, observed: Tensor, u: Tensor | None = None) -> tuple[Tensor, Outputs]:
        """One bin: packed state (lanes, N), counts (lanes, C), observed (lanes, 1), u (lanes, U) -> state', outputs."""
        parts = self.state_type(*state.split(list(self.state_sizes.values()), 1))
        parts = self.advance(parts, self.readin.normalise(x), observed, u)
        return torch.cat(parts, 1), self.emit(parts)[1]

    def outputs_of(self, factors: Tensor, z: Tensor, f: Tensor) -> tuple[Tensor, Outputs]:
        """Read rates and behaviour out of the factors."""
        log_rates = self.readout(factors)
        rates = log_rates.exp() / self.dims.bin_width_s
        behaviour = self.behaviour(factors) if self.behaviour is not None else None
        return log_rates, Outputs(factors, z, f, rates, behaviour)

    def fit_normalisation(self, counts: Tensor, inputs: Tensor) -> None:
        """Take the read-in's scale and the read-out's mean rates from training bins, (T, n_neurons) and (T, C)."""
        self.readin.fit(inputs)
        self.readout.fit(counts)

    def noise(self, like: Gaussian, sample: bool) -> Tensor | None:
        """Standard normal noise for a posterior, or None for its mean."""
        return torch.randn_like(like.mean) if sample else None

"""Generators: from the latents f and z to the factors."""

from typing import Literal

import torch
from torch import Tensor, nn

from rtdsae.model.cells import CellKind, make_cell
from rtdsae.model.distributions import linear
from rtdsae.model.masking import Dropout

__all__ = ["Framewise", "Generator", "StaticUse"]

StaticUse = Literal["initial_state", "tiled"]


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


class Generator(nn.Module):
    """A recurrent generator, g_t = RNN([z_t, u_t], g_{t-1}), factors_t = W̄ g_t.

    Args:
        kind: its cell.
        f_dim: size of f.
        z_dim: size of z.
        n_external: size of u.
        dim: units.
        n_factors: size of the factors.
        static: whether f is the initial state, g_0 = W f, or tiled onto z at every bin.
        clip: bound of a clipped GRU's units.
        dropout: rate on the units that the factors are read from.
    """

    def __init__(
        self,
        kind: CellKind,
        f_dim: int,
        z_dim: int,
        n_external: int,
        dim: int,
        n_factors: int,
        static: StaticUse,
        clip: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tiled = static == "tiled"
        self.cell = make_cell(kind, z_dim + n_external + (f_dim if self.tiled else 0), dim, clip)
        self.initial = None if self.tiled else linear(f_dim, self.cell.state_dim)
        self.first = nn.Parameter(torch.zeros(self.cell.state_dim)) if self.tiled else None
        self.factors = UnitRowLinear(dim, n_factors)
        self.drop = Dropout(dropout)

    @property
    def state_dim(self) -> int:
        """Size of the state."""
        return self.cell.state_dim

    def begin(self, f: Tensor) -> Tensor:
        """The state before the first modelled bin, (B, f_dim) -> (B, state_dim)."""
        if self.initial is not None:
            return self.initial(f)
        assert self.first is not None
        return self.first.expand(len(f), -1)

    def step(self, z: Tensor, f: Tensor, u: Tensor | None, state: Tensor) -> Tensor:
        """One bin: (B, z_dim), (B, f_dim), (B, n_external) or None, (B, state_dim) -> (B, state_dim)."""
        inputs = [z] + ([f] if self.tiled else []) + ([u] if u is not None else [])
        return self.cell(torch.cat(inputs, 1), state)

    def project_without_z(self, f: Tensor, u: Tensor | None, n_bins: int) -> Tensor:
        """The gates' part that does not depend on z: f (B, f_dim), u (B, n_bins, U) -> (B, n_bins, gates_dim)."""
        inputs = ([f[:, None].expand(-1, n_bins, -1)] if self.tiled else []) + ([u] if u is not None else [])
        if not inputs:
            return self.cell.bias.expand(len(f), n_bins, -1)
        others = torch.cat(inputs, 2)
        return others @ self.cell.weight_x[-others.shape[2] :] + self.cell.bias

    def read(self, state: Tensor) -> Tensor:
        """The factors of a state: (..., state_dim) -> (..., n_factors)."""
        return self.factors(self.drop(self.cell.out(state)))

    def forward(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """The factors of a window: (B, R, f_dim), (B, R, z_dim), (B, R, n_external) or None -> (B, R, n_factors)."""
        inputs = [z] + ([f] if self.tiled else []) + ([u] if u is not None else [])
        return self.factors(self.drop(self.cell.encode(torch.cat(inputs, 2), self.begin(f[:, 0]))))


class Framewise(nn.Module):
    """A generator without memory: two layers on [f_t, z_t, u_t] give the factors of bin t."""

    def __init__(self, in_dim: int, dim: int, n_factors: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            linear(in_dim, dim), nn.ReLU(), linear(dim, dim), nn.ReLU(), Dropout(dropout), linear(dim, n_factors)
        )

    def forward(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """(..., f_dim), (..., z_dim), (..., n_external) or None -> (..., n_factors)."""
        return self.layers(torch.cat([f, z] + ([u] if u is not None else []), -1))

"""Encoders of a window: recurrent in one or both directions of time, and the lag between bins and latents."""

from typing import Literal

import torch
from torch import Tensor, nn

from rtdsae.model.cells import Cell, CellKind, hold, make_cell

__all__ = ["Encoder", "first_line", "lagged", "push"]

Direction = Literal["forward", "backward", "both"]
WAYS = {"forward": ("ahead",), "backward": ("back",), "both": ("ahead", "back")}


class Encoder(nn.Module):
    """A recurrent encoder with learnable first states; it sees the future of its window unless it runs forward.

    Args:
        kind: the cells.
        in_dim: size of the input.
        dim: units of each direction.
        clip: bound of a clipped GRU's units.
        direction: forward alone can be streamed.
    """

    def __init__(self, kind: CellKind, in_dim: int, dim: int, clip: float, direction: Direction = "forward") -> None:
        super().__init__()
        ways = WAYS[direction]
        self.cells = nn.ModuleDict({way: make_cell(kind, in_dim, dim, clip) for way in ways})
        self.first = nn.ParameterDict({way: nn.Parameter(torch.zeros(self.state_dim)) for way in ways})
        self.dim = dim * len(ways)

    def cell(self, way: str) -> Cell:
        """The cell of one direction."""
        return self.cells[way]  # type: ignore[return-value]

    @property
    def state_dim(self) -> int:
        """Size of one direction's state."""
        return self.cell(next(iter(self.cells))).state_dim

    def begin(self, n: int) -> Tensor:
        """The forward direction's first state, (n, state_dim)."""
        return self.first["ahead"].expand(n, -1)

    def step(self, x: Tensor, state: Tensor, observed: Tensor) -> Tensor:
        """One bin forward in time, held where it was not observed: (B, in_dim), (B, state_dim) -> (B, state_dim)."""
        return hold(self.cell("ahead")(x, state), state, observed)

    def out(self, state: Tensor) -> Tensor:
        """What is seen of a forward state: (..., state_dim) -> (..., dim)."""
        return self.cell("ahead").out(state)

    def scan(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """The forward direction's states over a window, (B, T, in_dim) -> (B, T, state_dim)."""
        return self.cell("ahead").scan(x, self.begin(len(x)), observed)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """The encoding of every bin, the directions side by side: (B, T, in_dim) -> (B, T, dim)."""
        parts = []
        for way in self.cells:
            cell, back = self.cell(way), way == "back"
            inputs, seen = (x.flip(1) if back else x, observed.flip(1) if back and observed is not None else observed)
            encoded = cell.encode(inputs, self.first[way].expand(len(x), -1), seen)
            parts.append(encoded.flip(1) if back else encoded)
        return torch.cat(parts, 2)

    def summary(self, x: Tensor) -> Tensor:
        """The last state of each direction side by side: (B, T, in_dim) -> (B, dim)."""
        encoded = self(x).split(self.dim // len(self.cells), 2)
        last = [part[:, 0 if way == "back" else -1] for way, part in zip(self.cells, encoded, strict=True)]
        return torch.cat(last, 1)


def lagged(encoded: Tensor, start: int, lag: int) -> Tensor:
    """The encodings that the bins start..T-1 get: each of `lag` bins before, (B, T, D) -> (B, T - start, D)."""
    return encoded[:, start - lag : encoded.shape[1] - lag]


def first_line(encoded: Tensor, lag: int) -> Tensor:
    """The line that a stream begins with: the last `lag` of the encodings, oldest first, (B, T, D) -> (B, lag · D)."""
    return encoded[:, encoded.shape[1] - lag :].flatten(1)


def push(encoded: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
    """One bin of the same in a stream.

    Args:
        encoded: (B, D), of this bin.
        line: (B, lag · D), the encodings of the last bins, oldest first.

    Returns:
        The encoding of `lag` bins before, and the line one bin later.
    """
    line = torch.cat([line, encoded], 1) if line.shape[1] else encoded
    return line[:, : encoded.shape[1]], line[:, encoded.shape[1] :]

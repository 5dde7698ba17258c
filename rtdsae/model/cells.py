"""The recurrent cells: clipped GRU, GRU and LSTM, behind one interface.

A cell's state is one tensor, whatever it is made of, and `out` takes from it what others may see. The input's products
are apart (`project`), so that a whole window's are one product, and other inputs may be added to them.

    clipped GRU   r, u = σ(W x + U h + b)   n = tanh(W x + U (r ⊙ h) + b)   h' = clip(u ⊙ h + (1 - u) ⊙ n)
    GRU           the same, but n = tanh(W x + b + r ⊙ (U h + c)), unclipped (torch.nn.GRUCell)
    LSTM          i, f, o = σ(W x + U h + b)   g = tanh(W x + U h + b)   c' = f ⊙ c + i ⊙ g   h' = o ⊙ tanh(c')

Gates that remember have biases that start at 1, so that a new network remembers. Sources: Sussillo et al. 2016
(arXiv:1608.06315) and their released code for the clipped GRU, whose reset gate acts before the product (ONNX:
linear_before_reset = 0); Cho et al. 2014 (arXiv:1406.1078); Hochreiter & Schmidhuber 1997.
"""

import warnings
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from rtdsae.model.scans import at_once, clipped_gru

__all__ = ["Cell", "CellKind", "ClippedGRUCell", "GRUCell", "LSTMCell", "hold", "make_cell", "observed_first"]

# cuDNN's, at every call: that it copies them together, a few hundred kB. They are whatever the steps multiply by.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")

CellKind = Literal["clipped_gru", "gru", "lstm"]


def hold(new: Tensor, old: Tensor, observed: Tensor) -> Tensor:
    """The new state where the bin was observed, the old one where it was not; `observed` is (B, 1) of 0 and 1."""
    return torch.where(observed > 0, new, old)


def observed_first(x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The bins of a window with those that were observed before the others, each in their order.

    Args:
        x: (B, T, D).
        observed: (B, T, 1) of 0 and 1.

    Returns:
        x in the new order, and how many bins had been observed by the end of each, (B, T, 1).
    """
    order = (observed <= 0).to(torch.uint8).argsort(dim=1, stable=True)
    return x.gather(1, order.expand_as(x)), (observed > 0).cumsum(1)


class Cell(nn.Module, ABC):
    """A recurrent cell.

    Args:
        in_dim: size of x.
        dim: units, the size of `out`.
        n_gates: gates that are projected, counting the candidate.
        remember: which of them begin with a bias of 1.
    """

    def __init__(self, in_dim: int, dim: int, n_gates: int, remember: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = dim
        self.gates_dim = n_gates * dim
        self.weight_x = nn.Parameter(torch.randn(in_dim, n_gates * dim) / in_dim**0.5)
        self.weight_h = nn.Parameter(torch.randn(dim, n_gates * dim) / dim**0.5)
        bias = torch.zeros(n_gates, dim)
        bias[list(remember)] = 1
        self.bias = nn.Parameter(bias.flatten())

    @property
    def state_dim(self) -> int:
        """Size of the state."""
        return self.dim

    def project(self, x: Tensor) -> Tensor:
        """The input's part of the gates: (..., in_dim) -> (..., gates_dim)."""
        return x @ self.weight_x + self.bias

    @abstractmethod
    def update(self, gates: Tensor, state: Tensor) -> Tensor:
        """One step from the projected input: (B, gates_dim), (B, state_dim) -> (B, state_dim)."""

    def out(self, state: Tensor) -> Tensor:
        """What others see of a state: (..., state_dim) -> (..., dim)."""
        return state

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """One step: (B, in_dim), (B, state_dim) -> (B, state_dim)."""
        return self.update(self.project(x), state)

    def scan(self, x: Tensor, state: Tensor, observed: Tensor | None = None) -> Tensor:
        """The states over a window, holding where a bin was not observed: (B, T, in_dim) -> (B, T, state_dim)."""
        states = []
        for t, gates in enumerate(self.project(x).unbind(1)):
            new = self.update(gates, state)
            state = new if observed is None else hold(new, state, observed[:, t])
            states.append(state)
        return torch.stack(states, 1)

    def encode(self, x: Tensor, state: Tensor, observed: Tensor | None = None) -> Tensor:
        """What others see of the states over a window: (B, T, in_dim) -> (B, T, dim)."""
        return self.out(self.scan(x, state, observed))


class ClippedGRUCell(Cell):
    """LFADS's GRU: the reset gate acts before the product, and each element of the state is within ±clip."""

    def __init__(self, in_dim: int, dim: int, clip: float) -> None:
        super().__init__(in_dim, dim, 3, remember=(0, 1))
        self.clip = clip

    def update(self, gates: Tensor, state: Tensor) -> Tensor:
        """One step from the projected input."""
        d = self.dim
        r, u = torch.sigmoid(gates[:, : 2 * d] + state @ self.weight_h[:, : 2 * d]).split(d, 1)
        n = torch.tanh(gates[:, 2 * d :] + (r * state) @ self.weight_h[:, 2 * d :])
        return (n + u * (state - n)).clamp(-self.clip, self.clip)

    def scan(self, x: Tensor, state: Tensor, observed: Tensor | None = None) -> Tensor:
        """The states over a window; where gradients are wanted, by hand."""
        if not at_once(x):
            return super().scan(x, state, observed)
        gates, seen = self.project(x.transpose(0, 1)), None if observed is None else observed.transpose(0, 1)
        return clipped_gru(gates, state, self.weight_h, self.clip, seen).transpose(0, 1)


class LibraryCell(Cell):
    """A cell that torch has whole windows of: training runs these, in half of the time of its steps."""

    @abstractmethod
    def run(self, x: Tensor, state: Tensor) -> Tensor:
        """What others see of the states over a window, by torch: (B, T, in_dim), (B, state_dim) -> (B, T, dim)."""

    def encode(self, x: Tensor, state: Tensor, observed: Tensor | None = None) -> Tensor:
        """What others see of the states over a window; where gradients are wanted, by torch."""
        if not at_once(x):
            return super().encode(x, state, observed)
        if observed is None:
            return self.run(x, state)
        x, so_far = observed_first(x, observed)  # torch's hold nothing: they see the observed bins alone
        seen = torch.cat([self.out(state)[:, None], self.run(x, state)], 1)
        return seen.gather(1, so_far.expand(-1, -1, self.dim))


class GRUCell(LibraryCell):
    """The usual GRU: the reset gate acts after the product, which has a bias of its own."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim, 3, remember=(1,))
        self.bias_n = nn.Parameter(torch.zeros(dim))

    def update(self, gates: Tensor, state: Tensor) -> Tensor:
        """One step from the projected input."""
        d = self.dim
        recurrent = state @ self.weight_h
        r, u = torch.sigmoid(gates[:, : 2 * d] + recurrent[:, : 2 * d]).split(d, 1)
        n = torch.tanh(gates[:, 2 * d :] + r * (recurrent[:, 2 * d :] + self.bias_n))
        return n + u * (state - n)

    def run(self, x: Tensor, state: Tensor) -> Tensor:
        """What others see of the states over a window, by torch."""
        bias_h = torch.cat([torch.zeros_like(self.bias[: 2 * self.dim]), self.bias_n])
        weights = [self.weight_x.T.contiguous(), self.weight_h.T.contiguous(), self.bias, bias_h]  # cuDNN wants them so
        return torch.gru(x, state[None].contiguous(), weights, True, 1, 0.0, True, False, True)[0]


class LSTMCell(LibraryCell):
    """The LSTM; its state is [h, c], of which h is seen."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim, 4, remember=(1,))

    @property
    def state_dim(self) -> int:
        """Size of [h, c]."""
        return 2 * self.dim

    def update(self, gates: Tensor, state: Tensor) -> Tensor:
        """One step from the projected input."""
        h, c = state.split(self.dim, 1)
        i, f, g, o = (gates + h @ self.weight_h).split(self.dim, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)

    def run(self, x: Tensor, state: Tensor) -> Tensor:
        """What others see of the states over a window, by torch."""
        weights = [self.weight_x.T.contiguous(), self.weight_h.T.contiguous(), self.bias, torch.zeros_like(self.bias)]
        h, c = state[None].split(self.dim, 2)
        return torch.lstm(x, (h.contiguous(), c.contiguous()), weights, True, 1, 0.0, True, False, True)[0]

    def out(self, state: Tensor) -> Tensor:
        """The part h of [h, c]."""
        return state[..., : self.dim]


def make_cell(kind: CellKind, in_dim: int, dim: int, clip: float) -> Cell:
    """A new cell of a kind; only the clipped GRU is clipped."""
    match kind:
        case "clipped_gru":
            return ClippedGRUCell(in_dim, dim, clip)
        case "gru":
            return GRUCell(in_dim, dim)
        case "lstm":
            return LSTMCell(in_dim, dim)

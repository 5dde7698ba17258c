"""The clipped GRU of LFADS, and the two ways it runs over a window.

    r = σ(W_r x + U_r h + b_r)    u = σ(W_u x + U_u h + b_u)    n = tanh(W_n x + U_n (r ⊙ h) + b_n)
    h' = clip(u ⊙ h + (1 - u) ⊙ n, ±clip)

The reset gate acts before the product (ONNX: linear_before_reset = 0), and the gates' biases start at 1, so that a new
network remembers (Sussillo et al. 2016, arXiv:1608.06315, and their released code).
"""

import torch
from torch import Tensor, nn

__all__ = ["BiGRU", "ClippedGRUCell", "hold"]


def hold(new: Tensor, old: Tensor, observed: Tensor) -> Tensor:
    """The new state where the bin was observed, the old one where it was not; `observed` is (B, 1) of 0 and 1."""
    return observed * new + (1 - observed) * old


class ClippedGRUCell(nn.Module):
    """A GRU cell whose state is clipped, with the input's products apart, so that a whole window's are one product.

    Args:
        in_dim: size of x.
        dim: size of h.
        clip: bound of each element of h.
    """

    def __init__(self, in_dim: int, dim: int, clip: float) -> None:
        super().__init__()
        self.dim = dim
        self.clip = clip
        self.weight_x = nn.Parameter(torch.randn(in_dim, 3 * dim) / in_dim**0.5)
        self.weight_h = nn.Parameter(torch.randn(dim, 3 * dim) / dim**0.5)
        self.bias = nn.Parameter(torch.cat([torch.ones(2 * dim), torch.zeros(dim)]))

    def project(self, x: Tensor) -> Tensor:
        """The input's part of the three gates: (..., in_dim) -> (..., 3 dim)."""
        return x @ self.weight_x + self.bias

    def update(self, gates: Tensor, h: Tensor) -> Tensor:
        """One step from the projected input: (B, 3 dim), (B, dim) -> (B, dim)."""
        d = self.dim
        r, u = torch.sigmoid(gates[:, : 2 * d] + h @ self.weight_h[:, : 2 * d]).split(d, 1)
        n = torch.tanh(gates[:, 2 * d :] + (r * h) @ self.weight_h[:, 2 * d :])
        return (n + u * (h - n)).clamp(-self.clip, self.clip)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One step: (B, in_dim), (B, dim) -> (B, dim)."""
        return self.update(self.project(x), h)

    def scan(self, x: Tensor, h: Tensor, observed: Tensor | None = None) -> Tensor:
        """The states over a window, holding where a bin was not observed: (B, T, in_dim), (B, dim) -> (B, T, dim)."""
        states = []
        for t, gates in enumerate(self.project(x).unbind(1)):
            new = self.update(gates, h)
            h = new if observed is None else hold(new, h, observed[:, t])
            states.append(h)
        return torch.stack(states, 1)


class BiGRU(nn.Module):
    """A forward and a backward clipped GRU with learnable first states; it sees the future of its window."""

    def __init__(self, in_dim: int, dim: int, clip: float) -> None:
        super().__init__()
        self.forward_cell = ClippedGRUCell(in_dim, dim, clip)
        self.backward_cell = ClippedGRUCell(in_dim, dim, clip)
        self.first = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The states of both directions, each (B, T, dim), in the order of time."""
        ahead, back = (h.expand(len(x), -1) for h in self.first)
        return self.forward_cell.scan(x, ahead), self.backward_cell.scan(x.flip(1), back).flip(1)

    def summary(self, x: Tensor) -> Tensor:
        """The two last states side by side: (B, T, in_dim) -> (B, 2 dim)."""
        ahead, back = self(x)
        return torch.cat([ahead[:, -1], back[:, 0]], 1)

"""What training hides from the encoders: single entries (coordinated dropout) and whole bins (gaps)."""

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "coordinated_dropout", "random_gaps"]


class Dropout(nn.Module):
    """Dropout as in `torch.nn.Dropout`, but with a mask that is drawn four times as fast on a CPU.

    Args:
        rate: fraction of the entries that is zeroed in training; the others are scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape; in training some of its entries zeroed and the others scaled."""
        if not self.training or not self.rate:
            return x
        return x * torch.rand_like(x).ge_(self.rate).mul_(1 / (1 - self.rate))


def coordinated_dropout(
    x: Tensor, rate: float, start: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Drop random entries of the input from bin `start` on; only what was dropped is to be scored.

    An encoder that sees bin t may copy it into rate t. Where the likelihood counts only entries that the encoder was
    not shown, copying earns nothing (Keshtkaran & Pandarinath 2019, arXiv:1908.07896). The two masks are aligned to
    the same bins: entry (t, c) is scored exactly where (t, c) was dropped.

    Args:
        x: (B, T, C), normalised, so that a dropped entry reads as the channel's mean.
        rate: the fraction that is dropped; what is kept is scaled by 1 / (1 - rate).
        start: first bin that may be dropped (S in a causal split; the anchor's bins are never scored).
        generator: source of the mask; torch's own where None.

    Returns:
        The input with entries dropped, (B, T, C), and what to score, (B, T - start, C) of 0 and 1.
    """
    shape = (x.shape[0], x.shape[1] - start, x.shape[2])
    drop = (torch.rand(shape, generator=generator, device="cpu").to(x.device) < rate).to(x.dtype)
    return torch.cat([x[:, :start], x[:, start:] * (1 - drop) / (1 - rate)], 1), drop


def random_gaps(n: int, bins: int, rate: float, longest: int) -> Tensor:
    """Which bins are observed, (n, bins, 1) of 0 and 1: a fraction `rate` of the n windows has one random gap.

    The gap's length is uniform in 1..longest and it lies anywhere in the window, its ends cut off. Training on gaps is
    what teaches the generator to forecast.
    """
    length = torch.randint(1, longest + 1, (n, 1)) * (torch.rand(n, 1) < rate)
    first = torch.randint(0, bins, (n, 1))
    t = torch.arange(bins)
    return ((t < first) | (t >= first + length)).float()[..., None]

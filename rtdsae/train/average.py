"""The average of the weights along a run: what is validated and kept, while training itself goes on from the newest.

A model that filters wanders about a good one from step to step; the average is steadier and, on every set that was
tried, nearer to the truth (docs/log.md). Source: polynomial-decay averaging (Shamir & Zhang 2013, ICML, section 4).
"""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rtdsae.model.family import Family

__all__ = ["Averaged"]

POWER = 3  # the last quarter of the steps counts most


class Averaged(AveragedModel):
    """A copy of a model, to be told of each step by `update_parameters(family)`.

    Attributes:
        module: the average.
    """

    module: Family

    def __init__(self, family: Family) -> None:
        super().__init__(family, avg_fn=polynomial_decay)


def polynomial_decay(mean: Tensor, weight: Tensor, n: Tensor | int) -> Tensor:
    """The average of n + 1 steps from that of n: step t counts as t^POWER, about."""
    return torch.lerp(mean, weight, (POWER + 1) / (float(n) + POWER + 1))

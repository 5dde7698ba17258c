"""FactorVAE's adversary: a discriminator that tells latents from latents whose dimensions were shuffled.

Its two logits estimate the total correlation, log q(f) / Π_d q(f_d), which the model then lowers; it learns beside the
model, with an optimiser of its own (Kim & Mnih 2018, arXiv:1802.05983, algorithm 2).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rtdsae.model.distributions import linear

__all__ = ["Adversary"]


class Adversary:
    """The discriminator and its optimiser.

    Args:
        dim: size of f.
        units: width of its hidden layers.
        learning_rate: Adam's.
        device: where it lives.
    """

    def __init__(self, dim: int, units: int, learning_rate: float, device: torch.device) -> None:
        layers: list[nn.Module] = [linear(dim, units), nn.LeakyReLU(0.2)]
        for _ in range(2):
            layers += [linear(units, units), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, linear(units, 2)).to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    def total_correlation(self, f: Tensor) -> Tensor:
        """The estimate in nats, a scalar through which f learns: (M, D)."""
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)  # the model's loss must not teach its judge
        logits = self.net(f)
        for parameter in self.net.parameters():
            parameter.requires_grad_(True)
        return (logits[:, 0] - logits[:, 1]).mean()

    def learn(self, f: Tensor) -> float:
        """One step of its own: half of the latents as they are, the other half shuffled. Returns its loss, nats.

        Fewer than four latents teach nothing: half of them cannot be shuffled.
        """
        real, other = f.detach().tensor_split(2)
        shuffled = torch.stack([column[torch.randperm(len(other), device=f.device)] for column in other.unbind(1)], 1)
        logits = self.net(torch.cat([real, shuffled]))
        truth = torch.cat([torch.zeros(len(real)), torch.ones(len(shuffled))]).long().to(f.device)
        loss = cross_entropy(logits, truth)
        if len(other) > 1:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser, for last.pt."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

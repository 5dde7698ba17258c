"""q(f) from the anchor bins."""

from torch import Tensor, nn

from rtdsae.model.distributions import Gaussian, GaussianHead
from rtdsae.model.encoders import Encoder
from rtdsae.model.family import FamilyConfig
from rtdsae.model.masking import Dropout

__all__ = ["StaticInference"]


class StaticInference(nn.Module):
    """q(f) from the anchor bins, by an encoder that sees them in both directions: they all lie in the past.

    Args:
        config: the family's.
        in_dim: size of the read-in.
        dim: units of each direction.
    """

    def __init__(self, config: FamilyConfig, in_dim: int, dim: int) -> None:
        super().__init__()
        self.enc = Encoder(config.cell, in_dim, dim, config.clip, "both")
        self.head = GaussianHead(self.enc.dim, config.f_dim, config.f_posterior)
        self.drop = Dropout(config.dropout)

    def forward(self, inputs: Tensor) -> Gaussian:
        """(B, S, readin) -> q(f), (B, f_dim)."""
        return self.head(self.drop(self.enc.summary(inputs)))

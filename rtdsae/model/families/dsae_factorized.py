"""DSAE, factorized: a disentangled sequential autoencoder whose dynamic posterior sees one bin.

    f ~ q(f | x[0:S])          from a bidirectional LSTM over the S anchor bins; prior N(0, I)
    z_t ~ q(z_t | MLP(x_t))    prior p(z_t | z_<t) from an LSTM
    factors_t = MLP([f, z_t, u_t])

Causal as published, given f. Where a bin was not observed, z follows its prior.

Source: Li & Mandt 2018 (arXiv:1803.02991), "factorized" q. Published, f sees the whole sequence (`causal: false`).
"""

from typing import NamedTuple

from torch import Tensor, nn

from rtdsae.model.distributions import GaussianHead, linear
from rtdsae.model.encoders import lagged, push
from rtdsae.model.family import Dims, Family, FamilyConfig, Inferred, Latents, Size, tile
from rtdsae.model.generators import Framewise
from rtdsae.model.priors import RNN, DynamicPriorConfig, Normal, StaticPriorConfig
from rtdsae.model.static_inference import StaticInference

__all__ = ["DSAEFactorized", "DSAEFactorizedConfig"]


class DSAEFactorizedConfig(
    FamilyConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="dsae_factorized", tag_field="family"
):
    """The factorized DSAE's own settings.

    Attributes:
        f_enc_dim: units of each direction of the static encoder.
        z_enc_dim: units of the two layers on a single bin.
    """

    f_prior: StaticPriorConfig = Normal()
    z_prior: DynamicPriorConfig = RNN()
    f_enc_dim: Size = 64
    z_enc_dim: Size = 64


class State(NamedTuple):
    """What one bin hands to the next."""

    lag: Tensor
    z: Tensor
    prior: Tensor
    f: Tensor


class DSAEFactorized(Family):
    """The factorized DSAE over one explicit state."""

    state_type = State

    def __init__(self, config: DSAEFactorizedConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        c, in_dim = config, self.readin.dim
        self.z_enc_dim = c.z_enc_dim
        self.f_enc = StaticInference(c, in_dim, c.f_enc_dim)
        self.z_enc = nn.Sequential(linear(in_dim, c.z_enc_dim), nn.ReLU(), linear(c.z_enc_dim, c.z_enc_dim), nn.ReLU())
        self.z_posterior = GaussianHead(c.z_enc_dim, c.z_dim, c.z_posterior)
        self.gen = Framewise(c.f_dim + c.z_dim + dims.n_external, c.gen_dim, c.fac_dim, c.dropout)

    @property
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""
        lag = self.z_lag * self.z_enc_dim
        return {"lag": lag, "z": self.z_dim, "prior": self.z_prior.memory_dim, "f": self.f_dim}

    def recurrent_kernels(self) -> dict[str, Tensor]:
        """None: the generator has no memory."""
        return {}

    def begin(self, inputs: Tensor) -> State:
        """The state after the anchor bins."""
        f = self.f_enc(inputs).mean
        line = self.z_enc(inputs[:, inputs.shape[1] - self.z_lag :]).flatten(1)
        return State(line, *self.z_prior.begin(len(f)), f)

    def advance(self, state: State, inputs: Tensor, observed: Tensor, u: Tensor | None) -> tuple[State, Latents]:
        """One bin by posterior means."""
        e, line = push(self.z_enc(inputs), state.lag)
        z, memory, _ = self.next_z(self.z_posterior(e), state.z, state.prior, observed, None)
        return State(line, z, memory, state.f), Latents(self.gen(state.f, z, u), z, state.f)

    def infer(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """A whole window: f, then the encoder at once, then z bin by bin, then the factors."""
        q_f, f = self.infer_f(self.f_enc, inputs, sample)
        q_z = self.z_posterior(self.drop(lagged(self.z_enc(inputs), self.start, self.z_lag)))
        z, p_z = self.scan_z(q_z, observed[:, self.start :], sample)
        factors = self.generate(tile(f, z.shape[1]), z, u)
        return Inferred.once(factors, z, q_z, p_z, q_f, f)

    def generate(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """Factors from both latents alone."""
        return self.gen(f, z, u)

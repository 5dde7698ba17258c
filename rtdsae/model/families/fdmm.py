"""FDMM: a factorized deep Markov model, in its filtering form.

    f ~ q(f | x[0:S])                       from a bidirectional LSTM over the S anchor bins; prior N(0, I)
    h_t = LSTM(x_t, h_{t-1})                forward only, warmed on the anchor bins
    z_t ~ q(z_t | ½ (tanh(W z_{t-1}) + tanh(V h_t)))     the combiner
    p(z_t | z_{t-1})                        a gated transition
    factors_t = MLP([f, z_t, u_t])          the emission

Where a bin was not observed, h holds and z follows its transition: the prior is a one-step predictor by itself. The
stream carries z_{t-1}'s mean.

Sources: Khurana et al. 2019 (ICASSP) for the static latent beside the Markov one, Krishnan et al. 2017
(arXiv:1609.09869) for transition and combiner. Published, f sees the whole sequence and h runs backward
(`causal: false`), so that z_t sees the future.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rtdsae.model.distributions import Gaussian, GaussianHead, linear
from rtdsae.model.encoders import Encoder, first_line, lagged, push
from rtdsae.model.family import Dims, Family, FamilyConfig, Inferred, Latents, Size, stack, tile
from rtdsae.model.generators import Framewise
from rtdsae.model.priors import DynamicPriorConfig, Gated, Normal, StaticPriorConfig
from rtdsae.model.static_inference import StaticInference

__all__ = ["FDMM", "FDMMConfig"]


class FDMMConfig(FamilyConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="fdmm", tag_field="family"):
    """The FDMM's own settings.

    Attributes:
        f_enc_dim: units of each direction of the static encoder.
        z_enc_dim: units of the dynamic encoder and of the combiner.
    """

    f_prior: StaticPriorConfig = Normal()
    z_prior: DynamicPriorConfig = Gated()
    f_enc_dim: Size = 64
    z_enc_dim: Size = 64


class State(NamedTuple):
    """What one bin hands to the next."""

    enc: Tensor
    lag: Tensor
    z: Tensor
    prior: Tensor
    f: Tensor


class FDMM(Family):
    """The FDMM over one explicit state."""

    state_type = State

    def __init__(self, config: FDMMConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        c, in_dim = config, self.readin.dim
        self.f_enc = StaticInference(c, in_dim, c.f_enc_dim)
        self.z_enc = Encoder(c.cell, in_dim, c.z_enc_dim, c.clip, "forward" if c.causal else "backward")
        self.from_data = linear(c.z_enc_dim, c.z_enc_dim)
        self.from_z = linear(c.z_dim, c.z_enc_dim)
        self.z_posterior = GaussianHead(c.z_enc_dim, c.z_dim, c.z_posterior)
        self.gen = Framewise(c.f_dim + c.z_dim + dims.n_external, c.gen_dim, c.fac_dim, c.dropout)

    @property
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""
        return {
            "enc": self.z_enc.state_dim,
            "lag": self.z_lag * self.z_enc.dim,
            "z": self.z_dim,
            "prior": self.z_prior.memory_dim,
            "f": self.f_dim,
        }

    def recurrent_kernels(self) -> dict[str, Tensor]:
        """None: the transition is no recurrent network."""
        return {}

    def begin(self, inputs: Tensor) -> State:
        """The state after the anchor bins."""
        enc = self.z_enc.scan(inputs)
        line = first_line(self.z_enc.out(enc), self.z_lag)
        f = self.f_enc(inputs).mean
        return State(enc[:, -1], line, *self.z_prior.begin(len(f)), f)

    def combine(self, drive: Tensor, z: Tensor) -> Gaussian:
        """q(z_t | z_{t-1}, x_<=t): drive is tanh(V h_t), (B, z_enc_dim)."""
        return self.z_posterior(0.5 * (torch.tanh(self.from_z(z)) + drive))

    def advance(self, state: State, inputs: Tensor, observed: Tensor, u: Tensor | None) -> tuple[State, Latents]:
        """One bin by posterior means."""
        enc = self.z_enc.step(inputs, state.enc, observed)
        h, line = push(self.z_enc.out(enc), state.lag)
        q = self.combine(torch.tanh(self.from_data(h)), state.z)
        z, memory, _ = self.next_z(q, state.z, state.prior, observed, None)
        return State(enc, line, z, memory, state.f), Latents(self.gen(state.f, z, u), z, state.f)

    def infer(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """A whole window: the encoder at once, then the combiner bin by bin, on samples of z."""
        q_f, f = self.infer_f(self.f_enc, inputs, sample)
        drive = torch.tanh(self.from_data(self.drop(lagged(self.z_enc(inputs, observed), self.start, self.z_lag))))
        noise = torch.randn(*drive.shape[:2], self.z_dim, device=drive.device, dtype=drive.dtype) if sample else None
        qs: list[Gaussian] = []

        def draw(t: int, before: Tensor) -> Tensor:
            qs.append(self.combine(drive[:, t], before))
            return qs[-1].sample(None if noise is None else noise[:, t])

        z, p_z = self.run_z(draw, observed[:, self.start :], noise)
        factors = self.generate(tile(f, len(qs)), z, u)
        return Inferred.once(factors, z, stack(qs), p_z, q_f, f)

    def generate(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """Factors from both latents alone."""
        return self.gen(f, z, u)

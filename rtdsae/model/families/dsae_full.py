"""DSAE, full: a disentangled sequential autoencoder whose dynamic posterior depends on the static latent.

    f ~ q(f | x[0:S])                    from a bidirectional LSTM over the S anchor bins; prior N(0, I)
    h_t = LSTM([x_t, f], h_{t-1})        forward only, warmed on the anchor bins
    r_t = LSTM(h_t, r_{t-1})
    z_t ~ q(z_t | r_t)                   prior p(z_t | z_<t) from an LSTM
    g_t = LSTM([z_t, f, u_t], g_{t-1})   or with f as the initial state
    factors_t = W̄ g_t

Where a bin was not observed, h and r hold and z follows its prior.

Source: Li & Mandt 2018 (arXiv:1803.02991), "full" q. Published, f sees the whole sequence and h runs in both
directions (`causal: false`), and x_t depends on [z_t, f] alone; the recurrent generator is this project's, for neurons.
The KL of z is taken along posterior samples, as the paper's bound asks and its public reimplementations do not.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rtdsae.model.distributions import GaussianHead
from rtdsae.model.encoders import Encoder, first_line, lagged, push
from rtdsae.model.family import Dims, Family, FamilyConfig, Inferred, Latents, Size, tile
from rtdsae.model.generators import Generator, StaticUse
from rtdsae.model.priors import RNN, DynamicPriorConfig, Normal, StaticPriorConfig
from rtdsae.model.static_inference import StaticInference

__all__ = ["DSAEFull", "DSAEFullConfig"]


class DSAEFullConfig(
    FamilyConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="dsae_full", tag_field="family"
):
    """The full DSAE's own settings.

    Attributes:
        f_enc_dim: units of each direction of the static encoder.
        z_enc_dim: units of the dynamic encoder.
        z_rnn_dim: units of the recurrent layer on top of it.
        f_to_generator: f tiled onto the generator's inputs, or its initial state.
    """

    f_prior: StaticPriorConfig = Normal()
    z_prior: DynamicPriorConfig = RNN()
    f_enc_dim: Size = 64
    z_enc_dim: Size = 64
    z_rnn_dim: Size = 64
    f_to_generator: StaticUse = "tiled"


class State(NamedTuple):
    """What one bin hands to the next."""

    enc: Tensor
    rnn: Tensor
    lag: Tensor
    gen: Tensor
    z: Tensor
    prior: Tensor
    f: Tensor


class DSAEFull(Family):
    """The full DSAE over one explicit state."""

    state_type = State

    def __init__(self, config: DSAEFullConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        c, in_dim = config, self.readin.dim
        self.f_enc = StaticInference(c, in_dim, c.f_enc_dim)
        self.z_enc = Encoder(c.cell, in_dim + c.f_dim, c.z_enc_dim, c.clip, "forward" if c.causal else "both")
        self.z_rnn = Encoder(c.cell, self.z_enc.dim, c.z_rnn_dim, c.clip)
        self.z_posterior = GaussianHead(c.z_rnn_dim, c.z_dim, c.z_posterior)
        self.gen = Generator(
            c.cell, c.f_dim, c.z_dim, dims.n_external, c.gen_dim, c.fac_dim, c.f_to_generator, c.clip, c.dropout
        )

    @property
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""
        return {
            "enc": self.z_enc.state_dim,
            "rnn": self.z_rnn.state_dim,
            "lag": self.z_lag * self.z_rnn.dim,
            "gen": self.gen.state_dim,
            "z": self.z_dim,
            "prior": self.z_prior.memory_dim,
            "f": self.f_dim,
        }

    def recurrent_kernels(self) -> dict[str, Tensor]:
        """The generator's recurrent weights."""
        return {"gen": self.gen.cell.weight_h}

    def begin(self, inputs: Tensor) -> State:
        """The state after the anchor bins, on which the dynamic encoder is warmed once f is known."""
        f = self.f_enc(inputs).mean
        enc = self.z_enc.scan(torch.cat([inputs, tile(f, inputs.shape[1])], 2))
        rnn = self.z_rnn.scan(self.z_enc.out(enc))
        line = first_line(self.z_rnn.out(rnn), self.z_lag)
        z, memory = self.z_prior.begin(len(f))
        return State(enc[:, -1], rnn[:, -1], line, self.gen.begin(f), z, memory, f)

    def advance(self, state: State, inputs: Tensor, observed: Tensor, u: Tensor | None) -> tuple[State, Latents]:
        """One bin by posterior means."""
        enc = self.z_enc.step(torch.cat([inputs, state.f], 1), state.enc, observed)
        rnn = self.z_rnn.step(self.z_enc.out(enc), state.rnn, observed)
        r, line = push(self.z_rnn.out(rnn), state.lag)
        z, memory, _ = self.next_z(self.z_posterior(r), state.z, state.prior, observed, None)
        gen = self.gen.step(z, state.f, u, state.gen)
        return State(enc, rnn, line, gen, z, memory, state.f), Latents(self.gen.read(gen), z, state.f)

    def infer(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """A whole window: f, then the encoder at once, then z bin by bin, then the factors."""
        q_f, f = self.infer_f(self.f_enc, inputs, sample)
        with_f = torch.cat([inputs, tile(f, inputs.shape[1])], 2)
        r = self.z_rnn(self.z_enc(with_f, observed), observed)
        q_z = self.z_posterior(self.drop(lagged(r, self.start, self.z_lag)))
        z, p_z = self.scan_z(q_z, observed[:, self.start :], sample)
        factors = self.generate(tile(f, z.shape[1]), z, u)
        return Inferred.once(factors, z, q_z, p_z, q_f, f)

    def generate(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """Factors from both latents alone."""
        return self.gen(f, z, u)

"""FHVAE: a factorized hierarchical variational autoencoder, whose sequence latent is followed along the stream.

    a sequence i (a segment of the recording) has a mean μ_i ~ N(0, I); its blocks of S bins have f_n ~ N(μ_i, 0.5² I)

    f_n ~ q(f_n | x of block n)         from an LSTM's last state
    f̂_t = Σ_n f_n / (n + 0.5²)          the maximum a posteriori of μ_i from the blocks that have ended by bin t
    h_t = LSTM([x_t, f̂_t], h_{t-1})     forward only, warmed on the anchor bins, which are the first block
    z_t ~ q(z_t | h_t)                  prior N(0, I)
    g_t = LSTM([z_t, f̂_t, u_t], g_{t-1})
    factors_t = W̄ g_t

The stream carries sum and number of the blocks; the table of μ_i belongs to training alone. Where a bin was not
observed, the encoders hold, a block waits for its next observed bin, and z is its prior's mean.

Sources: Hsu, Zhang & Glass 2017 (arXiv:1709.07902), where f is called z2 and z is z1, one for each segment; Hsu & Glass
2018 (arXiv:1804.03201) for the estimate of μ. Published, the generator has the f_n of its own segment, to whose end its
encoders have looked; with `causal: false` that segment is the window. Each encoder has two LSTM layers there and one
here, and the discriminative term a weight of 10, which is `objective.discriminative` and 0 unless it is set.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdsae.model.cells import hold, make_cell, observed_first
from rtdsae.model.distributions import Gaussian, GaussianHead
from rtdsae.model.encoders import Encoder, first_line, lagged, push
from rtdsae.model.family import Dims, Family, FamilyConfig, Inferred, Latents, Size, tile
from rtdsae.model.generators import Generator
from rtdsae.model.priors import DynamicPriorConfig, Sequence, StaticPriorConfig, Tiled

__all__ = ["FHVAE", "FHVAEConfig"]


class FHVAEConfig(FamilyConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="fhvae", tag_field="family"):
    """The FHVAE's own settings.

    Attributes:
        f_enc_dim: units of the encoder of a block.
        z_enc_dim: units of the dynamic encoder.
    """

    f_prior: StaticPriorConfig = Sequence()
    z_prior: DynamicPriorConfig = Tiled()
    f_enc_dim: Size = 64
    z_enc_dim: Size = 64


class State(NamedTuple):
    """What one bin hands to the next.

    `block` is the encoder's state within the block, `phase` how many observed bins it has had, `total` is
    the sum of their f over the `blocks` that have ended.
    """

    block: Tensor
    phase: Tensor
    total: Tensor
    blocks: Tensor
    enc: Tensor
    lag: Tensor
    gen: Tensor
    z: Tensor
    prior: Tensor


class FHVAE(Family):
    """The FHVAE over one explicit state."""

    state_type = State

    def __init__(self, config: FHVAEConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        c, in_dim = config, self.readin.dim
        self.block_bins = dims.anchor_bins
        self.block_cell = make_cell(c.cell, in_dim, c.f_enc_dim, c.clip)
        self.block_first = nn.Parameter(torch.zeros(self.block_cell.state_dim))
        self.f_posterior = GaussianHead(c.f_enc_dim, c.f_dim, c.f_posterior)
        self.shrinkage = c.f_prior.variance  # variance of f within a sequence, over the variance 1 of μ
        self.z_enc = Encoder(c.cell, in_dim + c.f_dim, c.z_enc_dim, c.clip, "forward" if c.causal else "both")
        self.z_posterior = GaussianHead(self.z_enc.dim, c.z_dim, c.z_posterior)
        self.gen = Generator(
            c.cell, c.f_dim, c.z_dim, dims.n_external, c.gen_dim, c.fac_dim, "tiled", c.clip, c.dropout
        )

    @property
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""
        return {
            "block": self.block_cell.state_dim,
            "phase": 1,
            "total": self.f_dim,
            "blocks": 1,
            "enc": self.z_enc.state_dim,
            "lag": self.z_lag * self.z_enc.dim,
            "gen": self.gen.state_dim,
            "z": self.z_dim,
            "prior": self.z_prior.memory_dim,
        }

    def recurrent_kernels(self) -> dict[str, Tensor]:
        """The generator's recurrent weights."""
        return {"gen": self.gen.cell.weight_h}

    def estimate(self, total: Tensor, count: Tensor) -> Tensor:
        """f̂, the maximum a posteriori of the sequence's mean: (..., f_dim), (..., 1) -> (..., f_dim)."""
        return total / (count + self.shrinkage)

    def begin(self, inputs: Tensor) -> State:
        """The state after the anchor bins, which are the first block."""
        first = self.block_first.expand(len(inputs), -1)
        block = self.block_cell.scan(inputs, first)[:, -1]
        total = self.f_posterior(self.block_cell.out(block)).mean
        blocks = torch.ones_like(total[:, :1])
        f = self.estimate(total, blocks)
        enc = self.z_enc.scan(torch.cat([inputs, tile(f, inputs.shape[1])], 2))
        line = first_line(self.z_enc.out(enc), self.z_lag)
        z, memory = self.z_prior.begin(len(f))
        return State(first, torch.zeros_like(blocks), total, blocks, enc[:, -1], line, self.gen.begin(f), z, memory)

    def advance(self, state: State, inputs: Tensor, observed: Tensor, u: Tensor | None) -> tuple[State, Latents]:
        """One bin by posterior means."""
        block = hold(self.block_cell(inputs, state.block), state.block, observed)
        phase = state.phase + observed
        ended = observed * (phase >= self.block_bins)
        total = state.total + ended * self.f_posterior(self.block_cell.out(block)).mean
        blocks = state.blocks + ended
        f = self.estimate(total, blocks)
        enc = self.z_enc.step(torch.cat([inputs, f], 1), state.enc, observed)
        h, line = push(self.z_enc.out(enc), state.lag)
        z, memory, _ = self.next_z(self.z_posterior(h), state.z, state.prior, observed, None)
        gen = self.gen.step(z, f, u, state.gen)
        block = hold(self.block_first.expand_as(block), block, ended)
        state = State(block, phase * (1 - ended), total, blocks, enc, line, gen, z, memory)
        return state, Latents(self.gen.read(gen), z, f)

    def infer(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """A whole window: the blocks, then the dynamic latent, then the generator."""
        q_f, sampled, before = self.infer_blocks(inputs, observed, sample)
        counts = torch.arange(1, 1 + sampled.shape[1]).to(self.block_first)[:, None]
        estimates = self.estimate(sampled.cumsum(1), counts)  # those with blocks that have not ended are of no bin
        by_bin = estimates.gather(1, before.expand(-1, -1, self.f_dim))
        f = by_bin[:, self.start :]
        h = self.z_enc(torch.cat([inputs, by_bin], 2), observed)
        q_z = self.z_posterior(self.drop(lagged(h, self.start, self.z_lag)))
        z, p_z = self.scan_z(q_z, observed[:, self.start :], sample)
        ended = (counts[:, 0] <= 1 + before[:, -1]).to(z.dtype)
        return Inferred(self.generate(f, z, u), z, f, q_z, p_z, q_f, sampled, ended)

    def infer_blocks(self, inputs: Tensor, observed: Tensor, sample: bool) -> tuple[Gaussian, Tensor, Tensor]:
        """The blocks of a window, which are all encoded side by side: the anchor bins, then each S observed bins.

        In the acausal reference the window is one block.

        Returns:
            q(f_n) and samples of it, (B, blocks, f_dim), also of blocks to whose end the window has not come; and of
            each bin the index of the last block that has ended, (B, T, 1).
        """
        n, bins, size = *inputs.shape[:2], self.start or inputs.shape[1]
        later, so_far = observed_first(inputs[:, size:], observed[:, size:])
        blocks = bins // size
        x = torch.cat([inputs[:, :size], later], 1)[:, : blocks * size].reshape(n * blocks, size, -1)
        whole = torch.ones_like(later[:, :, :1])
        seen = torch.cat([observed[:, :size], whole], 1)[:, : blocks * size].reshape(n * blocks, size, 1)
        ends = self.block_cell.encode(x, self.block_first.expand(len(x), -1), seen)[:, -1]
        q = self.f_posterior(self.drop(ends.reshape(n, blocks, -1)))
        return q, q.draw(sample), nn.functional.pad(so_far // size, (0, 0, size, 0))

    def generate(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """Factors from both latents alone."""
        return self.gen(f, z, u)

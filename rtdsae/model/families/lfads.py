"""LFADS: latent factor analysis via dynamical systems, in a causal split.

    f ~ q(f | x[0:S])          the initial condition, from a bidirectional GRU over the S anchor bins
    g_{S-1} = W f,  c_{S-1} learnt
    e_t  = GRU_ci(x_t, e_{t-1})                      forward only, warmed on the anchor bins
    c_t  = GRU_con([e_t, factors_{t-1}], c_{t-1})    the controller, with the factors fed back
    z_t ~ q(z_t | c_t)                               the inferred input; prior AR(1)
    g_t  = GRU_gen([z_t, u_t], g_{t-1})              the generator
    factors_t = W̄ g_t,   x_t ~ Poisson(exp(V factors_t + b))

Where a bin was not observed, e and c hold and z follows its prior: the generator forecasts.

Sources: Sussillo et al. 2016 (arXiv:1608.06315); Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9). Published, f
sees the whole trial, e runs in both directions and the generator starts at bin 0: that is `causal: false` here, an
offline reference that measures the price of causality and cannot be exported. lfads-torch (Sedler & Pandarinath 2023,
arXiv:2309.01230) has dropout on the factors that are fed back and on u too; here both are left whole.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdsae.model.cells import CellKind, ClippedGRUCell, hold, make_cell
from rtdsae.model.distributions import Gaussian, GaussianHead
from rtdsae.model.encoders import Encoder, first_line, lagged, push
from rtdsae.model.family import Dims, Family, FamilyConfig, Inferred, Latents, Size, stack
from rtdsae.model.generators import Generator, StaticUse
from rtdsae.model.priors import AR1, AR1Prior, DynamicPriorConfig, Normal, StaticPriorConfig
from rtdsae.model.scans import Control, at_once, control_loop
from rtdsae.model.static_inference import StaticInference

__all__ = ["LFADS", "LFADSConfig"]


class LFADSConfig(FamilyConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="lfads", tag_field="family"):
    """LFADS's own settings.

    Attributes:
        ic_enc_dim: units of each direction of the initial-condition encoder.
        ci_enc_dim: units of the controller-input encoder.
        con_dim: units of the controller.
        f_to_generator: f as the generator's initial state, or tiled onto its inputs.
    """

    cell: CellKind = "clipped_gru"
    f_prior: StaticPriorConfig = Normal(variance=0.1, train_mean=True)
    z_prior: DynamicPriorConfig = AR1()
    ic_enc_dim: Size = 64
    ci_enc_dim: Size = 64
    con_dim: Size = 64
    f_to_generator: StaticUse = "initial_state"


class State(NamedTuple):
    """What one bin hands to the next."""

    ci_enc: Tensor
    lag: Tensor
    con: Tensor
    gen: Tensor
    z: Tensor
    prior: Tensor
    f: Tensor


class LFADS(Family):
    """LFADS over one explicit state; `causal: false` gives the published smoother."""

    state_type = State

    def __init__(self, config: LFADSConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        c, in_dim = config, self.readin.dim
        self.ic = StaticInference(c, in_dim, c.ic_enc_dim)
        self.ci_enc = Encoder(c.cell, in_dim, c.ci_enc_dim, c.clip, "forward" if c.causal else "both")
        self.con = make_cell(c.cell, self.ci_enc.dim, c.con_dim, c.clip)
        self.con_first = nn.Parameter(torch.zeros(self.con.state_dim))
        self.feedback = nn.Parameter(torch.randn(c.fac_dim, self.con.gates_dim) / c.fac_dim**0.5)
        self.z_posterior = GaussianHead(c.con_dim, c.z_dim, c.z_posterior)
        self.gen = Generator(
            c.cell, c.f_dim, c.z_dim, dims.n_external, c.gen_dim, c.fac_dim, c.f_to_generator, c.clip, c.dropout
        )

    @property
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""
        return {
            "ci_enc": self.ci_enc.state_dim,
            "lag": self.z_lag * self.ci_enc.dim,
            "con": self.con.state_dim,
            "gen": self.gen.state_dim,
            "z": self.z_dim,
            "prior": self.z_prior.memory_dim,
            "f": self.f_dim,
        }

    def recurrent_kernels(self) -> dict[str, Tensor]:
        """The generator's and the controller's recurrent weights."""
        return {"gen": self.gen.cell.weight_h, "con": self.con.weight_h}

    def begin(self, inputs: Tensor) -> State:
        """The state after the anchor bins."""
        enc = self.ci_enc.scan(inputs)
        line = first_line(self.ci_enc.out(enc), self.z_lag)
        return self.first_state(self.ic(inputs).mean)._replace(ci_enc=enc[:, -1], lag=line)

    def first_state(self, f: Tensor) -> State:
        """The state before the first modelled bin, but for the encoder's part."""
        z, memory = self.z_prior.begin(len(f))
        con = self.con_first.expand(len(f), -1)
        return State(f[:, :0], f[:, :0], con, self.gen.begin(f), z, memory, f)

    def feedback_map(self) -> Tensor:
        """Generator to controller gates through the factors, (gen_dim, gates): one product a bin instead of two."""
        return self.gen.factors.unit_weight().T @ self.feedback

    def advance(self, state: State, inputs: Tensor, observed: Tensor, u: Tensor | None) -> tuple[State, Latents]:
        """One bin by posterior means."""
        enc = self.ci_enc.step(inputs, state.ci_enc, observed)
        e, line = push(self.ci_enc.out(enc), state.lag)
        gates = self.con.project(e)
        state, _, _ = self.transition(state, gates, observed, u, None, self.feedback_map())
        return state._replace(ci_enc=enc, lag=line), Latents(self.gen.read(state.gen), state.z, state.f)

    def transition(
        self, state: State, gates: Tensor, observed: Tensor, u: Tensor | None, noise: Tensor | None, feedback: Tensor
    ) -> tuple[State, Gaussian, Gaussian]:
        """Controller, inferred input and generator, one bin: the state, and z's posterior and prior.

        `gates` is the controller's projected encoding.
        """
        fed_back = self.gen.cell.out(state.gen) @ feedback
        con = hold(self.con.update(gates + fed_back, state.con), state.con, observed)
        q = self.z_posterior(self.con.out(con))
        z, memory, p = self.next_z(q, state.z, state.prior, observed, noise)
        gen = self.gen.step(z, state.f, u, state.gen)
        return state._replace(con=con, gen=gen, z=z, prior=memory), q, p

    def infer(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """A whole window: the encoder and its projections at once, then `transition` bin by bin."""
        q_f, f = self.infer_f(self.ic, inputs, sample)
        encoded = self.drop(lagged(self.ci_enc(inputs, observed), self.start, self.z_lag))
        noise = encoded.new_empty(*encoded.shape[:2], self.z_dim).normal_() if sample else None
        run = self.run_by_hand if self.handwritten and at_once(encoded) else self.run
        factors, z, q, p = run(f, encoded, observed[:, self.start :], u, noise)
        return Inferred.once(factors, z, q, p, q_f, f)

    def run(
        self, f: Tensor, encoded: Tensor, observed: Tensor, u: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Gaussian, Gaussian]:
        """`transition` bin by bin: the factors, z, its posteriors and its priors, all (B, R, ...)."""
        state, gates, feedback = self.first_state(f), self.con.project(encoded), self.feedback_map()
        gens, zs, qs, ps = [], [], [], []
        for t in range(gates.shape[1]):
            u_t, eps = (None if part is None else part[:, t] for part in (u, noise))
            state, q, p = self.transition(state, gates[:, t], observed[:, t], u_t, eps, feedback)
            gens.append(state.gen)
            zs.append(state.z)
            qs.append(q)
            ps.append(p)
        return self.gen.read(torch.stack(gens, 1)), torch.stack(zs, 1), stack(qs), stack(ps)

    @property
    def handwritten(self) -> bool:
        """Whether the loop with these settings is one that `scans` has."""
        clipped = isinstance(self.con, ClippedGRUCell)
        return clipped and self.z_posterior.off_diagonal is None and isinstance(self.z_prior, AR1Prior)

    def run_by_hand(
        self, f: Tensor, encoded: Tensor, observed: Tensor, u: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Gaussian, Gaussian]:
        """What `run` gives, by `scans.control_loop`."""
        first, cell, prior, head = self.first_state(f), self.gen.cell, self.z_prior, self.z_posterior
        assert isinstance(cell, ClippedGRUCell)
        assert isinstance(prior, AR1Prior)
        time_first = (1, 0, 2)
        parts = Control(
            con_gates=self.con.project(encoded.permute(time_first)),
            gen_gates=self.gen.project_without_z(f, u, encoded.shape[1]).permute(time_first),
            con=first.con,
            gen=first.gen,
            con_weight=self.con.weight_h,
            gen_weight=cell.weight_h,
            z_weight=cell.weight_x[: self.z_dim],
            feedback=self.feedback_map(),
            head_weight=head.linear.weight,
            head_bias=head.linear.bias,
            alpha=prior.alpha(),
            logvar=prior.logvar,
        )
        eps, seen = None if noise is None else noise.permute(time_first), observed.permute(time_first)
        gens, zs, heads = control_loop(parts, eps, seen, head.min_var, cell.clip)
        factors, z, says = (x.permute(time_first) for x in (self.gen.read(gens), zs, heads))
        before = torch.cat([first.z[:, None], z[:, :-1]], 1)
        return factors, z, head.posterior(says), prior.given(before, first.prior)

    def generate(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """Factors from the initial condition and the inputs alone."""
        return self.gen(f, z, u)

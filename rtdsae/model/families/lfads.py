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
offline reference that measures the price of causality and cannot be exported.
"""

from typing import Annotated, NamedTuple

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from rtdsae.model.cells import BiGRU, ClippedGRUCell, hold
from rtdsae.model.distributions import AR1Prior, Gaussian, GaussianHead, LearnableGaussian, kl
from rtdsae.model.family import Dims, Family, Outputs, Unrolled
from rtdsae.model.readout import UnitRowLinear

__all__ = ["LFADS", "LFADSConfig"]

Size = Annotated[int, Meta(ge=1)]


class LFADSConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="lfads", tag_field="family"):
    """Sizes of an LFADS model.

    Attributes:
        causal: False is the published, acausal smoother: offline only.
        readin_dim: common inputs that the channels are mapped to; 0 for the channels themselves.
        ic_enc_dim: units of each direction of the initial-condition encoder.
        f_dim: size of the initial condition.
        ci_enc_dim: units of the controller-input encoder.
        con_dim: units of the controller.
        z_dim: size of the inferred input.
        gen_dim: units of the generator.
        fac_dim: number of factors.
        clip: bound of each recurrent unit.
        dropout: rate on encoder inputs, controller inputs and generator outputs.
    """

    causal: bool = True
    readin_dim: Annotated[int, Meta(ge=0)] = 0
    ic_enc_dim: Size = 64
    f_dim: Size = 32
    ci_enc_dim: Size = 64
    con_dim: Size = 64
    z_dim: Size = 16
    gen_dim: Size = 128
    fac_dim: Size = 64
    clip: Annotated[float, Meta(gt=0)] = 5.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1


class State(NamedTuple):
    """What one bin hands to the next."""

    ci_enc: Tensor
    con: Tensor
    gen: Tensor
    z: Tensor
    f: Tensor


class LFADS(Family):
    """LFADS over one explicit state; `causal: false` gives the published smoother."""

    state_type = State

    def __init__(self, config: LFADSConfig, dims: Dims) -> None:
        super().__init__(dims, config.readin_dim, config.fac_dim)
        self.config = config
        self.causal = config.causal
        c, in_dim = config, self.readin.dim
        self.ic_enc = BiGRU(in_dim, c.ic_enc_dim, c.clip)
        self.f_posterior = GaussianHead(2 * c.ic_enc_dim, c.f_dim)
        self.f_prior = LearnableGaussian(c.f_dim)
        self.gen_first = nn.Linear(c.f_dim, c.gen_dim)
        nn.init.normal_(self.gen_first.weight, std=c.f_dim**-0.5)
        nn.init.zeros_(self.gen_first.bias)
        self.ci_enc = ClippedGRUCell(in_dim, c.ci_enc_dim, c.clip)
        self.ci_enc_back = None if c.causal else ClippedGRUCell(in_dim, c.ci_enc_dim, c.clip)
        self.ci_first = nn.Parameter(torch.zeros(c.ci_enc_dim))
        self.con = ClippedGRUCell(c.ci_enc_dim * (1 if c.causal else 2), c.con_dim, c.clip)
        self.feedback = nn.Parameter(torch.randn(c.fac_dim, 3 * c.con_dim) / c.fac_dim**0.5)
        self.con_first = nn.Parameter(torch.zeros(c.con_dim))
        self.z_posterior = GaussianHead(c.con_dim, c.z_dim)
        self.z_prior = AR1Prior(c.z_dim)
        self.gen = ClippedGRUCell(c.z_dim + dims.n_external, c.gen_dim, c.clip)
        self.factors = UnitRowLinear(c.gen_dim, c.fac_dim)
        self.drop = nn.Dropout(c.dropout)

    @property
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order."""
        c = self.config
        return {"ci_enc": c.ci_enc_dim, "con": c.con_dim, "gen": c.gen_dim, "z": c.z_dim, "f": c.f_dim}

    def recurrent_kernels(self) -> dict[str, Tensor]:
        """The generator's and the controller's recurrent weights."""
        return {"gen": self.gen.weight_h, "con": self.con.weight_h}

    def begin(self, x: Tensor) -> State:
        """The state after the anchor bins, by posterior means: x (B, S, C) normalised."""
        inputs = self.readin(x)
        e = self.ci_enc.scan(inputs, self.ci_first.expand(len(x), -1))[:, -1]
        return self.first_state(self.infer_f(inputs).mean, e)

    def infer_f(self, inputs: Tensor) -> Gaussian:
        """q(f) from the anchor bins' inputs, (B, S, readin)."""
        return self.f_posterior(self.drop(self.ic_enc.summary(inputs)))

    def first_state(self, f: Tensor, e: Tensor) -> State:
        """The state before the first modelled bin."""
        con = self.con_first.expand(len(f), -1)
        return State(e, con, self.gen_first(f), f.new_zeros(len(f), self.config.z_dim), f)

    def feedback_map(self) -> Tensor:
        """Generator to controller gates through the factors, (gen_dim, 3 con_dim): one product a bin instead of two."""
        return self.factors.unit_weight().T @ self.feedback

    def advance(self, state: State, x: Tensor, observed: Tensor, u: Tensor | None) -> State:
        """One bin by posterior means: x (B, C) normalised."""
        e = hold(self.ci_enc(self.readin(x), state.ci_enc), state.ci_enc, observed)
        return self.transition(state._replace(ci_enc=e), self.con.project(e), observed, u, None, self.feedback_map())[0]

    def transition(
        self,
        state: State,
        gates: Tensor,
        observed: Tensor,
        u: Tensor | None,
        noise: Tensor | None,
        feedback: Tensor,
    ) -> tuple[State, Gaussian]:
        """Controller, inferred input and generator, one bin; `gates` is the controller's projected encoding."""
        con = hold(self.con.update(gates + state.gen @ feedback, state.con), state.con, observed)
        q = self.z_posterior(con)
        z = hold(q.sample(noise), self.z_prior.next(state.z).sample(noise), observed)
        gen = self.gen(z if u is None else torch.cat([z, u], 1), state.gen)
        return State(state.ci_enc, con, gen, z, state.f), q

    def emit(self, state: State) -> tuple[Tensor, Outputs]:
        """Log expected counts and outputs of a state, or of stacked states."""
        return self.outputs_of(self.factors(self.drop(state.gen)), state.z, state.f)

    def encode(self, inputs: Tensor, observed: Tensor) -> Tensor:
        """The controller-input encoding of a whole window, (B, T, readin) -> (B, T, ...)."""
        first = self.ci_first.expand(len(inputs), -1)
        ahead = self.ci_enc.scan(inputs, first, observed)
        if self.ci_enc_back is None:
            return ahead
        back = self.ci_enc_back.scan(inputs.flip(1), first, observed.flip(1)).flip(1)
        return torch.cat([ahead, back], 2)

    def forward(self, x: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Unrolled:
        """Explain bins start..T-1 of a window: x (B, T, C) normalised, observed (B, T, 1), u (B, T, U) or None."""
        inputs = self.drop(self.readin(x))
        q_f = self.infer_f(inputs[:, : self.start] if self.causal else inputs)
        e = self.encode(inputs, observed)[:, self.start :]
        state = self.first_state(q_f.sample(self.noise(q_f, sample)), e[:, 0])
        states, q_z = self.unroll(state, e, observed[:, self.start :], u, sample)
        log_rates, outputs = self.emit(states)
        kl_z = self.z_prior.kl(q_z, states.z, observed[:, self.start :])
        return Unrolled(log_rates, outputs, {"f": kl(q_f, self.f_prior()), "z": kl_z})

    def unroll(
        self, state: State, e: Tensor, observed: Tensor, u: Tensor | None, sample: bool
    ) -> tuple[State, Gaussian]:
        """Scan `transition` over the encodings e (B, R, ...): the states and the posteriors of z, stacked on axis 1."""
        gates, feedback = self.con.project(self.drop(e)), self.feedback_map()
        noise = torch.randn(*e.shape[:2], self.config.z_dim, device=e.device) if sample else None
        cons, gens, zs, qs = [], [], [], []
        for t in range(e.shape[1]):
            u_t = None if u is None else u[:, self.start + t]
            eps = None if noise is None else noise[:, t]
            state, q = self.transition(state, gates[:, t], observed[:, t], u_t, eps, feedback)
            cons.append(state.con)
            gens.append(state.gen)
            zs.append(state.z)
            qs.append(q)
        stack = lambda parts: torch.stack(parts, 1)  # noqa: E731
        states = State(e, stack(cons), stack(gens), stack(zs), state.f[:, None].expand(-1, e.shape[1], -1))
        return states, Gaussian(stack([q.mean for q in qs]), stack([q.logvar for q in qs]))

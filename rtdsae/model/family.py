"""What every family is: two functions over one explicit state, `anchor` and `step`, and one way to train them.

    anchor(x[0:S])                     -> state
    step(state, x_t, observed_t, u_t)  -> state', outputs

A family writes `begin` and `advance` over its own named state; here they become `anchor` and `step` over one packed
tensor, which is what is exported and streamed. For training it writes `infer`, the same over a whole window with
posterior samples; `generate` is its generative half alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from rtdsae.model.cells import CellKind, hold
from rtdsae.model.distributions import Covariance, Gaussian, kl
from rtdsae.model.masking import Dropout
from rtdsae.model.priors import (
    Context,
    DynamicPriorConfig,
    StaticPriorConfig,
    dynamic_prior,
    static_prior,
)
from rtdsae.model.reconstruction import ReconstructionKind
from rtdsae.model.session import ReadIn, Session

__all__ = ["Dims", "Explained", "Family", "FamilyConfig", "Inferred", "Neurons", "Outputs"]

Size = Annotated[int, Meta(ge=1)]


class FamilyConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every family's configuration has; each sets its own defaults where its paper does.

    Attributes:
        causal: False is the published, acausal smoother: an offline reference.
        readin_dim: common inputs that the channels are mapped to; 0 for the channels themselves.
        cell: of all recurrent parts.
        f_dim: size of the static latent.
        f_posterior: `full` has off-diagonal terms.
        f_prior: `gaussian`, `labelled` or `sequence`, with its settings (rtdsae/model/priors.py).
        z_dim: size of the dynamic latent.
        z_posterior: as f_posterior.
        z_prior: `ar1`, `rnn`, `gated` or `tiled`, with its settings.
        z_lag: bins that z_t is behind what it is inferred from; at most S.
        gen_dim: units of the generator.
        fac_dim: number of factors.
        reconstruction: how counts are drawn (rtdsae/model/reconstruction.py).
        clip: bound of each unit of a clipped GRU.
        dropout: rate on the encoders' inputs and outputs, and on the generator's outputs.
    """

    f_prior: StaticPriorConfig
    z_prior: DynamicPriorConfig
    causal: bool = True
    readin_dim: Annotated[int, Meta(ge=0)] = 0
    cell: CellKind = "lstm"
    f_dim: Size = 32
    f_posterior: Covariance = "diagonal"
    z_dim: Size = 16
    z_posterior: Covariance = "diagonal"
    z_lag: Annotated[int, Meta(ge=0)] = 0
    gen_dim: Size = 128
    fac_dim: Size = 64
    reconstruction: ReconstructionKind = "poisson"
    clip: Annotated[float, Meta(gt=0)] = 5.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1

    @property
    def family(self) -> str:
        """The family's name, as a configuration has it."""
        return str(self.__struct_config__.tag)


@dataclass(frozen=True)
class Neurons:
    """The neurons of one session.

    Attributes:
        session: its name.
        n_channels: input channels, which the encoders see.
        n_neurons: neurons whose rates are modelled: the channels, and held-out neurons where there are any.
    """

    session: str
    n_channels: int
    n_neurons: int


@dataclass(frozen=True)
class Dims:
    """What a model is made for: the sizes of its data and of its window.

    Attributes:
        sessions: the neurons of each session.
        n_external: known external inputs u.
        n_behaviour: columns of the behaviour read-out, 0 where the recordings have none.
        n_labels: conditions that training knows windows by, for a labelled prior.
        n_sequences: segments that windows are cut from, for a sequence prior.
        bin_width_s: seconds a bin.
        anchor_bins: S, the leading bins that the static encoder sees.
        horizon_bins: R, the bins after them that training unrolls.
        lanes: copies that take turns at being anchored in a stream; 1 runs on from one anchor.
    """

    sessions: tuple[Neurons, ...]
    n_external: int
    n_behaviour: int
    n_labels: int
    n_sequences: int
    bin_width_s: float
    anchor_bins: int
    horizon_bins: int
    lanes: int = 1


class Outputs(NamedTuple):
    """One bin's outputs, or a window's: (..., size of each)."""

    factors: Tensor
    z: Tensor
    f: Tensor
    rates: Tensor
    behaviour: Tensor | None


class Inferred(NamedTuple):
    """What a family infers of a window's modelled bins.

    Attributes:
        factors: (B, R, n_factors).
        z: (B, R, z_dim), samples, or means.
        f: (B, R, f_dim), what the generator had of f at each bin.
        q_z: posterior of z, (B, R, z_dim).
        p_z: its prior given the samples before, (B, R, z_dim).
        q_f: posteriors of f, (B, n, f_dim): one for each time that it was inferred.
        f_sample: samples of them, or means.
        f_count: (B, n), 1 where a posterior counts.
    """

    factors: Tensor
    z: Tensor
    f: Tensor
    q_z: Gaussian
    p_z: Gaussian
    q_f: Gaussian
    f_sample: Tensor
    f_count: Tensor

    @classmethod
    def once(cls, factors: Tensor, z: Tensor, q_z: Gaussian, p_z: Gaussian, q_f: Gaussian, f: Tensor) -> "Inferred":
        """What a model infers that infers f once a window: q_f and its sample f are (B, f_dim)."""
        counts = torch.ones_like(f[:, :1])
        return cls(factors, z, tile(f, z.shape[1]), q_z, p_z, q_f.map(lambda part: part[:, None]), f[:, None], counts)


class Explained(NamedTuple):
    """A window as the model explains it.

    Attributes:
        values: (B, R, n_values, n_neurons), of the reconstruction.
        outputs: (B, R, ...) each.
        inferred: the latents.
    """

    values: Tensor
    outputs: Outputs
    inferred: Inferred


class Family(nn.Module, ABC):
    """Base of the families.

    A subclass sets `state_type`, and writes `state_sizes`, `recurrent_kernels`, `begin`, `advance`, `infer` and
    `generate`.

    Args:
        config: the sizes of the model.
        dims: the sizes of data and window.
    """

    state_type: Any  # the subclass's NamedTuple of tensors, one per state part

    def __init__(self, config: FamilyConfig, dims: Dims) -> None:
        super().__init__()
        self.dims, self.causal = dims, config.causal
        self.f_dim, self.z_dim, self.fac_dim, self.z_lag = config.f_dim, config.z_dim, config.fac_dim, config.z_lag
        if config.z_lag > dims.anchor_bins or (config.z_lag and not config.causal):
            raise ValueError(f"z_lag {config.z_lag}: at most S = {dims.anchor_bins} bins, and 0 where causal is false")
        self.sessions = nn.ModuleList(self.new_session(config, neurons) for neurons in dims.sessions)
        self.current = 0
        self.f_prior = static_prior(config.f_prior, config.f_dim, dims.n_labels, dims.n_sequences)
        self.z_prior = dynamic_prior(config.z_prior, config.z_dim, config.clip)
        self.drop = Dropout(config.dropout)
        # Fitted by ridge regression once the latents are trained, so no gradient ever reaches it.
        k = dims.n_behaviour
        self.behaviour = nn.Linear(config.fac_dim, k).requires_grad_(False) if k else None

    @staticmethod
    def new_session(config: FamilyConfig, neurons: Neurons) -> Session:
        """Read-in and read-out of a session's neurons."""
        c = config
        return Session(neurons.n_channels, neurons.n_neurons, c.readin_dim, c.fac_dim, c.reconstruction)

    # sessions ---------------------------------------------------------------------------------------------------------

    def use(self, session: int) -> "Family":
        """Read in and out for the neurons of this session from now on."""
        self.current = session
        return self

    @property
    def session(self) -> Session:
        """The session in use."""
        return self.sessions[self.current]  # type: ignore[return-value]

    @property
    def readin(self) -> ReadIn:
        """The read-in of the session in use."""
        return self.session.readin

    # what a family is -------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def state_sizes(self) -> dict[str, int]:
        """The parts of the state in their packed order; parts of size 0 are left out of the pack."""

    @abstractmethod
    def recurrent_kernels(self) -> dict[str, Tensor]:
        """The recurrent weights that an L2 term may hold down: `gen`, `con`, as far as the family has them."""

    @abstractmethod
    def begin(self, inputs: Tensor) -> Any:
        """The state after the S anchor bins, by posterior means, from read-in channels (B, S, readin)."""

    @abstractmethod
    def advance(self, state: Any, inputs: Tensor, observed: Tensor, u: Tensor | None) -> tuple[Any, "Latents"]:
        """One bin by posterior means: inputs (B, readin), observed (B, 1), u (B, U) or None -> state', its latents."""

    @abstractmethod
    def infer(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """The latents of bins start..T-1: inputs (B, T, readin), observed (B, T, 1), u (B, R, U) or None."""

    @abstractmethod
    def generate(self, f: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        """The generative half alone: f (B, R, f_dim), z (B, R, z_dim), u (B, R, U) -> factors (B, R, n_factors)."""

    # what follows from it ---------------------------------------------------------------------------------------------

    @property
    def start(self) -> int:
        """The first bin that is modelled: S where the split is causal, 0 in the acausal reference."""
        return self.dims.anchor_bins if self.causal else 0

    def anchor(self, x: Tensor) -> Tensor:
        """Counts of the first S bins, (lanes, S, C) -> packed state, (lanes, N)."""
        return pack(self.begin(self.read_in(self.readin.normalise(x), torch.ones_like(x[..., :1]))))

    def step(self, state: Tensor, x: Tensor, observed: Tensor, u: Tensor | None = None) -> tuple[Tensor, Outputs]:
        """One bin: packed state (lanes, N), counts (lanes, C), observed (lanes, 1), u (lanes, U) -> state', outputs."""
        inputs = self.read_in(self.readin.normalise(x), observed)
        after, latents = self.advance(self.unpack(state), inputs, observed, u)
        return pack(after), self.outputs(*latents)[1]

    def read_in(self, x: Tensor, observed: Tensor) -> Tensor:
        """Normalised channels (..., C) -> inputs (..., readin); where a bin was not observed, those of the means."""
        return self.readin(torch.where(observed > 0, x, 0.0))

    def unpack(self, state: Tensor) -> Any:
        """The named parts of a packed state, (lanes, N)."""
        sizes = self.state_sizes
        there = {name: size for name, size in sizes.items() if size}
        parts = dict(zip(there, state.split(list(there.values()), 1), strict=True))
        return self.state_type(**{name: parts.get(name, state[:, :0]) for name in sizes})

    def forward(self, x: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Explained:
        """Explain bins start..T-1 of the windows of one session.

        Args:
            x: (B, T, C) normalised.
            observed: (B, T, 1) of 0 and 1.
            u: (B, T, U) or None.
            sample: draw from the posteriors, or take their means.
        """
        inferred = self.infer_windows(self.read_in(x, observed), observed, u, sample)
        return Explained(*self.outputs(inferred.factors, inferred.z, inferred.f), inferred)

    def infer_windows(self, inputs: Tensor, observed: Tensor, u: Tensor | None, sample: bool) -> Inferred:
        """The latents of bins start..T-1 of windows of any sessions: `forward` without what belongs to one of them.

        Args:
            inputs: (B, T, readin).
            observed: (B, T, 1) of 0 and 1.
            u: (B, T, U) or None.
            sample: draw from the posteriors, or take their means.
        """
        return self.infer(self.drop(inputs), observed, None if u is None else u[:, self.start :], sample)

    def kls(self, inferred: Inferred, observed: Tensor, context: Context) -> dict[str, Tensor]:
        """The KL of each latent, `f` and `z`: (B,), nats a window; observed (B, R, 1)."""
        prior = self.f_prior(context).map(lambda part: part[:, None])
        f = (kl(inferred.q_f, prior) * inferred.f_count).sum(1)
        penalty = self.f_prior.penalty(context)
        return {"f": f + penalty, "z": self.z_prior.kl(inferred.q_z, inferred.p_z, observed)}

    def outputs(self, factors: Tensor, z: Tensor, f: Tensor) -> tuple[Tensor, Outputs]:
        """The reconstruction's values, and the outputs, of one bin's or a window's latents."""
        values = self.session.readout(factors)
        rates = self.session.reconstruction.mean(values) / self.dims.bin_width_s
        behaviour = self.behaviour(factors) if self.behaviour is not None else None
        return values, Outputs(factors, z, f, rates, behaviour)

    # parts that several families share --------------------------------------------------------------------------------

    def infer_f(self, encoder: Callable[[Tensor], Gaussian], inputs: Tensor, sample: bool) -> tuple[Gaussian, Tensor]:
        """q(f) of a window, from what the static encoder may see of it, and a sample or the mean: (B, f_dim) each."""
        q = encoder(inputs[:, : self.start] if self.causal else inputs)
        return q, q.draw(sample)

    def next_z(
        self, q: Gaussian, z: Tensor, memory: Tensor, observed: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Gaussian]:
        """z_t from its posterior where the bin was observed, else from its prior.

        Args:
            q: the posterior of z_t, (B, z_dim).
            z: z_{t-1}.
            memory: the prior's memory.
            observed: (B, 1).
            noise: (B, z_dim) standard normal, or None for means.

        Returns:
            z_t, the prior's next memory, and the prior of z_t.
        """
        p, memory = self.z_prior(z, memory)
        return hold(q.sample(noise), p.sample(noise), observed), memory, p

    def scan_z(self, q: Gaussian, observed: Tensor, sample: bool) -> tuple[Tensor, Gaussian]:
        """The z of a window whose posteriors are known beforehand, (B, R, z_dim), and its priors."""
        noise = torch.randn_like(q.mean) if sample else None
        drawn = q.sample(noise).unbind(1)
        return self.run_z(lambda t, _: drawn[t], observed, noise)

    def run_z(
        self, draw: Callable[[int, Tensor], Tensor], observed: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Gaussian]:
        """`next_z` over a window, with what no bin waits for done for all bins at once.

        Args:
            draw: z_t from its posterior, (B, z_dim), given t and z_{t-1}.
            observed: (B, R, 1).
            noise: (B, R, z_dim) standard normal, or None for means.

        Returns:
            z, (B, R, z_dim), and its priors.
        """
        prior = self.z_prior
        z, memory = prior.begin(len(observed))
        zs, memories = [z], []
        for t, missed in enumerate((observed.amin((0, 2)) < 1).tolist()):
            memory = prior.remember(z, memory)
            memories.append(memory)
            drawn = draw(t, z)
            if missed:
                forecast = prior.given(z, memory).sample(None if noise is None else noise[:, t])
                drawn = hold(drawn, forecast, observed[:, t])
            z = drawn
            zs.append(z)
        return torch.stack(zs[1:], 1), prior.given(torch.stack(zs[:-1], 1), torch.stack(memories, 1))


class Latents(NamedTuple):
    """One bin's latents: (B, n_factors), (B, z_dim), (B, f_dim)."""

    factors: Tensor
    z: Tensor
    f: Tensor


def pack(state: Any) -> Tensor:
    """A named state as one tensor, (lanes, N)."""
    return torch.cat([part for part in state if part.shape[1]], 1)


def tile(f: Tensor, n_bins: int) -> Tensor:
    """The same f at every bin: (B, f_dim) -> (B, n_bins, f_dim)."""
    return f[:, None].expand(-1, n_bins, -1)


def stack(parts: list[Gaussian]) -> Gaussian:
    """The Gaussians of single bins as those of a window, along axis 1."""
    return Gaussian(*(None if p[0] is None else torch.stack(p, 1) for p in zip(*parts, strict=True)))  # type: ignore[arg-type]

"""The loss of a batch, and the scores that a model is selected by.

    loss = mean NLL of the scored entries + ramp · [(β_f L_f + β_z KL_z) / (R · neurons) + L2]   nats per bin and neuron

In a batch of several sessions it is the mean of this over the windows, each with the neurons of its own session: one of
many neurons counts no more than one of few.

Scored are the entries that coordinated dropout hid from the encoders, whole hidden bins, and held-out neurons. A model
is selected on hidden entries or held-out neurons too: the likelihood of entries that the encoders saw can be raised by
copying them. L_f is KL(f), or what `objective.f_objective` makes of it.
"""

from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdsae.model.distributions import kl
from rtdsae.model.family import Family, Inferred
from rtdsae.model.masking import coordinated_dropout, random_gaps
from rtdsae.model.priors import Context, SequenceGaussian
from rtdsae.train.config import AnnealedVAE, BetaTCVAE, BetaVAE, FactorVAE, Objective
from rtdsae.train.factor_vae import Adversary
from rtdsae.train.total_correlation import decompose
from rtdsae.train.windows import Part, SessionWindows

__all__ = ["Loss", "Schedule", "selecting", "valid_scores"]

VALID_MASK = 0.2  # fraction of validation entries that is hidden and scored
VALID_SEED = 7  # one mask for all epochs and runs, so that their scores compare


class Schedule(NamedTuple):
    """Where in training a batch stands.

    Attributes:
        epoch: from 0.
        ramp: 0 to 1, the KL's and L2's share of their full weights.
        n_windows: training windows in an epoch.
    """

    epoch: int
    ramp: float
    n_windows: int


class Shown(NamedTuple):
    """A part of a batch as the encoders see it.

    Attributes:
        inputs: (B, T, readin).
        observed: (B, T, 1) of 0 and 1.
        scored: (B, R, n_neurons), 1 for what the loss is of.
        apart: (B, R, n_neurons), 1 for what is neither shown nor trained on; None where there is nothing.
    """

    inputs: Tensor
    observed: Tensor
    scored: Tensor
    apart: Tensor | None


def scored_entries(dropped: Tensor, observed: Tensor, heldin: Tensor) -> Tensor:
    """What the encoders did not see, (B, R, n_neurons): dropped entries, unobserved bins, held-out neurons."""
    scored = torch.ones(*dropped.shape[:2], len(heldin), device=dropped.device)
    scored[..., heldin] = torch.maximum(dropped, 1 - observed)
    return scored


class Loss(nn.Module):
    """The training loss of a batch; a module, so that all parameters that it uses are shared among processes.

    Args:
        family: the model.
        objective: weights and rates.
    """

    def __init__(self, family: Family, objective: Objective) -> None:
        super().__init__()
        self.family, self.objective = family, objective

    def forward(
        self, parts: list[Part], schedule: Schedule, adversary: Adversary | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and its terms.

        Args:
            parts: a batch's windows of S + R bins, by session.
            schedule: where in training this is.
            adversary: FactorVAE's.

        Returns:
            `loss`, `nll`, a `kl_...` for each latent, the parts of f's KL and whatever else the objective has, each a
            scalar in nats per bin and neuron; and the samples of f, (B, f_dim), which an adversary learns from.
        """
        family, o = self.family, self.objective
        shown = [self.show(part) for part in parts]
        u = None if parts[0].windows.u is None else torch.cat([part.windows.u for part in parts])  # type: ignore[misc]
        observed, context = torch.cat([each.observed for each in shown]), together([part.context for part in parts])
        inferred = family.infer_windows(torch.cat([each.inputs for each in shown]), observed, u, True)
        kls = family.kls(inferred, observed[:, family.start :], context)
        terms = self.explain(parts, shown, inferred.factors)
        share = torch.cat([torch.full_like(each.scored[:, 0, 0], 1 / each.scored[0].numel()) for each in shown])
        terms |= {f"kl_{name}": (value * share).mean() for name, value in kls.items()}
        static, f = static_terms(family, inferred, kls["f"], share, context, o, schedule, adversary)
        terms |= static
        kernels = family.recurrent_kernels()
        weights = {"gen": o.l2_gen, "con": o.l2_con}
        terms["l2"] = sum((weights[k] * half_mean_square(w) for k, w in kernels.items()), terms["nll"].new_zeros(()))
        weighted = o.kl_z_scale * terms["kl_z"] + terms["l2"] + o.discriminative * terms.get("discriminative", 0.0)
        annealed = isinstance(o.f_objective, AnnealedVAE)  # its capacity is its schedule
        loss_f = terms["f_objective"] if annealed else schedule.ramp * o.kl_f_scale * terms["f_objective"]
        return {"loss": terms["nll"] + loss_f + schedule.ramp * weighted, **terms}, f

    def show(self, part: Part) -> Shown:
        """What the encoders see of a session's windows, with entries and whole bins hidden from them at random."""
        family, o, batch = self.family.use(part.session), self.objective, part.windows
        start, modelled = family.start, batch.inputs.shape[1] - family.start
        gaps = random_gaps(len(batch.inputs), modelled, o.gap_rate, o.gap_bins).to(batch.inputs.device)
        observed = torch.cat([torch.ones_like(batch.inputs[:, :start, :1]), gaps], 1)
        x = family.readin.normalise(batch.inputs) * observed
        if batch.apart is not None:
            x = x * (1 - batch.apart[..., part.heldin]) / (1 - o.cv_mask)
        x, dropped = coordinated_dropout(x, o.coordinated_dropout, start)
        everything = torch.ones_like(batch.counts[:, start:])
        scored = scored_entries(dropped, gaps, part.heldin) if o.coordinated_dropout else everything
        apart = None if batch.apart is None else batch.apart[:, start:]
        scored = scored if apart is None else scored * (1 - apart)
        return Shown(family.read_in(x, observed), observed, scored, apart)

    def explain(self, parts: list[Part], shown: list[Shown], factors: Tensor) -> dict[str, Tensor]:
        """`nll`, and `nll_cv` where entries are kept apart, by factors of all parts, (B, R, n_factors)."""
        sizes, sums = [len(part.first) for part in parts], dict[str, Tensor]()
        for part, each, own, size in zip(parts, shown, factors.split(sizes), sizes, strict=True):
            session = self.family.use(part.session).session
            nll = session.reconstruction.nll(session.readout(own), part.windows.counts[:, self.family.start :])
            # few bins of one neuron may hide none
            terms = {"nll": (nll * each.scored).sum() / each.scored.sum().clamp_min(1)}
            if each.apart is not None:
                terms["nll_cv"] = (nll.detach() * each.apart).sum() / each.apart.sum().clamp_min(1)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value * (size / len(factors))
        return sums


def together(contexts: list[Context]) -> Context:
    """What is known of the windows of all parts."""
    return Context(*(None if part[0] is None else torch.cat(part) for part in zip(*contexts, strict=True)))  # type: ignore[arg-type]


def static_terms(
    family: Family,
    inferred: Inferred,
    kl_f: Tensor,
    share: Tensor,
    context: Context,
    o: Objective,
    schedule: Schedule,
    adversary: Adversary | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The parts of f's KL and the term that the objective makes of it, and the samples of f.

    `kl_f` is that KL in nats, (B,); `share`, (B,), is what a nat of a window is in nats per bin and neuron. The parts
    and a capacity are the whole batch's, and have the mean share.
    Where f is inferred several times in a window (FHVAE), the parts are of the first time.
    """
    q, f = inferred.q_f.map(lambda part: part[:, 0]), inferred.f_sample[:, 0]
    prior, chosen = family.f_prior(context), o.f_objective
    estimator = chosen.estimator if isinstance(chosen, BetaTCVAE) else "stratified"
    with torch.set_grad_enabled(isinstance(chosen, BetaTCVAE)):
        parts = decompose(q, f, prior, schedule.n_windows, estimator)
    whole, of_batch = (kl_f * share).mean(), share.mean()
    match chosen:
        case BetaVAE():
            term = whole
        case AnnealedVAE():
            capacity = chosen.capacity * min(1.0, schedule.epoch / chosen.epochs)
            term = of_batch * chosen.gamma * (kl_f.mean() - capacity).abs()
        case BetaTCVAE():
            weighted = chosen.mi * parts.mi + chosen.tc * parts.tc + chosen.dim_kl * parts.dim_kl
            rest = kl_f - kl(q, prior)  # what the parts do not say: later inferences, the prior's penalty
            term = of_batch * weighted + (rest * share).mean()
        case FactorVAE():
            assert adversary is not None
            term = whole + of_batch * chosen.gamma * adversary.total_correlation(f)
    terms = {f"f_{name}": of_batch * value.detach() for name, value in parts._asdict().items()} | {"f_objective": term}
    if isinstance(family.f_prior, SequenceGaussian):
        terms["discriminative"] = -(family.f_prior.log_posterior(q.mean, context.sequence) * share).mean()
    return terms, f


def half_mean_square(weight: Tensor) -> Tensor:
    """½ mean(W²), the L2 term of one recurrent kernel, by its own size.

    lfads-torch divides by the sizes of all kernels that are held down, together: a smaller one is pressed less there.
    """
    return 0.5 * weight.square().mean()


@torch.no_grad()
def valid_scores(
    family: Family, sessions: list[SessionWindows], batch_size: int, device: torch.device
) -> dict[str, float]:
    """Validation NLL in nats per bin and neuron, by posterior means, over all sessions.

    Returns:
        `nll` of the held-in neurons with everything seen, `nll_masked` of entries hidden from the encoders, and where
        neurons are held out, `nll_heldout` of those.
    """
    family.eval()
    generator = torch.Generator().manual_seed(VALID_SEED)
    sums: dict[str, list[float]] = {}

    def add(name: str, nll: Tensor, mask: Tensor) -> None:
        total = sums.setdefault(name, [0.0, 0.0])
        total[0] += float((nll * mask).sum())
        total[1] += float(mask.sum())

    for session in sessions:
        heldin, nll_of = session.tensors.heldin.to(device), family.use(session.index).session.reconstruction.nll
        for first in session.valid.tiles().split(batch_size):
            batch = session.tensors.windows_at(first, session.valid.bins, device)
            x, counts = family.readin.normalise(batch.inputs), batch.counts[:, family.start :]
            observed = torch.ones_like(x[..., :1])
            nll = nll_of(family(x, observed, batch.u, False).values, counts)
            add("nll", nll[..., heldin], torch.ones_like(nll[..., heldin]))
            if not heldin.all():
                add("nll_heldout", nll[..., ~heldin], torch.ones_like(nll[..., ~heldin]))
            hidden, dropped = coordinated_dropout(x, VALID_MASK, family.start, generator)
            nll = nll_of(family(hidden, observed, batch.u, False).values, counts)
            add("nll_masked", nll[..., heldin], dropped)
    family.train()
    return {name: total / weight for name, (total, weight) in sums.items()}


def selecting(scores: Container[str], before: str = "") -> str:
    """Which validation score selects the model: that of held-out neurons where there are any, else of hidden entries.

    Args:
        scores: their names.
        before: what stands before each of the names.
    """
    return before + ("nll_heldout" if f"{before}nll_heldout" in scores else "nll_masked")

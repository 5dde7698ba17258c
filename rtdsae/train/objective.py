"""The loss of a batch, and the scores that a model is selected by.

    loss = mean NLL of the scored entries + ramp · [(Σ_k β_k KL_k) / (R · neurons) + L2]        nats per bin and neuron

Scored are the entries that coordinated dropout hid from the encoders, whole hidden bins, and held-out neurons. A model
is selected on hidden entries or held-out neurons too: the likelihood of entries that the encoders saw can be raised by
copying them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import poisson_nll_loss

from rtdsae.model.family import Family
from rtdsae.model.masking import coordinated_dropout, random_gaps
from rtdsae.train.config import Objective
from rtdsae.train.windows import Batch, Tensors, Windows

__all__ = ["loss_terms", "poisson_nll", "valid_scores"]

VALID_MASK = 0.2  # fraction of validation entries that is hidden and scored
VALID_SEED = 7  # one mask for all epochs and runs, so that their scores compare


def poisson_nll(log_rates: Tensor, counts: Tensor) -> Tensor:
    """-log Poisson(counts; exp(log_rates)) without reduction, log-factorial included, in nats."""
    return poisson_nll_loss(log_rates, counts, log_input=True, reduction="none") + torch.lgamma(counts + 1)


def scored_entries(dropped: Tensor, observed: Tensor, heldin: Tensor) -> Tensor:
    """What the encoders did not see, (B, R, n_neurons): dropped entries, unobserved bins, held-out neurons."""
    scored = torch.ones(*dropped.shape[:2], len(heldin), device=dropped.device)
    scored[..., heldin] = torch.maximum(dropped, 1 - observed)
    return scored


def loss_terms(
    model: nn.Module, family: Family, batch: Batch, heldin: Tensor, o: Objective, ramp: float
) -> dict[str, Tensor]:
    """The training loss and its terms.

    Args:
        model: the family as Fabric wrapped it.
        family: the same, unwrapped.
        batch: windows of S + R bins.
        heldin: (n_neurons,) bool.
        o: weights and rates.
        ramp: 0 to 1, the KL's and L2's share of their full weights.

    Returns:
        `loss`, `nll`, `l2` and a `kl_...` for each latent, each a scalar.
    """
    bins = batch.inputs.shape[1]
    start, modelled = family.start, bins - family.start
    gaps = random_gaps(len(batch.inputs), modelled, o.gap_rate, o.gap_bins).to(batch.inputs.device)
    observed = torch.cat([torch.ones_like(batch.inputs[:, :start, :1]), gaps], 1)
    x, dropped = coordinated_dropout(family.readin.normalise(batch.inputs) * observed, o.coordinated_dropout, start)
    explained = model(x, observed, batch.u, True)
    nll = poisson_nll(explained.log_rates, batch.counts[:, start:])
    scored = scored_entries(dropped, gaps, heldin) if o.coordinated_dropout else torch.ones_like(nll)
    terms = {f"kl_{name}": value.mean() / (modelled * len(heldin)) for name, value in explained.kl.items()}
    terms["nll"] = (nll * scored).sum() / scored.sum()
    kernels = family.recurrent_kernels()
    terms["l2"] = o.l2_gen * half_mean_square(kernels["gen"]) + o.l2_con * half_mean_square(kernels["con"])
    weighted = o.kl_f_scale * terms["kl_f"] + o.kl_z_scale * terms["kl_z"] + terms["l2"]
    return {"loss": terms["nll"] + ramp * weighted, **terms}


def half_mean_square(weight: Tensor) -> Tensor:
    """½ mean(W²): lfads-torch's L2 term of one recurrent kernel."""
    return 0.5 * weight.square().mean()


@torch.no_grad()
def valid_scores(
    family: Family, tensors: Tensors, windows: Windows, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Validation NLL in nats per bin and neuron, by posterior means.

    Returns:
        `nll` of the held-in neurons with everything seen, `nll_masked` of entries hidden from the encoders, and where
        neurons are held out, `nll_heldout` of those.
    """
    family.eval()
    generator = torch.Generator().manual_seed(VALID_SEED)
    heldin = tensors.heldin.to(device)
    sums: dict[str, list[float]] = {}

    def add(name: str, nll: Tensor, mask: Tensor) -> None:
        total = sums.setdefault(name, [0.0, 0.0])
        total[0] += float((nll * mask).sum())
        total[1] += float(mask.sum())

    for first in windows.tiles().split(batch_size):
        batch = tensors.windows_at(first, windows.bins, device)
        x, counts = family.readin.normalise(batch.inputs), batch.counts[:, family.start :]
        observed = torch.ones_like(x[..., :1])
        nll = poisson_nll(family(x, observed, batch.u, False).log_rates, counts)
        add("nll", nll[..., heldin], torch.ones_like(nll[..., heldin]))
        if not heldin.all():
            add("nll_heldout", nll[..., ~heldin], torch.ones_like(nll[..., ~heldin]))
        hidden, dropped = coordinated_dropout(x, VALID_MASK, family.start, generator)
        nll = poisson_nll(family(hidden, observed, batch.u, False).log_rates, counts)
        add("nll_masked", nll[..., heldin], dropped)
    family.train()
    return {name: total / weight for name, (total, weight) in sums.items()}

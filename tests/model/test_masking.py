import pytest
import torch

from rtdsae.model.families import make_family
from rtdsae.model.families.dsae_factorized import DSAEFactorizedConfig
from rtdsae.model.families.dsae_full import DSAEFullConfig
from rtdsae.model.families.fdmm import FDMMConfig
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.masking import Dropout, coordinated_dropout, random_gaps
from rtdsae.model.priors import Context
from rtdsae.train.config import Objective
from rtdsae.train.objective import Loss, Schedule
from rtdsae.train.windows import Batch, Part

S, R, C, HELD, B = 4, 10, 6, 2, 32
FAMILIES = {
    "lfads": LFADSConfig(),
    "lfads, acausal": LFADSConfig(causal=False),
    "dsae_full": DSAEFullConfig(),
    "dsae_factorized": DSAEFactorizedConfig(),
    "fhvae": FHVAEConfig(),
    "fdmm": FDMMConfig(),
}


def test_dropped_entries_are_zero_and_the_rest_is_scaled():
    x = torch.randn(50, S + R, C) + 10
    hidden, dropped = coordinated_dropout(x, 0.4, S)
    assert dropped.shape == (50, R, C)
    assert torch.equal(hidden[:, :S], x[:, :S])
    assert torch.equal(hidden[:, S:] == 0, dropped == 1)
    torch.testing.assert_close(hidden[:, S:][dropped == 0], x[:, S:][dropped == 0] / 0.6)
    assert abs(float(dropped.mean()) - 0.4) < 0.03


def test_dropout_keeps_the_mean_and_is_for_training_alone():
    torch.manual_seed(0)
    x, drop = torch.rand(5000) + 1, Dropout(0.4)
    dropped = drop(x)
    kept = dropped != 0
    assert abs(float(kept.float().mean()) - 0.6) < 0.03
    torch.testing.assert_close(dropped[kept], x[kept] / 0.6)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_gradient_exactly_where_the_input_was_dropped(monkeypatch, config):
    """The split's mask is aligned: each scored entry is one that the encoders did not see, and the reverse."""
    torch.manual_seed(0)
    family = make_family(config, Dims((Neurons("one", C, C + HELD),), 0, 0, 0, B, 0.02, S, R))
    counts = torch.poisson(torch.full((B, S + R, C + HELD), 1.0))
    family.readin.mean.fill_(0.5)  # no count is the mean, so a zero at the encoders is a dropped entry
    heldin = torch.tensor([True] * C + [False] * HELD)
    seen = {}

    def infer_windows(x, observed, *rest):
        seen.update(x=x, observed=observed)
        return type(family).infer_windows(family, x, observed, *rest)

    def watch(_, factors, values):
        values.retain_grad()
        seen["values"] = values

    objective = Objective(coordinated_dropout=0.4, gap_rate=0.5, gap_bins=3)
    batch = Batch(counts, counts[..., heldin], None, None)
    context = Context(None, torch.arange(B), torch.ones(B))
    monkeypatch.setattr(family, "infer_windows", infer_windows)
    family.session.readout.register_forward_hook(watch)
    terms, _ = Loss(family, objective)([Part(0, torch.arange(B), batch, context, heldin)], Schedule(0, 0.0, B))
    terms["loss"].backward()
    hidden = seen["x"][:, family.start :] == 0
    gradient = seen["values"].grad[:, :, 0] != 0
    assert torch.equal(gradient[..., :C], hidden)
    assert gradient[..., C:].all()  # held-out neurons are never seen, so always scored
    assert hidden[seen["observed"][:, family.start :, 0] == 0].all()
    assert (seen["observed"][:, family.start :] == 0).any()
    assert 0.4 < hidden.float().mean() < 0.6


def test_gaps_have_their_rate_and_length():
    torch.manual_seed(0)
    observed = random_gaps(4000, 30, 0.25, 5)[..., 0]
    lengths = (1 - observed).sum(1)
    assert abs(float((lengths > 0).float().mean()) - 0.25) < 0.03
    assert lengths.max() == 5
    edges = (observed[:, 1:] != observed[:, :-1]).sum(1)
    assert edges.max() <= 2  # one run a window
    assert random_gaps(10, 30, 0.0, 5).all()


def test_gaps_begin_at_every_bin_and_have_every_length_equally_often():
    """A model that only knew gaps at one place of its window would forecast by their place."""
    torch.manual_seed(0)
    hidden = 1 - random_gaps(30_000, 12, 1.0, 4)[..., 0]
    first, length = hidden.argmax(1), hidden.sum(1).long()
    assert torch.bincount(first, minlength=12).tolist() == pytest.approx([2500] * 12, rel=0.1)
    whole = length[first <= 8]  # not cut off by the window's end
    assert torch.bincount(whole, minlength=5).tolist() == pytest.approx([0, *[len(whole) / 4] * 4], rel=0.1)

import pytest
import torch

from rtdsae.model.families.lfads import LFADS, LFADSConfig
from rtdsae.model.family import Dims
from rtdsae.model.masking import coordinated_dropout, random_gaps
from rtdsae.train.config import Objective
from rtdsae.train.objective import loss_terms
from rtdsae.train.windows import Batch

S, R, C, HELD = 4, 10, 6, 2


def test_dropped_entries_are_zero_and_the_rest_is_scaled():
    x = torch.randn(50, S + R, C) + 10
    hidden, dropped = coordinated_dropout(x, 0.4, S)
    assert dropped.shape == (50, R, C)
    assert torch.equal(hidden[:, :S], x[:, :S])
    assert torch.equal(hidden[:, S:] == 0, dropped == 1)
    torch.testing.assert_close(hidden[:, S:][dropped == 0], x[:, S:][dropped == 0] / 0.6)
    assert abs(float(dropped.mean()) - 0.4) < 0.03


@pytest.mark.parametrize("causal", [True, False])
def test_gradient_exactly_where_the_input_was_dropped(causal):
    """The split's mask is aligned: each scored entry is one that the encoders did not see, and the reverse."""
    torch.manual_seed(0)
    family = LFADS(LFADSConfig(causal=causal, gen_dim=8, fac_dim=4), Dims(C, C + HELD, 0, 0, 0.02, S, R))
    counts = torch.poisson(torch.full((8, S + R, C + HELD), 1.0))
    family.readin.mean.fill_(0.5)  # no count is the mean, so a zero at the encoders is a dropped entry
    heldin = torch.tensor([True] * C + [False] * HELD)
    seen = {}

    def watched(x, observed, u, sample):
        explained = family(x, observed, u, sample)
        explained.log_rates.retain_grad()
        seen.update(x=x, observed=observed, log_rates=explained.log_rates)
        return explained

    objective = Objective(coordinated_dropout=0.4, gap_rate=0.5, gap_bins=3)
    loss_terms(watched, family, Batch(counts, counts[..., heldin], None), heldin, objective, 0.0)["loss"].backward()
    hidden = seen["x"][:, family.start :] == 0
    gradient = seen["log_rates"].grad != 0
    assert torch.equal(gradient[..., :C], hidden)
    assert gradient[..., C:].all()  # held-out neurons are never seen, so always scored
    assert hidden[seen["observed"][:, family.start :, 0] == 0].all()
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

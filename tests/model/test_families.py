"""The contract of every family: shapes, gradients, causality, streamed = offline, gaps, save and load."""

import pytest
import torch

from rtdsae.model.families.lfads import LFADS, LFADSConfig
from rtdsae.model.family import Dims, Family
from rtdsae.model.stream import stream

S, R, C, HELD, U, K = 5, 12, 7, 2, 2, 3
SMALL = {
    "ic_enc_dim": 6,
    "f_dim": 4,
    "ci_enc_dim": 6,
    "con_dim": 5,
    "z_dim": 2,
    "gen_dim": 9,
    "fac_dim": 4,
    "dropout": 0.2,
}


def lfads(external: int = 0, **config: object) -> Family:
    torch.manual_seed(1)
    dims = Dims(C, C + HELD, external, K, 0.02, S, R)
    family = LFADS(LFADSConfig(**(SMALL | config)), dims)
    counts = torch.poisson(torch.full((200, C + HELD), 1.0))
    family.fit_normalisation(counts, counts[:, :C])
    return family


CAUSAL = {
    "lfads": lfads,
    "lfads with read-in": lambda external=0: lfads(external, readin_dim=3),
}


@pytest.fixture(params=CAUSAL)
def make(request):
    return CAUSAL[request.param]


def window(batch: int = 3, bins: int = S + R) -> torch.Tensor:
    return torch.poisson(torch.full((batch, bins, C), 1.0), generator=torch.Generator().manual_seed(2))


def explain(family, x, observed=None, u=None, sample=False):
    observed = torch.ones(*x.shape[:2], 1) if observed is None else observed
    return family(family.readin.normalise(x), observed, u, sample)


def test_shapes(make):
    family = make()
    explained = explain(family, window(), sample=True)
    assert explained.log_rates.shape == (3, R, C + HELD)
    sizes = {name: value.shape[2] for name, value in explained.outputs._asdict().items()}
    assert sizes == {"factors": 4, "z": 2, "f": 4, "rates": C + HELD, "behaviour": K}
    assert {name: value.shape for name, value in explained.kl.items()} == {"f": (3,), "z": (3,)}
    state = family.anchor(window()[:, :S])
    assert state.shape == (3, sum(family.state_sizes.values()))
    torch.testing.assert_close(explained.outputs.rates, explained.log_rates.exp() / 0.02)


def test_gradient_reaches_every_parameter(make):
    family = make()
    observed = torch.ones(3, S + R, 1)
    observed[:, S + 4] = 0
    explained = explain(family, window(), observed, sample=True)
    (explained.log_rates.square().sum() + explained.kl["f"].sum() + explained.kl["z"].sum()).backward()
    still = [name for name, p in family.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []


def test_causality_law_to_the_last_bit(make):
    """out_t does not change with any x_s, s > t, and does with x_t itself and with the anchor bins."""
    family, x = make().eval(), window(1)
    base = stream(family, x)
    for s in range(S + R):
        other = x.clone()
        other[:, s] += 3
        moved = stream(family, other)
        for name in ("factors", "z", "rates", "behaviour"):
            a, b = getattr(base, name), getattr(moved, name)
            before = max(0, s - S)
            assert torch.equal(a[:, :before], b[:, :before]), (name, s)
            if s >= S:
                assert not torch.equal(a[:, s - S], b[:, s - S]), (name, s)
        if s < S:
            assert not torch.equal(base.f, moved.f), s
        else:
            assert torch.equal(base.f, moved.f), s


def test_training_forward_obeys_the_law_too(make):
    family, x = make().eval(), window(1)
    base = explain(family, x).log_rates
    other = x.clone()
    other[:, S + 6] += 3
    moved = explain(family, other).log_rates
    assert torch.equal(base[:, :6], moved[:, :6])
    assert not torch.equal(base[:, 6], moved[:, 6])


@pytest.mark.parametrize("external", [0, U])
def test_streamed_equals_offline(make, external):
    family, x = make(external=external).eval(), window()
    u = torch.randn(3, S + R, external) if external else None
    observed = torch.ones(3, S + R, 1)
    observed[1, S + 3 : S + 6] = 0
    offline, streamed = explain(family, x, observed, u).outputs, stream(family, x, observed, u)
    for name in offline._fields:
        torch.testing.assert_close(getattr(streamed, name), getattr(offline, name), atol=1e-6, rtol=1e-6)


def test_external_input_moves_the_outputs_of_its_own_bin():
    family, x, u = lfads(U).eval(), window(1), torch.zeros(1, S + R, U)
    base = stream(family, x, u=u)
    u[:, S + 3] = 1
    moved = stream(family, x, u=u)
    assert torch.equal(base.factors[:, :3], moved.factors[:, :3])
    assert not torch.equal(base.factors[:, 3], moved.factors[:, 3])


def test_evaluation_is_deterministic_and_training_is_not(make):
    family, x = make().eval(), window()
    assert torch.equal(explain(family, x).log_rates, explain(family, x).log_rates)
    assert not torch.equal(explain(family, x, sample=True).log_rates, explain(family, x, sample=True).log_rates)


def test_a_gap_is_a_forecast(make):
    """What stands in an unobserved bin is not read; z decays with its prior; the outputs stay finite for 1,000 bins."""
    family = make().eval()
    x = window(1, S + 1000)
    observed = torch.ones(1, S + 1000, 1)
    observed[:, S + 10 :] = 0
    base = stream(family, x, observed)
    x[:, S + 10 :] = 99
    assert torch.equal(stream(family, x, observed).rates, base.rates)
    alpha = family.z_prior.alpha().detach()
    torch.testing.assert_close(base.z[:, 12], base.z[:, 9] * alpha**3)
    assert all(torch.isfinite(value).all() for value in base)


def test_weights_survive_saving(make, tmp_path):
    family, x = make().eval(), window()
    torch.save(family.state_dict(), tmp_path / "weights.pt")
    other = make()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(explain(other.eval(), x).log_rates, explain(family, x).log_rates)


def test_the_acausal_reference_sees_the_future_and_every_bin():
    family, x = lfads(causal=False).eval(), window(1)
    base = explain(family, x)
    assert base.log_rates.shape[1] == S + R
    x[:, -1] += 3
    assert not torch.equal(explain(family, x).log_rates[:, 0], base.log_rates[:, 0])

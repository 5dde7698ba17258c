import io
import math

import pytest
import torch

from rtdsae.train.factor_vae import Adversary


def adversary(dim=2, seed=0, learning_rate=1e-3):
    torch.manual_seed(seed)
    return Adversary(dim, 32, learning_rate, torch.device("cpu"))


def pairs(n, rho):
    """Samples of two standard normal dimensions with this correlation."""
    x = torch.randn(n, 2)
    return torch.stack([x[:, 0], rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]], 1)


def weights(a):
    return {name: value.clone() for name, value in a.net.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("rho", [0.0, 0.8, -0.8])
def test_the_estimate_approaches_the_total_correlation_and_the_loss_falls(rho):
    """Of two Gaussian dimensions it is -½ log(1 - ρ²)."""
    a = adversary()
    losses = [a.learn(pairs(1024, rho)) for _ in range(600)]
    estimate = float(a.total_correlation(pairs(20_000, rho)))
    assert estimate == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.08)
    if rho:
        assert sum(losses[-50:]) / 50 < sum(losses[:50]) / 50 - 0.05
    else:
        assert sum(losses[-50:]) / 50 == pytest.approx(math.log(2), abs=0.02)  # nothing to tell apart


def test_the_models_loss_reaches_f_and_not_the_discriminator():
    a = adversary()
    a.learn(pairs(64, 0.5))
    kept = [parameter.grad.clone() for parameter in a.net.parameters()]
    f = pairs(64, 0.5).requires_grad_()
    a.total_correlation(f).backward()
    assert f.grad.abs().min() > 0
    assert all(torch.equal(p.grad, before) for p, before in zip(a.net.parameters(), kept, strict=True))
    assert all(parameter.requires_grad for parameter in a.net.parameters())
    before = weights(a)
    a.learn(f)
    assert not equal(weights(a), before)  # it still learns


def test_its_own_loss_does_not_reach_f():
    f = pairs(64, 0.5).requires_grad_()
    (2 * f).sum().backward()
    adversary().learn(2 * f)
    assert torch.equal(f.grad, torch.full_like(f, 2.0))


def test_a_saved_discriminator_goes_on_as_it_would_have():
    a, other = adversary(seed=0), adversary(seed=1)
    for _ in range(3):
        a.learn(pairs(64, 0.5))
    torch.save(a.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert equal(weights(a), weights(other))
    f = pairs(64, 0.5)
    for each in (a, other):
        torch.manual_seed(5)
        each.learn(f)
    assert equal(weights(a), weights(other))  # the optimiser's moments were saved too


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_latents_to_shuffle_teach_nothing(n):
    """As in an epoch's last batch: half of it is at most one latent."""
    a = adversary()
    before = weights(a)
    assert math.isfinite(a.learn(pairs(n, 0.5)))
    assert equal(weights(a), before)

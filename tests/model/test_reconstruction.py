"""Each likelihood against scipy's, over its parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from rtdsae.model.reconstruction import make_reconstruction

KINDS = ("poisson", "negative_binomial", "gaussian", "zero_inflated_gamma")

log_means = st.floats(-12, 6)
counts = st.integers(0, 300)
reals = st.floats(-20, 20)
logits = st.floats(-6, 6)
quick = settings(max_examples=100)


def made(kind: str, n_neurons: int = 1, **parameters: float):
    """In double precision, with its own parameters (one for all neurons)."""
    reconstruction = make_reconstruction(kind, n_neurons).double()
    with torch.no_grad():
        for name, value in parameters.items():
            getattr(reconstruction, name).copy_(torch.tensor(value, dtype=torch.float64))
    return reconstruction


@torch.no_grad()
def nll_and_mean(reconstruction, values: list[float], count: float) -> tuple[float, float]:
    given_values = torch.tensor(values, dtype=torch.float64)[:, None]
    nll = reconstruction.nll(given_values, torch.tensor([count], dtype=torch.float64))
    mean = reconstruction.mean(given_values)
    assert nll.shape == mean.shape == (1,)
    return float(nll), float(mean)


def close(got: float, want: float) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@quick
@given(log_means, counts)
def test_poisson_is_scipys(log_mean, count):
    nll, mean = nll_and_mean(made("poisson"), [log_mean], count)
    theirs = stats.poisson(np.exp(log_mean))
    close(nll, -theirs.logpmf(count))
    close(mean, theirs.mean())


@quick
@given(log_means, st.floats(-3, 6), counts)
def test_negative_binomial_is_scipys(log_mean, log_dispersion, count):
    """Of mean m and variance m + m² / r: scipy's n is r, its p is r / (r + m)."""
    nll, mean = nll_and_mean(made("negative_binomial", log_dispersion=log_dispersion), [log_mean], count)
    m, r = np.exp(log_mean), np.exp(log_dispersion)
    theirs = stats.nbinom(r, r / (r + m))
    close(nll, -theirs.logpmf(count))
    close(mean, m)
    np.testing.assert_allclose(theirs.mean(), m, rtol=1e-4)
    np.testing.assert_allclose(theirs.var(), m + m * m / r, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("log_dispersion", [-3.0, 2.0, 5.0, 7.0, 9.0, 12.0, 15.0, 25.0])
def test_a_negative_binomial_keeps_its_precision_up_to_a_poisson(log_dispersion):
    """Data that vary as a Poisson's drive r to infinity, where differences of log Γ drown in single precision."""
    reconstruction = make_reconstruction("negative_binomial", 1)
    reconstruction.log_dispersion.fill_(log_dispersion)
    r = np.exp(log_dispersion)
    for mean in (0.05, 1.0):
        for count in (0, 1, 5):
            nll = reconstruction.nll(torch.tensor([[mean]]).log(), torch.tensor([float(count)]))
            want = -stats.nbinom(r, r / (r + mean)).logpmf(count) if r < 1e6 else -stats.poisson(mean).logpmf(count)
            assert abs(float(nll) - want) < 0.012, (mean, count)


@quick
@given(reals, st.floats(-9.9, 9.9), reals)
def test_gaussian_is_scipys(mean, logvar, value):
    nll, got = nll_and_mean(made("gaussian"), [mean, logvar], value)
    theirs = stats.norm(mean, np.exp(logvar / 2))
    close(nll, -theirs.logpdf(value))
    close(got, max(theirs.mean(), 0))  # it is given out as a rate


@pytest.mark.parametrize(("logvar", "bound"), [(-30.0, -10.0), (30.0, 10.0)])
def test_a_gaussians_variance_is_bounded(logvar, bound):
    """A neuron that never varies would be explained ever better, without end."""
    nll, _ = nll_and_mean(made("gaussian"), [1.0, logvar], 2.0)
    close(nll, -stats.norm(1.0, np.exp(bound / 2)).logpdf(2.0))


@quick
@given(logits, logits, logits, st.floats(-1, 3), st.floats(-1, 3), st.just(0.0) | st.floats(1e-3, 50))
def test_zero_inflated_gamma_is_scipys(shape, rate, p, log_shape_scale, log_rate_scale, value):
    reconstruction = made("zero_inflated_gamma")
    with torch.no_grad():
        reconstruction.log_scale.copy_(torch.tensor([[log_shape_scale], [log_rate_scale]], dtype=torch.float64))
    nll, mean = nll_and_mean(reconstruction, [shape, rate, p], value)
    event, scale = expit(p), 1 / (expit(rate) * np.exp(log_rate_scale))
    theirs = stats.gamma(expit(shape) * np.exp(log_shape_scale), scale=scale)
    close(nll, -np.log1p(-event) if value == 0 else -np.log(event) - theirs.logpdf(value))
    close(mean, event * theirs.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_and_bins_are_apart(kind):
    """A neuron's likelihood and mean in a bin are those of its own values and count, wherever it stands."""
    torch.manual_seed(0)
    reconstruction = made(kind, 4)
    with torch.no_grad():
        for parameter in reconstruction.parameters():
            parameter.add_(torch.randn_like(parameter))
    values = torch.randn(2, 3, reconstruction.n_values, 4).double()
    count = torch.poisson(torch.full((2, 3, 4), 1.0)).double()
    nll, mean = reconstruction.nll(values, count), reconstruction.mean(values)
    assert nll.shape == mean.shape == (2, 3, 4)
    assert len(nll.unique()) > 20
    alone = make_reconstruction(kind, 1).double()
    for b, t, n in np.ndindex(2, 3, 4):
        with torch.no_grad():
            for mine, own in zip(alone.parameters(), reconstruction.parameters(), strict=True):
                mine.copy_(own[..., n : n + 1])
        torch.testing.assert_close(alone.nll(values[b, t, :, n : n + 1], count[b, t, n : n + 1])[0], nll[b, t, n])
        torch.testing.assert_close(alone.mean(values[b, t, :, n : n + 1])[0], mean[b, t, n])


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial", "gaussian"])
def test_the_start_is_the_datas_mean(kind):
    torch.manual_seed(0)
    data = torch.poisson(torch.tensor([0.05, 0.5, 4.0, 0.0]).expand(500, 4)).double()
    reconstruction = made(kind, 4)
    start = reconstruction.start(data)
    assert start.shape == (reconstruction.n_values, 4)
    torch.testing.assert_close(reconstruction.mean(start), data.mean(0), atol=2e-4, rtol=1e-9)
    assert torch.isfinite(reconstruction.nll(start, data)).all()


def test_a_gaussians_start_has_the_datas_variance():
    data = torch.poisson(torch.tensor([0.5, 4.0]).expand(500, 2)).double()
    assert torch.equal(made("gaussian", 2).start(data)[1].exp().round(decimals=9), data.var(0).round(decimals=9))


def test_a_zero_inflated_gammas_start_has_how_often_neurons_are_active():
    data = torch.poisson(torch.tensor([0.05, 0.5, 0.0, 50.0]).expand(500, 4)).double()
    p = torch.sigmoid(made("zero_inflated_gamma", 4).start(data)[2]).double()
    active = (data > 0).double().mean(0)
    torch.testing.assert_close(p[:2], active[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(p[2:], torch.tensor([0.01, 0.99]).double())  # never 0 or 1, whose logits are not finite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("value", [-120.0, -15.0, 0.0, 8.0, 40.0])
def test_gradients_are_finite_at_any_count(kind, count, value):
    reconstruction = make_reconstruction(kind, 3)
    values = torch.full((reconstruction.n_values, 3), value, requires_grad=True)
    nll = reconstruction.nll(values, torch.full((3,), count))
    nll.sum().backward()
    assert torch.isfinite(nll).all()
    for gradient in [values.grad, *(p.grad for p in reconstruction.parameters())]:
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_and_parameter_has_a_gradient(kind):
    torch.manual_seed(0)
    reconstruction = make_reconstruction(kind, 3)
    values = torch.randn(50, reconstruction.n_values, 3, requires_grad=True)
    reconstruction.nll(values, torch.poisson(torch.ones(50, 3))).sum().backward()
    for gradient in [values.grad, *(p.grad for p in reconstruction.parameters())]:
        assert gradient.reshape(-1, 3).any(0).all()

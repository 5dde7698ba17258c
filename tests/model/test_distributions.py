"""Gaussians against torch.distributions, and against Monte Carlo."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from rtdsae.model.distributions import Gaussian, GaussianHead, kl

COVARIANCES = ("diagonal", "full")


def gaussian(covariance: str, *shape: int) -> Gaussian:
    lower = torch.randn(*shape, shape[-1]).double().tril(-1) if covariance == "full" else None
    return Gaussian(torch.randn(*shape).double(), torch.randn(*shape).double(), lower)


def torchs(g: Gaussian) -> MultivariateNormal:
    scale = torch.diag_embed(g.logvar.div(2).exp())
    return MultivariateNormal(g.mean, scale_tril=scale if g.lower is None else scale + g.lower)


@pytest.fixture(params=COVARIANCES)
def q(request) -> Gaussian:
    torch.manual_seed(0)
    return gaussian(request.param, 7, 3)


def test_density_is_torchs(q):
    z = torch.randn(7, 3).double()
    torch.testing.assert_close(q.log_prob(z), torchs(q).log_prob(z))


def test_marginal_variances_are_torchs(q):
    torch.testing.assert_close(q.variance(), torchs(q).variance)


def test_kl_to_a_diagonal_prior_is_torchs(q):
    p = gaussian("diagonal", 7, 3)
    torch.testing.assert_close(kl(q, p), kl_divergence(torchs(q), torchs(p)))
    one = gaussian("diagonal", 3)  # shared by all
    many = Gaussian(one.mean.expand(7, 3), one.logvar.expand(7, 3))
    torch.testing.assert_close(kl(q, one), kl_divergence(torchs(q), torchs(many)))


def test_samples_have_the_mean_and_the_covariance(q):
    """Within 4.5 standard errors: var of a sample covariance is (Σ_ii Σ_jj + Σ_ij²) / n."""
    torch.manual_seed(1)
    n = 20_000
    z = q.sample(torch.randn(n, 7, 3).double())
    want, covariance = torchs(q).mean, torchs(q).covariance_matrix
    own = covariance.diagonal(dim1=-2, dim2=-1)
    off = (z.mean(0) - want) / (own / n).sqrt()
    assert off.abs().max() < 4.5
    centred = z - want
    got = torch.einsum("nbi,nbj->bij", centred, centred) / n
    error = ((own[:, :, None] * own[:, None, :] + covariance**2) / n).sqrt()
    assert ((got - covariance) / error).abs().max() < 4.5
    assert torch.equal(q.sample(None), q.mean)


def test_a_change_is_made_to_every_part(q):
    picked = q.map(lambda part: part[2])
    torch.testing.assert_close(picked.log_prob(torch.zeros(3).double()), q.log_prob(torch.zeros(7, 3).double())[2])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_head_has_a_variance_floor(covariance):
    head = GaussianHead(4, 3, covariance, min_var=0.01)
    own = head(10 * torch.randn(500, 4)).logvar.exp()
    assert (own >= 0.01 * (1 - 1e-5)).all()
    assert own.min() < 0.0101  # the floor was reached, so it was tested


def test_head_has_off_diagonal_terms_only_where_asked():
    torch.manual_seed(0)
    h = torch.randn(2, 5, 4)
    assert GaussianHead(4, 3, "diagonal")(h).lower is None
    assert GaussianHead(4, 1, "full")(h).lower is None  # one dimension has none
    q = GaussianHead(4, 3, "full")(h)
    assert q.mean.shape == q.logvar.shape == (2, 5, 3)
    assert q.lower.shape == (2, 5, 3, 3)
    below = torch.ones(3, 3).tril(-1).bool()
    assert (q.lower[..., ~below] == 0).all()
    assert (q.lower[..., below] != 0).all()


def test_a_full_head_begins_close_to_diagonal():
    torch.manual_seed(0)
    q = GaussianHead(400, 3, "full")(torch.randn(4000, 400))
    below = torch.ones(3, 3).tril(-1).bool()
    assert 0.08 < q.lower[..., below].std() < 0.12
    assert 0.9 < q.mean.std() < 1.1


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gradient_reaches_every_parameter_of_the_head(covariance):
    torch.manual_seed(0)
    head = GaussianHead(4, 3, covariance)
    q = head(torch.randn(6, 4))
    (q.sample(torch.randn(6, 3)).square().sum() + kl(q, Gaussian(torch.ones(3), torch.zeros(3))).sum()).backward()
    for name, p in head.named_parameters():
        assert (p.grad != 0).all(), name


@pytest.mark.parametrize("full", [False, True])
def test_each_sample_under_each_gaussian_is_the_density_one_by_one(full):
    torch.manual_seed(0)
    lower = torch.randn(4, 3, 3).tril(-1) if full else None
    q, z = Gaussian(torch.randn(4, 3), torch.randn(4, 3), lower), torch.randn(5, 3)
    found = q.log_prob_of_each(z)
    assert found.shape == (5, 4)
    for n in range(5):
        torch.testing.assert_close(found[n], q.log_prob(z[n].expand(4, 3)))


def test_a_heads_variance_is_what_it_says_above_the_floor():
    head = GaussianHead(4, 2, min_var=0.01)
    says = torch.tensor([[0.5, -0.5, 0.0, -3.0]])
    torch.testing.assert_close(head.posterior(says).variance(), says[:, 2:].exp() + 0.01)

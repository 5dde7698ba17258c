"""Every KL against an independent computation: torch.distributions, scipy, Monte Carlo."""

import numpy as np
import torch
from scipy.stats import multivariate_normal
from torch.distributions import Normal, kl_divergence

from rtdsae.model.distributions import AR1Prior, Gaussian, GaussianHead, LearnableGaussian, kl


def gaussian(*shape: int) -> Gaussian:
    return Gaussian(torch.randn(*shape).double(), torch.randn(*shape).double())


def normal(g: Gaussian) -> Normal:
    return Normal(g.mean, (0.5 * g.logvar).exp())


def test_kl_agrees_with_torch_distributions():
    q, p = gaussian(7, 3), gaussian(3)
    want = kl_divergence(normal(q), normal(Gaussian(p.mean.expand(7, 3), p.logvar.expand(7, 3)))).sum(-1)
    torch.testing.assert_close(kl(q, p), want)


def test_posterior_head_has_a_variance_floor():
    head = GaussianHead(4, 2, min_var=0.01)
    q = head(torch.full((1, 4), -1e3))
    assert (q.logvar.exp() >= 0.01 * (1 - 1e-5)).all()
    assert torch.equal(q.sample(None), q.mean)


def test_initial_condition_prior_is_published():
    p = LearnableGaussian(3)()
    assert torch.equal(p.mean, torch.zeros(3))
    torch.testing.assert_close(p.logvar.exp(), torch.full((3,), 0.1))


def test_ar1_kl_is_the_expected_log_ratio_under_the_joint_prior():
    """E_q[log q(z) - log p(z)] by Monte Carlo, p being one big Gaussian with the AR(1)'s covariance, by scipy."""
    torch.manual_seed(0)
    bins, n, tau, v = 6, 40_000, 3.0, 0.4
    prior = AR1Prior(1, tau, v).double()
    q = Gaussian(torch.randn(1, bins, 1).double(), -1 + 0.3 * torch.randn(1, bins, 1).double())
    z = q.sample(torch.randn(n, bins, 1).double())
    observed = torch.ones(n, bins, 1).double()
    ours = prior.kl(Gaussian(q.mean.expand(n, -1, -1), q.logvar.expand(n, -1, -1)), z, observed)
    alpha = np.exp(-1 / tau)
    lag = np.abs(np.subtract.outer(np.arange(bins), np.arange(bins)))
    log_p = multivariate_normal(np.zeros(bins), v / (1 - alpha**2) * alpha**lag).logpdf(z[..., 0].numpy())
    log_q = normal(q).log_prob(z).sum((1, 2)).numpy()
    difference = ours.detach().numpy() - (log_q - log_p)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(n)
    assert ours.std() < (log_q - log_p).std()  # analytic in z_t, so less noisy


def test_ar1_kl_skips_unobserved_bins():
    prior, q, z = AR1Prior(2).double(), gaussian(1, 5, 2), torch.randn(1, 5, 2).double()
    observed = torch.ones(1, 5, 1).double()
    observed[0, 3] = 0
    others = [prior.kl(q, z, torch.eye(5).double()[None, :, t, None]) for t in (0, 1, 2, 4)]
    torch.testing.assert_close(prior.kl(q, z, observed), sum(others))


def test_ar1_tau_and_variance_learn():
    prior, q, z = AR1Prior(2), Gaussian(torch.zeros(1, 5, 2), torch.zeros(1, 5, 2)), torch.randn(1, 5, 2)
    prior.kl(q, z, torch.ones(1, 5, 1)).sum().backward()
    assert (prior.log_tau.grad != 0).all()
    assert (prior.logvar.grad != 0).all()

"""`decompose` against what it estimates: literal loops, whole mixtures, closed forms."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from rtdsae.model.distributions import Gaussian
from rtdsae.train.total_correlation import decompose, log_weights

ESTIMATORS = ("weighted", "stratified")


def posteriors(m, dim, full=False, seed=0):
    """Random posteriors in float64, a sample of each, and random priors."""
    torch.manual_seed(seed)
    lower = 0.6 * torch.randn(m, dim, dim, dtype=torch.float64).tril(-1) if full else None
    mean, logvar = torch.randn(2, m, dim, dtype=torch.float64)
    q = Gaussian(mean, logvar - 1, lower)
    p = Gaussian(*torch.randn(2, m, dim, dtype=torch.float64))
    return q, q.sample(torch.randn(m, dim, dtype=torch.float64)), p


def weights(m, n, estimator):
    return log_weights(m, n, estimator, torch.zeros(1, dtype=torch.float64)).exp().numpy()


def log_mean_exp(values):
    return float(np.log(np.mean(np.exp(values))))


# ------------------------------------------------------------------------------------------------ weights of a mixture


@pytest.mark.parametrize(("m", "n"), [(2, 2), (2, 9), (5, 5), (5, 6), (8, 1000)])
def test_stratified_weights_are_a_mixture_with_the_samples_own_posterior_on_the_diagonal(m, n):
    """The public reference code strides by M instead of M + 1 over the M by M table, and fills its first column."""
    w = weights(m, n, "stratified")
    np.testing.assert_allclose(w.sum(1), 1)
    np.testing.assert_allclose(np.diag(w), 1 / n)
    others = np.sort(w[~np.eye(m, dtype=bool)].reshape(m, m - 1), 1)
    b = m - 1
    np.testing.assert_allclose(others[:, 0], (n - b) / (n * b))
    np.testing.assert_allclose(others[:, 1:], 1 / b)


@pytest.mark.parametrize(("m", "n"), [(2, 5), (3, 5), (4, 5), (5, 5)])
def test_the_stratified_estimate_of_the_mixture_is_unbiased(m, n):
    """Over all batches that hold the sample's own posterior and others without replacement: exact, not by chance."""
    rng = np.random.default_rng(m)
    mean, std = rng.normal(size=n), rng.uniform(0.3, 1.5, n)
    own = 1
    point = mean[own] + 0.4
    density = np.exp(-0.5 * ((point - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    w = weights(m, n, "stratified")
    others = [i for i in range(n) if i != own]
    for row in range(m):  # wherever in the batch the sample stands
        batches = [np.insert(chosen, row, own) for chosen in permutations(others, m - 1)]
        estimates = [(w[row] * density[batch]).sum() for batch in batches]
        assert np.mean(estimates) == pytest.approx(density.mean(), rel=1e-12)
    weighted = [density[[own, *chosen]].sum() / (n * m) for chosen in permutations(others, m - 1)]
    np.testing.assert_allclose(weights(m, n, "weighted"), 1 / (n * m))
    assert np.mean(weighted) < 0.9 * density.mean()  # as its docstring says


# ----------------------------------------------------------------------------------------------------- a literal batch


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parts_are_those_of_a_literal_double_loop(estimator, full):
    m, n, dim = 5, 40, 3
    q, f, p = posteriors(m, dim, full)
    scale = torch.diag_embed((0.5 * q.logvar).exp()) + (0.0 if q.lower is None else q.lower)
    each = [MultivariateNormal(mean, scale_tril=tril) for mean, tril in zip(q.mean, scale, strict=True)]
    prior = Normal(p.mean, (0.5 * p.logvar).exp()).log_prob(f).sum(1)
    mi, tc, dim_kl = [], [], []
    for i in range(m):
        w = []
        for j in range(m):
            if estimator == "weighted":
                w.append(1 / (n * m))
            elif j == i:
                w.append(1 / n)
            elif j == (i + 1) % m:
                w.append((n - (m - 1)) / (n * (m - 1)))
            else:
                w.append(1 / (m - 1))
        joint = np.log(sum(w[j] * each[j].log_prob(f[i]).exp().item() for j in range(m)))
        marginals = 0.0
        for d in range(dim):
            alone = [Normal(e.mean[d], e.covariance_matrix[d, d].sqrt()) for e in each]
            marginals += np.log(sum(w[j] * alone[j].log_prob(f[i, d]).exp().item() for j in range(m)))
        mi.append(each[i].log_prob(f[i]).item() - joint)
        tc.append(joint - marginals)
        dim_kl.append(marginals - prior[i].item())
    parts = decompose(q, f, p, n, estimator)
    assert [float(part) for part in parts] == pytest.approx([np.mean(mi), np.mean(tc), np.mean(dim_kl)], rel=1e-9)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("m", [1, 2, 7])
def test_the_parts_sum_to_the_sampled_kl(estimator, full, m):
    q, f, p = posteriors(m, 4, full)
    parts = decompose(q, f, p, 100, estimator)
    whole = (q.log_prob(f) - p.log_prob(f)).mean()
    assert all(torch.isfinite(part) for part in parts)
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-12)


def test_the_total_correlation_falls_along_its_gradient():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(64, 1, generator=generator).expand(-1, 2).clone()  # both dimensions say the same
    noise = torch.randn(64, 2, generator=generator)
    p = Gaussian(torch.zeros(64, 2), torch.zeros(64, 2))
    seen = []
    for _ in range(30):
        q = Gaussian(mean.requires_grad_(), torch.full((64, 2), -2.0))
        tc = decompose(q, q.sample(noise), p, 64, "stratified").tc
        seen.append(tc.item())
        mean = (mean - 2 * torch.autograd.grad(tc, mean)[0]).detach()
    assert seen[-1] < seen[0] - 0.3


# --------------------------------------------------------------------------------------------------------- closed form


def test_parts_of_gaussian_data_approach_their_closed_forms():
    """Posteriors N(m_i, s² I) whose means are Gaussian: q(f) is N(0, C + s² I), and the prior a standard normal."""
    n, s = 1500, 0.5
    rng = np.random.default_rng(0)
    c = np.array([[1.0, 0.8], [0.8, 1.5]])
    means = rng.normal(size=(n, 2))
    means = (means - means.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(means.T, bias=True))).T  # exactly white
    q = Gaussian(torch.from_numpy(means @ np.linalg.cholesky(c).T), torch.full((n, 2), 2 * np.log(s)).double())
    f = q.sample(torch.from_numpy(rng.normal(size=(n, 2))))
    p = Gaussian(torch.zeros(n, 2), torch.zeros(n, 2))

    aggregate = c + s**2 * np.eye(2)
    variances = np.diag(aggregate)
    rho = aggregate[0, 1] / np.sqrt(variances.prod())
    mi = 0.5 * np.log(np.linalg.det(aggregate)) - 2 * np.log(s)
    tc = -0.5 * np.log(1 - rho**2)
    dim_kl = 0.5 * (variances - 1 - np.log(variances)).sum()
    parts = decompose(q, f, p, n, "stratified")
    assert [float(part) for part in parts] == pytest.approx([mi, tc, dim_kl], abs=0.05)

    rows = q.map(lambda part: part[None]).log_prob(f[:, None]).numpy()  # the whole data: its mixture can be had
    exact = np.mean([row[i] - log_mean_exp(row) for i, row in enumerate(rows)])
    assert float(parts.mi) == pytest.approx(exact, abs=2e-3)
    assert float(decompose(q, f, p, n, "weighted").mi) == pytest.approx(exact + np.log(n))  # q(f) too low by log N

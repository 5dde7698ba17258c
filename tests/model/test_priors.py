"""Every prior against an independent computation: scipy, torch.distributions, torch's own cells, numpy, Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import multivariate_normal, norm
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from rtdsae.model import priors
from rtdsae.model.distributions import Gaussian, kl
from rtdsae.model.priors import AR1, RNN, Context, Gated, Labelled, Sequence, Tiled, dynamic_prior, static_prior

DYNAMIC = {
    "ar1": AR1(tau=3.0, variance=0.4),
    "rnn-lstm": RNN(cell="lstm", units=5),
    "rnn-gru": RNN(cell="gru", units=5),
    "rnn-clipped_gru": RNN(cell="clipped_gru", units=5),
    "gated": Gated(units=5),
    "tiled": Tiled(variance=0.5, train_mean=True, train_variance=True),
}
by_kind = pytest.mark.parametrize("kind", DYNAMIC)


def shaken(module: nn.Module) -> nn.Module:
    """The module in double precision, with no parameter left at a value that hides it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module.double()


def dynamic(kind: str, dim: int = 2) -> priors.DynamicPrior:
    torch.manual_seed(0)
    return shaken(dynamic_prior(DYNAMIC[kind], dim, clip=5.0))


def gaussian(*shape: int) -> Gaussian:
    return Gaussian(torch.randn(*shape).double(), torch.randn(*shape).double())


def normal(g: Gaussian) -> Normal:
    return Normal(g.mean, g.logvar.div(2).exp())


def context(sequence: list[int], windows: list[float] | None = None, label: list[int] | None = None) -> Context:
    of_each = torch.tensor(windows or [1.0] * len(sequence)).double()
    return Context(None if label is None else torch.tensor(label), torch.tensor(sequence), of_each)


def along(prior: priors.DynamicPrior, z: torch.Tensor) -> Gaussian:
    """The priors of each bin, given the samples z (B, T, D) of the bins before."""
    last, memory = prior.begin(len(z))
    parts = []
    for z_t in z.unbind(1):
        p, memory = prior(last, memory)
        parts.append(p)
        last = z_t
    return Gaussian(torch.stack([p.mean for p in parts], 1), torch.stack([p.logvar for p in parts], 1))


# ---------------------------------------------------------------------------------------------------- static latent f


@pytest.mark.parametrize("train_mean", [False, True])
@pytest.mark.parametrize("train_variance", [False, True])
def test_gaussian_learns_what_it_is_told_to(train_mean, train_variance):
    config = priors.Normal(variance=0.1, train_mean=train_mean, train_variance=train_variance)
    prior = static_prior(config, 3, 0, 0)
    learnt = {name for name, p in prior.named_parameters() if p.requires_grad}
    assert learnt == {name for name, on in (("mean", train_mean), ("logvar", train_variance)) if on}
    p = prior(context([0, 0]))
    assert torch.equal(p.mean, torch.zeros(2, 3))
    torch.testing.assert_close(p.logvar.exp(), torch.full((2, 3), 0.1))
    assert torch.equal(prior.penalty(context([0, 0])), torch.zeros(2).double())


def test_gaussian_is_the_same_for_every_window():
    prior = shaken(static_prior(priors.Normal(variance=2.0), 3, 0, 0))
    p, q = prior(context([0, 5])), gaussian(2, 3)
    want = Normal(prior.mean.expand(2, 3), prior.logvar.div(2).exp().expand(2, 3))
    torch.testing.assert_close(kl(q, p), kl_divergence(normal(q), want).sum(1))


def test_labelled_has_a_row_for_each_label():
    prior = shaken(static_prior(Labelled(variance=0.5), 3, n_labels=4, n_sequences=0))
    p = prior(context([0, 0, 0], label=[2, 0, 2]))
    assert torch.equal(p.mean, prior.mean[[2, 0, 2]])
    assert torch.equal(p.logvar, prior.logvar[[2, 0, 2]])
    (p.mean.sum() + p.logvar.sum()).backward()
    for table in (prior.mean, prior.logvar):
        assert table.grad.sum(1).tolist() == [3, 0, 6, 0]
    fresh = static_prior(Labelled(variance=0.5), 3, 4, 0)
    torch.testing.assert_close(fresh.logvar.exp(), torch.full((4, 3), 0.5))


def test_sequence_kl_is_to_its_own_mean_with_a_fixed_variance():
    prior = shaken(static_prior(Sequence(), 3, 0, n_sequences=4))
    q = gaussian(3, 3)
    rows = [3, 1, 3]
    want = kl_divergence(normal(q), Normal(prior.mean[rows], 0.5)).sum(1)
    torch.testing.assert_close(kl(q, prior(context(rows))), want)
    assert [name for name, _ in prior.named_parameters()] == ["mean"]


def test_sequence_penalty_is_the_means_own_prior_shared_by_its_windows():
    prior = shaken(static_prior(Sequence(), 3, 0, n_sequences=4))
    got = prior.penalty(context([3, 1, 3], windows=[5.0, 2.0, 5.0])).detach().numpy()
    log_p = multivariate_normal(np.zeros(3), np.eye(3)).logpdf(prior.mean.detach().numpy())
    np.testing.assert_allclose(got, [-log_p[3] / 5, -log_p[1] / 2, -log_p[3] / 5])


def test_sequence_posterior_is_a_softmax_over_the_table():
    prior = shaken(static_prior(Sequence(variance=0.3), 2, 0, n_sequences=4))
    f = torch.randn(3, 2).double()
    got = prior.log_posterior(f, torch.tensor([2, 0, 3])).detach().numpy()
    for n, row in enumerate([2, 0, 3]):
        densities = [
            norm.pdf(f[n].numpy(), mean, math.sqrt(0.3)).prod() for mean in prior.mean.detach().numpy()
        ]  # the sequences are equally likely beforehand
        np.testing.assert_allclose(got[n], np.log(densities[row] / sum(densities)))


# --------------------------------------------------------------------------------------------------- dynamic latent z


@by_kind
def test_kl_along_samples_is_the_expected_log_ratio(kind):
    """E_q[log q(z) - log p(z)] by Monte Carlo over whole chains, against the sum of KLs along the same samples."""
    prior = dynamic(kind)
    torch.manual_seed(1)
    n, bins = 20_000, 5
    q = Gaussian(torch.randn(1, bins, 2).double(), -1 + 0.3 * torch.randn(1, bins, 2).double())
    with torch.no_grad():
        z = q.sample(torch.randn(n, bins, 2).double())
        p = along(prior, z)
        ours = prior.kl(q.map(lambda part: part.expand(n, -1, -1)), p, torch.ones(n, bins, 1).double())
        log_p = chain(prior, bins)(z) if kind == "ar1" else normal(p).log_prob(z).sum((1, 2))
        ratio = normal(q).log_prob(z).sum((1, 2)) - log_p
    difference = ours - ratio
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(n)
    assert ours.std() < ratio.std()  # analytic in z_t, so less noisy


def chain(prior, bins: int):
    """log p of a whole AR(1) chain, each dimension one big Gaussian of covariance v / (1 - α²) α^|t - s|, by scipy."""
    lag = np.abs(np.subtract.outer(np.arange(bins), np.arange(bins)))
    joint = []
    for log_tau, logvar in zip(prior.log_tau.tolist(), prior.logvar.tolist(), strict=True):
        alpha = np.exp(-1 / np.exp(log_tau))
        joint.append(multivariate_normal(np.zeros(bins), np.exp(logvar) / (1 - alpha**2) * alpha**lag))
    return lambda z: torch.from_numpy(sum(d.logpdf(z[..., i].numpy()) for i, d in enumerate(joint)))


@by_kind
def test_kl_skips_unobserved_bins(kind):
    prior = dynamic(kind)
    torch.manual_seed(1)
    q, z = gaussian(3, 5, 2), torch.randn(3, 5, 2).double()
    p = along(prior, z)
    observed = torch.ones(3, 5, 1).double()
    observed[0, 3] = 0
    observed[1, 0] = 0
    whole = prior.kl(q, p, torch.ones(3, 5, 1).double())
    apart = torch.stack([prior.kl(q, p, torch.eye(5).double()[None, :, t, None].expand(3, 5, 1)) for t in range(5)], 1)
    assert (apart > 0).all()
    torch.testing.assert_close(prior.kl(q, p, observed), (apart * observed[..., 0]).sum(1))
    torch.testing.assert_close(whole, apart.sum(1))


@by_kind
def test_posteriors_with_off_diagonal_terms_are_counted_whole(kind):
    """Bins after the first, which is AR(1)'s own."""
    prior = dynamic(kind)
    torch.manual_seed(1)
    q = Gaussian(*gaussian(3, 4, 2)[:2], torch.randn(3, 4, 2, 2).double().tril(-1))
    p = along(prior, torch.randn(3, 4, 2).double())
    observed = torch.ones(3, 4, 1).double()
    observed[:, 0] = 0
    scale = torch.diag_embed(q.logvar.div(2).exp()) + q.lower
    theirs = MultivariateNormal(p.mean, scale_tril=torch.diag_embed(p.logvar.div(2).exp()))
    want = kl_divergence(MultivariateNormal(q.mean, scale_tril=scale), theirs)[:, 1:].sum(1)
    torch.testing.assert_close(prior.kl(q, p, observed), want)


@by_kind
def test_a_prior_is_conditioned_on_the_samples_given(kind):
    """p_t follows the z_{t-1} that it is handed, not a chain of its own: `tiled` alone follows nothing."""
    prior = dynamic(kind)
    torch.manual_seed(1)
    z = torch.randn(2, 5, 2).double()
    other = z.clone()
    other[:, 2] += 1
    base, moved = along(prior, z), along(prior, other)
    assert torch.equal(base.mean[:, :3], moved.mean[:, :3])
    assert (base.mean[:, 3] != moved.mean[:, 3]).all() == (kind != "tiled")
    later = (base.mean[:, 4] != moved.mean[:, 4]).all()
    assert later == kind.startswith("rnn")  # it alone remembers more than one bin
    assert torch.equal(along(prior, z).mean, base.mean)  # nothing is drawn


@by_kind
def test_every_parameter_learns_through_the_kl(kind):
    prior = dynamic(kind)
    torch.manual_seed(1)
    q, p = gaussian(4, 6, 2), along(prior, torch.randn(4, 6, 2).double())
    prior.kl(q, p, torch.ones(4, 6, 1).double()).sum().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad.any(), name


def test_ar1_starts_from_its_settings_and_learns_tau_and_variance():
    prior = dynamic_prior(AR1(tau=4.0, variance=0.3), 2, 5.0).double()
    torch.testing.assert_close(prior.alpha(), torch.full((2,), math.exp(-0.25)).double())
    z = torch.randn(3, 2).double()
    p, _ = prior(z, z[:, :0])
    torch.testing.assert_close(p.mean, math.exp(-0.25) * z)
    torch.testing.assert_close(p.logvar.exp(), torch.full((3, 2), 0.3).double())
    q, chained = gaussian(1, 5, 2), along(prior, torch.randn(1, 5, 2).double())
    prior.kl(q, chained, torch.ones(1, 5, 1).double()).sum().backward()
    assert (prior.log_tau.grad != 0).all()
    assert (prior.logvar.grad != 0).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rnn_is_a_loop_of_torchs_cell_and_a_linear_map(cell):
    """Teacher-forced: each step has the posterior's sample of the bin before, and the first one zeros."""
    prior, units = dynamic(f"rnn-{cell}"), 5
    theirs = (nn.LSTMCell if cell == "lstm" else nn.GRUCell)(2, units).double()
    with torch.no_grad():
        theirs.weight_ih.copy_(prior.cell.weight_x.T)
        theirs.weight_hh.copy_(prior.cell.weight_h.T)
        theirs.bias_ih.copy_(prior.cell.bias)
        theirs.bias_hh.zero_()
        if cell == "gru":
            theirs.bias_hh[2 * units :].copy_(prior.cell.bias_n)
    torch.manual_seed(1)
    z = torch.randn(3, 6, 2).double()
    got = along(prior, z)
    first = prior.first.expand(3, -1)
    state = (first[:, :units].contiguous(), first[:, units:].contiguous()) if cell == "lstm" else first.contiguous()
    last = torch.zeros(3, 2).double()
    for t in range(6):
        state = theirs(last, state)
        h = state[0] if cell == "lstm" else state
        both = h @ prior.parameters_of.weight.T + prior.parameters_of.bias
        torch.testing.assert_close(got.mean[:, t], both[:, :2])
        torch.testing.assert_close(got.logvar[:, t], both[:, 2:])
        last = z[:, t]


def test_gated_follows_the_published_equations():
    """Krishnan et al. 2017 (arXiv:1609.09869), gate by gate in numpy."""
    prior = dynamic("gated", dim=3)

    def layer(module: nn.Linear, a: np.ndarray) -> np.ndarray:
        return a @ module.weight.detach().numpy().T + module.bias.detach().numpy()

    def relu(a: np.ndarray) -> np.ndarray:
        return np.maximum(a, 0)

    z = np.random.default_rng(0).normal(size=(4, 3))
    g = expit(layer(prior.gate[2], relu(layer(prior.gate[0], z))))
    h = layer(prior.proposal[2], relu(layer(prior.proposal[0], z)))
    mean = (1 - g) * layer(prior.straight, z) + g * h
    spread = np.log1p(np.exp(layer(prior.spread, relu(h))))
    p, _ = prior(torch.from_numpy(z), torch.zeros(4, 0).double())
    np.testing.assert_allclose(p.mean.detach().numpy(), mean)
    np.testing.assert_allclose(p.logvar.div(2).exp().detach().numpy(), spread + 1e-3)
    first, memory = prior.begin(4)
    assert torch.equal(first, prior.first.expand(4, 3))
    assert memory.shape == (4, 0)


def test_gated_starts_as_the_identity():
    prior = dynamic_prior(Gated(units=5), 3, 5.0)
    z = torch.randn(4, 3)
    torch.testing.assert_close(prior.straight(z), z)


@pytest.mark.parametrize("train_mean", [False, True])
@pytest.mark.parametrize("train_variance", [False, True])
def test_tiled_is_one_gaussian_and_learns_what_it_is_told_to(train_mean, train_variance):
    config = Tiled(variance=0.5, train_mean=train_mean, train_variance=train_variance)
    prior = shaken(dynamic_prior(config, 2, 5.0))
    learnt = {name for name, p in prior.named_parameters() if p.requires_grad}
    assert learnt == {name for name, on in (("mean", train_mean), ("logvar", train_variance)) if on}
    q = gaussian(3, 4, 2)
    got = prior.kl(q, along(prior, torch.randn(3, 4, 2).double()), torch.ones(3, 4, 1).double())
    want = kl_divergence(normal(q), Normal(prior.mean, prior.logvar.div(2).exp())).sum((1, 2))
    torch.testing.assert_close(got, want)
    fresh = dynamic_prior(config, 2, 5.0)
    assert torch.equal(fresh.mean, torch.zeros(2))
    torch.testing.assert_close(fresh.logvar.exp(), torch.full((2,), 0.5))


@by_kind
def test_memory_has_its_size(kind):
    prior = dynamic(kind)
    z, memory = prior.begin(3)
    assert z.shape == (3, 2)
    assert memory.shape == (3, prior.memory_dim)
    _, memory = prior(z, memory)
    assert memory.shape == (3, prior.memory_dim)
    assert prior.memory_dim == {"rnn-lstm": 10, "rnn-gru": 5, "rnn-clipped_gru": 5}.get(kind, 0)


def test_a_chain_that_hardly_forgets_has_a_finite_kl():
    prior = dynamic_prior(AR1(tau=1e8), 2, 5.0)
    q = Gaussian(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))
    p = Gaussian(torch.zeros(1, 3, 2), prior.logvar.expand(1, 3, 2))
    assert torch.isfinite(prior.kl(q, p, torch.ones(1, 3, 1))).all()


def test_a_clipped_networks_units_are_bounded_as_the_models_are():
    prior = dynamic_prior(RNN(cell="clipped_gru", units=3), 2, 0.25)
    assert prior.remember(torch.full((1, 2), 1e3), torch.ones(1, 3)).abs().max() <= 0.25


def test_ar1_begins_where_lfads_does():
    prior = dynamic_prior(AR1(), 2, 5.0)
    torch.testing.assert_close(prior.alpha(), torch.full((2,), math.exp(-1 / 10)))
    torch.testing.assert_close(prior.logvar.exp(), torch.full((2,), 0.1))

"""The loss by hand: each of its terms from what the model gave out, and their sum as the docstrings write it."""

import dataclasses
import math
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from test_fit import FAMILIES
from torch.distributions import Normal, Poisson, kl_divergence

from rtdsae.model.families import make_family
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.masking import coordinated_dropout
from rtdsae.model.priors import Context, Labelled, Sequence
from rtdsae.recordings import Recording
from rtdsae.train.config import AnnealedVAE, BetaTCVAE, BetaVAE, FactorVAE, Objective
from rtdsae.train.factor_vae import Adversary
from rtdsae.train.objective import VALID_MASK, VALID_SEED, Loss, Schedule, valid_scores
from rtdsae.train.total_correlation import decompose
from rtdsae.train.windows import Batch, Part, SessionWindows, Tensors

S, R, C, HELD, B, N = 4, 9, 5, 2, 6, 40
HELDIN = torch.tensor([True, True, False, True, True, False, True])
CONTEXT = Context(torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 1, 2, 3, 3]), torch.full((B,), 2.0))
SCALE = R * (C + HELD)  # from nats a window to nats per bin and neuron
OBJECTIVES = {
    "beta_vae": BetaVAE(),
    "annealed_vae": AnnealedVAE(gamma=0.7, capacity=10.0, epochs=8),
    "beta_tcvae": BetaTCVAE(mi=0.5, tc=3.0, dim_kl=1.5),
    "beta_tcvae, weighted": BetaTCVAE(mi=0.5, tc=3.0, dim_kl=1.5, estimator="weighted"),
    "factor_vae": FactorVAE(gamma=2.0),
}

each_family = pytest.mark.parametrize("name", FAMILIES)
each_objective = pytest.mark.parametrize("f_objective", OBJECTIVES.values(), ids=OBJECTIVES)


def new_family(name, n_external=0, **changes):
    torch.manual_seed(0)
    model = msgspec.structs.replace(FAMILIES[name], **changes)
    family = make_family(model, Dims((Neurons("one", C, C + HELD),), n_external, 0, 3, 4, 0.02, S, R))
    with torch.no_grad():
        family.readin.mean.fill_(0.5)
        for parameter in family.f_prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # no prior is at its first values
    return family


def new_batch(apart=None, u=None):
    counts = torch.poisson(torch.full((B, S + R, C + HELD), 1.0), generator=torch.Generator().manual_seed(1))
    return Batch(counts, counts[..., HELDIN], u, apart)


def entries_apart(rate=0.3):
    return (torch.rand(B, S + R, C + HELD, generator=torch.Generator().manual_seed(2)) < rate).float()


def new_adversary(family):
    return Adversary(family.f_dim, 8, 1e-3, torch.device("cpu"))


def part_of(batch, session=0, heldin=HELDIN):
    return Part(session, torch.arange(B), batch, CONTEXT, heldin)


def terms_of(family, objective, schedule=None, batch=None, adversary=None, seed=3):
    """The loss's terms, the samples of f, and what went into the model and came out."""
    seen = {}

    def infer_windows(x, observed, *rest):
        seen.update(x=x, observed=observed, inferred=type(family).infer_windows(family, x, observed, *rest))
        return seen["inferred"]

    def watch(_, factors, values):
        seen["values"] = values
        values.retain_grad()

    torch.manual_seed(seed)
    schedule = schedule or Schedule(2, 0.6, N)
    watching = family.session.readout.register_forward_hook(watch)
    with mock.patch.object(family, "infer_windows", infer_windows):
        terms, f = Loss(family, objective)([part_of(batch or new_batch())], schedule, adversary)
    watching.remove()
    seen["kl"] = family.kls(seen["inferred"], seen["observed"][:, family.start :], CONTEXT)
    return terms, f, seen


# ------------------------------------------------------------------------------------------------------ terms and sum


def test_a_batch_in_which_nothing_was_hidden_teaches_nothing_but_is_no_failure():
    """As happens now and then to few bins of one neuron."""
    family = make_family(FAMILIES["lfads"], Dims((Neurons("one", C, C),), 0, 0, 3, 4, 0.02, S, R))
    counts = new_batch().inputs
    batch, objective = Batch(counts, counts, None, None), Objective(coordinated_dropout=1e-9, gap_rate=0.0)
    part = part_of(batch, heldin=torch.ones(C, dtype=torch.bool))
    terms, _ = Loss(family, objective)([part], Schedule(2, 0.6, N))
    assert terms["nll"] == 0
    assert torch.isfinite(terms["loss"])


@each_family
@each_objective
def test_the_loss_is_the_sum_of_its_terms(name, f_objective):
    """In nats per bin and neuron; f's own part by what the objective makes of its KL, all parts under the ramp."""
    family = new_family(name)
    adversary = new_adversary(family)
    o = Objective(f_objective=f_objective, kl_f_scale=0.3, kl_z_scale=0.2, l2_gen=0.5, l2_con=0.7)
    schedule = Schedule(epoch=2, ramp=0.6, n_windows=N)
    terms, f, seen = terms_of(family, o, schedule, adversary=adversary)
    expected = {"loss", "nll", "kl_f", "kl_z", "f_mi", "f_tc", "f_dim_kl", "f_objective", "l2"}
    assert terms.keys() == expected | ({"discriminative"} if name == "fhvae" else set())
    assert all(value.shape == () and torch.isfinite(value) for value in terms.values())
    assert f.shape == (B, family.f_dim)

    t = {key: value.item() for key, value in terms.items()}
    inferred, prior = seen["inferred"], family.f_prior(CONTEXT)
    first = kl_divergence(
        Normal(inferred.q_f.mean[:, 0], (0.5 * inferred.q_f.logvar[:, 0]).exp()),
        Normal(prior.mean, (0.5 * prior.logvar).exp()),
    )
    rest = t["kl_f"] - first.sum(1).mean().item() / SCALE  # of FHVAE's later blocks and its table
    assert rest > 0.1 / SCALE if name == "fhvae" else rest == pytest.approx(0, abs=1e-6)
    match f_objective:
        case BetaVAE():
            of_f = t["kl_f"]
        case AnnealedVAE():
            of_f = 0.7 * abs(t["kl_f"] - 10.0 * 2 / 8 / SCALE)
        case BetaTCVAE():
            of_f = 0.5 * t["f_mi"] + 3.0 * t["f_tc"] + 1.5 * t["f_dim_kl"] + rest
        case FactorVAE():
            logits = adversary.net(f).detach().numpy()
            of_f = t["kl_f"] + 2.0 * (logits[:, 0] - logits[:, 1]).mean() / SCALE
    assert t["f_objective"] == pytest.approx(of_f, rel=1e-4)

    kernels = {kind: w.detach().numpy() for kind, w in family.recurrent_kernels().items()}
    l2 = sum({"gen": 0.5, "con": 0.7}[kind] * 0.5 * (w**2).mean() for kind, w in kernels.items())
    assert t["l2"] == pytest.approx(l2, rel=1e-5)
    weight = 1.0 if isinstance(f_objective, AnnealedVAE) else 0.6 * 0.3
    assert t["loss"] == pytest.approx(t["nll"] + weight * of_f + 0.6 * (0.2 * t["kl_z"] + l2), rel=1e-5)


@each_family
@each_objective
def test_what_the_objective_adds_to_the_kl_teaches_the_static_posterior(name, f_objective):
    family = new_family(name)
    terms, *_ = terms_of(family, Objective(f_objective=f_objective), adversary=new_adversary(family))
    head = {"lfads": "ic.head", "fhvae": "f_posterior"}.get(name, "f_enc.head")
    weight = family.get_parameter(f"{head}.linear.weight")
    gradient, added = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0]
        for loss in (terms["f_objective"], terms["f_objective"] - terms["kl_f"])
    )
    assert gradient.any()
    assert added.any() == (not isinstance(f_objective, BetaVAE))


@each_family
@each_objective
def test_kls_are_the_models_own_and_their_parts_are_estimated_as_asked(name, f_objective):
    """By the objective's estimator, else by the unbiased one, N being the windows of an epoch."""
    family = new_family(name)
    terms, f, seen = terms_of(family, Objective(f_objective=f_objective), adversary=new_adversary(family))
    for latent in ("f", "z"):
        assert terms[f"kl_{latent}"].item() == pytest.approx(seen["kl"][latent].mean().item() / SCALE)
    assert torch.equal(f, seen["inferred"].f_sample[:, 0])
    q = seen["inferred"].q_f.map(lambda part: part[:, 0])
    parts = decompose(q, f, family.f_prior(CONTEXT), N, getattr(f_objective, "estimator", "stratified"))
    for part, value in parts._asdict().items():
        assert terms[f"f_{part}"].item() == pytest.approx(value.item() / SCALE, rel=1e-5)
        assert not terms[f"f_{part}"].requires_grad


@pytest.mark.parametrize(
    ("reconstruction", "n"), [("poisson", 1), ("negative_binomial", 1), ("gaussian", 2), ("zero_inflated_gamma", 3)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_nll_is_the_mean_over_bins_and_neurons(reconstruction, n, causal):
    """With nothing hidden everything is scored, held-out neurons too."""
    family = new_family("lfads", reconstruction=reconstruction, causal=causal)
    terms, _, seen = terms_of(family, Objective(coordinated_dropout=0.0, gap_rate=0.0))
    values = seen["values"].detach()
    assert values.shape == (B, R if causal else S + R, n, C + HELD)
    counts = new_batch().counts[:, family.start :]
    nll = family.session.reconstruction.nll(values, counts)
    assert terms["nll"].item() == pytest.approx(nll.mean().item(), rel=1e-5)
    if reconstruction == "poisson":
        by_hand = -Poisson(values[:, :, 0].exp()).log_prob(counts)
        assert terms["nll"].item() == pytest.approx(by_hand.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["lfads", "fhvae"])
def test_the_discriminative_term_is_the_cross_entropy_of_the_sequence(name):
    """FHVAE's, and of any family whose prior is FHVAE's."""
    family = new_family(name, f_prior=Sequence(variance=0.25))
    terms, _, seen = terms_of(family, Objective(discriminative=0.4, kl_f_scale=0.0, kl_z_scale=0.0, l2_gen=0, l2_con=0))
    table = family.f_prior.mean.detach().numpy()
    means = seen["inferred"].q_f.mean[:, 0].detach().numpy()
    lost = []
    for mean, sequence in zip(means, CONTEXT.sequence.tolist(), strict=True):
        likelihoods = np.exp(-((mean - table) ** 2).sum(1) / (2 * 0.25))
        lost.append(-np.log(likelihoods[sequence] / likelihoods.sum()))
    assert terms["discriminative"].item() == pytest.approx(np.mean(lost) / SCALE, rel=1e-4)
    assert terms["loss"].item() == pytest.approx(terms["nll"].item() + 0.6 * 0.4 * np.mean(lost) / SCALE, rel=1e-5)


@each_family
def test_external_inputs_reach_the_model(name):
    family = new_family(name, n_external=2)
    u = torch.randn(B, S + R, 2, generator=torch.Generator().manual_seed(4))
    terms, other, again = (terms_of(family, Objective(), batch=new_batch(u=u))[0]["nll"] for u in (u, u + 1, u))
    assert terms.item() == again.item() != other.item()


@each_family
def test_a_labelled_prior_is_learnt_from_its_labels(name):
    family = new_family(name, f_prior=Labelled())
    terms, *_ = terms_of(family, Objective())
    mean, logvar = family.f_prior.mean, family.f_prior.logvar
    for gradient in torch.autograd.grad(terms["kl_f"], (mean, logvar)):
        assert gradient.abs().sum(1).min() > 0  # all three labels are in the batch


# ------------------------------------------------------------------------------------------------------------ sessions


def two_parts():
    """Windows of two sessions: four of the first, and two of the second, which has fewer neurons."""
    parts = []
    for i, (size, neurons) in enumerate([(4, C + HELD), (2, 5)]):
        mean = torch.full((size, S + R, neurons), 1.0, dtype=torch.float64)
        counts = torch.poisson(mean, generator=torch.Generator().manual_seed(i))
        heldin = HELDIN if i == 0 else torch.tensor([True, True, True, False, True])
        context = Context(torch.arange(size) % 3, torch.arange(size) % 4, torch.full((size,), 2.0))
        windows = Batch(counts, counts[..., heldin], None, (counts > 1).double())
        parts.append(Part(i, torch.arange(size), windows, context, heldin))
    return parts


def two_sessions(name):
    torch.manual_seed(0)
    model = msgspec.structs.replace(FAMILIES[name], readin_dim=3, dropout=0.0)
    dims = Dims((Neurons("one", C, C + HELD), Neurons("two", 4, 5)), 0, 0, 3, 4, 0.02, S, R)
    return make_family(model, dims).double()


@each_family
def test_a_batch_of_two_sessions_is_the_mean_over_its_windows(name, monkeypatch):
    """Without noise: loss, terms and gradients are those of each session's windows alone, weighted by how many."""
    family, parts = two_sessions(name), two_parts()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", torch.zeros)
    monkeypatch.setattr(torch.Tensor, "normal_", torch.Tensor.zero_)
    o = Objective(coordinated_dropout=0.0, gap_rate=0.0, cv_mask=0.3, kl_f_scale=0.5, l2_gen=0.5)

    def of(*some):
        family.zero_grad()
        terms, f = Loss(family, o)(list(some), Schedule(4, 0.6, N))
        terms["loss"].backward()
        return terms, f, {key: p.grad for key, p in family.named_parameters() if p.grad is not None}

    (terms, f, gradients), first, second = of(*parts), of(parts[0]), of(parts[1])
    for key in terms.keys() - {"f_mi", "f_tc", "f_dim_kl"}:  # those are of how the windows lie to one another
        torch.testing.assert_close(terms[key], (4 * first[0][key] + 2 * second[0][key]) / 6, msg=key)
    torch.testing.assert_close(f, torch.cat([first[1], second[1]]))
    assert gradients.keys() == first[2].keys() | second[2].keys()
    nothing = torch.zeros(1).double()
    for key, gradient in gradients.items():
        mean = (4 * first[2].get(key, nothing) + 2 * second[2].get(key, nothing)) / 6
        torch.testing.assert_close(gradient, mean, msg=key)


def test_a_capacity_is_of_the_whole_batch(monkeypatch):
    """In nats a window, whatever its neurons; then by the windows' mean entries."""
    family, parts = two_sessions("dsae_factorized"), two_parts()
    kl = []
    monkeypatch.setattr(family, "kls", lambda *seen: kl.append(type(family).kls(family, *seen)) or kl[0])
    o = Objective(coordinated_dropout=0.0, f_objective=AnnealedVAE(gamma=0.7, capacity=0.3, epochs=8))
    terms, _ = Loss(family, o)(parts, Schedule(8, 1.0, N))
    share = (4 / (C + HELD) + 2 / 5) / 6 / R
    assert terms["f_objective"].item() == pytest.approx(0.7 * abs(kl[0]["f"].mean().item() - 0.3) * share)


# ----------------------------------------------------------------------------------------------------------- schedules


@each_family
@each_objective
def test_without_ramp_only_the_likelihood_counts_unless_capacity_is_the_schedule(name, f_objective):
    family = new_family(name, f_prior=Sequence())
    o = Objective(f_objective=f_objective, discriminative=1.0, kl_f_scale=1.0)
    terms, *_ = terms_of(family, o, Schedule(0, 0.0, N), adversary=new_adversary(family))
    annealed = isinstance(f_objective, AnnealedVAE)
    assert terms["loss"].item() == pytest.approx((terms["nll"] + annealed * terms["f_objective"]).item(), rel=1e-6)
    assert terms["f_objective"].item() > 0


@pytest.mark.parametrize(("epoch", "capacity"), [(0, 0.0), (2, 0.2), (4, 0.4), (8, 0.8), (100, 0.8)])
def test_capacity_grows_to_its_end_and_the_kl_is_drawn_to_it_from_both_sides(epoch, capacity):
    family = new_family("dsae_factorized")
    o = Objective(f_objective=AnnealedVAE(gamma=0.7, capacity=0.8, epochs=8), kl_f_scale=123.0)
    terms, _, seen = terms_of(family, o, Schedule(epoch, 1.0, N))
    kl = seen["kl"]["f"].mean().item()
    assert 0.2 < kl < 0.8  # so C passes it on its way
    assert terms["f_objective"].item() == pytest.approx(0.7 * abs(kl - capacity) / SCALE, rel=1e-5)
    of_term, of_kl = (
        torch.autograd.grad(terms[key], family.f_enc.head.linear.bias, retain_graph=True)[0]
        for key in ("f_objective", "kl_f")
    )
    torch.testing.assert_close(of_term, math.copysign(0.7, kl - capacity) * of_kl)


# ------------------------------------------------------------------------------------------ entries that are kept apart


@each_family
def test_entries_apart_are_hidden_from_the_encoders_and_scored_alone(name):
    """Whatever they hold, neither outputs nor loss change; only the score of just these entries does."""
    family, apart = new_family(name), entries_apart()
    objective = Objective(cv_mask=0.3)
    batch = new_batch(apart)
    other = batch.counts + 5 * apart
    assert apart[:, :S].any()  # the anchor bins have some too
    assert apart[:, S:, ~HELDIN].any()
    terms, f, seen = terms_of(family, objective, batch=batch)
    moved, f_moved, seen_moved = terms_of(family, objective, batch=Batch(other, other[..., HELDIN], None, apart))
    assert torch.equal(seen["x"], seen_moved["x"])
    assert torch.equal(seen["values"], seen_moved["values"])
    assert torch.equal(f, f_moved)
    assert {key for key in terms if not torch.equal(terms[key], moved[key])} == {"nll_cv"}

    values, counts = seen["values"].detach()[:, :, 0], batch.counts[:, S:]
    nll, mask = -Poisson(values.exp()).log_prob(counts), apart[:, S:].bool()
    assert terms["nll_cv"].item() == pytest.approx(nll[mask].mean().item(), rel=1e-5)
    assert not terms["nll_cv"].requires_grad


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@each_family
def test_entries_apart_teach_nothing(name, dropout):
    """The gradient is exactly where an entry was neither apart nor shown (nothing being dropped: not apart)."""
    family, apart = new_family(name), entries_apart()
    objective = Objective(cv_mask=0.3, coordinated_dropout=dropout, gap_rate=0.5)
    terms, _, seen = terms_of(family, objective, Schedule(0, 0.0, N), new_batch(apart))
    terms["loss"].backward()
    gradient, apart = seen["values"].grad[:, :, 0] != 0, apart[:, S:].bool()
    assert not gradient[apart].any()
    hidden = torch.ones_like(gradient)
    hidden[..., HELDIN] = seen["x"][:, S:] == 0
    assert hidden[apart].all()
    assert torch.equal(gradient, (hidden if dropout else torch.ones_like(hidden)) & ~apart)
    assert gradient[..., ~HELDIN][~apart[..., ~HELDIN]].all()  # held-out neurons are scored


def test_what_is_shown_beside_the_entries_apart_is_scaled_up():
    """As in dropout, so that the sum over channels is what it was on average."""
    family, apart = new_family("lfads"), entries_apart()
    o = Objective(cv_mask=0.3, coordinated_dropout=0.0, gap_rate=0.0)
    _, _, seen = terms_of(family, o, batch=new_batch(apart))
    shown = family.readin.normalise(new_batch().inputs) * (1 - apart[..., HELDIN]) / 0.7
    torch.testing.assert_close(seen["x"], shown)


# ---------------------------------------------------------------------------------------------------------- validation


def wave(bins, neurons, seed, heldout=None, n_external=0):
    rng = np.random.default_rng(seed)
    rates = np.exp(np.sin(np.arange(bins) / 9)[:, None] * rng.normal(size=neurons))
    parts = {"external": rng.normal(size=(bins, n_external))} if n_external else {}
    r = Recording(rng.poisson(rates), 0.02, segments=[[0, bins // 2], [bins // 2, bins]], heldout=heldout, **parts)
    return dataclasses.replace(r, splits=np.array(["train", "valid"]))


def valid_of(family, sessions, batch_size=64):
    return valid_scores(family, sessions, batch_size, torch.device("cpu"))


@each_family
@pytest.mark.parametrize("n_external", [0, 2])
def test_validation_is_the_mean_over_all_entries_of_all_sessions(name, n_external):
    """By posterior means, without mask for `nll`, of what was hidden for `nll_masked`; the same at each call."""
    torch.manual_seed(0)
    dims = Dims((Neurons("one", 6, 6), Neurons("two", 3, 4)), n_external, 0, 0, 2, 0.02, S, R)
    family = make_family(msgspec.structs.replace(FAMILIES[name], readin_dim=3), dims)
    recordings = [
        wave(200, 6, 0, n_external=n_external),
        wave(120, 4, 1, heldout=[False, True, False, False], n_external=n_external),
    ]
    sessions = [SessionWindows(Tensors(r), S + R, R, [], i, i) for i, r in enumerate(recordings)]
    for i, session in enumerate(sessions):
        family.use(i).session.fit(session.training_bins(), session.training_bins()[:, session.tensors.heldin])
    scores = valid_of(family, sessions)
    assert family.training
    torch.manual_seed(1)
    assert valid_of(family, sessions) == scores

    losses = {"nll": [], "nll_heldout": [], "nll_masked": []}
    mask = torch.Generator().manual_seed(VALID_SEED)
    family.eval()
    for i, (session, r) in enumerate(zip(sessions, recordings, strict=True)):
        heldin = session.tensors.heldin.numpy()
        for first in session.valid.tiles().tolist():
            counts = torch.from_numpy(r.counts[first : first + S + R].astype(np.float32))[None]
            x = family.use(i).readin.normalise(counts[..., heldin])
            u = torch.from_numpy(r.external[first : first + S + R].astype(np.float32))[None] if n_external else None
            values = family(x, torch.ones_like(x[..., :1]), u, False).values.detach()[:, :, 0]
            nll = -Poisson(values.exp()).log_prob(counts[:, S:]).numpy()
            losses["nll"] += nll[..., heldin].ravel().tolist()
            losses["nll_heldout"] += nll[..., ~heldin].ravel().tolist()
        batch = session.tensors.windows_at(session.valid.tiles(), S + R)
        x, dropped = coordinated_dropout(family.readin.normalise(batch.inputs), VALID_MASK, S, mask)
        values = family(x, torch.ones_like(x[..., :1]), batch.u, False).values.detach()[:, :, 0]
        nll = -Poisson(values.exp()).log_prob(batch.counts[:, S:])
        losses["nll_masked"] += nll[..., heldin][dropped == 1].tolist()
    for key, each in losses.items():
        assert scores[key] == pytest.approx(np.mean(each), rel=1e-5)
    assert "nll_heldout" not in valid_of(family, sessions[:1])

"""The one contract of every family, one change at a time from its defaults.

Shapes, gradients, causality, streamed = offline, gaps, sessions, save and load.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from rtdsae.model import priors
from rtdsae.model.distributions import GaussianHead
from rtdsae.model.families import make_family
from rtdsae.model.families.dsae_factorized import DSAEFactorizedConfig
from rtdsae.model.families.dsae_full import DSAEFullConfig
from rtdsae.model.families.fdmm import FDMMConfig
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Dims, Explained, Family, Neurons, Outputs
from rtdsae.model.priors import AR1, RNN, Context, Gated, Labelled, Sequence, Tiled
from rtdsae.model.stream import stream

S, R, C, HELD, U, K = 5, 12, 7, 2, 2, 3
T, B = S + R, 3
LABELS, SEQUENCES = 3, 4

SHARED = {"f_dim": 4, "z_dim": 3, "gen_dim": 16, "fac_dim": 4, "dropout": 0.2}
FAMILIES = {
    "lfads": (LFADSConfig, {"ic_enc_dim": 6, "ci_enc_dim": 6, "con_dim": 5}),
    "dsae_full": (DSAEFullConfig, {"f_enc_dim": 6, "z_enc_dim": 6, "z_rnn_dim": 5, "z_prior": RNN(units=5)}),
    "dsae_factorized": (DSAEFactorizedConfig, {"f_enc_dim": 6, "z_enc_dim": 8, "z_prior": RNN(units=5)}),
    "fhvae": (FHVAEConfig, {"f_enc_dim": 6, "z_enc_dim": 6}),
    "fdmm": (FDMMConfig, {"f_enc_dim": 6, "z_enc_dim": 6, "z_prior": Gated(units=5)}),
}
F_PRIORS = {
    "gaussian": priors.Normal(variance=0.5, train_mean=True, train_variance=True),
    "labelled": Labelled(),
    "sequence": Sequence(),
}
Z_PRIORS = {
    "ar1": AR1(),
    "rnn": RNN(units=5),
    "gated": Gated(units=5),
    "tiled": Tiled(train_mean=True, train_variance=True),
}
RECONSTRUCTIONS = ("poisson", "negative_binomial", "gaussian", "zero_inflated_gamma")
USES = ("initial_state", "tiled")


class Case(NamedTuple):
    """A family and what is changed from its defaults."""

    family: str
    changed: str = "default"
    changes: tuple[tuple[str, object], ...] = ()
    external: int = 0

    def make(self, sessions: tuple[Neurons, ...] = (Neurons("a", C, C + HELD),), **more: object) -> Family:
        """In evaluation mode, with no parameter left at a value that hides it."""
        torch.manual_seed(1)
        config, own = FAMILIES[self.family]
        dims = Dims(sessions, self.external, K, LABELS, SEQUENCES, 0.02, S, R)
        family = make_family(config(**(SHARED | own | dict(self.changes) | more)), dims)
        with torch.no_grad():
            for p in family.parameters():
                p.add_(0.1 * torch.randn_like(p))
        for session in family.sessions:
            counts = torch.poisson(torch.full((200, session.n_neurons), 1.0))
            session.fit(counts, counts[:, : session.n_channels])
        return family.eval()

    def u(self, batch: int = B, bins: int = T) -> Tensor | None:
        """External inputs, where it has them."""
        made = torch.randn(batch, bins, U, generator=torch.Generator().manual_seed(3))
        return made if self.external else None


def changes_of(family: str) -> list[Case]:
    """Its defaults, and each change from them."""
    config = FAMILIES[family][0]
    default = config(**FAMILIES[family][1])
    cases = [Case(family)]

    def one(name: str, value: object, said: object) -> None:
        cases.append(Case(family, f"{name}={said}", ((name, value),)))

    for said, prior in F_PRIORS.items():
        if type(prior) is not type(default.f_prior) or said == "gaussian":
            one("f_prior", prior, said)
    for said, prior in Z_PRIORS.items():
        if type(prior) is not type(default.z_prior):
            one("z_prior", prior, said)
    for name, values in {"reconstruction": RECONSTRUCTIONS, "cell": ("clipped_gru", "gru", "lstm")}.items():
        for value in values:
            if value != getattr(default, name):
                one(name, value, value)
    cases.append(Case(family, "full posteriors", (("f_posterior", "full"), ("z_posterior", "full"))))
    one("z_lag", 2, 2)
    one("readin_dim", 3, 3)
    for use in USES if hasattr(default, "f_to_generator") else ():
        if use != default.f_to_generator:
            one("f_to_generator", use, use)
    cases.append(Case(family, "external inputs", external=U))
    return cases


def name_of(case: Case) -> str:
    return f"{case.family}-{case.changed}"


def over(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=name_of)


CASES = [case for family in FAMILIES for case in changes_of(family)]
DEFAULTS = [Case(family) for family in FAMILIES]
FULL = [case for case in CASES if case.changed in ("default", "full posteriors")]

CONTEXT = Context(torch.tensor([1, 0, 1]), torch.tensor([0, 2, 2]), torch.tensor([2.0, 5.0, 5.0]))


def window(batch: int = B, bins: int = T) -> Tensor:
    return torch.poisson(torch.full((batch, bins, C), 1.0), generator=torch.Generator().manual_seed(2))


def double(case: Case, **more: object) -> tuple[Family, Tensor, Tensor | None]:
    """Model, windows and external inputs in double precision, where two orders of computation are compared."""
    u = case.u()
    return case.make(**more).double(), window().double(), None if u is None else u.double()


def assert_same(got: Outputs, want: Outputs) -> None:
    for name in want._fields:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-9, rtol=1e-9)


def seen(x: Tensor, *gaps: tuple[int, int, int]) -> Tensor:
    """All bins observed, but for gaps of (window, first bin, bin after the last)."""
    observed = torch.ones_like(x[..., :1])
    for row, first, end in gaps:
        observed[row, first:end] = 0
    return observed


def with_gaps(x: Tensor) -> Tensor:
    """In the first window from the first modelled bin on, in the second in the middle, in the third none."""
    return seen(x, (0, S, S + 2), (1, S + 3, S + 6))


def explain(family, x, observed=None, u=None, sample=False) -> Explained:
    observed = seen(x) if observed is None else observed
    return family(family.readin.normalise(x), observed, u, sample)


def loss_of(family: Family, explained: Explained, counts: Tensor, observed: Tensor, context=CONTEXT) -> Tensor:
    """The evidence lower bound's negative, all terms."""
    nll = family.session.reconstruction.nll(explained.values, counts) * observed
    return nll.sum() + sum(value.sum() for value in family.kls(explained.inferred, observed, context).values())


def parts_of(explained: Explained) -> dict[str, Tensor]:
    """All that has a value for each modelled bin."""
    q, p = explained.inferred.q_z, explained.inferred.p_z
    return {
        "values": explained.values,
        **explained.outputs._asdict(),
        **{"q_z mean": q.mean, "q_z logvar": q.logvar, "p_z mean": p.mean, "p_z logvar": p.logvar},
    }


# ------------------------------------------------------------------------------------------------- shapes and learning


@over(CASES)
def test_shapes(case):
    family, x = case.make(), window()
    n_values = family.session.reconstruction.n_values
    explained = explain(family, x, u=case.u(), sample=True)
    assert explained.values.shape == (B, R, n_values, C + HELD)
    sizes = {name: tuple(value.shape) for name, value in explained.outputs._asdict().items()}
    want = {"factors": 4, "z": 3, "f": 4, "rates": C + HELD, "behaviour": K}
    assert sizes == {name: (B, R, size) for name, size in want.items()}
    inferred = explained.inferred
    n = 1 + R // S if case.family == "fhvae" else 1  # how often f may be inferred
    assert inferred.q_z.mean.shape == inferred.p_z.mean.shape == inferred.p_z.logvar.shape == (B, R, 3)
    assert inferred.q_f.mean.shape == inferred.f_sample.shape == (B, n, 4)
    assert inferred.f_count.shape == (B, n)
    kls = family.kls(inferred, torch.ones(B, R, 1), CONTEXT)
    assert {name: tuple(value.shape) for name, value in kls.items()} == {"f": (B,), "z": (B,)}
    assert all((value > 0).all() for value in kls.values())
    state = family.anchor(x[:, :S])
    assert state.shape == (B, sum(family.state_sizes.values()))
    after, outputs = family.step(state, x[:, S], torch.ones(B, 1), None if case.u() is None else case.u()[:, S])
    assert after.shape == state.shape
    assert {name: tuple(value.shape) for name, value in outputs._asdict().items()} == {
        name: (B, size) for name, size in want.items()
    }


@over(CASES)
def test_gradient_reaches_every_parameter(case):
    """Through likelihood, KLs and penalty; and of tables, the rows of the labels and sequences that are there."""
    n = 10 * B  # so that no rectified unit is silent in all of them
    family, x = case.make().train(), window(n)
    observed = seen(x, (0, S + 4, S + 6), (1, S + 4, S + 6))
    counts = torch.poisson(torch.full((n, R, C + HELD), 1.0))
    context = Context(*(part.repeat(10) for part in CONTEXT))
    explained = explain(family, x, observed, case.u(n), sample=True)
    loss_of(family, explained, counts, observed[:, S:], context).backward()
    still = [name for name, p in family.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []
    assert all(torch.isfinite(p.grad).all() for p in family.parameters() if p.requires_grad)
    rows = {"labelled": [True, True, False], "sequence": [True, False, True, False]}
    if kind := {Labelled: "labelled", Sequence: "sequence"}.get(type(F_PRIORS.get(case.changed.partition("=")[2]))):
        assert family.f_prior.mean.grad.any(1).tolist() == rows[kind]


@over(CASES)
def test_evaluation_is_deterministic_and_sampling_and_training_are_not(case):
    family, x, u = case.make(), window(), case.u()
    assert torch.equal(explain(family, x, u=u).values, explain(family, x, u=u).values)
    assert not torch.equal(explain(family, x, u=u, sample=True).values, explain(family, x, u=u, sample=True).values)
    family.train()
    assert not torch.equal(explain(family, x, u=u).values, explain(family, x, u=u).values)  # dropout


@over(DEFAULTS)
def test_a_stream_has_no_dropout_and_leaves_the_mode_as_it_was(case):
    family, x = case.make(), window()
    evaluated = stream(family, x)
    assert not family.training
    trained = stream(family.train(), x)
    assert family.training
    assert all(torch.equal(a, b) for a, b in zip(evaluated, trained, strict=True))


@over(CASES)
def test_weights_survive_saving(case, tmp_path):
    family, x, u = case.make(), window(), case.u()
    torch.save(family.state_dict(), tmp_path / "weights.pt")
    other = case.make()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.add_(1)
    assert not torch.equal(explain(other, x, u=u).values, explain(family, x, u=u).values)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(explain(other, x, u=u).values, explain(family, x, u=u).values)


@over([case for case in CASES if case.changed == "default" or case.changed.startswith("reconstruction")])
def test_rates_are_the_reconstructions_means_a_second(case):
    family, x = case.make(), window()
    explained = explain(family, x)
    torch.testing.assert_close(explained.outputs.rates, family.session.reconstruction.mean(explained.values) * 50)
    values = family.session.readout(explained.outputs.factors)
    assert torch.equal(explained.values, values)
    linear = family.behaviour
    torch.testing.assert_close(explained.outputs.behaviour, explained.outputs.factors @ linear.weight.T + linear.bias)
    assert not any(p.requires_grad for p in linear.parameters())  # it is fitted afterwards


@over(DEFAULTS)
def test_dropout_is_on_the_encoders_inputs_in_training_alone(case, monkeypatch):
    family, x, given = case.make(), window(200), []
    infer = family.infer
    monkeypatch.setattr(family, "infer", lambda inputs, *rest: given.append(inputs) or infer(inputs, *rest))
    explain(family, x)
    explain(family.train(), x)
    evaluated, trained = given
    torch.testing.assert_close(evaluated, family.readin.normalise(x))
    kept = trained != 0
    assert abs(float(kept[evaluated != 0].float().mean()) - 0.8) < 0.01
    torch.testing.assert_close(trained[kept], evaluated[kept] / 0.8)


READ = {  # what reads the encoders: of f, and of z
    "lfads": ("ic.head", "con"),
    "dsae_full": ("f_enc.head", "z_posterior"),
    "dsae_factorized": ("f_enc.head", "z_posterior"),
    "fhvae": ("f_posterior", "z_posterior"),
    "fdmm": ("f_enc.head", "from_data"),
}


@over(DEFAULTS)
def test_dropout_is_on_the_encoders_outputs_in_training_alone(case, monkeypatch):
    family, x, given = case.make(), window(200), {}

    def watch(path):
        part = family.get_submodule(path)
        how = "project" if path == "con" else "forward"  # LFADS's controller may run by hand
        read = getattr(part, how)
        monkeypatch.setattr(part, how, lambda h: given.setdefault(path, []).append(h) or read(h))

    for path in READ[case.family]:
        watch(path)
    inputs, observed = family.readin.normalise(x), torch.ones_like(x[..., :1])
    family.infer(inputs, observed, None, False)
    family.train().infer(inputs, observed, None, False)
    assert given.keys() == set(READ[case.family])
    for evaluated, trained in given.values():
        whole, kept = (float((h != 0).float().mean()) for h in (evaluated, trained))
        assert whole > 0.3  # of the factorized DSAE's rectified units
        assert kept == pytest.approx(0.8 * whole, abs=0.03)


@over(DEFAULTS)
def test_recurrent_kernels_are_the_models_own(case):
    family = case.make()
    own = {id(p) for p in family.parameters()}
    kernels = family.recurrent_kernels()
    want = {"lfads": {"gen", "con"}, "dsae_full": {"gen"}, "fhvae": {"gen"}}
    assert set(kernels) == want.get(case.family, set())
    assert all(id(kernel) in own for kernel in kernels.values())


# ---------------------------------------------------------------------------------------------------------- causality


def each_bin_moved(x: Tensor) -> tuple[Tensor, Tensor]:
    """One window as often as it has bins, and the same with bin s moved in copy s.

    Copy s of one is compared with copy s of the other, so that not even the order of additions differs.
    """
    base = x.expand(x.shape[1], -1, -1).clone()
    moved = base.clone()
    for s in range(x.shape[1]):
        moved[s, s] += 3
    return base, moved


def first_change(base: Tensor, moved: Tensor) -> int:
    """The first modelled bin, counted in the window, that differs in any bit; T where none does."""
    differs = (base != moved).flatten(1).any(1)
    return S + int(differs.float().argmax()) if differs.any() else T


def block_end(s: int) -> int:
    """The bin at which the block of S bins that holds bin s has ended."""
    return s // S * S + S - 1


def assert_causal(case: Case, base: dict[str, Tensor], moved: dict[str, Tensor], lag: int) -> None:
    """No output before bin s + lag changes with x_s, and the one of s + lag does."""
    for s in range(S, T):
        for name in base.keys() - {"f", "p_z mean", "p_z logvar"}:
            got = first_change(base[name][s], moved[name][s])
            if case.family == "fhvae" and lag and not name.startswith(("z", "q_z")):
                assert s <= got <= s + lag, (name, s, got)  # f is not behind
            else:
                assert got == min(s + lag, T), (name, s, got)
    for s in range(T):
        got = first_change(base["f"][s], moved["f"][s])
        if s < S:
            assert got == S, s
        elif case.family == "fhvae":
            assert got == min(block_end(s), T), (s, got)
        else:
            assert got == T, s  # frozen between anchors


@over(CASES)
def test_causality_law_to_the_last_bit_in_the_stream(case):
    family, u = case.make(), case.u(1)
    u = None if u is None else u.expand(T, -1, -1)
    base, moved = (stream(family, x, u=u)._asdict() for x in each_bin_moved(window(1)))
    assert_causal(case, base, moved, family.z_lag)


@over(CASES)
def test_causality_law_to_the_last_bit_in_training(case):
    """On samples, whose noise is the same."""
    family, u = case.make(), case.u(1)
    u = None if u is None else u.expand(T, -1, -1)
    parts = []
    for x in each_bin_moved(window(1)):
        torch.manual_seed(4)
        parts.append(parts_of(explain(family, x, u=u, sample=True)))
    base, moved = parts
    assert_causal(case, base, moved, family.z_lag)
    for s in range(S, T):
        for name in ("p_z mean", "p_z logvar"):  # is of the bins before
            assert first_change(base[name][s], moved[name][s]) > min(s + family.z_lag, T - 1), (name, s)


@over([case for case in CASES if case.external])
def test_external_input_moves_the_outputs_of_its_own_bin_and_none_before(case):
    family, x, u = case.make(), window(1), case.u(1)
    other = u.clone()
    other[:, S + 3] += 1
    base, moved = stream(family, x, u=u), stream(family, x, u=other)
    offline, offline_moved = explain(family, x, u=u).outputs, explain(family, x, u=other).outputs
    for name in ("factors", "rates"):
        assert first_change(getattr(base, name)[0], getattr(moved, name)[0]) == S + 3
        assert first_change(getattr(offline, name)[0], getattr(offline_moved, name)[0]) == S + 3


@over(DEFAULTS)
def test_the_acausal_reference_sees_the_future_and_every_bin(case):
    family, (base, moved) = case.make(causal=False), each_bin_moved(window(1))
    assert family.start == 0
    base, moved = parts_of(explain(family, base)), parts_of(explain(family, moved))
    assert base["values"].shape[1] == T
    for name in ("values", "factors", "rates", "f"):
        changed = (base[name] != moved[name]).flatten(2).any(2)  # (moved bin, modelled bin)
        assert changed.all(), name
    sees = (base["q_z mean"] != moved["q_z mean"]).any(2)
    if case.family == "dsae_factorized":
        assert torch.equal(sees, torch.eye(T).bool())
    else:
        assert sees[torch.ones(T, T).tril() > 0].all()  # each bin, every one from itself on


@over(DEFAULTS)
def test_the_acausal_reference_learns(case):
    family, x = case.make(causal=False).train(), window()
    observed = seen(x, (1, S + 3, S + 6))
    explained = explain(family, x, observed, sample=True)
    counts = torch.poisson(torch.full((B, T, C + HELD), 1.0))
    loss_of(family, explained, counts, observed).backward()
    still = [name for name, p in family.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []


@over(DEFAULTS)
def test_a_lag_is_within_the_anchor_and_has_no_place_in_the_acausal_reference(case):
    case.make(z_lag=S)
    with pytest.raises(ValueError, match="z_lag 6"):
        case.make(z_lag=S + 1)
    with pytest.raises(ValueError, match="z_lag 1"):
        case.make(z_lag=1, causal=False)


# ------------------------------------------------------------------------------------------------- streamed = offline


@over(CASES)
def test_streamed_equals_offline(case):
    family, x, u = double(case)
    observed = with_gaps(x)
    assert_same(stream(family, x, observed, u), explain(family, x, observed, u).outputs)


@over([case for case in CASES if case.changed == "z_lag=2"])
@pytest.mark.parametrize("lag", [1, 3, S])
def test_streamed_equals_offline_at_any_lag(case, lag):
    family, x, _ = double(case, z_lag=lag)
    assert_same(stream(family, x, with_gaps(x)), explain(family, x, with_gaps(x)).outputs)


@over(DEFAULTS)
def test_single_precision_is_close_enough_to_stream(case):
    family, x = case.make(), window()
    streamed, offline = stream(family, x, with_gaps(x)), explain(family, x, with_gaps(x)).outputs
    for name in offline._fields:
        torch.testing.assert_close(getattr(streamed, name), getattr(offline, name), atol=1e-5, rtol=1e-5)


@over(DEFAULTS)
def test_lanes_are_apart(case):
    """A window streamed alone is the same as in a batch."""
    family, x, _ = double(case)
    together = stream(family, x, with_gaps(x))
    for b in range(B):
        alone = stream(family, x[b : b + 1], with_gaps(x)[b : b + 1])
        assert_same(Outputs(*(value[0] for value in alone)), Outputs(*(value[b] for value in together)))


@over(CASES)
def test_the_generative_half_alone_gives_the_same_factors(case):
    family, x, u = case.make(), window(), case.u()
    for sample in (False, True):
        inferred = explain(family, x, with_gaps(x), u, sample).inferred
        factors = family.generate(inferred.f, inferred.z, None if u is None else u[:, S:])
        torch.testing.assert_close(factors, inferred.factors)


# ------------------------------------------------------------------------------------------------------------- samples


@over(CASES)
def test_the_prior_is_conditioned_on_the_samples_of_the_bins_before(case):
    """Not on a chain of the prior's own, which would be no bound on the evidence."""
    family, x = case.make(), window()
    inferred = explain(family, x, with_gaps(x), case.u(), sample=True).inferred
    last, memory = family.z_prior.begin(B)
    for t in range(R):
        p, memory = family.z_prior(last, memory)
        torch.testing.assert_close(inferred.p_z.mean[:, t], p.mean)
        torch.testing.assert_close(inferred.p_z.logvar[:, t], p.logvar)
        last = inferred.z[:, t]


@over(FULL)
def test_samples_are_of_the_posteriors_and_in_a_gap_of_the_prior(case):
    """Standardised by the posterior's own mean and covariance, they are standard normal: within 4.5 standard errors."""
    n = 800
    family, x = case.make(), window(n)
    with torch.no_grad():
        for head in (module for module in family.modules() if isinstance(module, GaussianHead)):
            if head.off_diagonal is not None:
                head.off_diagonal.bias.add_(0.7)
    torch.manual_seed(5)
    inferred = explain(family, x, seen(x, (slice(None), S + 3, S + 6)), sample=True).inferred
    gap = slice(3, 6)
    p = inferred.p_z.map(lambda part: part[:, gap])
    q = inferred.q_z.map(lambda part: torch.cat([part[:, :3], part[:, 6:]], 1))
    z = torch.cat([inferred.z[:, :3], inferred.z[:, 6:]], 1)
    drawn = {"z": (q, z), "gap": (p, inferred.z[:, gap]), "f": (inferred.q_f, inferred.f_sample)}
    for name, (gaussian, sample) in drawn.items():
        assert (gaussian.lower is not None) == (case.changed == "full posteriors" and name != "gap")
        scale = torch.diag_embed(gaussian.logvar.div(2).exp())
        scale = scale if gaussian.lower is None else scale + gaussian.lower
        white = torch.linalg.solve_triangular(scale, (sample - gaussian.mean)[..., None], upper=False)[..., 0]
        white = white.flatten(0, 1).detach()
        error = 1 / math.sqrt(len(white))
        assert white.mean(0).abs().max() < 4.5 * error, name
        spread = white.T @ white / len(white) - torch.eye(white.shape[1])
        assert spread.abs().max() < 4.5 * math.sqrt(2) * error, name


@over(CASES)
def test_the_kls_are_torchs_of_every_bin_and_every_inference_that_counts(case):
    family, x = case.make(), window()
    observed = with_gaps(x)
    inferred = explain(family, x, observed, case.u(), sample=True).inferred
    kls = family.kls(inferred, observed[:, S:], CONTEXT)

    def torchs(g):
        scale = torch.diag_embed(g.logvar.div(2).exp())
        return MultivariateNormal(g.mean, scale_tril=scale if g.lower is None else scale + g.lower)

    prior = family.f_prior(CONTEXT)
    of_f = Normal(prior.mean[:, None], prior.logvar.div(2).exp()[:, None])
    of_f = MultivariateNormal(of_f.mean, scale_tril=torch.diag_embed(of_f.stddev))
    counted = kl_divergence(torchs(inferred.q_f), of_f) * inferred.f_count
    penalty = torch.zeros(B)
    if isinstance(family.f_prior, priors.SequenceGaussian):
        mean = family.f_prior.mean[CONTEXT.sequence]
        penalty = -Normal(0.0, 1.0).log_prob(mean).sum(1) / CONTEXT.windows
    torch.testing.assert_close(kls["f"], counted.sum(1) + penalty)
    first = inferred.p_z.logvar[:, :1]
    if isinstance(family.z_prior, priors.AR1Prior):  # starts from its stationary distribution
        first = first - (1 - torch.exp(-2 / family.z_prior.log_tau.exp())).log()
    p = inferred.p_z._replace(logvar=torch.cat([first, inferred.p_z.logvar[:, 1:]], 1))
    by_bin = kl_divergence(torchs(inferred.q_z), torchs(p)) * observed[:, S:, 0]
    torch.testing.assert_close(kls["z"], by_bin.sum(1))


# ---------------------------------------------------------------------------------------------------------------- gaps


@over(CASES)
def test_what_stands_in_an_unobserved_bin_is_never_read(case):
    family, x, u = case.make(), window(), case.u()
    observed = with_gaps(x)
    streamed = stream(family, x, observed, u)
    explained = explain(family, x, observed, u)
    offline = parts_of(explained) | family.kls(explained.inferred, observed[:, S:], CONTEXT)
    filled = torch.where(observed > 0, x, torch.tensor([99, math.inf, math.nan, -99, -math.inf, 0, 7]))
    assert all(torch.equal(a, b) for a, b in zip(streamed, stream(family, filled, observed, u), strict=True))
    explained = explain(family, filled, observed, u)
    kls = family.kls(explained.inferred, observed[:, S:], CONTEXT)
    other = parts_of(explained) | kls
    assert all(torch.equal(offline[name], other[name]) for name in offline)
    (explained.values.sum() + sum(value.sum() for value in kls.values())).backward()
    assert all(torch.isfinite(p.grad).all() for p in family.parameters() if p.grad is not None)


@over(CASES)
def test_in_a_gap_z_is_its_priors_mean_given_the_z_before(case):
    family, x, u = case.make(), window(), case.u()
    observed = with_gaps(x)
    out = stream(family, x, observed, u)
    last, memory = family.z_prior.begin(B)
    for t in range(R):
        p, memory = family.z_prior(last, memory)
        unobserved = observed[:, S + t, 0] == 0
        torch.testing.assert_close(out.z[unobserved, t], p.mean[unobserved])
        assert (out.z[~unobserved, t] != p.mean[~unobserved]).any(1).all()
        last = out.z[:, t]


HELD_IN_GAPS = {
    "lfads": {"ci_enc", "con", "f"},
    "dsae_full": {"enc", "rnn", "f"},
    "dsae_factorized": {"f"},
    "fhvae": {"block", "phase", "total", "blocks", "enc"},
    "fdmm": {"enc", "f"},
}


@over(CASES)
def test_in_a_gap_the_inference_holds_and_the_generation_runs_on(case):
    family, x, u = case.make(), window(), case.u()
    state = family.anchor(x[:, :S])
    for t in range(S, S + 3):
        state, _ = family.step(state, x[:, t], torch.ones(B, 1), None if u is None else u[:, t])
    after, _ = family.step(state, x[:, S + 3], torch.zeros(B, 1), None if u is None else u[:, S + 3])
    before, after = family.unpack(state), family.unpack(after)
    same = {name for name in before._fields if torch.equal(getattr(before, name), getattr(after, name))}
    empty = {name for name in before._fields if not getattr(before, name).numel()}
    assert same - empty == HELD_IN_GAPS[case.family]
    observed, _ = family.step(state, x[:, S + 3], torch.ones(B, 1), None if u is None else u[:, S + 3])
    moved = family.unpack(observed)
    still = {name for name in before._fields if torch.equal(getattr(before, name), getattr(moved, name))}
    assert still - empty == ({"total", "blocks"} if case.family == "fhvae" else {"f"})


@over(CASES)
def test_a_gap_in_the_middle_is_a_forecast_of_as_many_bins(case):
    """A stream that ends at bin S + 4 and is asked for 3 bins more, against a window that has a gap there."""
    family, x, u = double(case)
    at, k = S + 4, 3
    offline = explain(family, x, seen(x, (slice(None), at, at + k)), u).outputs
    state = family.anchor(x[:, :S])
    for t in range(S, at):
        state, _ = family.step(state, x[:, t], x.new_ones(B, 1), None if u is None else u[:, t])
    for t in range(at, at + k):
        state, out = family.step(state, x.new_zeros(B, C), x.new_zeros(B, 1), None if u is None else u[:, t])
        assert_same(out, Outputs(*(value[:, t - S] for value in offline)))


GATED = [Case(f, "z_prior=gated", (("z_prior", Gated(units=5)),)) for f in FAMILIES]


@over(DEFAULTS + [case for case in CASES if case.family == "lfads" and case.changed.startswith("z_prior")])
def test_a_thousand_unobserved_bins_are_finite(case):
    family, x = case.make(), window(1, S + 1010)
    out = stream(family, x, seen(x, (0, S + 10, S + 1010)))
    assert all(torch.isfinite(value).all() for value in out)


@over(GATED)
def test_a_stream_recovers_from_a_gap_in_which_the_transition_grows(case):
    """Without a bound, z would be doubled in each unobserved bin, and no observation mends what is not finite."""
    family, x = case.make(), window(1, S + 200)
    with torch.no_grad():
        family.z_prior.gate[2].bias.fill_(-50)
        family.z_prior.straight.weight.copy_(2 * torch.eye(3))
    out = stream(family, x, seen(x, (0, S + 10, S + 190)))
    assert out.z[0, 20:190].abs().max() > 50
    for value in (out.z, out.f, out.factors):
        assert torch.isfinite(value).all()
    assert torch.isfinite(out.rates[:, 190:]).all()


# ------------------------------------------------------------------------------------------------------------ sessions


TWO = (Neurons("a", C, C + HELD), Neurons("b", 5, 6))


@over(DEFAULTS)
def test_sessions_have_their_own_neurons_and_share_everything_else(case):
    family = case.make(TWO, readin_dim=3)
    x = window()
    of_a = explain(family.use(0), x)
    of_b = explain(family.use(1), x[..., :5])
    assert of_a.outputs.rates.shape == (B, R, C + HELD)
    assert of_b.outputs.rates.shape == (B, R, 6)
    assert stream(family, x[..., :5]).rates.shape == (B, R, 6)
    a, b = family.sessions
    with torch.no_grad():  # session a reads the first 5 channels as b does, and the others not at all
        a.readin.linear.weight.zero_()
        a.readin.linear.weight[:, :5] = b.readin.linear.weight
        a.readin.mean[:5], a.readin.std[:5] = b.readin.mean, b.readin.std
    of_a = explain(family.use(0), x)
    for name in ("factors", "z", "f", "behaviour"):
        torch.testing.assert_close(getattr(of_a.outputs, name), getattr(of_b.outputs, name))
    want = of_b.outputs.factors @ a.readout.linear.weight.T + a.readout.linear.bias
    torch.testing.assert_close(of_a.values.flatten(2), want)


@over(DEFAULTS)
def test_a_batch_of_one_session_leaves_the_others_alone(case):
    family = case.make(TWO, readin_dim=3).train().use(1)
    x = window()[..., :5]
    explained = explain(family, x, sample=True)
    loss_of(family, explained, torch.ones(B, R, 6), torch.ones(B, R, 1)).backward()
    assert all(p.grad is None for p in family.sessions[0].parameters())
    assert all(p.grad.any() for p in family.sessions[1].parameters())


# ------------------------------------------------------------------------- the equations of each family's docstring


def unit_rows(family: Family, g: Tensor) -> Tensor:
    """factors = W̄ g."""
    w = family.gen.factors.weight
    return family.gen.cell.out(g) @ (w / w.norm(dim=1, keepdim=True)).T


def static(encoder: torch.nn.Module, anchor: Tensor) -> Tensor:
    """f's posterior mean, from the last states of both directions over the anchor bins."""
    ahead, back = (encoder.enc.cells[way] for way in ("ahead", "back"))
    h, g = (encoder.enc.first[way].expand(B, -1) for way in ("ahead", "back"))
    for t in range(S):
        h, g = ahead(anchor[:, t], h), back(anchor[:, S - 1 - t], g)
    return encoder.head(torch.cat([ahead.out(h), back.out(g)], 1)).mean


def lfads(family: Family, x: Tensor) -> list[Tensor]:
    f = static(family.ic, x[:, :S])
    e, c, g = family.ci_enc.begin(B), family.con_first.expand(B, -1), family.gen.initial(f)
    factors = [unit_rows(family, g)]
    for t in range(T):
        e = family.ci_enc.cells["ahead"](x[:, t], e)
        if t >= S:
            gates = family.con.project(family.ci_enc.out(e)) + factors[-1] @ family.feedback  # [e_t, factors_{t-1}]
            c = family.con.update(gates, c)
            g = family.gen.cell(family.z_posterior(family.con.out(c)).mean, g)
            factors.append(unit_rows(family, g))
    return factors[1:]


def dsae_full(family: Family, x: Tensor) -> list[Tensor]:
    f = static(family.f_enc, x[:, :S])
    h, r, g = family.z_enc.begin(B), family.z_rnn.begin(B), family.gen.first.expand(B, -1)
    factors = []
    for t in range(T):
        h = family.z_enc.cells["ahead"](torch.cat([x[:, t], f], 1), h)
        r = family.z_rnn.cells["ahead"](family.z_enc.out(h), r)
        if t >= S:
            z = family.z_posterior(family.z_rnn.out(r)).mean
            g = family.gen.cell(torch.cat([z, f], 1), g)
            factors.append(unit_rows(family, g))
    return factors


def dsae_factorized(family: Family, x: Tensor) -> list[Tensor]:
    f = static(family.f_enc, x[:, :S])
    zs = [family.z_posterior(family.z_enc(x[:, t])).mean for t in range(S, T)]
    return [family.gen.layers(torch.cat([f, z], 1)) for z in zs]


def fhvae(family: Family, x: Tensor) -> list[Tensor]:
    def block(n: int) -> Tensor:
        state = family.block_first.expand(B, -1)
        for t in range(n * S, (n + 1) * S):
            state = family.block_cell(x[:, t], state)
        return family.f_posterior(family.block_cell.out(state)).mean

    h, g, factors = family.z_enc.begin(B), family.gen.first.expand(B, -1), []
    for t in range(T):
        ended = max((t + 1) // S, 1)  # the anchor bins have what they gave
        f = sum(block(n) for n in range(ended)) / (ended + 0.25)
        h = family.z_enc.cells["ahead"](torch.cat([x[:, t], f], 1), h)
        if t >= S:
            z = family.z_posterior(family.z_enc.out(h)).mean
            g = family.gen.cell(torch.cat([z, f], 1), g)
            factors.append(unit_rows(family, g))
    return factors


def fdmm(family: Family, x: Tensor) -> list[Tensor]:
    f = static(family.f_enc, x[:, :S])
    h, z, factors = family.z_enc.begin(B), family.z_prior.first.expand(B, -1), []
    for t in range(T):
        h = family.z_enc.cells["ahead"](x[:, t], h)
        if t >= S:
            combined = torch.tanh(family.from_z(z)) + torch.tanh(family.from_data(family.z_enc.out(h)))
            z = family.z_posterior(combined / 2).mean
            factors.append(family.gen.layers(torch.cat([f, z], 1)))
    return factors


LITERAL = {"lfads": lfads, "dsae_full": dsae_full, "dsae_factorized": dsae_factorized, "fhvae": fhvae, "fdmm": fdmm}


@over(DEFAULTS)
def test_factors_follow_the_familys_equations(case):
    """Bin by bin from its cells and linear maps, the factors fed back as factors; dropout is off."""
    family, x = case.make(), window()
    want = torch.stack(LITERAL[case.family](family, family.readin.normalise(x)), 1)
    torch.testing.assert_close(stream(family, x).factors, want)
    torch.testing.assert_close(explain(family, x).outputs.factors, want)


# --------------------------------------------------------------------------------------------- FHVAE's sequence latent

FHVAE = Case("fhvae")


@over([case for case in CASES if case.family == "fhvae"])
def test_fhvae_follows_its_sequence_by_the_blocks_that_have_ended(case):
    """f̂ = Σ f_n / (n + κ), by a literal loop over blocks of S observed bins; κ is 0.25 by default."""
    family, x, u = case.make(), window(bins=4 * S + 3), case.u(bins=4 * S + 3)
    observed = seen(x, (0, S, S + 2), (1, 2 * S - 1, 3 * S))
    out = stream(family, x, observed, u)
    kappa = {"f_prior=gaussian": 0.5, "f_prior=labelled": 1.0}.get(case.changed, 0.25)
    for b in range(B):
        means, block = [], []
        for t in range(len(x[b])):
            if observed[b, t]:
                block.append(family.readin(family.readin.normalise(x[b, t])))
            if len(block) == S:
                states = family.block_cell.scan(torch.stack(block)[None], family.block_first[None])
                means.append(family.f_posterior(family.block_cell.out(states[:, -1])).mean[0])
                block = []
            if t >= S:
                want = torch.stack(means).sum(0) / (len(means) + kappa)
                torch.testing.assert_close(out.f[b, t - S], want)
        assert len(means) == {0: 4, 1: 3, 2: 4}[b]


def test_fhvae_trains_on_samples_of_its_blocks():
    family, x = FHVAE.make(), window()
    inferred = explain(family, x, with_gaps(x), sample=True).inferred
    ends = {0: [0, 7, 12], 1: [0, 8], 2: [0, 5, 10]}  # modelled bins, from 1; 0 is the anchor
    for b, bins in ends.items():
        assert inferred.f_count[b].tolist() == [1.0] * len(bins) + [0.0] * (3 - len(bins))
        for t in range(1, R + 1):
            samples = [inferred.f_sample[b, i] for i, n in enumerate(bins) if n <= t]
            want = torch.stack(samples).sum(0) / (len(samples) + 0.25)
            torch.testing.assert_close(inferred.f[b, t - 1], want)


def test_fhvae_blocks_carry_nothing_over():
    """Two equal blocks have equal posteriors, whatever came before and whatever gap is between."""
    family = FHVAE.make()
    x = window(1, S).repeat(1, 4, 1)
    x = torch.cat([x[:, : 2 * S], x[:, :3] + 7, x[:, 2 * S :]], 1)
    inferred = explain(family, x, seen(x, (0, 2 * S, 2 * S + 3))).inferred
    counted = inferred.q_f.mean[0][inferred.f_count[0] > 0]
    assert len(counted) == 4
    for other in counted[1:]:
        torch.testing.assert_close(other, counted[0])

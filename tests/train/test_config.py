import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import ConfigError
from rtdsae.model.families.dsae_factorized import DSAEFactorizedConfig
from rtdsae.model.families.dsae_full import DSAEFullConfig
from rtdsae.model.families.fdmm import FDMMConfig
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.priors import AR1, RNN, Gated, Labelled, Normal, Sequence, Tiled
from rtdsae.train.config import AnnealedVAE, BetaTCVAE, BetaVAE, FactorVAE, load_config

MINIMAL = "model: {family: lfads}\n"


def write(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return tmp_path / "c.yaml"


def test_overrides_and_data_replace_the_files_values(tmp_path):
    path = write(tmp_path, MINIMAL + "fit: {epochs: 3, learning_rate: 1e-3}\ndata: {path: here.h5, valid: 0.3}\n")
    config = load_config(path, ("fit.epochs=5", "model.gen_dim=12", "fit.precision=bf16-mixed"), ("there.h5",))
    assert (config.fit.epochs, config.fit.learning_rate, config.fit.precision) == (5, 1e-3, "bf16-mixed")
    assert (config.model.gen_dim, config.data.path, config.data.valid) == (12, "there.h5", 0.3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lfads", LFADSConfig),
        ("dsae_full", DSAEFullConfig),
        ("dsae_factorized", DSAEFactorizedConfig),
        ("fhvae", FHVAEConfig),
        ("fdmm", FDMMConfig),
    ],
)
def test_every_family_is_had_by_its_name_alone(tmp_path, name, kind):
    model = load_config(write(tmp_path, f"model: {{family: {name}}}\n")).model
    assert model == kind()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.f_prior", "{kind: gaussian, variance: 0.2, train_mean: true}", Normal(variance=0.2, train_mean=True)),
        ("model.f_prior", "{kind: labelled}", Labelled()),
        ("model.f_prior", "{kind: sequence, variance: 1}", Sequence(variance=1.0)),
        ("model.z_prior", "{kind: ar1, tau: 5}", AR1(tau=5.0)),
        ("model.z_prior", "{kind: rnn, cell: gru}", RNN(cell="gru")),
        ("model.z_prior", "{kind: gated, units: 7}", Gated(units=7)),
        ("model.z_prior", "{kind: tiled, train_variance: true}", Tiled(train_variance=True)),
        ("objective.f_objective", "{kind: beta_vae}", BetaVAE()),
        ("objective.f_objective", "{kind: annealed_vae, capacity: 4}", AnnealedVAE(capacity=4.0)),
        ("objective.f_objective", "{kind: beta_tcvae, estimator: weighted}", BetaTCVAE(estimator="weighted")),
        ("objective.f_objective", "{kind: factor_vae, gamma: 2}", FactorVAE(gamma=2.0)),
    ],
)
def test_every_kind_is_had_by_its_name(tmp_path, key, value, expected):
    section, name = key.split(".")
    config = load_config(write(tmp_path, MINIMAL), (f"{key}={value}",))
    assert getattr(getattr(config, section), name) == expected


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (MINIMAL + "fti: {}\n", (), "unknown field `fti`; did you mean `fit`"),
        ("model: {family: lfads, gen_dmi: 3}\n", (), "`gen_dmi` - at `$.model`; did you mean `gen_dim`"),
        (
            "model: {family: lfad}\n",
            (),
            "'lfad' - at `$.model.family`; choose of lfads, dsae_full, dsae_factorized, fhvae, fdmm",
        ),
        ("model: {family: lfads, gen_dim: 0}\n", (), r"`int` >= 1 - at `$.model.gen_dim`"),
        ("model: {family: lfads, gen_dim: big}\n", (), "gen_dim"),
        ("fit: {}\n", (), "missing required field `model`"),
        (MINIMAL + "data: {valid: 1.5}\n", (), "$.data.valid"),
        ("just a text", (), "holds no config"),
        ("", (), "holds no config"),
        ("model: {family: lfads\n", (), "as YAML"),
        (MINIMAL + "data: {path: 2026-02-30}\n", (), "as YAML"),
        (MINIMAL, ("epochs=5",), "write section.key=value"),
        (MINIMAL, ("fit.epochs",), "write section.key=value"),
        (MINIMAL, ("fit.epochs.many=5",), "$.fit.epochs"),
        ("model: {family: lfads}\nfit: 3\n", ("fit.epochs=5",), "not a section"),
        (MINIMAL, ("fit.epochs=[",), "not a YAML value"),
        (MINIMAL, ("data.path=2026-02-30",), "not a YAML value"),
        (MINIMAL, ("fit.epochs=-1",), "$.fit.epochs"),
        ("model: 3\n", (), "$.model"),
        (MINIMAL, ("data.path=3",), "$.data.path"),
        (MINIMAL, ("data.path=[a.h5, 3]",), "$.data.path[1]"),
        (MINIMAL, ("objective.cv_mask=1",), "$.objective.cv_mask"),
        (MINIMAL, ("objective.cv_mask=0.1", "objective.shift_bins=1"), "set it to 0, or both of these"),
        (
            MINIMAL,
            ("model.f_prior.kind=normal",),
            "'normal' - at `$.model.f_prior.kind`; choose of gaussian, labelled, sequence",
        ),
        (MINIMAL, ("model.z_prior.kind=lstm",), "`$.model.z_prior.kind`; choose of ar1, rnn, gated, tiled"),
        (
            MINIMAL,
            ("objective.f_objective.kind=tcvae",),
            "`$.objective.f_objective.kind`; choose of beta_vae, annealed_vae, beta_tcvae, factor_vae",
        ),
        (MINIMAL, ("model.f_prior={kind: gaussian, varaince: 2}",), "`$.model.f_prior`; did you mean `variance`"),
        # right words in the wrong place
        (MINIMAL, ("fit.gen_dim=3",), "`gen_dim` - at `$.fit`; `gen_dim` belongs to another section"),
        ("model: {family: fdmm, con_dim: 3}\n", (), "`con_dim` belongs to another section, family or kind"),
        (MINIMAL, ("objective.f_objective={kind: beta_vae, gamma: 3}",), "`gamma` belongs to another"),
        # between sections
        (
            MINIMAL,
            ("window.lanes=9", "window.horizon_bins=8"),
            "window.horizon_bins=8 is too short for the turns of window.lanes=9",
        ),
        (MINIMAL, ("model.z_lag=11",), "model.z_lag is above window.anchor_bins, which it looks back on"),
        (MINIMAL, ("model.z_lag=1", "model.causal=false"), "set it to 0 where model.causal is false"),
        (MINIMAL, ("objective.discriminative=1",), "objective.discriminative needs model.f_prior.kind: sequence"),
        (MINIMAL, ("data.path=[a.h5, b.h5]",), "several sessions need model.readin_dim above 0"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, said):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text), overrides)
    assert said in str(error.value).replace("\n", " ")


def test_what_the_rules_between_sections_ask_for_is_enough(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_config(path, ("model.z_lag=10",)).model.z_lag == 10
    assert load_config(path, ("model.causal=false",)).model.causal is False
    discriminative = ("objective.discriminative=1", "model.f_prior.kind=sequence")
    assert load_config(path, discriminative).objective.discriminative == 1
    assert load_config(path, ("model.readin_dim=4",), ("a.h5", "b.h5")).data.paths == ("a.h5", "b.h5")


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        ("", ()),
        ("data: {path: a.h5}\n", ("a.h5",)),
        ("data: {path: [a.h5]}\n", ("a.h5",)),
        ("data: {path: [a.h5, b.h5]}\nmodel: {family: lfads, readin_dim: 2}\n", ("a.h5", "b.h5")),
    ],
)
def test_one_recording_or_a_list_of_them(tmp_path, data, paths):
    text = data if "model" in data else MINIMAL + data
    assert load_config(write(tmp_path, text)).data.paths == paths


def test_data_on_the_command_line_replaces_the_whole_list(tmp_path):
    path = write(tmp_path, "model: {family: lfads, readin_dim: 2}\ndata: {path: [a.h5, b.h5]}\n")
    assert load_config(path, data=("c.h5",)).data.path == "c.h5"
    assert load_config(path, data=("c.h5", "d.h5", "e.h5")).data.paths == ("c.h5", "d.h5", "e.h5")


def test_paths_are_not_yaml_and_empty_sections_are_sections(tmp_path):
    path = write(tmp_path, MINIMAL + "data:\nfit:\n")
    config = load_config(path, ("fit.epochs=2",), ("we: #1 [a].h5",))
    assert (config.data.path, config.fit.epochs) == ("we: #1 [a].h5", 2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config at .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_any_value_anywhere_loads_or_is_refused(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    for tree in (
        {"model": value},
        {"model": {"family": "lfads"}, "fit": {"epochs": value}},
        {"model": {"family": value}},
        {"model": {"family": "lfads", "f_prior": {"kind": value}}},
        {"model": {"family": "lfads"}, "objective": {"f_objective": value}},
        {"model": {"family": "lfads"}, "data": {"path": value}},
    ):
        path.write_text(yaml.safe_dump(tree))
        try:
            config = load_config(path)
        except ConfigError:
            continue
        assert config.fit.epochs >= 1
        assert all(isinstance(name, str) for name in config.data.paths)

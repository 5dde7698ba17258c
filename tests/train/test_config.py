import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import ConfigError
from rtdsae.train.config import load_config

MINIMAL = "model: {family: lfads}\n"


def write(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return tmp_path / "c.yaml"


def test_overrides_and_data_replace_the_files_values(tmp_path):
    path = write(tmp_path, MINIMAL + "fit: {epochs: 3, learning_rate: 1e-3}\n")
    config = load_config(path, ("fit.epochs=5", "model.gen_dim=12", "fit.precision=bf16-mixed"), "there.h5")
    assert (config.fit.epochs, config.fit.learning_rate, config.fit.precision) == (5, 1e-3, "bf16-mixed")
    assert (config.model.gen_dim, config.data.path) == (12, "there.h5")


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (MINIMAL + "fti: {}\n", (), "unknown field `fti`; did you mean `fit`"),
        ("model: {family: lfads, gen_dmi: 3}\n", (), "`gen_dmi` - at `$.model`; did you mean `gen_dim`"),
        ("model: {family: lfad}\n", (), "lfad"),
        ("model: {family: lfads, gen_dim: 0}\n", (), r"`int` >= 1 - at `$.model.gen_dim`"),
        ("model: {family: lfads, gen_dim: big}\n", (), "gen_dim"),
        ("fit: {}\n", (), "missing required field `model`"),
        (MINIMAL + "data: {valid: 1.5}\n", (), "$.data.valid"),
        ("just a text", (), "holds no config"),
        ("", (), "holds no config"),
        ("model: {family: lfads\n", (), "as YAML"),
        (MINIMAL, ("epochs=5",), "write section.key=value"),
        (MINIMAL, ("fit.epochs",), "write section.key=value"),
        (MINIMAL, ("fit.epochs.many=5",), "$.fit.epochs"),
        ("model: {family: lfads}\nfit: 3\n", ("fit.epochs=5",), "not a section"),
        (MINIMAL, ("fit.epochs=[",), "not a YAML value"),
        (MINIMAL, ("fit.epochs=-1",), "$.fit.epochs"),
        ("model: 3\n", (), "$.model"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, said):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text), overrides)
    assert said in str(error.value).replace("\n", " ")


def test_paths_are_not_yaml_and_empty_sections_are_sections(tmp_path):
    path = write(tmp_path, MINIMAL + "data:\nfit:\n")
    config = load_config(path, ("fit.epochs=2",), "we: #1 [a].h5")
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
    ):
        path.write_text(yaml.safe_dump(tree))
        try:
            config = load_config(path)
        except ConfigError:
            continue
        assert config.fit.epochs >= 1

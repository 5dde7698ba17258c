"""The daemon's settings: a file, overrides and flags, in this order."""

import contextlib
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import ConfigError
from rtdsae.serve.settings import Model, Settings, load_settings

EXAMPLE = Path(__file__).parents[2] / "configs" / "daemon.yaml"


def test_the_example_has_every_setting_at_its_default():
    assert load_settings(EXAMPLE, (), {"bundle": "b"}) == Settings(bundle=Path("b"))
    tree = yaml.safe_load(EXAMPLE.read_text())
    assert {"bundle", *tree} == set(Settings.__struct_fields__)
    assert set(tree["model"]) == set(Model.__struct_fields__)


def test_flags_go_before_overrides_and_these_before_the_file(tmp_path):
    file = tmp_path / "d.yaml"
    file.write_text("timeout_s: 1\nsession: file\nmodel: {anchor: every, history_s: 5}\n")
    overrides = ("timeout_s=2", "session=override", "model.history_s=6")
    settings = load_settings(file, overrides, {"bundle": "b", "session": "flag", "anchor": "lanes", "publish": None})
    assert (settings.timeout_s, settings.session, settings.model.anchor) == (2.0, "flag", "lanes")
    assert (settings.model.history_s, settings.model.publish) == (6.0, ())


@pytest.mark.parametrize(
    ("content", "overrides", "said"),
    [
        ("timeout: 3", (), "d.yaml: Object contains unknown field `timeout`; did you mean `timeout_s`?"),
        ("timeout_s: -3", (), "d.yaml: Expected `float` >= 0.0 - at `$.timeout_s`"),
        ("model: {anchor: often}", (), "Invalid enum value 'often' - at `$.model.anchor`"),
        ("model: 3", (), "holds no settings"),
        ("[1]", (), "holds no settings"),
        ("a: [", (), "d.yaml as YAML"),
        ("lsl_out: 2026-02-30", (), "d.yaml as YAML: day is out of range"),
        ("{}", ("timeout_s",), "--set timeout_s: write key=value"),
        ("{}", ("model.x.y=3",), "write key=value"),
        ("{}", ("model=3",), "write key=value"),
        ("model: {history_s: .inf}", (), "at `$.model.history_s`"),
        ("{}", ("wake=warmm",), "choose of warm, poll, off"),
        ("{}", ("timeout_s=[",), "'[' is not a YAML value"),
        ("{}", ("lsl_out=2026-02-30",), "'2026-02-30' is not a YAML value"),
        ("{}", ("wake=often",), "Invalid enum value 'often'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, content, overrides, said):
    file = tmp_path / "d.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_settings(file, overrides, {"bundle": "b"})


def test_no_such_file():
    with pytest.raises(ConfigError, match=r"no settings at nowhere.yaml: give the path of a YAML file"):
        load_settings(Path("nowhere.yaml"), (), {})


@given(st.text() | st.sampled_from(["bundle=3", "keys=[1]", "model.publish=3", "cpus=x", "priority=1e400"]))
def test_any_override_is_taken_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(
            load_settings(None, (text,), {"stream": "s"} if "bundle" in text else {"bundle": "b"}), Settings
        )

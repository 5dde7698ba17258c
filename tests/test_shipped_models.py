"""The bundles in models/: one for each family, intact, running here as where they were made, with a true card."""

from pathlib import Path

import numpy as np
import pytest

from rtdsae import bundle, shipped
from rtdsae.cli import main
from rtdsae.errors import ConfigError
from rtdsae.serve.decoder import Decoder
from rtdsae.serve.engine import Engine
from rtdsae.train.config import KINDS, convert

MODELS = sorted(path for path in (Path(__file__).parent.parent / "models").iterdir() if path.is_dir())


def test_every_family_is_shipped():
    assert {bundle.load(path).manifest.family for path in MODELS} == set(KINDS["model.family"])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_it_runs_here_as_where_it_was_made(path):
    """The engine replays the golden run before it exists; then the decoder streams it, gap and all, to the same end."""
    loaded = bundle.load(path)
    m, golden = loaded.manifest, loaded.golden()
    decoder = Decoder(Engine(loaded), m.anchor_bins, m.horizon_bins, len(m.channels), "once")
    for t, (x, observed) in enumerate(zip(golden["x"], golden["observed"], strict=True)):
        flags = decoder.decode(x, bool(observed))
        assert (flags is None) == (t < m.anchor_bins)
        if flags is not None:
            for name, values in decoder.outputs.items():
                np.testing.assert_allclose(values, golden[name][t - m.anchor_bins], atol=1e-4, rtol=1e-4)
        decoder.anchor_if_due()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_its_card_and_manifest_say_what_it_is_and_how_to_remake_it(path):
    loaded = bundle.load(path)
    m, card = loaded.manifest, loaded.files["MODEL_CARD.md"].decode()
    assert m.name == path.name
    assert convert(m.config, path.name).model.family == m.family
    assert f"./tools/make_models {path.name}" in card
    assert m.scores["r2_true_rates"] > 0.3
    assert f"{m.scores['r2_true_rates']:.4g}" in card
    assert loaded.weights()


def test_serve_without_a_bundle_lists_them(capsys):
    assert main(["serve"]) == 2
    said = capsys.readouterr()
    assert all(f"  {path.name} " in said.out for path in MODELS)
    assert f" in {shipped.folder('models')}:" in said.out
    assert said.err.startswith("rtdsae serve: which bundle?")


def test_a_shipped_bundle_goes_by_its_name_where_no_folder_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("lfads_lorenz", "models/lfads_lorenz"):
        assert main(["inspect", name]) == 0
        assert "lfads_lorenz" in capsys.readouterr().out
    (tmp_path / "lfads_lorenz").mkdir()
    assert main(["inspect", "lfads_lorenz"]) == 2
    assert main(["inspect", "lfads_of_mars"]) == 2


def test_configurations_come_along():
    assert shipped.config("lorenz.yaml").read_text()
    with pytest.raises(ConfigError, match=r"no configuration 'mars.yaml' .* lorenz.yaml"):
        shipped.config("mars.yaml")


def test_a_configuration_goes_by_its_name_where_no_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = shipped.config("lfads.yaml")
    assert [shipped.config_file(Path(name)) for name in ("lfads.yaml", "configs/lfads.yaml")] == [there, there]
    for elsewhere in ("configs/mars.yaml", "other/lfads.yaml", "/lfads.yaml"):
        assert shipped.config_file(Path(elsewhere)) == Path(elsewhere)
    (tmp_path / "lfads.yaml").touch()
    assert shipped.config_file(Path("lfads.yaml")) == Path("lfads.yaml")

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_fit import recording

import rtdsae.train.export as module
from rtdsae import bundle
from rtdsae.errors import ExportError
from rtdsae.model.families.lfads import LFADS, LFADSConfig
from rtdsae.model.family import Dims
from rtdsae.train.config import Data, Fit, TrainConfig, Window
from rtdsae.train.export import export, graphs
from rtdsae.train.fit import train
from rtdsae.train.run import prepare

SIZES = {"ic_enc_dim": 6, "f_dim": 4, "ci_enc_dim": 6, "con_dim": 5, "z_dim": 2, "gen_dim": 9, "fac_dim": 4}


def trained(path, **model):
    config = TrainConfig(
        model=LFADSConfig(**(SIZES | model)),
        data=Data(path="wave.h5"),
        window=Window(anchor_bins=4, horizon_bins=12),
        fit=Fit(epochs=1, accelerator="cpu"),
    )
    r = prepare(recording(), config)
    return train(path, config, r, lambda p: None, command="rtdsae train configs/wave.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "wave")


def test_the_bundle_is_whole_and_says_what_it_is(run, tmp_path):
    made = export(run, tmp_path / "wave", lanes=2)
    m = made.manifest
    assert (m.name, m.family, m.lanes, m.anchor_bins, m.horizon_bins) == ("wave", "lfads", 2, 4, 12)
    assert m.channels == list(recording().channels)
    assert [part.size for part in m.state] == [6, 5, 9, 2, 4]
    assert {o.name: o.shape for o in m.outputs} == {"factors": [4], "z": [2], "f": [4], "rates": [8], "behaviour": [2]}
    golden = made.golden()
    assert len(golden["x"]) == 4 + module.GOLDEN_BINS
    assert 0 < (golden["observed"] == 0).sum() < 10  # the forecast is part of it
    assert bundle.load(tmp_path / "wave").hash == made.hash
    assert "rtdsae train configs/wave.yaml" in made.files["MODEL_CARD.md"].decode()


def test_graphs_are_static_and_standard():
    family = LFADS(LFADSConfig(**SIZES), Dims(7, 8, 2, 0, 0.02, 4, 12)).eval()
    anchor, step = (onnx.load_from_string(g) for g in graphs(family, lanes=3))
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in step.graph.input}
    assert shapes == {"x": [3, 7], "observed": [3, 1], "u": [3, 2], "state": [3, 26]}
    assert [o.name for o in step.graph.output] == ["state_out", "factors", "z", "f", "rates"]
    assert [d.dim_value for d in anchor.graph.input[0].type.tensor_type.shape.dim] == [3, 4, 7]
    for graph in (anchor, step):
        assert {opset.domain for opset in graph.opset_import} == {""}
        assert not [t.name for t in graph.graph.initializer if t.external_data]
        assert str(Path(module.__file__).parent).encode() not in graph.SerializeToString()  # nor any other path
        assert b"stack_trace" not in graph.SerializeToString()


def test_a_difference_from_torch_refuses_the_bundle(run, tmp_path, monkeypatch):
    """The check bites: graphs of a slightly other model are not let through, and nothing is written."""
    honest = module.graphs

    def tampered(family, lanes):
        with torch.no_grad():
            family.readout.linear.bias.add_(1e-2)
        made = honest(family, lanes)
        with torch.no_grad():
            family.readout.linear.bias.sub_(1e-2)
        return made

    monkeypatch.setattr(module, "graphs", tampered)
    with pytest.raises(ExportError, match=r"rates differs from torch's by .* at bin 4"):
        export(run, tmp_path / "wave")
    assert list(tmp_path.iterdir()) == []


def test_the_acausal_reference_is_refused(tmp_path):
    run = trained(tmp_path / "run", causal=False)
    with pytest.raises(ExportError, match=r"acausal reference .* cannot be streamed"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_external_inputs_are_exported_and_checked(tmp_path):
    r = dataclasses.replace(recording(), external=np.random.default_rng(3).normal(size=(400, 2)))
    config = TrainConfig(
        model=LFADSConfig(**SIZES), window=Window(anchor_bins=4, horizon_bins=12), fit=Fit(epochs=1, accelerator="cpu")
    )
    run = train(tmp_path / "run", config, prepare(r, config), lambda p: None)
    made = export(run, tmp_path / "bundle")
    assert made.manifest.external == ["external0", "external1"]
    assert made.golden()["u"].shape == (4 + module.GOLDEN_BINS, 2)

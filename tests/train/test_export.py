from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from test_fit import FAMILIES, recording

import rtdsae.train.export as module
from rtdsae import bundle
from rtdsae.bundle import folder as folders
from rtdsae.errors import ExportError
from rtdsae.model.families.lfads import LFADS, LFADSConfig
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.priors import AR1, RNN, Labelled, Sequence, Tiled
from rtdsae.serve.engine import Engine
from rtdsae.train.config import Data, Fit, TrainConfig, Window
from rtdsae.train.export import export, graphs
from rtdsae.train.fit import train
from rtdsae.train.sessions import prepare

SIZES = {"ic_enc_dim": 6, "f_dim": 4, "ci_enc_dim": 6, "con_dim": 5, "z_dim": 2, "gen_dim": 9, "fac_dim": 4}
WAVE = LFADSConfig(**SIZES)
MARK, TABLE_MARK = 1234.5, 4321.5  # in float32 both are exact


def trained(path, model=WAVE, recordings=None, names=("wave",), heldout_every=0):
    """An epoch of one recording, or of several sessions of these names."""
    config = TrainConfig(
        model=model,
        data=Data(path=tuple(f"{name}.h5" for name in names), heldout_every=heldout_every),
        window=Window(anchor_bins=4, horizon_bins=12),
        fit=Fit(epochs=1, accelerator="cpu"),
    )
    prepared = [prepare(r, config) for r in recordings or [recording()]]
    return train(path, config, prepared, lambda p: None, command="rtdsae train configs/wave.yaml")


def trials(seed, **parts):
    """Ten trials of two conditions."""
    first = 40 * np.arange(10)
    parts = {"segments": np.stack([first, first + 40], 1), "conditions": np.tile(["go", "rest"], 5)} | parts
    return recording(seed=seed, **parts)


def mark(run):
    """Put MARK where the stream needs it, and TABLE_MARK wherever the prior of f keeps what training alone knows."""
    best = run.load_checkpoint("best.pt")
    for name, values in best["model"].items():
        if name.startswith("f_prior."):
            values.fill_(TABLE_MARK)
    best["model"]["behaviour.bias"][0] = MARK
    run.save_checkpoint("best.pt", best)
    return run


def numbers(made):
    """Every array in a bundle's graphs and npz files, by file and name."""
    found = {}
    for file, content in made.files.items():
        if file.endswith(".onnx"):
            found |= {(file, t.name): onnx.numpy_helper.to_array(t) for t in constants(onnx.load_from_string(content))}
        elif file.endswith(".npz"):
            found |= {(file, name): values for name, values in folders._read_npz(made.path / file, content).items()}
    return found


def constants(model):
    nodes = [attribute.t for node in model.graph.node for attribute in node.attribute if node.op_type == "Constant"]
    return [*model.graph.initializer, *nodes]


def check_layout(made, family):
    """The manifest's state is the family's, and the graphs'."""
    m = made.manifest
    assert {part.name: part.size for part in m.state} == {k: n for k, n in family.state_sizes.items() if n}
    graphs = [onnx.load_from_string(made.session(n).files[f]) for n in m.sessions for f in bundle.SESSION_FILES[:2]]
    inputs = [{i.name: shape(i) for i in graph.graph.input} for graph in graphs]
    outputs = [{o.name: shape(o) for o in graph.graph.output} for graph in graphs]
    states = [inputs[i]["state"] for i in range(1, len(graphs), 2)]
    states += [outputs[i]["state"] for i in range(0, len(graphs), 2)]
    states += [outputs[i]["state_out"] for i in range(1, len(graphs), 2)]
    assert states == [[m.lanes, sum(part.size for part in m.state)]] * 3 * len(m.sessions)


def shape(value):
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def check_secrets(made):
    """What was marked in the prior of f is in no file of the bundle, under no name; what the stream needs is."""
    found = numbers(made)
    assert {file for (file, _), values in found.items() if (values == MARK).any()} >= {"step.onnx", "weights.npz"}
    assert not [key for key, values in found.items() if (values == TABLE_MARK).any()]
    assert not [name for _, name in found if "f_prior" in name or "mu2" in name]
    for file, content in made.files.items():
        assert np.float32(TABLE_MARK).tobytes() not in content, file
        assert b"f_prior." not in content, file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "wave")


@pytest.fixture(scope="module")
def wave(run, tmp_path_factory):
    """Its bundle, of two lanes."""
    return export(run, tmp_path_factory.mktemp("bundles") / "wave", lanes=2)


def test_the_bundle_is_whole_and_says_what_it_is(wave):
    made, m = wave, wave.manifest
    assert (m.name, m.family, m.lanes, m.anchor_bins, m.horizon_bins) == ("wave", "lfads", 2, 4, 12)
    assert m.channels == list(recording().channels)
    assert [part.size for part in m.state] == [6, 5, 9, 2, 4]
    assert {o.name: o.shape for o in m.outputs} == {"factors": [4], "z": [2], "f": [4], "rates": [8], "behaviour": [2]}
    golden = made.golden()
    assert len(golden["x"]) == 4 + module.GOLDEN_BINS
    assert 0 < (golden["observed"] == 0).sum() < 10  # the forecast is part of it
    assert bundle.load(made.path).hash == made.hash
    assert "rtdsae train configs/wave.yaml" in made.files["MODEL_CARD.md"].decode()


def test_graphs_are_static_and_standard():
    family = LFADS(WAVE, Dims((Neurons("wave", 7, 8),), 2, 0, 0, 1, 0.02, 4, 12)).eval()
    anchor, step = (onnx.load_from_string(g) for g in graphs(family, lanes=3))
    shapes = {i.name: shape(i) for i in step.graph.input}
    assert shapes == {"x": [3, 7], "observed": [3, 1], "u": [3, 2], "state": [3, 26]}
    assert [o.name for o in step.graph.output] == ["state_out", "factors", "z", "f", "rates"]
    assert shape(anchor.graph.input[0]) == [3, 4, 7]
    for graph in (anchor, step):
        assert {opset.domain for opset in graph.opset_import} == {""}
        assert not [t.name for t in graph.graph.initializer if t.external_data]
        assert str(Path(module.__file__).parent).encode() not in graph.SerializeToString()  # nor any other path
        assert b"stack_trace" not in graph.SerializeToString()


def moved(content, name, by):
    """A graph with other values of one parameter."""
    model = onnx.load_from_string(content)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith(name)]
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(by), tensor.name))
    return model.SerializeToString()


def test_a_difference_from_torch_refuses_the_bundle(run, wave, tmp_path, monkeypatch):
    """The check bites: graphs of a slightly other model are not let through, and nothing is written."""
    graphs = wave.files["anchor.onnx"], moved(wave.files["step.onnx"], "readout.linear.bias", 1e-2)
    monkeypatch.setattr(module, "graphs", lambda family, lanes: graphs)
    with pytest.raises(ExportError, match=r"rates differs from torch's by .* at bin 4"):
        export(run, tmp_path / "wave", lanes=2)
    assert list(tmp_path.iterdir()) == []


def test_the_acausal_reference_is_refused(tmp_path):
    run = trained(tmp_path / "run", LFADSConfig(**SIZES, causal=False))
    with pytest.raises(ExportError, match=r"acausal reference .* cannot be streamed"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# Each family with parts that are not its defaults; each part is in one of them.
ODD = {
    "dsae_full": {"f_to_generator": "initial_state", "z_lag": 2, "z_posterior": "full", "f_prior": Labelled()},
    "dsae_factorized": {"f_posterior": "full", "z_prior": Tiled(train_mean=True), "z_lag": 1, "f_prior": Sequence()},
    "fhvae": {"z_prior": AR1()},  # its own prior of f is a table
    "fdmm": {"z_lag": 4, "z_prior": RNN(cell="gru", units=5), "cell": "clipped_gru", "readin_dim": 3},
}


@pytest.mark.parametrize(
    "name", [next(iter(ODD)), *(pytest.param(name, marks=pytest.mark.slow) for name in [*ODD][1:])]
)
def test_every_family_is_exported_whatever_its_parts_but_for_what_training_alone_knows(tmp_path, name):
    external = np.random.default_rng(3).normal(size=(400, 2)) if name == "fdmm" else None
    model = msgspec.structs.replace(FAMILIES[name], **ODD[name])
    run = mark(trained(tmp_path / "run", model, [trials(0, external=external)]))
    made = export(run, tmp_path / "bundle", lanes=2)
    assert made.manifest.family == name
    assert msgspec.convert(made.manifest.config, TrainConfig).model == model
    check_layout(made, run.model())
    check_secrets(made)
    Engine(made)  # replays the golden run without torch
    golden = made.golden()
    assert made.manifest.external == ([] if external is None else ["external0", "external1"])
    assert ("u" in golden) == (external is not None)
    if external is not None:
        assert golden["u"].shape == (4 + module.GOLDEN_BINS, 2)
        assert golden["u"].any()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two sessions, of 8 and 12 neurons of which every fourth is held out, and its bundle."""
    folder = tmp_path_factory.mktemp("two")
    model = LFADSConfig(**SIZES, readin_dim=3, f_to_generator="tiled", f_prior=Labelled())
    recordings = [trials(0), trials(1, neurons=12)]
    run = mark(trained(folder / "run", model, recordings, ("monday", "tuesday"), heldout_every=4))
    return run, export(run, folder / "two")


@pytest.mark.slow
def test_a_run_of_two_sessions_exports_both(two):
    run, made = two
    m = made.manifest
    assert m.sessions == ["monday", "tuesday"]
    assert sorted(made.files) == sorted((*bundle.FILES, "weights.npz", *session_files("tuesday")))
    check_layout(made, run.model())
    check_secrets(made)
    for i, (name, neurons) in enumerate((("monday", 8), ("tuesday", 12))):
        session = made.session(name)
        channels = [f"ch{n}" for n in range(neurons) if n % 4 != 3]
        assert session.manifest.channels == channels
        assert session.manifest.output("rates").labels == [f"ch{n}" for n in range(neurons)]
        readin = run.model().use(i).readin
        assert session.manifest.normalisation == {"mean": readin.mean.tolist(), "std": readin.std.tolist()}
        golden = session.golden()
        assert golden["x"].shape == (4 + module.GOLDEN_BINS, len(channels))
        np.testing.assert_array_equal(golden["x"], run.sample(i, len(golden["x"]))["x"])
        engine = Engine(session)
        assert engine.outputs["rates"].shape == (neurons,)
        assert f"| {name} | {len(channels)} | {name}.h5 |" in made.files["MODEL_CARD.md"].decode()
    assert m.provenance["alignment"] == ["go", "rest"]


def session_files(name):
    return [bundle.session_path(name, file) for file in bundle.SESSION_FILES]


def test_the_weights_are_the_models_but_for_the_prior_of_f_and_what_sessions_were_aligned_by(two):
    run, made = two
    state, found = run.model().state_dict(), made.weights()
    expected = {f"model.{name}" for name in state if not name.startswith("f_prior.")}
    assert {"model.sessions.1.readin.linear.weight", "model.sessions.0.readout.linear.bias"} <= expected
    assert found.keys() == expected | {"alignment"}
    for name in expected:
        np.testing.assert_array_equal(found[name], state[name.removeprefix("model.")].numpy())
    np.testing.assert_array_equal(found["alignment"], run.alignment().averages)
    assert found["alignment"].shape == (2, 40, 3)


def test_a_difference_in_any_session_refuses_the_bundle(two, tmp_path, monkeypatch):
    run, made = two
    asked = []

    def ready(family, lanes):
        """The session's graphs as they were exported, the second's with another bias."""
        files = made.session(made.manifest.sessions[family.current]).files
        asked.append(family.current)
        step = files["step.onnx"]
        return files["anchor.onnx"], moved(step, "behaviour.bias", 1) if family.current == 1 else step

    monkeypatch.setattr(module, "graphs", ready)
    with pytest.raises(ExportError, match=r"behaviour differs from torch's by .* at bin 4"):
        export(run, tmp_path / "two")
    assert asked == [0, 1]
    assert list(tmp_path.iterdir()) == []


def test_more_lanes_than_bins_to_take_turns_in_are_refused(run, tmp_path):
    with pytest.raises(ExportError, match="99 lanes cannot take turns in R = "):
        export(run, tmp_path / "bundle", lanes=99)
    assert not (tmp_path / "bundle").exists()

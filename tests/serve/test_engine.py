"""The engine on a real ONNX Runtime, against the same model in numpy."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from toy_bundle import Toy

from rtdsae import bundle
from rtdsae.errors import BundleError, ConfigError
from rtdsae.serve.engine import Engine


def engine_of(toy, folder, **options):
    return Engine(bundle.load(toy.write(folder / "toy", **options)))


def run(engine, toy, x, observed):
    engine.anchor(x[: toy.n_anchor])
    steps = []
    for t in range(toy.n_anchor, len(x)):
        engine.step(x[t], bool(observed[t]))
        steps.append({name: values.copy() for name, values in engine.outputs.items()})
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


@pytest.mark.parametrize("lanes", [1, 2])
def test_steps_are_the_models(tmp_path, lanes):
    toy = Toy(lanes=lanes)
    x, observed = toy.counts(200), np.ones(200, np.float32)
    observed[50:60] = 0
    found, expected = run(engine_of(toy, tmp_path), toy, x, observed), toy.run(x, observed)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)


def test_anchoring_forgets_what_came_before(tmp_path):
    toy = Toy()
    engine = engine_of(toy, tmp_path)
    x, observed = toy.counts(20), np.ones(20)
    first = run(engine, toy, x, observed)
    again = run(engine, toy, x, observed)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_counts_of_a_gap_are_ignored(tmp_path):
    toy = Toy()
    engine = engine_of(toy, tmp_path)
    x, observed = toy.counts(20), np.ones(20)
    observed[10] = 0
    first = run(engine, toy, x, observed)
    x[10] += 100
    again = run(engine, toy, x, observed)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_another_golden_run_is_refused(tmp_path):
    engine_of(Toy(), tmp_path, golden_error=5e-5)
    with pytest.raises(
        BundleError, match=r"golden.npz replayed on CPU.* differs in factors by 0.\d+, more than 0.0001"
    ):
        Engine(bundle.load(Toy().write(tmp_path / "tampered", golden_error=0.01)))


def test_a_golden_run_that_is_not_a_number_is_refused(tmp_path):
    with pytest.raises(BundleError):
        Engine(bundle.load(Toy().write(tmp_path / "tampered", golden_error=float("nan"))))


@pytest.mark.parametrize("part", ["anchor", "step"])
def test_graphs_that_are_not_the_manifests(tmp_path, part, monkeypatch):
    other = getattr(Toy(n_hidden=13), f"_{part}_graph")()
    monkeypatch.setattr(Toy, f"_{part}_graph", lambda self: other)
    with pytest.raises(
        BundleError, match=rf"{part}.onnx: its \w+ are .*15.*, the manifest wants float32 of .*14.*: export it"
    ):
        engine_of(Toy(), tmp_path)


def test_an_output_of_another_kind_that_the_manifest_does_not_name(tmp_path, monkeypatch):
    graph = Toy()._step_graph()
    graph.graph.node.append(helper.make_node("Identity", ["sizes"], ["further"]))
    graph.graph.output.append(helper.make_tensor_value_info("further", TensorProto.INT64, (2,)))
    monkeypatch.setattr(Toy, "_step_graph", lambda self: graph)
    with pytest.raises(
        BundleError, match=r"step.onnx: its outputs are .*'further': 'tensor\(int64\)'.*: export it again"
    ):
        engine_of(Toy(), tmp_path)


def test_a_file_that_is_not_onnx(tmp_path):
    loaded = bundle.load(Toy().write(tmp_path / "toy"))
    broken = dataclasses.replace(loaded, files={**loaded.files, "step.onnx": b"not a model"})
    with pytest.raises(BundleError, match=r"step.onnx: onnxruntime cannot load it: [^\n]+$"):
        Engine(broken)


def test_providers(tmp_path):
    loaded = bundle.load(Toy().write(tmp_path / "toy"))
    assert Engine(loaded).provider == "CPUExecutionProvider"
    with pytest.raises(ConfigError, match=r"provider 'abacus' is not in this onnxruntime; it has .*cpu"):
        Engine(loaded, "abacus")


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="CPU-only onnxruntime")
def test_a_provider_that_cannot_run_here_is_not_replaced_silently(tmp_path):
    loaded = bundle.load(Toy().write(tmp_path / "toy"))
    try:
        assert Engine(loaded, "cuda").provider == "CUDAExecutionProvider"
    except ConfigError as error:
        assert "cannot run on this machine" in str(error)  # noqa: PT017 - either answer is right, falling back is not


def test_one_lane_is_anchored_and_the_others_stay(tmp_path):
    toy = Toy(lanes=3)
    engine, x = engine_of(toy, tmp_path), toy.counts(20)
    engine.anchor(x[:5])
    engine.anchor(x[10:15], 1)
    engine.step(x[15], True)
    for lane, start in enumerate((0, 10, 0)):
        expected = toy.step(toy.anchor(x[start : start + 5]), x[15], 1.0)[1]
        np.testing.assert_allclose(engine.results["factors"][lane], expected["factors"], atol=1e-5)

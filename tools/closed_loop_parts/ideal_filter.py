"""Bayes' filter of the intended velocity, which knows the cosine neurons' tuning, as a bundle that the daemon can run.

    v_t = a v_{t-1} + N(0, q I)                                   the prior: what is wanted changes little by little
    x_t ~ Poisson(exp(b + v_t W)),  expected λ at the predicted v
    P_t = (P⁻¹ + W diag(λ) Wᵀ)⁻¹,   v_t = v + P_t W (x_t - λ)     P and v on the right as predicted

The posterior is taken as Gaussian, by one step from the prediction (the point-process filter of Eden et al. 2004,
Neural Computation 16:971). The tuning is the true one; `a` and `q` are those of the calibration block. Its prior knows
nothing of targets, so that a decoder that has learnt how one moves to targets may do better. Velocities are in units of
SPEED_CM_S in here.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from closed_loop_parts.neurons import BIN_WIDTH_S, SPEED_CM_S, CosineNeurons, labels
from rtdsae import bundle

__all__ = ["IdealFilter"]

GOLDEN_BINS = 60
HIDDEN = slice(30, 33)  # of these, not observed


class IdealFilter:
    """The filter in numpy, and as a bundle.

    Args:
        neurons: whose spikes.
        velocity: what is wanted in the calibration block, cm/s `(bins, 2)`: the prior is fitted to it.
    """

    def __init__(self, neurons: CosineNeurons, velocity: np.ndarray) -> None:
        self._neurons = neurons
        before, after = velocity[:-1] / SPEED_CM_S, velocity[1:] / SPEED_CM_S
        self._a = float((before * after).sum() / np.square(before).sum())
        self._q = float(np.square(after - self._a * before).mean())
        self.start()

    def start(self) -> None:
        """Back to where it knows nothing but the prior."""
        self._mean, self._covariance = np.zeros(2), np.eye(2) * self._q / (1 - self._a**2)

    def step(self, counts: np.ndarray, observed: bool = True) -> np.ndarray:
        """The velocity after one more bin, cm/s `(2,)`; where it was not observed, what the prior expects."""
        weights, bias = self._neurons.weights, self._neurons.bias
        mean, covariance = self._a * self._mean, self._a**2 * self._covariance + self._q * np.eye(2)
        expected = observed * np.exp(mean @ weights + bias)
        self._covariance = np.linalg.inv(np.linalg.inv(covariance) + weights * expected @ weights.T)
        self._mean = mean + (observed * counts - expected) @ weights.T @ self._covariance
        return SPEED_CM_S * self._mean

    def write(self, folder: Path) -> Path:
        """Writes the bundle in place of what was there, and returns its folder."""
        graphs = {"anchor.onnx": self._anchor_graph(), "step.onnx": self._step_graph()}
        files = {name: graph.SerializeToString() for name, graph in graphs.items()}
        card = b"# ideal_filter\n\nThe point-process filter of the simulated user's true tuning. Nothing is learnt.\n"
        bundle.write(
            folder, self._manifest(), files | {"golden.npz": self._golden(), "MODEL_CARD.md": card}, overwrite=True
        )
        return folder

    def _golden(self) -> bytes:
        self.start()
        weights, bias = self._neurons.weights, self._neurons.bias
        x = np.random.default_rng(0).poisson(np.exp(bias), (GOLDEN_BINS, len(bias))).astype(np.float32)
        observed = np.ones(GOLDEN_BINS, np.float32)
        observed[HIDDEN] = 0
        steps = zip(x[1:], observed[1:], strict=True)  # the first bin is the anchor's
        behaviour = np.stack([self.step(counts, bool(seen)) for counts, seen in steps])
        factors = behaviour / SPEED_CM_S
        outputs = {"factors": factors, "rates": np.exp(factors @ weights + bias) / BIN_WIDTH_S, "behaviour": behaviour}
        file = io.BytesIO()
        np.savez(file, x=x, observed=observed, **{name: values.astype(np.float32) for name, values in outputs.items()})
        return file.getvalue()

    def _manifest(self) -> bundle.Manifest:
        channels = labels(len(self._neurons.bias))
        return bundle.Manifest(
            name="ideal_filter",
            family="point_process_filter",
            config={"a": self._a, "q": self._q},
            channels=channels,
            bin_width_s=BIN_WIDTH_S,
            anchor_bins=1,
            horizon_bins=1,
            lanes=1,
            outputs=[
                bundle.Output(name="factors", shape=[2], labels=["x", "y"]),
                bundle.Output(name="rates", shape=[len(channels)], unit="spikes/s", labels=channels),
                bundle.Output(name="behaviour", shape=[2], unit="cm/s", labels=["vel_x", "vel_y"]),
            ],
            state=[bundle.StatePart(name="mean", size=2), bundle.StatePart(name="covariance", size=4)],
            normalisation={},
            sessions=["calibration"],
            provenance={},
            scores={},
        )

    def _anchor_graph(self) -> onnx.ModelProto:
        """The state of `start`, whatever the bin."""
        self.start()
        rest = np.concatenate([self._mean, self._covariance.ravel()])[None]
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["spikes"], keepdims=0),
            helper.make_node("Mul", ["spikes", "zero"], ["nothing"]),
            helper.make_node("Add", ["rest", "nothing"], ["state"]),
        ]
        shape = (1, 1, len(self._neurons.bias))
        return _model(nodes, {"x": shape}, {"state": (1, 6)}, {"rest": rest, "zero": np.zeros(())})

    def _step_graph(self) -> onnx.ModelProto:
        n, weights = len(self._neurons.bias), self._neurons.weights
        nodes = [
            _node("Split", "state sizes", "mean_before flat_before", axis=1),
            _node("Reshape", "flat_before square", "covariance_before"),
            _node("Mul", "mean_before a", "mean"),
            _node("Mul", "covariance_before a_squared", "covariance_kept"),
            _node("Add", "covariance_kept drift", "covariance"),
            _node("MatMul", "mean weights", "drive"),
            _node("Add", "drive bias", "log_expected"),
            _node("Exp", "log_expected", "expected_if_seen"),
            _node("Mul", "expected_if_seen observed", "expected"),
            _node("Mul", "x observed", "seen"),
            *_inverse("covariance", "precision_before"),
            _node("Mul", "weights expected", "weighted"),
            _node("MatMul", "weighted weights_T", "information"),
            _node("Add", "precision_before information", "precision"),
            *_inverse("precision", "covariance_after"),
            _node("Sub", "seen expected", "surprise"),
            _node("MatMul", "surprise weights_T", "gradient"),
            _node("MatMul", "gradient covariance_after", "change"),
            _node("Add", "mean change", "factors"),
            _node("MatMul", "factors weights", "drive_after"),
            _node("Add", "drive_after bias_hz", "log_rates"),
            _node("Exp", "log_rates", "rates"),
            _node("Mul", "factors speed", "behaviour"),
            _node("Reshape", "covariance_after flat", "flat_after"),
            _node("Concat", "factors flat_after", "state_out", axis=1),
        ]
        constants = {
            "a": np.array(self._a),
            "a_squared": np.array(self._a**2),
            "drift": self._q * np.eye(2),
            "weights": weights,
            "weights_T": weights.T,
            "bias": self._neurons.bias,
            "bias_hz": self._neurons.bias - np.log(BIN_WIDTH_S),
            "speed": np.array(SPEED_CM_S),
            "one": np.eye(2),
            "sizes": np.array([2, 4]),
            "square": np.array([2, 2]),
            "flat": np.array([1, 4]),
        }
        outputs = {"state_out": (1, 6), "factors": (1, 2), "rates": (1, n), "behaviour": (1, 2)}
        return _model(nodes, {"x": (1, n), "observed": (1, 1), "state": (1, 6)}, outputs, constants)


def _inverse(matrix: str, inverse: str) -> list[onnx.NodeProto]:
    """Of a symmetric matrix of 2 by 2: (trace I - matrix) / determinant."""
    return [
        _node("Mul", f"{matrix} one", f"{matrix}_diagonal"),
        _node("ReduceSum", f"{matrix}_diagonal", f"{matrix}_trace"),
        _node("Mul", f"{matrix}_trace one", f"{matrix}_trace_one"),
        _node("Sub", f"{matrix}_trace_one {matrix}", f"{matrix}_adjugate"),
        _node("Det", matrix, f"{matrix}_determinant"),
        _node("Div", f"{matrix}_adjugate {matrix}_determinant", inverse),
    ]


def _node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    def values(shapes: dict[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    def constant(name: str, value: np.ndarray) -> onnx.TensorProto:
        return numpy_helper.from_array(value.astype(np.int64 if value.dtype.kind == "i" else np.float32), name)

    tensors = [constant(name, value) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "ideal_filter", values(inputs), values(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model

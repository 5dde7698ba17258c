"""A small linear recurrent model as a bundle, with the same model in numpy: no torch needed.

anchor   w = Σ_s x_s,  h = w W,  f = w V
step     h' = h A + (x · observed) B + f D,  z = h'[:3],  factors = h' F,  rates = softplus(h' R),  behaviour = h' K

Another session has a W, V, B and R of its own. `Lanes` is what is published of it: the model anchored once or time and
again, or the mean of several lanes that take turns at it.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rtdsae import bundle

N_STATIC, N_DYNAMIC, N_FACTORS = 2, 3, 4
HORIZON = 35
FORECASTS = {"forecast": "rates", "forecast_behaviour": "behaviour"}
BEHAVIOUR = ("vel_x", "vel_y")


@dataclass
class Toy:
    n_channels: int = 6
    n_hidden: int = 12
    n_anchor: int = 5
    bin_width_s: float = 0.02
    lanes: int = 1
    seed: int = 0
    label: str = "ch"
    name: str = "toy"

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        c, h = self.n_channels, self.n_hidden

        def draw(rows, columns, scale):
            return (scale * rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

        self.weights = {
            "W": draw(c, h, 0.1),
            "V": draw(c, N_STATIC, 0.1),
            "A": 0.9 * np.linalg.qr(draw(h, h, 1.0))[0],
            "B": draw(c, h, 0.3),
            "D": draw(N_STATIC, h, 0.1),
            "F": draw(h, N_FACTORS, 1.0),
            "R": draw(h, c, 1.0),
            "K": draw(h, len(BEHAVIOUR), 1.0),
        }
        self.channels = [f"{self.label}{i}" for i in range(c)]

    def for_neurons(self, n_channels, seed=1):
        """The same model for the neurons of another session."""
        other = replace(self, n_channels=n_channels, seed=seed, label=f"day{seed}-")
        other.weights |= {name: self.weights[name] for name in "ADFK"}
        return other

    def anchor(self, window):
        w = window.sum(axis=0)
        return w @ self.weights["W"], w @ self.weights["V"]

    def step(self, state, x, observed):
        h, f = state
        w = self.weights
        h = h @ w["A"] + (x * observed) @ w["B"] + f @ w["D"]
        rates = np.logaddexp(0, h @ w["R"])
        return (h, f), {"factors": h @ w["F"], "z": h[:N_DYNAMIC], "f": f, "rates": rates, "behaviour": h @ w["K"]}

    def run(self, x, observed=None):
        """Outputs for the bins after the first S, by name, each `(T - S, ...)`."""
        observed = np.ones(len(x), np.float32) if observed is None else observed
        state, steps = self.anchor(x[: self.n_anchor]), []
        for t in range(self.n_anchor, len(x)):
            state, out = self.step(state, x[t], observed[t])
            steps.append(out)
        return {name: np.stack([out[name] for out in steps]).astype(np.float32) for name in steps[0]}

    def counts(self, n_bins, seed=1):
        return np.random.default_rng(seed).poisson(1.0, (n_bins, self.n_channels)).astype(np.float32)

    def write(self, folder: Path, *, golden_error: float = 0.0, further: "dict[str, Toy] | None" = None) -> Path:
        """Writes the bundle, with further sessions by name where there are any, and returns its folder."""
        further = further or {}
        files = {**self.files(golden_error), "MODEL_CARD.md": b"# toy\n"}
        for name, toy in further.items():
            files |= {bundle.session_path(name, file): content for file, content in toy.files(golden_error).items()}
        bundle.write(folder, self.manifest(further), files)
        return folder

    def files(self, golden_error=0.0):
        """The three files of a session."""
        x = self.counts(40)
        observed = np.ones(40, np.float32)
        observed[20:23] = 0
        arrays = {"x": x, "observed": observed, **self.run(x, observed)}
        arrays["factors"][3, 0] += golden_error
        golden = io.BytesIO()
        np.savez(golden, **arrays)
        graphs = {"anchor.onnx": self._anchor_graph(), "step.onnx": self._step_graph()}
        return {name: graph.SerializeToString() for name, graph in graphs.items()} | {"golden.npz": golden.getvalue()}

    def outputs(self):
        def output(name, size, unit="", labels=()):
            return bundle.Output(name=name, shape=[size], unit=unit, labels=list(labels))

        return [
            output("factors", N_FACTORS),
            output("z", N_DYNAMIC),
            output("f", N_STATIC),
            output("rates", self.n_channels, "spikes/s", self.channels),
            output("behaviour", len(BEHAVIOUR), "mm/s", BEHAVIOUR),
        ]

    def session(self, name):
        return bundle.Session(name=name, channels=self.channels, outputs=self.outputs(), normalisation={})

    def manifest(self, further):
        return bundle.Manifest(
            format=bundle.FORMAT,
            name=self.name,
            family="toy",
            config={},
            channels=self.channels,
            bin_width_s=self.bin_width_s,
            anchor_bins=self.n_anchor,
            horizon_bins=HORIZON,
            lanes=self.lanes,
            external=[],
            outputs=self.outputs(),
            state=[bundle.StatePart(name="h", size=self.n_hidden), bundle.StatePart(name="f", size=N_STATIC)],
            normalisation={},
            sessions=["toy", *further],
            further=[toy.session(name) for name, toy in further.items()],
            provenance={},
            scores={},
            files={},
        )

    def _anchor_graph(self):
        nodes = [
            helper.make_node("ReduceSum", ["x", "axes"], ["w"], keepdims=0),
            helper.make_node("MatMul", ["w", "W"], ["h"]),
            helper.make_node("MatMul", ["w", "V"], ["f"]),
            helper.make_node("Concat", ["h", "f"], ["state"], axis=1),
        ]
        inputs = {"x": (self.lanes, self.n_anchor, self.n_channels)}
        return self._model(nodes, inputs, {"state": (self.lanes, self.n_hidden + N_STATIC)}, {"axes": [1]}, "WV")

    def _step_graph(self):
        def node(kind, inputs, output, **attributes):
            return helper.make_node(kind, inputs.split(), output.split(), **attributes)

        nodes = [
            node("Split", "state sizes", "h f_in", axis=1),
            node("Mul", "x observed", "seen"),
            node("MatMul", "h A", "hA"),
            node("MatMul", "seen B", "xB"),
            node("MatMul", "f_in D", "fD"),
            node("Sum", "hA xB fD", "h_next"),
            node("Slice", "h_next zero n_z one", "z"),
            node("MatMul", "h_next F", "factors"),
            node("MatMul", "h_next R", "drive"),
            node("Softplus", "drive", "rates"),
            node("MatMul", "h_next K", "behaviour"),
            node("Identity", "f_in", "f"),
            node("Concat", "h_next f_in", "state_out", axis=1),
        ]
        state = (self.lanes, self.n_hidden + N_STATIC)
        inputs = {"x": (self.lanes, self.n_channels), "observed": (self.lanes, 1), "state": state}
        outputs = {o.name: (self.lanes, *o.shape) for o in self.outputs()}
        integers = {"sizes": [self.n_hidden, N_STATIC], "zero": [0], "n_z": [N_DYNAMIC], "one": [1]}
        return self._model(nodes, inputs, {"state_out": state, **outputs}, integers, "ABDFRK")

    def _model(self, nodes, inputs, outputs, integers, weights):
        def values(shapes):
            return [helper.make_tensor_value_info(k, TensorProto.FLOAT, shape) for k, shape in shapes.items()]

        constants = [numpy_helper.from_array(self.weights[name], name) for name in weights]
        constants += [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in integers.items()]
        graph = helper.make_graph(nodes, "toy", values(inputs), values(outputs), constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


@dataclass(frozen=True)
class Lanes:
    """A toy on a stream: the state of each lane that is published, and how many bins ago it was anchored.

    once     one lane, which is never due
    every    one lane, anchored every R bins
    lanes    each is anchored every R bins, R/L after the one before. It counts by a triangle over its age: for nothing
             when it is anchored, for most R/2 bins later, for nothing when it is due again. All that are anchored at
             once have ages as if they had been so in turn

    While one is due and cannot be anchored, none grows older. By default they are a toy's lanes, where it has several.
    """

    toy: Toy
    anchor: str
    states: list
    ages: list

    @classmethod
    def anchored(cls, toy, window, anchor=None):
        """All of them, anchored on S bins."""
        anchor = anchor or ("lanes" if toy.lanes > 1 else "once")
        n = toy.lanes if anchor == "lanes" else 1
        return cls(toy, anchor, [toy.anchor(window)] * n, [(n - lane) % n * (HORIZON // n) for lane in range(n)])

    @property
    def period(self):
        """How old a lane is when it is due."""
        n = len(self.ages)
        return np.inf if self.anchor == "once" else HORIZON // n * n

    @property
    def due(self):
        """Which lane is to be anchored before the next bin; None for none."""
        return self.ages.index(self.period) if self.period in self.ages else None

    def with_turn_taken(self, window):
        """The lane that is due anchored on S bins, and the others as they are."""
        states, ages = [*self.states], [*self.ages]
        states[self.due], ages[self.due] = self.toy.anchor(window), 0
        return replace(self, states=states, ages=ages)

    def step(self, x, observed):
        """The lanes after the next bin, and what is published of it by name."""
        ages = self.ages if self.due is not None else [age + 1 for age in self.ages]
        states, outs = zip(*(self.toy.step(state, x, observed) for state in self.states), strict=True)
        after = replace(self, states=list(states), ages=ages)
        return after, after.mean(outs)

    def forecast(self, n_bins):
        """What is published of the bin so many later, of which nothing is known yet, by name."""
        states, outs, nothing = self.states, (), np.zeros(self.toy.n_channels, np.float32)
        for _ in range(n_bins):
            states, outs = zip(*(self.toy.step(state, nothing, 0.0) for state in states), strict=True)
        mean = self.mean(outs)
        return {name: mean[of] for name, of in FORECASTS.items()}

    def mean(self, outs):
        """Of what each lane gives, as their ages are."""
        weights = np.array([min(age, self.period - age) for age in self.ages]) if len(self.ages) > 1 else np.ones(1)
        weights = weights / weights.sum()
        return {name: sum(w * out[name] for w, out in zip(weights, outs, strict=True)) for name in outs[0]}

    @classmethod
    def run(cls, toy, x, observed=None, anchor=None, ahead=1):
        """As `Toy.run`, with forecasts, and which of these bins are the first after an anchor."""
        n = toy.n_anchor
        observed = np.ones(len(x)) if observed is None else observed
        lanes, steps, anchored = cls.anchored(toy, x[:n], anchor), [], [0]
        for t in range(n, len(x)):
            if lanes.due is not None and observed[t - n : t].all():
                lanes = lanes.with_turn_taken(x[t - n : t])
                anchored.append(t - n)
            lanes, out = lanes.step(x[t], observed[t])
            steps.append(out | lanes.forecast(ahead))
        return {name: np.stack([out[name] for out in steps]).astype(np.float32) for name in steps[0]}, anchored

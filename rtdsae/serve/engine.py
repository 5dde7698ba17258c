"""A bundle's two functions in ONNX Runtime: anchor and step, on buffers that are bound once.

`Engine` trusts nothing it is given: the graphs' declared shapes must be the manifest's, and the golden run must come
out on this machine as it did on the one that exported it, before there is an engine at all.
"""

import logging
from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rtdsae.bundle import Bundle
from rtdsae.errors import BundleError, ConfigError, one_line

__all__ = ["TOLERANCE", "Engine", "providers"]

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # between the exported model's outputs and this runtime's, relative above 1 and absolute below

NOWHERE = "/nowhere/of/a/bundle"

Float32 = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


class Engine:
    """A model that runs. `anchor` sets its state, `step` moves it one bin on and leaves the answer in `outputs`.

    Attributes:
        lanes: how many copies of the model step together.
        results: each output of all lanes `(lanes, ...)`, by name; the next step overwrites them.
        outputs: lane 0 of them, in the manifest's shapes: views.
        external: what the next step gets as external input, `(lanes, U)`; zeros unless written to.
        provider: the execution provider that runs it, as ONNX Runtime names it.

    Raises:
        BundleError: a graph does not load, has other inputs or outputs than the manifest says, or the golden run fails.
        ConfigError: the provider that was asked for is not there.
    """

    def __init__(self, bundle: Bundle, provider: str = "cpu") -> None:
        manifest, self._bundle = bundle.manifest, bundle
        self.provider = _provider(provider)
        self._anchor = _session(bundle, "anchor.onnx", self.provider)
        self._step = _session(bundle, "step.onnx", self.provider)
        lanes, size = manifest.lanes, manifest.state_size
        self.lanes = lanes
        self._window = np.zeros((lanes, manifest.anchor_bins, len(manifest.channels)), np.float32)
        self._x = np.zeros((lanes, len(manifest.channels)), np.float32)
        self._observed = np.ones((lanes, 1), np.float32)
        self.external: Float32 = np.zeros((lanes, len(manifest.external)), np.float32)
        self._states = [np.zeros((lanes, size), np.float32) for _ in range(4)]
        self.results: dict[str, Float32] = {o.name: np.zeros((lanes, *o.shape), np.float32) for o in manifest.outputs}
        self.outputs: dict[str, Float32] = {name: values[0] for name, values in self.results.items()}
        self._check_graphs()
        self._bindings = [self._bind(0, 1), self._bind(1, 0)]
        self._ahead = [self._bind(0, 2), self._bind(1, 2)]  # a forecast's first step, from either present
        self._further = [self._bind(3, 2), self._bind(2, 3)]  # and its others
        self._turn = 0  # which state buffer holds the present; the step writes the other, then they swap
        try:
            self.replay()
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base but this one
            raise BundleError(f"{bundle.path}: its graphs do not run: {one_line(error)}") from error

    def anchor(self, counts: Float32, lane: int | None = None) -> None:
        """Sets the state from S observed bins, `(S, C)`: that of one lane, or of all."""
        self._window[:] = counts
        state = self._anchor.run(None, {"x": self._window})[0]
        chosen = slice(None) if lane is None else lane
        self._states[self._turn][chosen] = state[chosen]

    def step(self, counts: Float32, observed: bool) -> None:
        """One bin, `(C,)`; where it was not observed its counts are ignored and the model forecasts."""
        self._x[:] = counts
        self._observed.fill(observed)
        self._step.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn

    def forecast(self, n_bins: int) -> None:
        """Steps through `n_bins` unobserved bins and leaves what comes out last in `outputs`; the state stays."""
        self._observed.fill(False)
        self._step.run_with_iobinding(self._ahead[self._turn])
        for i in range(1, n_bins):
            self._step.run_with_iobinding(self._further[i % 2])

    def warm_up(self) -> None:
        """A step in vain: `outputs` are overwritten, the state is not."""
        self._step.run_with_iobinding(self._bindings[self._turn])

    def replay(self) -> None:
        """Runs the golden stretch and compares; also the warm-up.

        Raises:
            BundleError: an output is off by more than TOLERANCE, or not a number.
        """
        golden, n_anchor = self._bundle.golden(), self._bundle.manifest.anchor_bins
        self.anchor(golden["x"][:n_anchor])
        worst = dict.fromkeys(self.outputs, 0.0)
        for i, bin_ in enumerate(range(n_anchor, len(golden["x"]))):
            if "u" in golden:
                self.external[:] = golden["u"][bin_]
            self.step(golden["x"][bin_], bool(golden["observed"][bin_]))
            for name, values in self.outputs.items():
                worst[name] = max(worst[name], _difference(values, golden[name][i]))
        self.external[:] = 0.0
        if off := {name: by for name, by in worst.items() if not by <= TOLERANCE}:
            name, by = max(off.items(), key=lambda item: item[1])
            raise BundleError(
                f"{self._bundle.path}: golden.npz replayed on {self.provider} differs in {name} by {by:.2g}, more than "
                f"{TOLERANCE:g}: this machine's onnxruntime {onnxruntime.__version__} does not give the exported model"
            )
        log.info("golden run of %d bins reproduced on %s within %.1e", i + 1, self.provider, max(worst.values()))

    def _inputs(self, state: Float32) -> dict[str, Float32]:
        inputs = {"x": self._x, "observed": self._observed, "u": self.external, "state": state}
        return {name: values for name, values in inputs.items() if values.size}

    def _check_graphs(self) -> None:
        state = self._states[0]
        self._check_graph("anchor.onnx", self._anchor, {"x": self._window}, {"state": state})
        self._check_graph("step.onnx", self._step, self._inputs(state), {"state_out": state, **self.results})

    def _check_graph(
        self,
        name: str,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, Float32],
        outputs: Mapping[str, Float32],
    ) -> None:
        for kind, found, wanted in (
            ("inputs", session.get_inputs(), inputs),
            ("outputs", session.get_outputs(), outputs),
        ):
            float32 = "tensor(float)"
            declared = {node.name: tuple(node.shape) if node.type == float32 else node.type for node in found}
            expected = {key: values.shape for key, values in wanted.items()}
            if declared != expected:
                raise BundleError(
                    f"{self._bundle.path}/{name}: its {kind} are {declared}, the manifest wants float32 of {expected}: "
                    "export it again"
                )

    def _bind(self, before: int, after: int) -> onnxruntime.IOBinding:
        """The step from one state buffer to another."""
        binding = self._step.io_binding()
        for name, values in self._inputs(self._states[before]).items():
            binding.bind_input(name, "cpu", 0, np.float32, values.shape, values.ctypes.data)
        for name, values in {"state_out": self._states[after], **self.results}.items():
            binding.bind_output(name, "cpu", 0, np.float32, values.shape, values.ctypes.data)
        return binding


def _difference(found: Float32, expected: Float32) -> float:
    """The largest, as TOLERANCE counts it; infinite where a value is not a number."""
    off = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return float(np.nan_to_num(off, nan=np.inf).max())


def providers() -> dict[str, str]:
    """ONNX Runtime's execution providers that this installation has, by their first word in lower case."""
    return {p.removesuffix("ExecutionProvider").lower(): p for p in onnxruntime.get_available_providers()}


def _provider(name: str) -> str:
    there = providers()
    if name.lower() not in there:
        raise ConfigError(f"provider {name!r} is not in this onnxruntime; it has {', '.join(sorted(there))}")
    return there[name.lower()]


def _session(bundle: Bundle, name: str, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights are in the file that was verified, or nowhere: not in another, of the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    options.log_severity_level = 4
    try:
        # A fallback would try the same again, and print to stdout that it does.
        session = onnxruntime.InferenceSession(bundle.files[name], options, providers=[provider], enable_fallback=False)
    except Exception as error:
        raise BundleError(f"{bundle.path}/{name}: onnxruntime cannot load it: {one_line(error)}") from error
    if session.get_providers()[0] != provider:  # it falls back without a word
        raise ConfigError(f"provider {provider} cannot run on this machine: is its driver installed? Or use cpu")
    return session

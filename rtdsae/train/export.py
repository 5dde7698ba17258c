"""From a run to a bundle: two ONNX graphs, checked against torch bin by bin before anything is written."""

import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import rtdsae
from rtdsae import bundle
from rtdsae.errors import ExportError
from rtdsae.model.family import Family
from rtdsae.model.stream import stream
from rtdsae.train.run import Run

__all__ = ["export"]

OPSET = 20
CHECKED_BINS = 1000
GOLDEN_BINS = 200  # after the anchor; a part of the checked ones
SCORED_PARTS = {"test": "test part", "valid": "validation part, which also selected the epoch"}
TOLERANCE = 1e-4  # of max(1, |value|): float32 rates of 100 spikes/s carry no more than that
GAP = slice(40, 45)  # modelled bins of the check that count as unobserved, so that the forecast is checked too


class AnchorGraph(nn.Module):
    """`anchor` as a graph of its own."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, x: Tensor) -> Tensor:
        """(lanes, S, C) -> (lanes, N)."""
        return self.family.anchor(x)


class StepGraph(nn.Module):
    """`step` as a graph of its own; outputs that do not exist are left out."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, x: Tensor, observed: Tensor, u: Tensor | None, state: Tensor) -> tuple[Tensor, ...]:
        """One bin: state', factors, z, f, rates and, where it was fitted, behaviour."""
        state, out = self.family.step(state, x, observed, u)
        return (state, *(value for value in out if value is not None))


def export(run: Run, out: Path, lanes: int = 1, overwrite: bool = False) -> bundle.Bundle:
    """Write a run's best model as a bundle.

    Args:
        run: a run with a finished epoch.
        out: the bundle's folder; its name is the bundle's.
        lanes: batch size of the graphs, fixed from here on.
        overwrite: replace a bundle that is there already.

    Raises:
        ExportError: the model is acausal, or ONNX Runtime's answer differs from torch's.
        BundleError: something else stands at `out`.
        TrainingError: the run has no trained model.
    """
    if not run.config.model.causal:
        raise ExportError(
            f"{run.path} is an acausal reference (model.causal: false): it sees the future and cannot be streamed; "
            "train with model.causal: true"
        )
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists: choose another --out, or replace it with --overwrite")
    family = run.model()
    x = run.sample(family.dims.anchor_bins + CHECKED_BINS)
    anchor, step = graphs(family, lanes)
    observed, reference = torch_answers(family, x, lanes)
    check(step, anchor, family, x, observed, reference)
    golden = {"x": x["x"], "observed": observed, **({"u": x["u"]} if "u" in x else {})}
    kept = family.dims.anchor_bins + GOLDEN_BINS
    golden = {k: v[:kept] for k, v in golden.items()} | {k: v[:GOLDEN_BINS] for k, v in reference.items()}
    files = {
        "anchor.onnx": anchor,
        "step.onnx": step,
        "golden.npz": npz(golden),
        "MODEL_CARD.md": card(run, out.name).encode(),
    }
    bundle.write(out, manifest(run, family, out.name, lanes), files, overwrite=overwrite)
    return bundle.load(out)


def graphs(family: Family, lanes: int) -> tuple[bytes, bytes]:
    """The ONNX files of `anchor` and `step`, static shapes, weights inside."""
    d, n = family.dims, sum(family.state_sizes.values())
    names = ["state_out", "factors", "z", "f", "rates"] + (["behaviour"] if d.n_behaviour else [])
    inputs = {
        "x": torch.zeros(lanes, d.n_channels),
        "observed": torch.ones(lanes, 1),
        "u": torch.zeros(lanes, d.n_external) if d.n_external else None,
        "state": torch.zeros(lanes, n),
    }
    anchor = to_onnx(AnchorGraph(family).eval(), {"x": torch.zeros(lanes, d.anchor_bins, d.n_channels)}, ["state"])
    return anchor, to_onnx(StepGraph(family).eval(), inputs, names)


def to_onnx(module: nn.Module, inputs: dict[str, Tensor | None], outputs: list[str]) -> bytes:
    """One module as one ONNX file; an input that is None does not exist in it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that we do not use
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=[name for name, value in inputs.items() if value is not None],
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,  # the default puts the weights in a second file
            verbose=False,
        )
        return without_traces(onnx.load(path))


def without_traces(model: onnx.ModelProto) -> bytes:
    """The graph without the exporter's notes, which name source files of the machine that it ran on."""
    for item in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        item.doc_string = ""
        del item.metadata_props[:]
    return bytes(model.SerializeToString())


def torch_answers(
    family: Family, sample: dict[str, np.ndarray], lanes: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What torch gives for the sample: `observed` (T,), and each output of bins S..T-1 of lane 0."""
    s = family.dims.anchor_bins
    observed = np.ones(len(sample["x"]), np.float32)
    observed[s:][GAP] = 0
    seen = torch.from_numpy(observed)[None, :, None].expand(lanes, -1, -1)
    x, u = (torch.from_numpy(sample[k]).expand(lanes, -1, -1) if k in sample else None for k in ("x", "u"))
    assert x is not None
    outputs = stream(family, x, seen, u)._asdict()
    return observed, {name: value[0].numpy() for name, value in outputs.items() if value is not None}


def check(
    step: bytes,
    anchor: bytes,
    family: Family,
    sample: dict[str, np.ndarray],
    observed: np.ndarray,
    reference: dict[str, np.ndarray],
) -> None:
    """Run the graphs over the sample in ONNX Runtime, and refuse where they differ from torch."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    first, session = (ort.InferenceSession(g, options, providers=["CPUExecutionProvider"]) for g in (anchor, step))
    lanes, s = session.get_inputs()[0].shape[0], family.dims.anchor_bins
    x = np.repeat(sample["x"][None], lanes, 0)
    (state,) = first.run(None, {"x": x[:, :s]})
    names = [output.name for output in session.get_outputs()][1:]
    for t in range(s, x.shape[1]):
        feed = {"x": x[:, t], "observed": np.full((lanes, 1), observed[t], np.float32), "state": state}
        if "u" in sample:
            feed["u"] = np.repeat(sample["u"][None, t], lanes, 0)
        state, *outputs = session.run(None, feed)
        for name, value in zip(names, outputs, strict=True):
            want = reference[name][t - s]
            worst = float(np.max(np.abs(value[0] - want) / np.maximum(1, np.abs(want))))
            if not worst <= TOLERANCE:
                raise ExportError(
                    f"ONNX Runtime's {name} differs from torch's by {worst:.2g} at bin {t}, more than {TOLERANCE:g}: "
                    "no bundle was written; please report it with the run"
                )


def manifest(run: Run, family: Family, name: str, lanes: int) -> bundle.Manifest:
    """What the bundle says of itself, but for its files' hashes."""
    d, info = family.dims, run.info
    outputs = [
        bundle.Output(name="factors", shape=[run.config.model.fac_dim], unit="", labels=[]),
        bundle.Output(name="z", shape=[family.state_sizes["z"]], unit="", labels=[]),
        bundle.Output(name="f", shape=[family.state_sizes["f"]], unit="", labels=[]),
        bundle.Output(name="rates", shape=[d.n_neurons], unit="spikes/s", labels=info["neurons"]),
    ]
    if d.n_behaviour:
        labels = info["behaviour_labels"]
        outputs.append(bundle.Output(name="behaviour", shape=[d.n_behaviour], unit="", labels=labels))
    return bundle.Manifest(
        format=bundle.FORMAT,
        name=name,
        family="lfads",
        config=msgspec.to_builtins(run.config),
        channels=info["channels"],
        bin_width_s=d.bin_width_s,
        anchor_bins=d.anchor_bins,
        horizon_bins=d.horizon_bins,
        lanes=lanes,
        external=info["external_labels"],
        outputs=outputs,
        state=[bundle.StatePart(name=part, size=size) for part, size in family.state_sizes.items()],
        normalisation={"mean": family.readin.mean.tolist(), "std": family.readin.std.tolist()},
        sessions=[info["session"]] if info["session"] else [],
        provenance={
            "data_hash": info["data_hash"],
            "seed": run.config.fit.seed,
            "versions": info["versions"] | {"exported_by": rtdsae.__version__},
            "best_epoch": info.get("best_epoch"),
        },
        scores=info.get("scores", {}),
        files={},
    )


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def card(run: Run, name: str) -> str:
    """The model card: what it is, what it was trained on, how it scores, how to remake it."""
    d, info = run.dims, run.info
    scores: dict[str, Any] = info.get("scores", {})
    rows = [f"| {key} | {value:.4g} |" for key, value in scores.items() if isinstance(value, float)]
    table = ["Not scored: run `rtdsae evaluate` before the export."]
    if rows:
        table = [
            f"Streamed bin by bin, on the {SCORED_PARTS[info['scored_part']]}:",
            "",
            "| score | value |",
            "|---|--:|",
            *rows,
        ]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Causal-split LFADS for {d.n_channels} channels in bins of {1000 * d.bin_width_s:g} ms: anchored on the "
            f"first {d.anchor_bins} bins, trained to run {d.horizon_bins} bins on.",
            "",
            f"Trained on {info['source']} (data hash `{info['data_hash'][:16]}`), best epoch {info['best_epoch'] + 1} "
            f"of {info['epochs_done']}.",
            "",
            *table,
            "",
            "Remake it with",
            "",
            *(f"    {command}" for command in info["commands"]),
            "",
        ]
    )

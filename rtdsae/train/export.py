"""From a run to a bundle: two ONNX graphs, checked against torch bin by bin before anything is written."""

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
from rtdsae.train.alignment import Alignment
from rtdsae.train.config import TrainConfig
from rtdsae.train.run import Run, npz

__all__ = ["check_exportable", "export"]

OPSET = 20
CHECKED_BINS = 1000
GOLDEN_BINS = 200  # after the anchor; a part of the checked ones
SCORED_PARTS = {"test": "test part", "valid": "validation part, which also selected the epoch"}
TITLES = {
    "lfads": "LFADS",
    "dsae_full": "Full DSAE",
    "dsae_factorized": "Factorized DSAE",
    "fhvae": "FHVAE",
    "fdmm": "FDMM",
}
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


def export(run: Run, out: str | Path, lanes: int | None = None, overwrite: bool = False) -> bundle.Bundle:
    """Write a run's best model as a bundle.

    Args:
        run: a run with a finished epoch.
        out: the bundle's folder; its name is the bundle's.
        lanes: batch size of the graphs, fixed from here on; None for what the model was trained for.
        overwrite: replace a bundle that is there already.

    Raises:
        ExportError: the model is acausal, or ONNX Runtime's answer differs from torch's.
        BundleError: something else stands at `out`.
        TrainingError: the run has no trained model.
    """
    out = Path(out)
    check_exportable(run.config, str(run.path), out)
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists: choose another --out, or replace it with --overwrite")
    bundle.check_replaceable(out, overwrite)
    family = run.model()
    lanes = lanes or family.dims.lanes
    if lanes > family.dims.horizon_bins:
        raise ExportError(f"{lanes} lanes cannot take turns in R = {family.dims.horizon_bins} bins: ask for fewer")
    files = {"MODEL_CARD.md": card(run, out.name, lanes).encode(), "weights.npz": npz(weights(family, run.alignment()))}
    for i, session in enumerate(run.info["sessions"]):
        sample = run.sample(i, family.dims.anchor_bins + CHECKED_BINS)
        made = session_files(family.use(i), sample, lanes)
        files |= {bundle.session_path(session["name"], name) if i else name: data for name, data in made.items()}
    bundle.write(out, manifest(run, family, out.name, lanes), files, overwrite=overwrite)
    return bundle.load(out)


def check_exportable(config: TrainConfig, source: str, out: Path) -> None:
    """Refuse what no training makes a bundle of: an acausal model, and a name that no bundle can have.

    Raises:
        ExportError: `source`, named in the message, or `out` is one of these.
    """
    if not config.model.causal:
        raise ExportError(
            f"{source} is an acausal reference (model.causal: false): it sees the future and cannot be streamed; "
            "train with model.causal: true"
        )
    if not bundle.is_name(out.resolve().name):
        raise ExportError(f"{out}: a bundle's name must be letters, digits, '.', '_' and '-', 100 at most")


def session_files(family: Family, sample: dict[str, np.ndarray], lanes: int) -> dict[str, bytes]:
    """The graphs of the session in use, checked over a sample of its input, and the golden run.

    Raises:
        ExportError: ONNX Runtime's answer differs from torch's.
    """
    anchor, step = graphs(family, lanes)
    observed, reference = torch_answers(family, sample, lanes)
    check(step, anchor, family, sample, observed, reference)
    kept = family.dims.anchor_bins + GOLDEN_BINS
    golden = {name: values[:kept] for name, values in (sample | {"observed": observed}).items()}
    golden |= {name: values[:GOLDEN_BINS] for name, values in reference.items()}
    return {"anchor.onnx": anchor, "step.onnx": step, "golden.npz": npz(golden)}


def weights(family: Family, alignment: Alignment | None) -> dict[str, np.ndarray]:
    """What a later calibration needs: the parameters that the stream has, and what the sessions were aligned by.

    The prior of f stays behind: a table of its rows speaks of the training data, and the stream never asks it.
    """
    arrays = {f"model.{k}": v.numpy() for k, v in family.state_dict().items() if not k.startswith("f_prior.")}
    return arrays if alignment is None else arrays | {"alignment": alignment.averages}


def graphs(family: Family, lanes: int) -> tuple[bytes, bytes]:
    """The ONNX files of `anchor` and `step` for the session in use, static shapes, weights inside."""
    d, n, c = family.dims, sum(family.state_sizes.values()), family.session.n_channels
    names = ["state_out", "factors", "z", "f", "rates"] + (["behaviour"] if d.n_behaviour else [])
    inputs = {
        "x": torch.zeros(lanes, c),
        "observed": torch.ones(lanes, 1),
        "u": torch.zeros(lanes, d.n_external) if d.n_external else None,
        "state": torch.zeros(lanes, n),
    }
    anchor = to_onnx(AnchorGraph(family).eval(), {"x": torch.zeros(lanes, d.anchor_bins, c)}, ["state"])
    return anchor, to_onnx(StepGraph(family).eval(), inputs, names)


def to_onnx(module: nn.Module, inputs: dict[str, Tensor | None], outputs: list[str]) -> bytes:
    """One module as one ONNX file; an input that is None does not exist in it."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they warn of libraries that we do not use
        logging.getLogger(name).setLevel(logging.ERROR)
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
    alignment = run.alignment()
    home, *further = (session_of(family.use(i), session, info) for i, session in enumerate(info["sessions"]))
    return bundle.Manifest(
        format=bundle.FORMAT,
        name=name,
        family=run.config.model.family,
        config=msgspec.to_builtins(run.config),
        channels=home.channels,
        outputs=home.outputs,
        normalisation=home.normalisation,
        sessions=[home.name, *(session.name for session in further)],
        further=further,
        bin_width_s=d.bin_width_s,
        anchor_bins=d.anchor_bins,
        horizon_bins=d.horizon_bins,
        lanes=lanes,
        external=info["external_labels"],
        state=[bundle.StatePart(name=part, size=size) for part, size in family.state_sizes.items() if size],
        provenance={
            "data_hash": run.data_hashes[0],
            "teacher": info.get("teacher", ""),
            "seed": run.config.fit.seed,
            "versions": info["versions"] | {"exported_by": rtdsae.__version__},
            "earlier_versions": info.get("earlier_versions", []),
            "best_epoch": info.get("best_epoch"),
            "alignment": list(alignment.conditions) if alignment else [],
        },
        scores=info.get("scores", {}),
    )


def session_of(family: Family, session: dict[str, Any], run_info: dict[str, Any]) -> bundle.Session:
    """What a bundle says of the session in use, which run.json describes."""
    sizes = {"factors": family.fac_dim, "z": family.z_dim, "f": family.f_dim}
    neurons, behaviour, readin = session["neurons"], run_info["behaviour_labels"], family.readin
    outputs = [bundle.Output(name=name, shape=[size]) for name, size in sizes.items()]
    outputs.append(bundle.Output(name="rates", shape=[len(neurons)], unit="spikes/s", labels=neurons))
    if behaviour:
        outputs.append(bundle.Output(name="behaviour", shape=[len(behaviour)], labels=behaviour))
    return bundle.Session(
        name=session["name"],
        channels=session["channels"],
        outputs=outputs,
        normalisation={"mean": readin.mean.tolist(), "std": readin.std.tolist()},
    )


def card(run: Run, name: str, lanes: int) -> str:
    """The model card: what it is, what it was trained on, how it scores, how to remake it."""
    d, info = run.dims, run.info
    scores: dict[str, Any] = info.get("scores", {})
    taught: str = info.get("teacher", "")
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
    title = TITLES[run.config.model.family]
    turns = f"in a stream its {lanes} lanes take turns at being anchored anew"
    upkeep = turns if lanes > 1 else "in a stream it runs on from one anchor"
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{title} in a causal split, bins of {1000 * d.bin_width_s:g} ms: anchored on the first {d.anchor_bins} "
            f"bins, trained to run {d.horizon_bins} bins on; {upkeep}. Best epoch {info['best_epoch'] + 1} of "
            f"{info['epochs_done']}.",
            "",
            "| session | channels | trained on | data hash |",
            "|---|--:|---|---|",
            *(
                f"| {s['name']} | {len(s['channels'])} | {s['source']} | `{s['data_hash'][:16]}` |"
                for s in info["sessions"]
            ),
            "",
            *table,
            "",
            *([f"Taught by the acausal run of the weights `{taught[:16]}`.", ""] if taught else []),
            "Remake it with",
            "",
            *(f"    {command}" for command in info["commands"]),
            "",
        ]
    )

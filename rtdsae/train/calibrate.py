"""Calibrate: a new session's read-in and read-out for a model that stays as it is.

Some minutes of new neurons are enough, since only the maps between them and the common inputs and factors are fitted:
the read-in begins as the regression to what the model's own sessions made of the conditions that the new recording has
too, the read-out as the likeliest for it, and both go on by gradient through the frozen model. Latents and behaviour
keep their meaning. The graphs of the sessions that the bundle had are copied byte for byte.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from rtdsae import bundle as bundles
from rtdsae.bundle import Bundle
from rtdsae.errors import BundleError, ConfigError
from rtdsae.model.families import make_family
from rtdsae.model.family import Dims, Family, Neurons
from rtdsae.model.priors import Normal
from rtdsae.recordings import Recording
from rtdsae.train.alignment import Alignment, align_session
from rtdsae.train.average import Averaged
from rtdsae.train.behaviour import factors_and_behaviour
from rtdsae.train.config import TrainConfig
from rtdsae.train.export import CHECKED_BINS, session_files, session_of, weights
from rtdsae.train.fit import Progress, Standing, Training, run_epochs
from rtdsae.train.objective import Loss, selecting, valid_scores
from rtdsae.train.processes import make_fabric
from rtdsae.train.ridge import mean_r2
from rtdsae.train.run import npz
from rtdsae.train.sessions import describe, last_bins, session_name, vocabulary
from rtdsae.train.windows import SessionWindows, Tensors

__all__ = ["Calibrated", "calibrate", "check"]

READOUT_STEPS = 60  # of L-BFGS on a convex loss
READOUT_RIDGE = 1e-3
READOUT_VALUES = 10_000_000  # that it is begun with: all windows, or evenly spaced ones of a long recording


@dataclass(frozen=True)
class Calibrated:
    """What a calibration came to.

    Attributes:
        bundle: the new bundle.
        session: the new session's name.
        aligned: whether it began from condition averages that the model knows.
        before: validation NLL by kind, nats per bin and neuron, at the beginning.
        after: the same at the best epoch.
        r2_behaviour: R² of the validation part's behaviour by the model's own read-out, mean over columns, or None.
    """

    bundle: Bundle
    session: str
    aligned: bool
    before: dict[str, float]
    after: dict[str, float]
    r2_behaviour: float | None

    @property
    def gained(self) -> bool:
        """Whether any epoch was better than the beginning, by the score that selects it."""
        score = selecting(self.after)
        return self.after[score] < self.before[score]


def calibrate(
    source: Bundle,
    recording: Recording,
    out: Path,
    config: TrainConfig,
    report: Callable[[Progress], None],
    *,
    session: str = "",
    command: str = "",
    overwrite: bool = False,
) -> Calibrated:
    """Fit a new session to a bundle's model, and write a new bundle that has it too.

    Args:
        source: the bundle, with its weights; it is not changed.
        recording: the new session, prepared.
        out: the new bundle's folder.
        config: the bundle's configuration with `data` and `fit` as they are to be used (`calibration_config`).
        report: called after each epoch.
        session: the new session's name; the recording's own, or its file's, where empty.
        command: what the user typed, for the model card.
        overwrite: replace a bundle that is at `out`.

    Raises:
        BundleError: the bundle has no weights, or something else stands at `out`.
        ConfigError: the recording cannot be a session of this model, or a name cannot be had.
        ExportError: ONNX Runtime's answer differs from torch's.
        TrainingError: no window fits, or the loss is not finite.
    """
    path = config.data.paths[0]
    bundles.check_replaceable(out, overwrite)
    name = check(source, recording, session, path, out.name)
    torch.set_num_threads(config.fit.threads)
    torch.manual_seed(config.fit.seed)
    family, windows, aligned = begin(source, recording, name, config)
    before, after = fit_session(family, windows, config, report)
    checked_bins = family.dims.anchor_bins + CHECKED_BINS
    sample = {k: np.resize(v, (checked_bins, v.shape[1])) for k, v in last_bins(recording).items()}
    made = session_files(family, sample, family.dims.lanes)
    write(source, family, out, describe(recording, path) | {"name": name}, made, command, overwrite)
    return Calibrated(bundles.load(out), name, aligned, before, after, behaviour_r2(source, family, windows))


def check(source: Bundle, recording: Recording, session: str, path: str, bundle_name: str) -> str:
    """The new session's name, of a recording that can be a session of the bundle's model.

    Args:
        source: the bundle; its manifest is enough.
        recording: the new session, prepared.
        session: the name that is asked for; the recording's own, or its file's, where empty.
        path: where the recording is.
        bundle_name: the new bundle's.

    Raises:
        ConfigError: with what does not fit, or a name that cannot be had.
    """
    m, name = source.manifest, session or session_name(recording, path)
    if not m.config["model"].get("readin_dim"):
        raise ConfigError(
            f"{source.path} was trained without common inputs, so that no other neurons can be read in: "
            "train with model.readin_dim above 0"
        )
    for option, given in (("session", name), ("out", bundle_name)):
        if not bundles.is_name(given):
            raise ConfigError(f"--{option} {given!r}: a name is letters, digits, '.', '_' and '-', 100 at most")
    if name in m.sessions:
        raise ConfigError(f"{source.path} has a session {name!r} already: choose another name with --session")
    if not np.isclose(recording.bin_width_s, m.bin_width_s):
        raise ConfigError(f"{path} has bins of {recording.bin_width_s:g} s, the model {m.bin_width_s:g} s: bin it anew")
    if list(recording.external_labels) != m.external:
        raise ConfigError(f"{path} has the external inputs {list(recording.external_labels)}, the model {m.external}")
    return name


def begin(source: Bundle, recording: Recording, name: str, config: TrainConfig) -> tuple[Family, SessionWindows, bool]:
    """The bundle's model with a new session in use, as it is fitted without a gradient, and the session's windows.

    Also whether the session began from condition averages that the model knows.
    """
    family, alignment = rebuild(source, recording, name, config)
    dims, index = family.dims, len(family.sessions) - 1
    bins = dims.anchor_bins + dims.horizon_bins
    windows = SessionWindows(Tensors(recording), bins, dims.horizon_bins, vocabulary([recording]), index=index)
    training_bins = windows.training_bins()
    family.use(index).session.fit(training_bins, training_bins[:, windows.tensors.heldin])
    aligned = alignment is not None and align_session(family.session, recording, alignment)
    likeliest_readout(family, windows)
    return family, windows, aligned


def rebuild(source: Bundle, recording: Recording, name: str, config: TrainConfig) -> tuple[Family, Alignment | None]:
    """The bundle's model with a new session at its end, and what its sessions were aligned by."""
    m, arrays = source.manifest, dict(source.weights())
    averages = arrays.pop("alignment", None)
    old = [source.session(known).manifest for known in m.sessions]
    neurons = [Neurons(s, len(o.channels), o.output("rates").shape[0]) for s, o in zip(m.sessions, old, strict=True)]
    dims = Dims(
        sessions=(*neurons, Neurons(name, int(recording.heldin.sum()), recording.n_channels)),
        n_external=len(m.external),
        n_behaviour=sum(o.shape[0] for o in m.outputs if o.name == "behaviour"),
        n_labels=1,
        n_sequences=1,
        bin_width_s=m.bin_width_s,
        anchor_bins=m.anchor_bins,
        horizon_bins=m.horizon_bins,
        lanes=m.lanes,
    )
    # Its table of f's prior stayed behind, and only the likelihood counts: any prior does, of the same variance.
    model = msgspec.structs.replace(config.model, f_prior=Normal(variance=config.model.f_prior.variance))
    family = make_family(model, dims)
    state = {name.removeprefix("model."): torch.from_numpy(values) for name, values in arrays.items()}
    fresh = {k for k in family.state_dict() if k.startswith((f"sessions.{len(neurons)}.", "f_prior."))}
    try:
        missing, unexpected = family.load_state_dict(state, strict=False)
    except RuntimeError:
        missing, unexpected = ["a shape"], []
    if set(missing) - fresh or unexpected:
        raise BundleError(f"{source.path}/weights.npz: is not of the model in the manifest: export it again")
    labels = tuple(m.provenance.get("alignment", ()))
    return family, None if averages is None else Alignment(labels, averages)


def likeliest_readout(family: Family, windows: SessionWindows) -> None:
    """Begin the read-out as the likeliest for the factors that the read-in gives as it begins.

    Otherwise the first epochs would bend the read-in to a read-out that knows nothing yet.
    """
    family.eval().requires_grad_(False)
    session = family.session
    firsts, bins = windows.train.tiles(), windows.train.bins
    every = -(-len(firsts) * bins * session.n_neurons // READOUT_VALUES)
    batch = windows.tensors.windows_at(firsts[::every], bins)
    x, counts = family.readin.normalise(batch.inputs), batch.counts[:, family.start :]
    factors = family(x, torch.ones_like(x[..., :1]), batch.u, False).outputs.factors
    parameters = list(session.readout.requires_grad_(True).parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=READOUT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        nll = session.reconstruction.nll(session.readout(factors), counts).mean()
        penalised = nll + READOUT_RIDGE * sum(p.square().mean() for p in parameters)
        penalised.backward()
        return penalised.detach()

    optimizer.step(loss)


def fit_session(
    family: Family, windows: SessionWindows, config: TrainConfig, report: Callable[[Progress], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Fit the session in use, all else frozen: validation scores before and after."""
    session = family.requires_grad_(False).session.requires_grad_(True)
    fabric = make_fabric(msgspec.structs.replace(config.fit, devices=1, nodes=1))
    optimizer = torch.optim.AdamW(
        session.parameters(), lr=config.fit.learning_rate, weight_decay=config.fit.weight_decay
    )
    loss, optimizer = fabric.setup(Loss(family, config.objective), optimizer)
    before = valid_scores(family, [windows], config.fit.windows_at_once, fabric.device)
    standing = Standing(best=before[selecting(before)])
    best, after = copy.deepcopy(session.state_dict()), before
    training = Training(config, [windows], fabric, family, loss, optimizer, Averaged(family))
    for metrics, improved in run_epochs(training, standing):
        if improved:
            best = copy.deepcopy(training.average.module.session.state_dict())
            after = {k.removeprefix("valid/"): v for k, v in metrics.items() if k.startswith("valid/")}
        report(Progress(standing.epoch, config.fit.epochs, metrics, standing.best_epoch))
    session.load_state_dict(best)
    family.cpu().eval()
    return before, after


def write(
    source: Bundle,
    family: Family,
    out: Path,
    info: dict[str, Any],
    made: dict[str, bytes],
    command: str,
    overwrite: bool,
) -> None:
    """The source's files as they are, and the new session's beside them."""
    m, name = source.manifest, info["name"]
    session = session_of(family, info, {"behaviour_labels": m.behaviour_labels})
    kept = {key: values for key, values in source.weights().items() if key == "alignment"}
    said = (
        f"\nSession {name}: {len(info['channels'])} channels, calibrated on {info['source']} (data hash "
        f"`{info['data_hash'][:16]}`) with\n\n    {command}\n"
    )
    files = {
        **source.files,
        **{bundles.session_path(name, file): content for file, content in made.items()},
        "weights.npz": npz(weights(family, None) | kept),
        "MODEL_CARD.md": source.files["MODEL_CARD.md"] + said.encode(),
    }
    calibrations = [*m.provenance.get("calibrations", []), {"session": name, "data_hash": info["data_hash"]}]
    manifest = msgspec.structs.replace(
        m,
        name=out.name,
        sessions=[*m.sessions, name],
        further=[*m.further, session],
        provenance={**m.provenance, "calibrations": calibrations},
    )
    bundles.write(out, manifest, files, overwrite=overwrite)


def behaviour_r2(source: Bundle, family: Family, windows: SessionWindows) -> float | None:
    """R² of the validation part's behaviour by the read-out that the model came with; None where there is none."""
    labels = list(windows.tensors.recording.behaviour_labels)
    if family.behaviour is None or labels != source.manifest.behaviour_labels:
        return None
    factors, actual = factors_and_behaviour(family, windows.tensors, "valid", windows.valid.bins)
    with torch.no_grad():
        decoded = family.behaviour(torch.from_numpy(factors))
    return mean_r2(actual, decoded.numpy())

"""The training configuration: frozen structs, read once from YAML and `--set key=value`, saved in the run."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml
from msgspec import Meta, Struct

from rtdsae import shipped
from rtdsae.errors import ConfigError, did_you_mean, one_line
from rtdsae.model.families import ModelConfig
from rtdsae.model.priors import DynamicPriorConfig, Sequence, StaticPriorConfig
from rtdsae.recordings.recording import TEST_FRACTION, VALID_FRACTION
from rtdsae.train.total_correlation import Estimator

__all__ = [
    "AnnealedVAE",
    "BetaTCVAE",
    "BetaVAE",
    "Data",
    "FactorVAE",
    "Fit",
    "Objective",
    "TrainConfig",
    "Window",
    "calibration_config",
    "load_config",
    "make_config",
]

Fraction = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=0)]


class Data(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which recording, and what of it is kept apart.

    Attributes:
        path: the recording; `--data` overrides it. Several, as a list, are sessions that share the model.
        bin_width_s: seconds a bin, for a file that does not say it (lfads-torch's do not).
        valid: fraction for validation, where the recording names no splits of its own.
        test: fraction for testing, likewise: the last trials, or the last stretch of time.
        heldout_every: k > 0 hides neurons k-1, 2k-1, ... from the encoders, for co-smoothing; 0 hides those that the
            recording flags.
        teacher: an acausal run on the same data; the model is trained on spikes drawn from its rates, others at every
            step, in place of the recorded ones.
    """

    path: str | tuple[str, ...] = ""
    bin_width_s: Positive | None = None
    valid: Fraction = VALID_FRACTION
    test: Fraction = TEST_FRACTION
    heldout_every: Natural = 0
    teacher: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The recordings, one or more."""
        return ((self.path,) if self.path else ()) if isinstance(self.path, str) else self.path


class Window(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The causal split: S anchor bins, then R bins that are modelled and scored; and how it is kept up in a stream.

    Attributes:
        anchor_bins: S.
        horizon_bins: R.
        lanes: how many copies of the model take turns at being anchored anew in a stream, each every R bins; with 1 it
            runs on from one anchor for ever. The read-out to behaviour is fitted so, `evaluate` scores so, and so the
            bundle runs.
    """

    anchor_bins: Count = 10
    horizon_bins: Count = 40
    lanes: Count = 2


class BetaVAE(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="beta_vae", tag_field="kind"):
    """β KL(f), β being `kl_f_scale` (Higgins et al. 2017)."""


class AnnealedVAE(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="annealed_vae", tag_field="kind"):
    """γ |KL(f) - C|, C growing from 0 (Burgess et al. 2018, arXiv:1804.03599); `kl_f_scale` has no part in it.

    Attributes:
        gamma: γ.
        capacity: C at the end, nats.
        epochs: over which C grows.
    """

    gamma: Weight = 1.0
    capacity: Weight = 10.0
    epochs: Count = 50


class BetaTCVAE(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="beta_tcvae", tag_field="kind"):
    """The parts of KL(f) weighted one by one (Chen et al. 2018), all times `kl_f_scale`.

    Attributes:
        mi: weight of the mutual information of data and f.
        tc: weight of the total correlation of f's dimensions.
        dim_kl: weight of the dimension-wise KL.
        estimator: of q(f), from a batch.
    """

    mi: Weight = 1.0
    tc: Weight = 6.0
    dim_kl: Weight = 1.0
    estimator: Estimator = "stratified"


class FactorVAE(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="factor_vae", tag_field="kind"):
    """KL(f) + γ TC by a discriminator (Kim & Mnih 2018), all times `kl_f_scale`.

    Attributes:
        gamma: γ.
        units: width of the discriminator's layers.
        learning_rate: of its own optimiser.
    """

    gamma: Weight = 6.0
    units: Count = 128
    learning_rate: Positive = 1e-4


class Objective(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The loss, in nats per scored bin and neuron.

    Attributes:
        coordinated_dropout: fraction of entries hidden from the encoders; only those are scored.
        cv_mask: fraction of the training windows' entries that is neither shown nor trained on, but scored (`nll_cv`).
        gap_rate: fraction of training windows with a run of unobserved bins.
        gap_bins: longest such run.
        spike_jitter_bins: each spike of a training window is moved by up to so many bins; 0 for none.
        shift_bins: each neuron of a training window is moved as a whole by up to so many bins; 0 for none.
        f_objective: what becomes of f's KL: `beta_vae`, `annealed_vae`, `beta_tcvae` or `factor_vae`.
        kl_f_scale: weight of f's KL; 1 is the evidence lower bound.
        kl_z_scale: weight of z's KL.
        discriminative: weight of -log p(sequence | f), in nats a window; needs `model.f_prior.kind: sequence`.
        l2_gen: weight of ½ mean(W²) over the generator's recurrent weights, where it has them.
        l2_con: the same for the controller.
        ramp_epochs: epochs over which the KL and L2 weights grow from 0.
    """

    coordinated_dropout: Fraction = 0.5
    cv_mask: Fraction = 0.0
    gap_rate: Fraction = 0.2
    gap_bins: Count = 5
    spike_jitter_bins: Natural = 0
    shift_bins: Natural = 0
    f_objective: BetaVAE | AnnealedVAE | BetaTCVAE | FactorVAE = BetaVAE()
    kl_f_scale: Weight = 0.005
    kl_z_scale: Weight = 0.005
    discriminative: Weight = 0.0
    l2_gen: Weight = 0.1
    l2_con: Weight = 0.1
    ramp_epochs: Natural = 10

    @property
    def warm_up(self) -> int:
        """Epochs until every weight has grown to its end."""
        capacity = self.f_objective.epochs if isinstance(self.f_objective, AnnealedVAE) else 0
        return max(self.ramp_epochs, capacity)


class Fit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the loop runs.

    Attributes:
        epochs: at most so many passes over the training windows.
        patience: stop after so many epochs without a better selection score, once the ramps are done.
        batch_size: windows an optimisation step.
        learning_rate: AdamW's at the start; it falls along a half cosine to a tenth over `epochs`.
        weight_decay: AdamW's.
        clip_norm: bound of the gradient's norm.
        seed: of weights, windows and noise.
        accelerator: Fabric's.
        precision: Fabric's.
        threads: CPU threads; small matrices gain nothing from more than one.
        shards: parts that a batch is taken in, each with masks and noise of its own: a step needs less memory, and
            several processes can share it. It is the same run however many do.
        devices: processes on each computer, each with a GPU of its own where there are GPUs; together they take a
            batch's shards, by PyTorch's DDP.
        nodes: computers; the command is to be started on each, by torchrun or with NODE_RANK and MASTER_ADDR set.
    """

    epochs: Count = 300
    patience: Count = 50
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-3
    clip_norm: Positive = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    threads: Count = 1
    shards: Count = 1
    devices: Count = 1
    nodes: Count = 1

    @property
    def windows_at_once(self) -> int:
        """Windows that are taken at once where no gradient is wanted: four times as many fit as in a shard."""
        return -(-4 * self.batch_size // self.shards)


class TrainConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that determines a run."""

    model: ModelConfig
    data: Data = Data()
    window: Window = Window()
    objective: Objective = Objective()
    fit: Fit = Fit()


def load_config(path: str | Path, overrides: tuple[str, ...] = (), data: tuple[str, ...] = ()) -> TrainConfig:
    """Read a YAML config and apply overrides.

    Args:
        path: the YAML file, or the name of a shipped one.
        overrides: `section.key=value`, the value in YAML.
        data: recordings that replace `data.path`.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value does not fit; the message names the key.
    """
    path = shipped.config_file(Path(path))
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"no config at {path}: give the path of a YAML file, or the name of a shipped one, such as lfads.yaml"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path} as YAML: {one_line(error)}; a recording goes with --data") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no config: expected the sections {', '.join(TrainConfig.__struct_fields__)}")
    return make_config(tree, f"{path} and --set" if overrides else str(path), overrides, data)


def make_config(tree: dict[str, Any], source: str, overrides: tuple[str, ...], data: tuple[str, ...]) -> TrainConfig:
    """A configuration from plain values by section, which are changed; else as `load_config`."""
    for override in overrides:
        apply(tree, override)
    if data:
        section = tree.get("data") or {}
        path_or_paths = data[0] if len(data) == 1 else list(data)
        tree["data"] = section | {"path": path_or_paths} if isinstance(section, dict) else section
    return convert(tree, source)


def calibration_config(tree: dict[str, Any], overrides: tuple[str, ...], data: str, source: str) -> TrainConfig:
    """A model's configuration as a calibration uses it: only the likelihood counts, since the model is frozen.

    Args:
        tree: the configuration that the model was trained with, as plain values.
        overrides: `section.key=value` of `fit`, `data` or `objective`.
        data: the new session's recording.
        source: what has the configuration, for errors.

    Raises:
        ConfigError: an override is of another section, or does not fit.
    """
    likelihood = {"f_objective": {"kind": "beta_vae"}, "kl_f_scale": 0.0, "kl_z_scale": 0.0, "discriminative": 0.0}
    tree = copy.deepcopy(tree)  # an override is of this calibration, not of the model
    objective = {**tree.get("objective", {}), **likelihood, "ramp_epochs": 0, "cv_mask": 0.0}
    if tree.get("data", {}).get("teacher"):  # its spikes were drawn anew, these are recorded
        objective.pop("coordinated_dropout", None)
    tree |= {"data": {"path": data}, "objective": objective}
    for override in overrides:
        if override.partition(".")[0] not in ("fit", "data", "objective"):
            raise ConfigError(f"--set {override}: a calibration leaves the model as it is; set fit, data or objective")
        if override.startswith("objective.cv_mask"):
            raise ConfigError(f"--set {override}: a calibration trains on all entries, and scores the validation part")
        if override.startswith("data.teacher"):
            raise ConfigError(f"--set {override}: a calibration is by recorded spikes and has no teacher")
        apply(tree, override)
    return convert(tree, source)


def apply(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in a config's tree."""
    key, equals, value = override.partition("=")
    *sections, last = key.split(".")
    if not equals or not sections:
        raise ConfigError(f"--set {override}: write section.key=value, such as --set fit.epochs=50")
    for section in sections:
        tree[section] = {} if tree.get(section) is None else tree[section]  # YAML reads an empty section as null
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    try:
        tree[last] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"--set {override}: {value!r} is not a YAML value") from None


def convert(tree: dict[str, Any], source: str) -> TrainConfig:
    """A validated config from plain values; `source` is named in errors."""
    try:
        # YAML 1.1 reads 1e-3 as a string, hence the lax conversion of numbers.
        config = msgspec.convert(tree, TrainConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}{suggestion(str(error))}") from None
    for holds, rule in rules(config):
        if not holds:
            raise ConfigError(f"{source}: {rule}")
    return config


def rules(config: TrainConfig) -> Iterator[tuple[bool, str]]:
    """What must hold between sections, beyond each value's own bounds."""
    m, o, w = config.model, config.objective, config.window
    yield m.z_lag <= w.anchor_bins, "model.z_lag is above window.anchor_bins, which it looks back on"
    yield (
        w.lanes <= w.horizon_bins,
        f"window.horizon_bins={w.horizon_bins} is too short for the turns of window.lanes={w.lanes}: lower the lanes",
    )
    yield m.causal or not m.z_lag, "model.z_lag is for a causal model: set it to 0 where model.causal is false"
    yield (
        not o.discriminative or isinstance(m.f_prior, Sequence),
        "objective.discriminative needs model.f_prior.kind: sequence",
    )
    bins = w.anchor_bins + w.horizon_bins
    yield (
        max(o.spike_jitter_bins, o.shift_bins) < bins,
        "objective.spike_jitter_bins and shift_bins: below the window's bins",
    )
    yield (
        not o.spike_jitter_bins or m.reconstruction != "gaussian",
        "objective.spike_jitter_bins moves spikes, and gaussian counts may be below 0: set it to 0",
    )
    yield (
        not o.cv_mask or not (o.spike_jitter_bins or o.shift_bins),
        "objective.cv_mask keeps entries out of sight into which spike_jitter_bins and shift_bins would move spikes: "
        "set it to 0, or both of these",
    )
    for key in ("cv_mask", "spike_jitter_bins", "shift_bins"):
        yield (
            not config.data.teacher or not getattr(o, key),
            f"objective.{key} is of recorded spikes, and data.teacher trains on none: leave one of the two away",
        )
    yield (
        not config.data.teacher or m.reconstruction == "poisson",
        "data.teacher draws Poisson spikes: set model.reconstruction: poisson",
    )
    f = config.fit
    yield (
        f.shards % (f.devices * f.nodes) == 0,
        f"fit.shards={f.shards} cannot be shared by fit.devices × fit.nodes = {f.devices * f.nodes} processes: "
        f"set fit.shards={f.devices * f.nodes}",
    )
    yield f.shards <= f.batch_size, "fit.shards is above fit.batch_size: a shard has a window at least"
    yield (
        f.devices * f.nodes == 1 or not isinstance(o.f_objective, FactorVAE),
        "objective.f_objective factor_vae learns its discriminator in one process: leave fit.devices at 1",
    )
    yield len(config.data.paths) < 2 or m.readin_dim > 0, "several sessions need model.readin_dim above 0"


def suggestion(message: str) -> str:
    """What was probably meant, where a message says that a key or a kind is unknown."""
    where = message.rpartition("`$.")[2].rstrip("`")
    if where in KINDS:
        return f"; choose of {', '.join(KINDS[where])}"
    if "unknown field" not in message:
        return ""
    kinds = [struct for structs in KINDS.values() for struct in structs.values()]
    known = sorted({field for struct in (TrainConfig, Data, Window, Objective, Fit, *kinds) for field in names(struct)})
    given = message.split("`")[1]
    if given in known:
        return f"; `{given}` belongs to another section, family or kind"
    return did_you_mean(given, known)


def names(struct: Any) -> tuple[str, ...]:
    """The keys of a section."""
    return struct.__struct_fields__


def tagged(union: Any) -> dict[str, type[Struct]]:
    """The structs of a tagged union, by tag."""
    return {struct.__struct_config__.tag: struct for struct in get_args(union)}


# key -> what it chooses of
KINDS = {
    "model.family": tagged(ModelConfig),
    "model.f_prior.kind": tagged(StaticPriorConfig),
    "model.z_prior.kind": tagged(DynamicPriorConfig),
    "objective.f_objective.kind": tagged(BetaVAE | AnnealedVAE | BetaTCVAE | FactorVAE),
}

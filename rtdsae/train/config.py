"""The training configuration: frozen structs, read once from YAML and `--set key=value`, saved in the run."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from rtdsae.errors import ConfigError
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.recordings.recording import TEST_FRACTION, VALID_FRACTION

__all__ = ["Data", "Fit", "Objective", "TrainConfig", "Window", "load_config"]

Fraction = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]


class Data(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which recording, and what of it is kept apart.

    Attributes:
        path: the recording; `--data` overrides it.
        bin_width_s: seconds a bin, for a file that does not say it (lfads-torch's do not).
        valid: fraction for validation, where the recording names no splits of its own.
        test: fraction for testing, likewise: the last trials, or the last stretch of time.
        heldout_every: k > 0 hides neurons k-1, 2k-1, ... from the encoders, for co-smoothing; 0 hides those that the
            recording flags.
    """

    path: str = ""
    bin_width_s: Positive | None = None
    valid: Fraction = VALID_FRACTION
    test: Fraction = TEST_FRACTION
    heldout_every: Natural = 0


class Window(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The causal split: S anchor bins, then R bins that are modelled and scored."""

    anchor_bins: Count = 10
    horizon_bins: Count = 40


class Objective(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The loss, in nats per scored bin and neuron.

    Attributes:
        coordinated_dropout: fraction of entries hidden from the encoders; only those are scored.
        gap_rate: fraction of training windows with a run of unobserved bins.
        gap_bins: longest such run.
        kl_f_scale: weight of f's KL; 1 is the evidence lower bound.
        kl_z_scale: weight of z's KL.
        l2_gen: weight of ½ mean(W²) over the generator's recurrent weights.
        l2_con: the same for the controller.
        ramp_epochs: epochs over which the KL and L2 weights grow from 0.
    """

    coordinated_dropout: Fraction = 0.5
    gap_rate: Fraction = 0.2
    gap_bins: Count = 5
    kl_f_scale: Annotated[float, Meta(ge=0)] = 0.005
    kl_z_scale: Annotated[float, Meta(ge=0)] = 0.005
    l2_gen: Annotated[float, Meta(ge=0)] = 0.1
    l2_con: Annotated[float, Meta(ge=0)] = 0.1
    ramp_epochs: Natural = 10


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


class TrainConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that determines a run."""

    model: LFADSConfig
    data: Data = Data()
    window: Window = Window()
    objective: Objective = Objective()
    fit: Fit = Fit()


def load_config(path: Path, overrides: tuple[str, ...] = (), data: str | None = None) -> TrainConfig:
    """Read a YAML config and apply overrides.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, the value in YAML.
        data: a recording's path that replaces `data.path`.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value does not fit; the message names the key.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: give the path of a YAML file, such as configs/lorenz.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path} as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no config: expected the sections {', '.join(TrainConfig.__struct_fields__)}")
    for override in overrides:
        apply(tree, override)
    if data is not None:
        section = tree.get("data") or {}
        tree["data"] = section | {"path": data} if isinstance(section, dict) else section
    return convert(tree, str(path))


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
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {value!r} is not a YAML value") from None


def convert(tree: dict[str, Any], source: str) -> TrainConfig:
    """A validated config from plain values; `source` is named in errors."""
    try:
        # YAML 1.1 reads 1e-3 as a string, hence the lax conversion of numbers.
        return msgspec.convert(tree, TrainConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}{suggestion(str(error))}") from None


def suggestion(message: str) -> str:
    """Which key was probably meant, where a message says that one is unknown."""
    if "unknown field" not in message:
        return ""
    structs = (TrainConfig, LFADSConfig, Data, Window, Objective, Fit)
    known = [field for struct in structs for field in struct.__struct_fields__]
    near = difflib.get_close_matches(message.split("`")[1], known, 1)
    return f"; did you mean `{near[0]}`?" if near else ""

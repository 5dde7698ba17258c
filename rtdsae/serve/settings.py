"""What a daemon is told: one struct, from flags and, where there is one, a YAML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml
from msgspec import Meta

from rtdsae import shipped
from rtdsae.bins import Kind
from rtdsae.defaults import ENDPOINT
from rtdsae.errors import ConfigError, did_you_mean, one_line

__all__ = ["Anchoring", "Model", "Settings", "WakeMode", "load_settings"]

Anchoring = Literal["once", "every", "lanes"]
WakeMode = Literal["warm", "poll", "off"]
Match = Literal["name", "subset", "count"]
Reduce = Literal["sum", "mean"]
Seconds = Annotated[float, Meta(ge=0)]


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bundle is run."""

    publish: tuple[str, ...] = ()
    """Names of the arrays to publish; none are factors, z and, where the bundle has it, behaviour."""
    forecast_bins: Annotated[int, Meta(ge=0, le=1000)] = 0
    """How far ahead `forecast` and `forecast_behaviour` look; 0 for no forecast."""
    anchor: Anchoring | None = None
    """When the model is anchored: once, every R bins, or in lanes; None for lanes where the bundle has several."""
    provider: str = "cpu"
    """ONNX Runtime's execution provider: cpu, cuda, ...; auto measures, and takes the quickest of this computer."""
    history_s: Annotated[float, Meta(ge=0, le=86400)] = 120.0
    """How much of what was published is kept for subscribers that missed some."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a daemon's settings."""

    bundle: Path
    """Folder of the model's bundle."""
    session: str | None = None
    """Which of the bundle's sessions the stream's neurons are of; None where it has one."""
    model: Model = Model()
    """How the bundle is run and what is published of it."""
    stream: str = "type=Spikes"
    """Which LSL stream: key=value[,key=value] on its properties, or an XPath predicate."""
    input: Kind | None = None
    """What the stream's samples are: counts, samples or events; None to tell by its rate."""
    match: Match = "name"
    """Whether its channels are the model's by name, where both have names; by name, among others; or by number."""
    reduce: Reduce = "sum"
    """A bin of several samples is their sum or their mean."""
    lateness_s: Annotated[float, Meta(ge=0, le=1)] = 0.002
    """How long after its end a bin of events waits for late ones."""
    silence_s: Annotated[float, Meta(gt=0)] = 1.0
    """How long a stream of events may be silent before its bins count as gaps."""
    timeout_s: Seconds = 10.0
    """How long to wait for the stream to appear."""
    pub: str = ENDPOINT
    """Endpoint to publish on."""
    control: str | None = None
    """Endpoint for control requests; None for no control."""
    keys: Path | None = None
    """Folder of the CURVE keys; None for endpoints that this machine alone can reach."""
    lsl_out: str | None = None
    """Name of an LSL stream that carries the latents too; None for no such stream."""
    wake: WakeMode = "warm"
    """What to do shortly before a bin is complete: be awake and warm, poll for it too, or sleep until it is there."""
    metrics: str | None = None
    """Where to serve Prometheus metrics, like 127.0.0.1:9464; None for nowhere."""
    log_json: bool = False
    """Log in JSON, an object a line."""
    priority: int | None = None
    """Real-time priority (SCHED_FIFO) of the decoding thread; None for an ordinary one."""
    cpus: tuple[int, ...] = ()
    """Cores that the daemon may run on; none for all."""
    lock_memory: bool = False
    """Keep all memory from being swapped out."""


def load_settings(file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any]) -> Settings:
    """Settings from a YAML file, over it `key=value` or `model.key=value`, over that the flags that were given.

    The file is one of yours or the name of a shipped one.

    Raises:
        ConfigError: the file cannot be read, or a key or a value does not fit; the message names it.
    """
    tree = _read(shipped.config_file(file)) if file else {}
    for override in overrides:
        _put(tree, override)
    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        section = tree.setdefault("model", {}) if name in Model.__struct_fields__ else tree
        section[name] = value
    if tree.get("wake") is False:  # YAML's reading of `off`
        tree["wake"] = "off"
    try:
        return msgspec.convert(tree, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file or 'the settings'}: {error}{_suggestion(str(error))}") from None


def _suggestion(message: str) -> str:
    """How to mend what msgspec has found."""
    if "missing required field `bundle`" in message:
        return "; name a bundle: rtdsae serve BUNDLE"
    if "unknown field" in message:
        return did_you_mean(message.split("`")[1], (*Settings.__struct_fields__, *Model.__struct_fields__))
    key = message.rpartition("`$.")[2].rstrip("`")
    words = {"input": Kind, "wake": WakeMode, "model.anchor": Anchoring, "match": Match, "reduce": Reduce}
    return f"; choose of {', '.join(get_args(words[key]))}" if key in words else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"no settings at {file}: give the path of a YAML file, or the name of a shipped one, such as daemon.yaml"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file} as YAML: {one_line(error)}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("model", {}), dict):
        raise ConfigError(f"{file} holds no settings: see configs/daemon.yaml")
    return tree


def _put(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, _, name = key.rpartition(".")
    if not equals or not name or section not in ("", "model") or key == "model":
        raise ConfigError(f"--set {override}: write key=value or model.key=value, such as --set timeout_s=30")
    try:
        value = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from None
    (tree.setdefault("model", {}) if section else tree)[name] = value


def _path(kind: type, value: object) -> Path:
    """Paths are the one type here that msgspec leaves to others."""
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"expected the path of a folder, found {value!r}")
    return Path(value)

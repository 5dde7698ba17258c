"""What a search is of: its YAML file, the settings that it searches, and where a population goes from one value."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
import torch
import yaml
from msgspec import Meta, Struct

from rtdsae import shipped
from rtdsae.errors import ConfigError, did_you_mean, one_line
from rtdsae.model.families import make_family
from rtdsae.recordings import Recording
from rtdsae.train.config import TrainConfig, convert, load_config
from rtdsae.train.sessions import dims_of

__all__ = ["Choices", "Range", "Search", "SearchConfig", "load_search"]

Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Scalar = bool | int | float | str

SECTIONS = ("model", "objective", "fit")  # another data or window section would change what the score is of
OF_COUNTS = {"poisson", "negative_binomial"}  # whose likelihoods are probabilities, which compare; others are densities


class Range(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Numbers between two ends; integers where the ends and the base's value are.

    Attributes:
        low: the lower end.
        high: the upper end.
        log: drawn evenly on a logarithmic scale.
        init: where every trial of a population begins; without it, each at random.
        explore: how far from 1 a factor that perturbs it lies at most, in a population.
        enforce: whether a population stays within the range; else it only begins there.
    """

    low: int | float
    high: int | float
    log: bool = False
    init: int | float | None = None
    explore: Annotated[float, Meta(gt=0, lt=1)] = 0.8
    enforce: bool = True

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The outermost values that there may be."""
        return (self.low, self.high) if self.enforce else (math.ulp(0.0), math.inf)


class Choices(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Some values in an order: a population perturbs to a neighbour.

    Attributes:
        choices: the values.
    """

    choices: tuple[Scalar, ...]

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """All values: any may be one that does not fit."""
        return self.choices


class SearchConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A search, as its YAML file says it.

    Attributes:
        base: the training configuration that the trials share, relative to the file, or the name of a shipped one.
        method: `pbt`, a population; `random`; or `tpe`, where each trial is proposed by those before it.
        trials: how many; of a population, its size.
        burn_in_epochs: epochs before the first generation.
        generation_epochs: epochs between two reports, after which a population is perturbed.
        generations: how many. All epochs together take the place of the base's `fit.epochs`.
        patience: generations over which a population's best score has to fall by a two-thousandth; else the next one is
            the last. Without it, none is left out.
        concurrent: trials at once on this computer; without it, as many as it has CPUs for. On a cluster it bounds
            random and tpe, and a population takes what there is.
        gpus: the part of a GPU that a trial takes; with 0, trials see none.
        seed: of what is drawn.
        space: `section.key` to `{low, high, log, init, explore, enforce}` or `{choices}`.
    """

    base: str
    method: Literal["pbt", "random", "tpe"] = "pbt"
    trials: Count = 20
    burn_in_epochs: Natural = 0
    generation_epochs: Count = 25
    generations: Count = 8
    patience: Annotated[int, Meta(ge=2)] | None = None
    concurrent: Count | None = None
    gpus: Annotated[float, Meta(ge=0)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    space: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Search:
    """A search that was checked.

    Attributes:
        source: its file, for errors.
        settings: what the file says.
        base: the training configuration that the trials share.
        axes: what is searched, by key.
    """

    source: str
    settings: SearchConfig
    base: TrainConfig
    axes: dict[str, Range | Choices]

    def epochs(self, generation: int) -> int:
        """Epochs done when a generation, from 0, has ended."""
        return self.settings.burn_in_epochs + (generation + 1) * self.settings.generation_epochs

    def config(self, values: dict[str, Any]) -> TrainConfig:
        """The training configuration of a trial.

        Args:
            values: key to value; the base has the rest.

        Raises:
            ConfigError: they do not fit.
        """
        tree = msgspec.to_builtins(self.base)
        for key in sorted(values, key=lambda key: (not is_kind(key), key.count("."))):  # the rest is of the kind chosen
            *sections, last = key.split(".")
            section, struct = tree, cast(Any, self.base)
            for name in sections:
                section, struct = section.setdefault(name, {}), getattr(struct, name, None)
            if is_kind(key) and section.get(last) != values[key] and struct is not None:
                kept = given(struct)  # another kind may not have the rest, or has defaults of its own
                section.clear()
                section |= kept
            section[last] = values[key]
        epochs = self.epochs(self.settings.generations - 1)
        tree["fit"] |= {"epochs": epochs}
        if self.settings.method == "pbt":
            tree["fit"] |= {"patience": epochs}  # a trial that stands still is ended by the others
        said = " ".join(f"{key}={value}" for key, value in values.items())
        return convert(tree, f"{self.source} with {said}")


def is_kind(key: str) -> bool:
    """Whether a key chooses among structures: `model.family`, `model.z_prior.kind`."""
    return key == "model.family" or key.endswith(".kind")


def given(struct: msgspec.Struct) -> dict[str, Any]:
    """A configuration's values that are not its defaults, plain; those of another kind within are whole."""
    values = {field.name: (getattr(struct, field.name), field.default) for field in msgspec.structs.fields(struct)}
    return {name: msgspec.to_builtins(value) for name, (value, default) in values.items() if value != default}


def load_search(path: Path, data: tuple[str, ...] = ()) -> Search:
    """Read a search's YAML file and its base.

    Args:
        path: the YAML file, or the name of a shipped one.
        data: recordings that replace the base's `data.path`.

    Raises:
        ConfigError: a file is missing or not YAML, or a key or value does not fit; the message names the key.
    """
    path = shipped.config_file(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no search at {path}: give a YAML file, such as configs/search_lfads.yaml") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path} as YAML: {one_line(error)}; a recording goes with --data") from None
    try:
        settings = msgspec.convert(tree, SearchConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    base = load_config(_base_file(path, settings.base), (), data)
    if base.fit.devices * base.fit.nodes > 1:
        raise ConfigError(f"{path}: a trial is one process: leave fit.devices and fit.nodes of the base at 1")
    if not settings.space:
        raise ConfigError(f"{path}: space is empty: name at least one key, such as fit.learning_rate")
    axes = {key: range_or_choices(f"{path}: space.{key}", entry) for key, entry in settings.space.items()}
    made = Search(str(path), settings, base, axes)
    for key, axis in axes.items():
        check(made, key, axis)
    return made


def _base_file(search: Path, base: str) -> Path:
    """The file beside the search, or the shipped one of that name.

    Raises:
        ConfigError: there is neither.
    """
    beside = search.parent / base
    if beside.is_file():
        return beside
    try:
        return shipped.config(base)
    except ConfigError as error:
        raise ConfigError(f"{search}: base: no training config at {beside}, and {error}") from None


def range_or_choices(source: str, entry: dict[str, Any]) -> Range | Choices:
    """A key's range or choices.

    Raises:
        ConfigError: it is neither, or empty.
    """
    try:
        # YAML 1.1 reads 1e-3 as a string, hence the lax conversion of numbers.
        kind: type[Range] | type[Choices] = Choices if "choices" in entry else Range
        made = msgspec.convert(entry, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}: give low and high, or choices") from None
    if isinstance(made, Choices):
        if len(made.choices) < 2:
            raise ConfigError(f"{source}: one choice is no search: give two or more")
        return made
    if not made.low < made.high:
        raise ConfigError(f"{source}: low {made.low} is not below high {made.high}")
    if made.log and made.low <= 0:
        raise ConfigError(f"{source}: log needs low above 0, not {made.low}")
    if made.init is not None and not made.low <= made.init <= made.high:
        raise ConfigError(f"{source}: init {made.init} is not between {made.low} and {made.high}")
    return made


def check(search: Search, key: str, axis: Range | Choices) -> None:
    """Refuse a key that cannot be searched, and ends that the training configuration does not accept.

    Raises:
        ConfigError: naming the key.
    """
    source = f"{search.source}: space.{key}"
    known = leaves(msgspec.to_builtins(search.base))
    if key not in known:
        hint = did_you_mean(key, known) or ": keys are section.key, as in rtdsae train --set"
        raise ConfigError(f"{source}: the base has no such key{hint}")
    if key.partition(".")[0] not in SECTIONS:
        raise ConfigError(f"{source}: the trials would be scored on other bins: search {', '.join(SECTIONS)}")
    if key in ("fit.epochs", "fit.patience"):
        raise ConfigError(f"{source}: set burn_in_epochs, generation_epochs and generations instead")
    if key == "model.causal" or (key == "model.reconstruction" and not OF_COUNTS.issuperset(axis.ends)):
        raise ConfigError(f"{source}: scores of these do not compare: search with each of them, and look at evaluate's")
    if search.settings.method == "pbt" and is_kind(key):
        raise ConfigError(f"{source}: a population hands on weights, which are of one kind: use method random or tpe")
    if search.settings.method == "pbt" and key == "objective.f_objective.units":
        raise ConfigError(
            f"{source}: a population hands on weights, whose sizes this changes: use method random or tpe"
        )
    if key in ("fit.devices", "fit.nodes"):
        raise ConfigError(f"{source}: a trial is one process: leave it at 1")
    if is_whole(search, key) and isinstance(axis, Range):
        ends = [end for end in (axis.low, axis.high, axis.init) if end is not None]
        if any(type(end) is not int for end in ends):
            raise ConfigError(f"{source}: {key} is a whole number: give low, high and init without a point")
    prior, _, name = key.rpartition(".")
    is_weight = name in ("tau", "variance") and known.get(f"{prior}.kind") not in (None, "sequence")
    if search.settings.method == "pbt" and is_weight:
        raise ConfigError(f"{source}: it is among the weights, which a population hands on: use method random or tpe")
    if search.settings.method == "pbt" and isinstance(axis, Range) and axis.init == 0 and not is_whole(search, key):
        raise ConfigError(f"{source}: a population multiplies, and 0 stays 0: give init above it, or leave it away")
    for end in axis.ends:
        search.config({key: end})


def leaves(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"a": {"b": {"c": 1}}}` as `{"a.b.c": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def check_shapes(search: Search, recordings: Sequence[Recording]) -> None:
    """Refuse a population over a key that changes the weights' sizes.

    Raises:
        ConfigError: naming the key.
    """

    def shapes(values: dict[str, Any]) -> dict[str, torch.Size]:
        config = search.config(values)
        with torch.device("meta"):
            family = make_family(config.model, dims_of(recordings, config))
        return {name: weight.shape for name, weight in family.state_dict().items()}

    for key, axis in search.axes.items():
        if key.startswith("model.") and any(shapes({key: end}) != shapes({}) for end in axis.ends):
            raise ConfigError(
                f"{search.source}: space.{key}: a population hands on weights, whose sizes this changes: "
                "use method random or tpe"
            )


def is_whole(search: Search, key: str) -> bool:
    """Whether a range is of integers."""
    axis, value = search.axes[key], leaves(msgspec.to_builtins(search.base))[key]
    return isinstance(axis, Range) and type(value) is int


def explore(search: Search, values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Values near those of the trial that is gone on from."""
    near = copy.copy(values)
    for key, axis in search.axes.items():
        if isinstance(axis, Choices):
            at = axis.choices.index(values[key])
            near[key] = draw.choice(axis.choices[max(0, at - 1) : at + 2])
            continue
        (low, high), old = axis.ends, values[key]
        # No factor that leads out of the range is drawn: its end would gather all of these values.
        value = draw.uniform(max(low, old * (1 - axis.explore)), min(high, old * (1 + axis.explore)))
        if is_whole(search, key) and (value := round(value)) == old:  # where no factor gets away from
            value = min(max(value + draw.choice((-1, 0, 1)), low), high)
        near[key] = value
    return near

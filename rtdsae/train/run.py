"""A run directory: everything that a training run leaves behind, and how it is read again.

config.yaml      the configuration as it was used
run.json         what the model was made for, the data's hash, versions, and where the run stands
metrics.csv      one row an epoch
tensorboard/     the same curves
best.pt          the weights with the best selection score, behaviour read-out included
last.pt          weights, optimiser and counters after the last finished epoch
sample.npz       a stretch of real input, on which an export is checked
"""

import csv
import dataclasses
import io
import json
import os
import platform
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import yaml

import rtdsae
from rtdsae.errors import ConfigError, TrainingError
from rtdsae.model.families.lfads import LFADS
from rtdsae.model.family import Dims, Family
from rtdsae.recordings import Recording
from rtdsae.train.config import TrainConfig, convert

__all__ = ["Run", "prepare"]

SAMPLE_BINS = 1200


def prepare(recording: Recording, config: TrainConfig) -> Recording:
    """The recording as a run uses it: split, and with the neurons flagged that the configuration holds out.

    Raises:
        ConfigError: no neuron would be held out, or no validation part be left.
        RecordingError: a part would be empty.
    """
    d = config.data
    if d.heldout_every:
        flags = np.arange(recording.n_channels) % d.heldout_every == d.heldout_every - 1
        if not flags.any():
            raise ConfigError(f"data.heldout_every={d.heldout_every} holds out none of {recording.n_channels} neurons")
        recording = dataclasses.replace(recording, heldout=flags)
    recording = recording.split(d.valid, d.test)
    if "valid" not in np.asarray(recording.splits):
        raise ConfigError("the recording has no validation part, which selects the model: set data.valid above 0")
    return recording


@dataclass
class Run:
    """A run directory.

    Attributes:
        path: the folder.
        config: its configuration.
        info: the content of run.json.
    """

    path: Path
    config: TrainConfig
    info: dict[str, Any]

    @classmethod
    def create(cls, path: Path, config: TrainConfig, recording: Recording, command: str) -> "Run":
        """Make a new run directory for a prepared recording.

        Args:
            path: the folder; it may exist when it is empty.
            config: the configuration.
            recording: the recording, split and with its held-out neurons flagged.
            command: what the user typed, for the model card.

        Raises:
            TrainingError: something is there already, or it cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise TrainingError(f"{path} exists: choose another --out, or go on with --resume")
        info = {
            "dims": asdict(dims_of(recording, config)),
            "channels": [c for c, h in zip(recording.channels, heldout_flags(recording), strict=True) if not h],
            "neurons": list(recording.channels),
            "behaviour_labels": list(recording.behaviour_labels),
            "external_labels": list(recording.external_labels),
            "session": recording.session,
            "source": Path(config.data.path).name,
            "commands": [command],
            "data_hash": recording.hash,
            "versions": {
                "rtdsae": rtdsae.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "state": "training",
        }
        run = cls(path, config, info)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.save_sample(recording)
            run.save_config()
            run.save_info()
        except OSError as error:
            raise TrainingError(f"cannot write the run {path}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Read a run directory.

        Raises:
            TrainingError: it is not one, or a file of it is damaged.
        """
        try:
            info = json.loads((path / "run.json").read_text())
            tree = yaml.safe_load((path / "config.yaml").read_text())
        except FileNotFoundError as error:
            raise TrainingError(f"{path} is not a run: it has no {Path(error.filename).name}") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise TrainingError(f"{path} is damaged: {error}") from None
        if not isinstance(tree, dict) or not isinstance(info, dict) or not {"dims", "neurons"} <= info.keys():
            raise TrainingError(f"{path} is damaged: config.yaml and run.json do not hold what a run saves")
        return cls(path, convert(tree, str(path / "config.yaml")), info)

    @classmethod
    def resume(cls, path: Path, config: TrainConfig, recording: Recording, command: str) -> "Run":
        """Open a run to go on with, by the configuration and data that it was begun with.

        Raises:
            TrainingError: with the first difference. `fit.epochs`, `fit.patience` and the data's path may differ.
        """
        run = cls.open(path)
        old, new = (flatten(msgspec.to_builtins(c)) for c in (run.config, config))
        for key in ("fit.epochs", "fit.patience", "data.path"):
            old[key] = new[key]
        if changed := [key for key in new if old.get(key) != new[key]]:
            key = changed[0]
            raise TrainingError(
                f"{path} was begun with {key}={old.get(key)}, not {new[key]}: resume with the same, or start anew"
            )
        if run.info["data_hash"] != recording.hash:
            raise TrainingError(f"{path} was begun on other data than {config.data.path}: resume with the same")
        info = {
            "source": Path(config.data.path).name,
            "commands": [*run.info["commands"], command],
            "state": "training",
        }
        run = cls(path, config, run.info | info)
        run.save_config()
        run.save_info()
        return run

    @property
    def dims(self) -> Dims:
        """The sizes that the model was made for."""
        return Dims(**self.info["dims"])

    def build(self) -> Family:
        """A fresh model of this run's family and sizes."""
        return LFADS(self.config.model, self.dims)

    def model(self) -> Family:
        """The trained model: the best weights, in evaluation mode.

        Raises:
            TrainingError: there is none yet, training was cut off before its end, or a file is damaged.
        """
        best = self.load_checkpoint("best.pt")
        if not best["finished"]:
            raise TrainingError(
                f"{self.path} was cut off before its read-out was fitted: finish it with rtdsae train ... --resume"
            )
        return self.restore(best["model"])

    def restore(self, weights: dict[str, torch.Tensor]) -> Family:
        """The model with these weights, in evaluation mode.

        Raises:
            TrainingError: they are not of this configuration.
        """
        model = self.build()
        try:
            model.load_state_dict(weights)
        except RuntimeError:
            raise TrainingError(f"{self.path}: config.yaml is not the one that the weights were trained with") from None
        return model.eval()

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Read `best.pt` or `last.pt`; only tensors and plain values are accepted.

        Raises:
            TrainingError: it is missing or damaged.
        """
        path = self.path / name
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise TrainingError(f"{self.path} has no {name}: no epoch of it was finished; train again") from None
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{path} is damaged ({reason}): train again, or restore it") from None
        return checkpoint

    def save_checkpoint(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint whole or not at all."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write(self.path / name, buffer.getvalue())

    def save_config(self) -> None:
        """Write config.yaml."""
        write(self.path / "config.yaml", yaml.safe_dump(msgspec.to_builtins(self.config), sort_keys=False).encode())

    def save_sample(self, recording: Recording) -> None:
        """Keep a stretch of the recording's last bins (repeated where it is short), so that export needs no data."""
        heldin = [not h for h in heldout_flags(recording)]
        bins = np.resize(np.arange(recording.n_bins)[-SAMPLE_BINS:], SAMPLE_BINS)
        arrays = {"x": recording.counts[bins][:, heldin].astype(np.float32)}
        if recording.external is not None:
            arrays["u"] = recording.external[bins].astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write(self.path / "sample.npz", buffer.getvalue())

    def sample(self, bins: int) -> dict[str, np.ndarray]:
        """So many bins of real input: `x` (bins, C) and, where the model has external inputs, `u` (bins, U)."""
        try:
            with (self.path / "sample.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: np.resize(arrays[name], (bins, arrays[name].shape[1])) for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{self.path / 'sample.npz'} is missing or damaged ({error}): train again") from None

    def save_info(self) -> None:
        """Write run.json."""
        write(self.path / "run.json", json.dumps(self.info, indent=2).encode())

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add an epoch to metrics.csv."""
        path = self.path / "metrics.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    def trim_metrics(self, epoch: int) -> None:
        """Drop the rows of epochs after this one, which a resumed run repeats."""
        path = self.path / "metrics.csv"
        if path.exists():
            header, *rows = path.read_text().splitlines(keepends=True)
            write(path, "".join([header, *rows[: epoch + 1]]).encode())


def dims_of(recording: Recording, config: TrainConfig) -> Dims:
    """The sizes of a model for this recording."""
    held = sum(heldout_flags(recording))
    return Dims(
        n_channels=recording.n_channels - held,
        n_neurons=recording.n_channels,
        n_external=len(recording.external_labels),
        n_behaviour=len(recording.behaviour_labels),
        bin_width_s=recording.bin_width_s,
        anchor_bins=config.window.anchor_bins,
        horizon_bins=config.window.horizon_bins,
    )


def heldout_flags(recording: Recording) -> list[bool]:
    """Which channels the encoders do not see."""
    return [False] * recording.n_channels if recording.heldout is None else recording.heldout.tolist()


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)

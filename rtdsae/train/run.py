"""A run directory: everything that a training run leaves behind, and how it is read again.

config.yaml      the configuration as it was used
run.json         what the model was made for, the data's hash, versions, those before it was gone on with by others, and
                 where the run stands
metrics.csv      one row an epoch
tensorboard/     the same curves
best.pt          the averaged weights with the best selection score, behaviour read-out included
last.pt          weights, their average, optimiser and counters after the last finished epoch
sample.npz       a stretch of each session's real input, on which an export is checked
alignment.npz    condition averages as the trained read-ins map them, which a later session begins from
failed.npz       the batch whose loss was not finite, of each session i that it has windows of: first.i, their first
                 bins, and the counts.i, inputs.i of the encoders and external inputs u.i that went in: moved, or drawn
                 of a teacher's rates, where they were
"""

import csv
import io
import json
import os
import platform
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import yaml

import rtdsae
from rtdsae.errors import ConfigError, TrainingError
from rtdsae.model.families import make_family
from rtdsae.model.family import Dims, Family
from rtdsae.recordings import Recording
from rtdsae.train.alignment import Alignment
from rtdsae.train.config import TrainConfig, convert
from rtdsae.train.saved import Saved, flatten
from rtdsae.train.sessions import check_together, describe, dims_of, last_bins
from rtdsae.train.windows import Part

__all__ = ["FAILED", "Run", "npz", "write"]

FAILED = "failed.npz"


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
    def create(
        cls, path: Path, config: TrainConfig, recordings: Sequence[Recording], command: str, teacher: str = ""
    ) -> "Run":
        """Make a new run directory for prepared recordings.

        Args:
            path: the folder; it may exist when it is empty.
            config: the configuration.
            recordings: the sessions, split and with their held-out neurons flagged.
            command: what the user typed, for the model card.
            teacher: hash of the teacher's weights, where there is one.

        Raises:
            ConfigError: the sessions do not go together, or not with the configuration.
            TrainingError: something is there already, or it cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise TrainingError(f"{path} exists: choose another --out, or go on with --resume")
        check_together(recordings, config)
        info = {
            "dims": asdict(dims_of(recordings, config)),
            "sessions": [describe(*pair) for pair in zip(recordings, config.data.paths, strict=True)],
            "teacher": teacher,
            "behaviour_labels": list(recordings[0].behaviour_labels),
            "external_labels": list(recordings[0].external_labels),
            "commands": [command],
            "versions": versions(),
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "state": "training",
        }
        run = cls(path, config, info)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.save_sample(recordings)
            run.save_config()
            run.save_info()
        except OSError as error:
            raise TrainingError(f"cannot write the run {path}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Read a run directory.

        Raises:
            ConfigError: its configuration is none of this version's.
            TrainingError: it is not one, or a file of it is damaged.
        """
        path = Path(path)
        saved = Saved.open(path)
        try:
            return cls(path, convert(saved.config, str(path / "config.yaml")), saved.info)
        except ConfigError as error:
            raise ConfigError(f"{error}{of_another_version(saved.info)}") from None

    @classmethod
    def resume(
        cls, path: Path, config: TrainConfig, recordings: Sequence[Recording], command: str, teacher: str = ""
    ) -> "Run":
        """Open a run to go on with, by the configuration and data that it was begun with.

        Raises:
            TrainingError: with the first difference. `fit.epochs`, `fit.patience`, how many processes and the
                paths of the data and the teacher may differ.
        """
        run = cls.open(path)
        if run.info.get("teacher", "") != teacher:
            was, who = run.config.data.teacher or "none", config.data.teacher or "none"
            raise TrainingError(f"{path} was begun with another teacher than {who}: resume with data.teacher={was}")
        old, new = (flatten(msgspec.to_builtins(c)) for c in (run.config, config))
        for key in ("fit.epochs", "fit.patience", "fit.devices", "fit.nodes", "data.path", "data.teacher"):
            old[key] = new[key]
        if changed := [key for key in new if old.get(key) != new[key]]:
            key = changed[0]
            raise TrainingError(
                f"{path} was begun with {key}={old.get(key)}, not {new[key]}: resume with the same, or start anew"
            )
        if run.data_hashes != [recording.hash for recording in recordings]:
            raise TrainingError(f"{path} was begun on other data than {', '.join(config.data.paths)}: resume with it")
        sources = [Path(source).name for source in config.data.paths]
        before, now = run.info["versions"], versions()
        earlier = run.info.get("earlier_versions", [])
        info = {
            "versions": now,
            "earlier_versions": earlier if before == now else [*earlier, before],
            "sessions": [old | {"source": new} for old, new in zip(run.info["sessions"], sources, strict=True)],
            "teacher": teacher,
            "commands": [*run.info["commands"], command],
            "state": "training",
        }
        run = cls(path, config, run.info | info)
        run.save_config()
        run.save_info()
        return run

    @property
    def dims(self) -> Dims:
        """The sizes that the model was made for.

        Raises:
            TrainingError: they are not what this version writes.
        """
        try:
            return msgspec.convert(self.info["dims"], Dims)
        except msgspec.ValidationError as error:
            said = f"{self.path / 'run.json'}: dims: {error}{of_another_version(self.info)}"
            raise TrainingError(said) from None

    @property
    def data_hashes(self) -> list[str]:
        """What each session's recording hashes to."""
        return [session["data_hash"] for session in self.info["sessions"]]

    def session_index(self, name: str) -> int:
        """Which of the sessions has this name.

        Raises:
            ConfigError: none has.
        """
        names = [session["name"] for session in self.info["sessions"]]
        if name not in names:
            raise ConfigError(f"{self.path} has no session {name!r}: it has {', '.join(names)}")
        return names.index(name)

    def build(self) -> Family:
        """A fresh model of this run's family and sizes; from here on torch has `fit.threads`.

        Its own choice, every core, made an export nine times slower where another program had one of two cores.
        """
        torch.set_num_threads(self.config.fit.threads)
        return make_family(self.config.model, self.dims)

    def model(self) -> Family:
        """The trained model: the best weights, in evaluation mode.

        Raises:
            TrainingError: there is none yet, training was cut off before its end, or a file is damaged.
        """
        best = self.load_checkpoint("best.pt")
        if not best["finished"]:
            raise TrainingError(
                f"{self.path} is being trained, or was cut off before its end: wait for it, or finish it with "
                "rtdsae train ... --resume"
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
            said = f"{self.path}: config.yaml is not the one that the weights were trained with"
            raise TrainingError(f"{said}{of_another_version(self.info)}") from None
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

    def save_sample(self, recordings: Sequence[Recording]) -> None:
        """Keep a stretch of each recording's last bins, so that export needs no data."""
        arrays: dict[str, np.ndarray] = {}
        for i, recording in enumerate(recordings):
            arrays |= {f"{name}{i}": values for name, values in last_bins(recording).items()}
        write(self.path / "sample.npz", npz(arrays))

    def sample(self, session: int, bins: int) -> dict[str, np.ndarray]:
        """So many bins of a session's real input: `x` (bins, C) and, with external inputs, `u` (bins, U)."""
        arrays = self.load_arrays("sample.npz")
        kept = {name: arrays[f"{name}{session}"] for name in ("x", "u") if f"{name}{session}" in arrays}
        return {name: np.resize(values, (bins, values.shape[1])) for name, values in kept.items()}

    def save_failed(self, parts: list[Part]) -> None:
        """Write failed.npz."""
        arrays: dict[str, list[np.ndarray]] = {}
        for part in parts:
            windows = part.windows
            went_in = {"first": part.first, "counts": windows.counts, "inputs": windows.inputs, "u": windows.u}
            for name, values in went_in.items():
                if values is not None:
                    arrays.setdefault(f"{name}.{part.session}", []).append(values.numpy(force=True))
        write(self.path / FAILED, npz({name: np.concatenate(values) for name, values in arrays.items()}))

    def save_alignment(self, alignment: Alignment) -> None:
        """Write alignment.npz."""
        arrays = {"conditions": np.array(alignment.conditions), "averages": alignment.averages}
        write(self.path / "alignment.npz", npz(arrays))

    def alignment(self) -> Alignment | None:
        """What the sessions were aligned by, or None."""
        if not (self.path / "alignment.npz").exists():
            return None
        arrays = self.load_arrays("alignment.npz")
        return Alignment(tuple(arrays["conditions"].tolist()), arrays["averages"])

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """An npz file of the run; nothing is unpickled.

        Raises:
            TrainingError: it is missing or damaged.
        """
        try:
            with (self.path / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{self.path / name} is missing or damaged ({error}): train again") from None

    def save_info(self) -> None:
        """Write run.json."""
        write(self.path / "run.json", json.dumps(self.info, indent=2).encode())

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add an epoch to metrics.csv, and a column where it has none: a population may change what is scored."""
        path = self.path / "metrics.csv"
        names, rows = list(row), []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                names, rows = list(reader.fieldnames or []), list(reader)
        if rows and set(row) <= set(names):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, names, restval="nan").writerow(row)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys([*names, *row])), restval="nan")
        writer.writeheader()
        writer.writerows([*rows, row])
        write(path, text.getvalue().encode())

    def trim_metrics(self, epoch: int) -> None:
        """Drop the rows of epochs after this one, which a resumed run repeats."""
        path = self.path / "metrics.csv"
        if path.exists():
            header, *rows = path.read_text().splitlines(keepends=True)
            write(path, "".join([header, *rows[: epoch + 1]]).encode())


def of_another_version(info: dict[str, Any]) -> str:
    """What is to be said besides of a run that cannot be read; nothing where this version trained it."""
    by = info.get("versions", {}).get("rtdsae", rtdsae.__version__)
    if by == rtdsae.__version__:
        return ""
    return f"; it was trained by rtdsae {by}, and this is {rtdsae.__version__}: read it with {by}"


def versions() -> dict[str, str]:
    """What a run is trained with here."""
    return {
        "rtdsae": rtdsae.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        TrainingError: there is no room for it, or no right to.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        said = f"{path}: cannot be written: {error.strerror or error}"
        raise TrainingError(f"{said}; when it can be, ask again; a training goes on with --resume") from None

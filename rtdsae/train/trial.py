"""One trial of a search: a run that is trained a generation of epochs at a time, where Ray wants it."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from rtdsae.errors import RtdsaeError
from rtdsae.recordings import Recording
from rtdsae.train.config import FactorVAE, TrainConfig
from rtdsae.train.fit import Progress, train
from rtdsae.train.objective import selecting
from rtdsae.train.run import Run
from rtdsae.train.space import Search

__all__ = ["Trial", "copy_run"]


class Trial(tune.Trainable):
    """A run that is trained a generation at a time, where Ray wants it."""

    def setup(self, config: dict[str, Any], search: Search, recordings: Sequence[Recording], command: str) -> None:
        """Begin with the values that are searched."""
        self.search, self.recordings, self.command = search, recordings, command
        self.folder = tempfile.TemporaryDirectory(prefix="rtdsae-search-")
        self.path = Path(self.folder.name) / "run"
        self.values = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin anew, for another trial in this process."""
        self.values = new_config
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def step(self) -> dict[str, Any]:
        """Train for a generation; what is reported is as in `Generation`."""
        settings = self.search.settings
        generation = self.iteration
        try:
            info, scores = train_until(
                self.path,
                self.search.config(self.values),
                self.values,
                self.recordings,
                self.search.epochs(generation),
                self.command,
            )
            failure = ""
        except RtdsaeError as error:
            info, scores, failure = read_info(self.path), [], str(error)
        best = info.get("best_score", math.inf)
        result = {
            "epoch": info.get("epochs_done", 0),
            "score": min(filter(math.isfinite, scores), default=math.inf) if settings.method == "pbt" else best,
            "best": best,
            "failure": failure,
        }
        over = generation + 1 == settings.generations
        stopped = settings.method != "pbt" and (bool(failure) or info["state"] == "finished")
        return result | {"done": over or stopped}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Hand the run over; a trial that could not even begin has none."""
        if self.path.exists():
            shutil.copytree(self.path, checkpoint_dir, dirs_exist_ok=True)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from a run, this trial's or another's."""
        shutil.rmtree(self.path, ignore_errors=True)
        copy_run(Path(checkpoint_dir), self.path)

    def cleanup(self) -> None:
        """Leave nothing behind."""
        self.folder.cleanup()


def train_until(
    path: Path,
    config: TrainConfig,
    values: dict[str, Any],
    recordings: Sequence[Recording],
    epochs: int,
    command: str,
) -> tuple[dict[str, Any], list[float]]:
    """Train the run at `path`, new or begun, until so many epochs are done.

    Returns:
        The run's info, and the selection score of each epoch.

    Raises:
        TrainingError, ConfigError: as `train` does.
    """
    scores: list[float] = []

    def report(progress: Progress) -> None:
        scores.append(progress.metrics[selecting(progress.metrics, "valid/")])
        if epochs <= progress.epoch + 1 < progress.epochs:
            raise KeyboardInterrupt  # `train` leaves a run that can be used, and gone on with

    begun = (path / "run.json").exists()
    if begun:
        adopt(path, config, values)
    run = train(path, config, recordings, report, command=command, resume=begun)
    run.info["commands"] = list(dict.fromkeys(run.info["commands"]))
    run.info.setdefault("search", [{"epoch": 0, "values": values}])
    run.save_info()
    return run.info, scores


def adopt(path: Path, config: TrainConfig, values: dict[str, Any]) -> None:
    """Give a run other settings, by which it goes on: what a resumed run refuses, and a population lives on.

    The learning rate is set anew every epoch; what the optimisers keep is set here. And the average begins anew: it is
    what trials are compared by, and for generations most of it would be weights that other settings made.
    """
    run = Run.open(path)
    if run.config == config:
        return
    run.config = config
    run.info.setdefault("search", []).append({"epoch": run.info.get("epochs_done", 0), "values": values})
    if (path / "last.pt").exists():
        last = run.load_checkpoint("last.pt")
        last["average"]["n_averaged"].zero_()  # the next step's weights take the place of the average
        for group in last["optimizer"]["param_groups"]:
            group["weight_decay"] = config.fit.weight_decay
        if isinstance(config.objective.f_objective, FactorVAE):
            for group in last["adversary"]["optimizer"]["param_groups"]:
                group["lr"] = config.objective.f_objective.learning_rate
        run.save_checkpoint("last.pt", last)
    run.save_config()
    run.save_info()


def read_info(path: Path) -> dict[str, Any]:
    """run.json of a run that may not exist."""
    return Run.open(path).info if (path / "run.json").exists() else {}


def copy_run(source: Path, target: Path) -> None:
    """Copy a run, without what Ray keeps beside it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "*.partial"))

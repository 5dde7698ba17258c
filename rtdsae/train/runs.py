"""Runs beside one another: how far they are, how they score, and in what their configurations differ.

From what they have written in plain values alone, so that they are listed at once, and without torch.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtdsae.errors import TrainingError
from rtdsae.train.saved import Saved, flatten

__all__ = ["compare", "find", "table"]

SCORES = ("co_bps", "bps", "r2_true_rates", "r2_behaviour.mean")
NOT_COMPARED = ("data.path",)  # the data's hash is
NONE = "-"


def find(paths: Sequence[Path]) -> tuple[list[Saved], list[str]]:
    """The runs at, or in, these folders, in the order of their names; and a line for each run that cannot be read.

    Raises:
        TrainingError: a folder is missing, or there is no run.
    """
    runs, damaged = {}, []
    for path in paths:
        if not path.is_dir():
            raise TrainingError(f"{path}: no such folder: give a run directory, or a folder of runs")
        for found in sorted(path.rglob("run.json")):
            if found.parent.match("ray/*/checkpoint_*"):  # of a search, whose trials are runs of their own
                continue
            try:
                runs[found.parent.resolve()] = Saved.open(found.parent)
            except Exception as error:  # one damaged run does not hide the others
                damaged.append(str(error))
    if not runs and not damaged:
        raise TrainingError(f"no run in {', '.join(map(str, paths))}: rtdsae train makes them, in out/runs by default")
    return list(runs.values()), damaged


def compare(runs: Sequence[Saved]) -> list[dict[str, Any]]:
    """A row for each run, the best selection score of each set of data first.

    Keys are `run`, `family`, `data` (a hash of all sessions), `state`, `epochs`, `best_epoch`, `score` (nats per bin
    and neuron, of hidden entries or held-out neurons), `seconds`, whatever `evaluate` found of `SCORES`, and `config`,
    the settings in which runs that have them differ.
    """
    taught = [{"data.teacher": run.info.get("teacher", "")[:8]} for run in runs]  # by hash, wherever it is
    configs = [flatten(run.config) | by for run, by in zip(runs, taught, strict=True)]
    keys = sorted({key for config in configs for key in config} - set(NOT_COMPARED))
    differing = [key for key in keys if len({repr(config[key]) for config in configs if key in config}) > 1]
    rows = []
    for run, config in zip(runs, configs, strict=True):
        info, scores = run.info, run.info.get("scores", {})
        rows.append(
            {
                "run": str(run.path),
                "family": config.get("model.family"),
                "data": data_hash(run)[:8],
                "state": info["state"],
                "epochs": info.get("epochs_done"),
                "best_epoch": info["best_epoch"] + 1 if info.get("best_epoch", -1) >= 0 else None,
                "score": info.get("best_score"),
                "seconds": info.get("seconds"),
                **{name: scores[name] for name in SCORES if name in scores},
                "config": {key: config[key] for key in differing if key in config and key != "model.family"},
            }
        )
    return sorted(rows, key=lambda row: (row["data"], row["score"] is None, row["score"] or 0.0))


def data_hash(run: Saved) -> str:
    """A recording's own hash, or of several one of theirs, in whatever order: the same for the same data."""
    hashes = sorted(session["data_hash"] for session in run.info["sessions"])
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned columns; what differs of the configurations is at the end of each."""
    names = [name for name in {name: None for row in rows for name in row} if name != "config"]
    cells = [[*names, "settings that differ"]]
    for row in rows:
        settings = " ".join(f"{key}={formatted(value)}" for key, value in row["config"].items())
        cells.append([*(formatted(row.get(name)) for name in names), settings])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def formatted(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)

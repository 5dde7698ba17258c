"""What a condition's trials come to, with intervals by the bootstrap over targets. Nothing but numpy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from closed_loop_parts.game import Trial

__all__ = ["cost", "scores"]

RESAMPLES = 2000
LEVEL = 0.9
DIGITS = 3


def scores(trials: Sequence[Trial]) -> dict[str, Any]:
    """How a condition went; values that cannot be had, as the efficiency of nothing acquired, are None.

    `time_to_target_s` is the time that targets were there: a missed one's is the timeout, so that missing does not look
    fast. `path_efficiency` (straight over travelled) and `dial_in_s` are of acquired targets. Where there are three
    values they are the median and the quartiles; `..._interval` is where 90 % of resamplings of the targets lie.
    """
    acquired = np.array([trial.acquired for trial in trials], bool)
    time = np.array([trial.time_s for trial in trials])
    efficiency = np.array([trial.straight_cm / max(trial.travelled_cm, 1e-9) for trial in trials])[acquired]
    dial_in = np.array([trial.dial_in_s for trial in trials])[acquired]
    return {
        "targets": len(trials),
        "missed": int((~acquired).sum()),
        "targets_per_minute": _rounded(_per_minute(acquired, time)) if len(trials) else None,
        "targets_per_minute_interval": _interval(_per_minute, acquired, time),
        "time_to_target_s": _quartiles(time),
        "time_to_target_interval": _interval(np.median, time),
        "path_efficiency": _quartiles(efficiency),
        "path_efficiency_interval": _interval(np.median, efficiency),
        "dial_in_s": _quartiles(dial_in),
    }


def cost(trials: Sequence[Trial], reference: Sequence[Trial]) -> dict[str, Any]:
    """Seconds a target more than in the reference, over the targets that ended in both, which are the same ones."""
    n = min(len(trials), len(reference))
    more = np.array([trials[i].time_s - reference[i].time_s for i in range(n)])
    return {"cost_s": _rounded(more.mean()) if n else None, "cost_interval": _interval(np.mean, more)}


def _per_minute(acquired: np.ndarray, time: np.ndarray) -> float:
    return 60 * float(acquired.sum() / time.sum())


def _quartiles(values: np.ndarray) -> list[float] | None:
    return [_rounded(np.percentile(values, q)) for q in (50, 25, 75)] if len(values) else None


def _interval(statistic: Callable[..., Any], *columns: np.ndarray) -> list[float] | None:
    """Where the middle LEVEL of a statistic's values lies over resamplings of the rows."""
    n = len(columns[0])
    if n < 2:
        return None
    rows = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    values = [statistic(*(column[chosen] for column in columns)) for chosen in rows]
    return [_rounded(np.percentile(values, 100 * q)) for q in (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)]


def _rounded(value: Any) -> float:
    return round(float(value), DIGITS)

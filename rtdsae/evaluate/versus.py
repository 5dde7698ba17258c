"""Two runs on the same recording beside one another: their scores over the bins that both have, and the ratio."""

from typing import NamedTuple

import numpy as np

from rtdsae.errors import ConfigError
from rtdsae.evaluate.score import Scored, flat, score, stream_session
from rtdsae.train.latents import modelled_bins
from rtdsae.train.run import Run

__all__ = ["Compared", "check_same_data", "versus"]

SHOWN = ("co_bps", "bps", "r2_behaviour", "r2_true_rates")


class Compared(NamedTuple):
    """One score of two runs; `ratio` is None where it would say nothing (a score of 0 or less)."""

    name: str
    this: float
    other: float
    ratio: float | None


def check_same_data(run: Run, other: Run) -> None:
    """Refuse another run that was trained on other data, or split or held out otherwise.

    Raises:
        ConfigError: it was, with what differs.
    """
    if run.path.resolve() == other.path.resolve():
        raise ConfigError(f"--against {other.path} is the run itself: give another one on the same data")
    if run.data_hashes == other.data_hashes:
        return
    mine, theirs = (", ".join(h[:8] for h in each.data_hashes) for each in (run, other))
    raise ConfigError(
        f"--against {other.path} was trained on other data than {run.path} (data hash {theirs}, not {mine}): give a "
        "run on the same recording, with the same splits and held-out neurons"
    )


def versus(scored: Scored, other: Run) -> tuple[list[Compared], int]:
    """The scores of both over the bins that both have, and how many bins these are.

    Args:
        scored: a session of this run.
        other: a run on the same data.

    Raises:
        ConfigError: they have no bin in common.
        TrainingError: the other run has no model, or no scored segment is long enough for it.
    """
    theirs = stream_session(other, other.model().use(scored.session), scored.session, None)
    their_bins = modelled_bins(theirs.segments, other.dims.anchor_bins)
    common, at, their_at = np.intersect1d(scored.bins, their_bins, return_indices=True)
    if len(common) == 0:
        raise ConfigError(f"--against {other.path} scores none of the bins that {scored.run.path} scores")
    mine, their = (
        flat({"fraction_of_oracle": None, **score(run, scored.recording, common, rows(outputs, chosen))})
        for run, outputs, chosen in ((scored.run, scored.outputs, at), (other, theirs.outputs, their_at))
    )
    shown = [name for score in SHOWN for name in mine if name.partition(".")[0] == score and name in their]
    pairs = [(name, mine[name], their[name]) for name in shown]
    return [Compared(name, a, b, a / b if a > 0 and b > 0 else None) for name, a, b in pairs], len(common)


def rows(outputs: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Some bins' outputs."""
    return {name: values[chosen] for name, values in outputs.items()}

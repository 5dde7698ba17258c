"""A configuration for a recording that nobody wrote one for: what is chosen, and why.

The rules come from what was measured on generated and real recordings (docs/log.md); where nothing was, the defaults of
`train/config.py` stay.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of, scraps

__all__ = ["TAUGHT", "Choice", "choose"]

ANCHOR_S = 0.2  # of data say where a trial begins; longer ones did no better
FEWEST_ANCHOR, MOST_ANCHOR = 10, 40  # bins
HORIZONS = 4  # R over S
ANCHOR_SHARE = 5  # of a trial that is shorter than a window, one part in so many
REPEATED = 5  # trials a condition in the training part: from here on, a model learns the trials by heart
STEPS, STEPS_REPEATED = 3000, 1000  # of optimisation
LEAST_EPOCHS, MOST_EPOCHS = 30, 300
BATCH = 64
READIN = 16


class Choice(NamedTuple):
    """One setting: its key, its value, and why."""

    key: str
    value: Any
    why: str


FAMILY = Choice("model.family", "lfads", "describes spikes best on most recordings, and runs on for hours")
NOTHING_BY_HEART = "spikes are drawn from the teacher's rates, others at every step"
TAUGHT_SIZE = "with a teacher there is nothing to learn by heart, and a filter needs room"
TEACHERS_SIZE = "a student's, who then begins with the weights of this acausal model"
TAUGHT = [
    Choice("objective.coordinated_dropout", 0.0, NOTHING_BY_HEART),
    Choice("model.dropout", 0.05, NOTHING_BY_HEART),
]


def choose(
    recordings: Sequence[Recording], family: str = "lfads", taught: bool = False, causal: bool = True
) -> list[Choice]:
    """The settings for prepared recordings (split, held-out neurons flagged), the sessions of one model.

    Args:
        recordings: the sessions.
        family: the model's, where it is wished for.
        taught: whether the model has a teacher (`data.teacher`).
        causal: whether it is causal; one that is not is of use as a teacher.
    """
    first = recordings[0]
    lengths = np.concatenate([lengths_of(r.segments[r.in_split("train")]) for r in recordings])
    held_back = min(int(lengths_of(r.segments[r.in_split("valid")]).max(initial=0)) for r in recordings)
    choices = [FAMILY] if family == FAMILY.value else []
    s, r, window = window_of(first.bin_width_s, lengths, held_back)
    choices += [Choice("window.anchor_bins", s, window), Choice("window.horizon_bins", r, window)]
    longest = int(lengths.max())
    trials = longest < 2 * (s + r) or r < 2
    turns = f"segments of up to {longest} bins: two copies take turns at the anchor"
    whole = "trials, each with an anchor of its own" if trials else turns
    choices.append(Choice("window.lanes", 1 if trials else 2, whole))
    room = TAUGHT_SIZE if taught else "" if causal else TEACHERS_SIZE
    choices += sizes(min(r.n_channels for r in recordings), len(recordings), family, room)
    choices += TAUGHT if taught else regularisation(recordings)
    n_windows = int(np.sum(-(-np.maximum(lengths - s, 0) // r)))
    by_heart = repeats(recordings) >= REPEATED and not taught
    steps = STEPS_REPEATED if by_heart else STEPS
    epochs = int(np.clip(steps * BATCH / max(1, n_windows), LEAST_EPOCHS, MOST_EPOCHS))
    choices.append(
        Choice("fit.epochs", epochs, f"about {epochs * -(-n_windows // BATCH)} steps over {n_windows} windows")
    )
    choices.append(Choice("fit.patience", max(20, epochs // 4), "a quarter of the epochs without a better score"))
    choices.append(Choice("fit.learning_rate", 3e-3, f"for batches of {BATCH}, falling to a tenth"))
    return choices


def window_of(bin_width_s: float, lengths: np.ndarray, held_back: int) -> tuple[int, int, str]:
    """S, R, and why; `lengths` of the segments that are trained on, `held_back` of the longest one for validation."""
    s = int(np.clip(round(ANCHOR_S / bin_width_s), FEWEST_ANCHOR, MOST_ANCHOR))
    r = HORIZONS * s
    usual = int(np.percentile(lengths[~scraps(lengths)], 10, method="lower"))  # what nine segments in ten have
    why = f"segments are short: nine in ten have {usual} bins or more"
    if held_back < usual:
        usual, why = held_back, f"the longest segment for validation has {held_back} bins"
    if s + r <= usual:
        return s, r, f"{s * bin_width_s:g} s of {1000 * bin_width_s:g} ms bins, and {HORIZONS} times as much after it"
    s = max(1, min(s, usual // ANCHOR_SHARE))
    return s, max(1, usual - s), why


def sizes(n_channels: int, n_sessions: int, family: str, room: str) -> list[Choice]:
    """The settings of the model's size; `room`, if any, is why it is a larger one."""
    few = n_channels < 40
    why = f"{n_channels} channels"
    choices = [
        Choice("model.fac_dim", 16 if few else 40 if n_channels < 80 else 64, why),
        Choice("model.z_dim", 4 if n_channels < 80 else 16, why),
        Choice("model.gen_dim", 200 if room else 100 if few else 128, room or why),
    ]
    if room and family == FAMILY.value:
        choices += [Choice(f"model.{key}", 128, room) for key in ("ci_enc_dim", "con_dim")]
    if n_sessions > 1:
        choices.append(Choice("model.readin_dim", READIN, f"{n_sessions} sessions meet in common inputs"))
    return choices


def repeats(recordings: Sequence[Recording]) -> float:
    """How often a condition comes in the training part, in the session where it comes least; 0 where none are known."""
    known = [r.conditions[r.in_split("train")] for r in recordings if r.conditions is not None]
    return min((len(some) / max(1, len(set(map(str, some)))) for some in known), default=0.0)


def regularisation(recordings: Sequence[Recording]) -> list[Choice]:
    """The settings that keep a model from overfitting, from learning its trials by heart."""
    n_channels = min(r.n_channels for r in recordings)
    hidden = 0.3 if n_channels < 80 else 0.5
    choices = [
        Choice("objective.coordinated_dropout", hidden, f"of {n_channels} channels enough have to be left to see")
    ]
    if (times := repeats(recordings)) < REPEATED:
        return [*choices, Choice("model.dropout", 0.1, "no condition is known to come back often")]
    why = f"each condition comes {times:.0f} times: trials are learnt by heart, less with a data.teacher (training.md)"
    settings = {"model.dropout": 0.3, "objective.l2_gen": 1.0, "objective.l2_con": 1.0, "fit.weight_decay": 0.03}
    return [*choices, *(Choice(key, value, why) for key, value in settings.items())]

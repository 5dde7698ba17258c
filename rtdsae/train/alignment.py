"""Where sessions meet: read-ins that map each session's neurons to the same principal components.

Trials of one condition, averaged, should look alike in every session. The averages of all sessions side by side have
principal components; each session's read-in begins as the ridge regression from its own averages to them, and its
read-out as the way back: principal component regression, as in multi-session LFADS (Pandarinath et al. 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import Ridge

from rtdsae.model.family import Family
from rtdsae.model.session import Session
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of

__all__ = ["Alignment", "align", "align_session", "learnt"]

MIN_CONDITIONS = 2


@dataclass(frozen=True)
class Alignment:
    """What condition averages look like in the common inputs.

    Attributes:
        conditions: their labels, n.
        averages: (n, T, readin_dim), from the beginning of a trial.
    """

    conditions: tuple[str, ...]
    averages: np.ndarray


def align(family: Family, recordings: Sequence[Recording]) -> Alignment | None:
    """Begin every session's read-in and read-out from the averages of the conditions that all sessions have.

    Args:
        family: a new model with a read-in, whose sessions know their normalisation.
        recordings: the prepared recordings of its sessions.

    Returns:
        The common averages; None where there is one session or no read-in, or where too few conditions are shared, and
        the read-ins stay random.
    """
    linear = family.readin.linear
    shared = shared_conditions(recordings)
    if len(recordings) < 2 or linear is None or len(shared) < MIN_CONDITIONS:
        return None
    shortest = min(usual_bins(r, shared) for r in recordings)
    sessions = [family.use(i).session for i in range(len(recordings))]
    each = [averages(s, r, shared, shortest) for s, r in zip(sessions, recordings, strict=True)]
    together = np.concatenate(each, 2).reshape(len(shared) * shortest, -1)
    together = together - together.mean(0)
    _, _, axes = np.linalg.svd(together, full_matrices=False)
    components = together @ axes[: linear.out_features].T
    components = components / components.std(0).clip(1e-6)
    missing = linear.out_features - components.shape[1]
    components = np.pad(components, ((0, 0), (0, max(0, missing)))).reshape(len(shared), shortest, -1)
    alignment = Alignment(tuple(shared), components.astype(np.float32))
    for session, recording in zip(sessions, recordings, strict=True):
        align_session(session, recording, alignment)
    return alignment


def learnt(family: Family, recordings: Sequence[Recording]) -> Alignment | None:
    """What the conditions that all sessions have look like through the trained read-ins, the mean over sessions.

    A session that comes later is read into these; one session is enough.
    """
    shared = shared_conditions(recordings)
    if family.readin.linear is None or len(shared) < MIN_CONDITIONS:
        return None
    shortest = min(usual_bins(r, shared) for r in recordings)
    each = []
    for i, recording in enumerate(recordings):
        session = family.use(i).session
        own = torch.from_numpy(averages(session, recording, shared, shortest)).float()
        with torch.no_grad():
            each.append(session.readin(own).numpy())
    return Alignment(tuple(shared), np.mean(each, 0).astype(np.float32))


def align_session(session: Session, recording: Recording, alignment: Alignment) -> bool:
    """Begin one session's read-in and read-out from averages that are known; False where it shares too few."""
    linear = session.readin.linear
    mine = shared_conditions([recording])
    shared = [c for c in alignment.conditions if c in mine]
    if linear is None or len(shared) < MIN_CONDITIONS:
        return False
    bins = min(alignment.averages.shape[1], usual_bins(recording, shared))
    target = alignment.averages[[alignment.conditions.index(c) for c in shared], :bins].reshape(len(shared) * bins, -1)
    own = averages(session, recording, shared, bins).reshape(len(target), -1)
    fit = Ridge(alpha=1.0, fit_intercept=False).fit(own, target)  # as the read-in has none
    weight = torch.from_numpy(np.atleast_2d(fit.coef_)).float()
    with torch.no_grad():
        linear.weight.copy_(weight)
        begin_readout(session, weight)
    return True


def begin_readout(session: Session, weight: torch.Tensor) -> None:
    """The way back, through the pseudo-inverse, for the channels that were read in, at the usual size of weights."""
    back = torch.linalg.pinv(weight)  # (C, readin_dim)
    out = session.readout.linear.weight.view(session.readout.n_values, session.n_neurons, -1)
    n = min(back.shape[1], out.shape[2])
    if len(back) == session.n_neurons:  # which of them were held out is not known here
        size = out.std() / back.std().clamp_min(1e-6)
        out[0, :, :n] = size * back[:, :n]


def shared_conditions(recordings: Sequence[Recording]) -> list[str]:
    """The conditions that every recording's training part has."""
    sets = [set(map(str, r.conditions[r.in_split("train")])) if r.conditions is not None else set() for r in recordings]
    return sorted(set.intersection(*sets))


def usual_bins(recording: Recording, conditions: Sequence[str]) -> int:
    """A length that half of each condition's training trials reach: a trial that was cut short does not count."""
    lengths, trials = lengths_of(recording.segments), trials_of(recording)
    return min(int(np.median(lengths[trials[c]])) for c in conditions)


def averages(session: Session, recording: Recording, conditions: Sequence[str], bins: int) -> np.ndarray:
    """The mean over training trials of each condition's first bins, normalised: (conditions, bins, C)."""
    long_enough, trials = lengths_of(recording.segments) >= bins, trials_of(recording)
    means = []
    for condition in conditions:  # one after another: as floats the whole recording might not fit into memory
        some = trials[condition]
        firsts = recording.segments[some[long_enough[some]], 0]
        counts = recording.counts[firsts[:, None] + np.arange(bins)][..., recording.heldin].astype(np.float32)
        means.append(session.readin.normalise(torch.from_numpy(counts)).numpy().mean(0))
    return np.stack(means)


def trials_of(recording: Recording) -> dict[str, np.ndarray]:
    """Which segments are training trials of each condition, (n,): in one pass, since each may be one of its own."""
    training = np.flatnonzero(recording.in_split("train"))
    found: dict[str, list[int]] = {}
    for i, condition in zip(training.tolist(), np.asarray(recording.conditions)[training].tolist(), strict=True):
        found.setdefault(str(condition), []).append(i)
    return {condition: np.array(some) for condition, some in found.items()}

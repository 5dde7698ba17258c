"""The swap test: decode a trial's z with another trial's f, and ask whose trial it then looks like.

Where f and z are disentangled, a static label of the decoded rates is that of the trial that f came from, and what
happens within the trial is that of the trial that z came from.
"""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rtdsae.evaluate.disentanglement import is_continuous, level_of
from rtdsae.evaluate.metrics import r2
from rtdsae.evaluate.trials import Trials
from rtdsae.model.family import Family

__all__ = ["swap_test"]

BLOCKS = 4  # stretches of a trial whose mean factors a label is read from
SEED = 0


def swap_test(family: Family, trials: Trials, others: Trials) -> dict[str, Any]:
    """Decode each trial's z with the f of another one, drawn at random.

    Args:
        family: the model.
        trials: whose latents are swapped.
        others: trials that the probes of labels and behaviour are fitted on, as they were decoded.

    Returns:
        For each static label, over the pairs that differ in it, the share of decoded trials with the label of f's trial
        (`f`) and of z's (`z`), or for a continuous label R² to theirs; for each behaviour column the R² to what it was
        in z's trial (`z`) and in f's (`f`).

    Raises:
        ValueError: there is nothing to probe, or too few trials of a level.
    """
    if not trials.labels:
        raise ValueError("the recording has neither `labels` nor `conditions`")
    order = np.random.default_rng(SEED).permutation(len(trials.f))
    donor = np.empty_like(order)
    donor[order] = np.roll(order, 1)  # nobody's own
    factors = decode(family, trials.outputs["f"][donor], trials.outputs["z"], trials.u)
    plain = decode(family, others.outputs["f"], others.outputs["z"], others.u)
    found: dict[str, Any] = {}
    for name, values in trials.labels.items():
        follows = value_follows if is_continuous(others.labels[name]) else label_follows
        found[name] = follows(plain, others.labels[name], factors, values, values[donor])
    for name, series in trials.behaviour.items():
        probe = make_pipeline(StandardScaler(), Ridge(10.0))
        probe.fit(plain.reshape(-1, plain.shape[2]), others.behaviour[name].ravel())
        decoded = probe.predict(factors.reshape(-1, factors.shape[2]))[:, None]
        score = {"z": r2(series.reshape(-1, 1), decoded)[0], "f": r2(series[donor].reshape(-1, 1), decoded)[0]}
        found[name] = {key: float(value) for key, value in score.items() if np.isfinite(value)}
    return found


def label_follows(
    plain: np.ndarray, known: np.ndarray, swapped: np.ndarray, of_z: np.ndarray, of_f: np.ndarray
) -> dict[str, float]:
    """Whose label the swapped trials have, among pairs that differ in it: factors (n, T, F), labels (n,)."""
    level_of(known)  # refuses levels of too few trials
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    names, level = np.unique(known, return_inverse=True)
    guess = names[probe.fit(summaries(plain), level).predict(summaries(swapped))]
    differ = of_z != of_f
    if not differ.any():
        raise ValueError("no two trials differ in a label")
    return {"f": float((guess == of_f)[differ].mean()), "z": float((guess == of_z)[differ].mean())}


def value_follows(
    plain: np.ndarray, known: np.ndarray, swapped: np.ndarray, of_z: np.ndarray, of_f: np.ndarray
) -> dict[str, float]:
    """How near the swapped trials' value is to f's trial's and z's, R²: factors (n, T, F), values (n,)."""
    probe = make_pipeline(StandardScaler(), Ridge(10.0))
    guess = probe.fit(summaries(plain), known).predict(summaries(swapped))[:, None]
    score = {"f": r2(of_f[:, None], guess)[0], "z": r2(of_z[:, None], guess)[0]}
    return {key: float(value) for key, value in score.items() if np.isfinite(value)}


def summaries(factors: np.ndarray) -> np.ndarray:
    """Mean factors of each stretch of a trial, (n, T, F) -> (n, BLOCKS · F)."""
    return np.concatenate([part.mean(1) for part in np.array_split(factors, BLOCKS, 1)], 1)


@torch.no_grad()
def decode(family: Family, f: np.ndarray, z: np.ndarray, u: np.ndarray | None) -> np.ndarray:
    """The factors that latents give: f (n, T, f_dim), z (n, T, z_dim), u (n, T, U) -> (n, T, n_factors)."""
    parts = (None if part is None else torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in (f, z, u))
    return family.eval().generate(*parts).numpy()  # type: ignore[arg-type]

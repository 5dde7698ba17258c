"""What the generators share: seeds, sizes, and spikes drawn from rates."""

from typing import Any

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.recording import Recording

__all__ = ["positive", "random_state", "recording", "sizes", "splits"]


def random_state(*seed: int) -> np.random.RandomState:
    """A generator whose numbers are the same with every version of numpy.

    Raises:
        RecordingError: a seed is no integer from 0 to 2**32 - 1.
    """
    try:
        return np.random.RandomState(seed[0] if len(seed) == 1 else seed)
    except (ValueError, TypeError):
        raise RecordingError(f"seed {seed}: seeds and takes are integers from 0 to 2**32 - 1") from None


def sizes(n_conditions: int, n_trials: int, n_bins: int, seconds: float | None, width: float) -> tuple[int, int, int]:
    """Conditions, trials of each, and bins of each trial; one trial of one condition where `seconds` says how long.

    Raises:
        RecordingError: one of them would be empty.
    """
    positive(bin_width_s=width)
    if seconds is not None and not np.isfinite(seconds):
        raise RecordingError(f"seconds is {seconds}: a finite length is needed")
    chosen = (n_conditions, n_trials, n_bins) if seconds is None else (1, 1, round(seconds / width))
    if min(chosen) < 1:
        raise RecordingError(f"{chosen[0]} conditions x {chosen[1]} trials x {chosen[2]} bins: each must be 1 or more")
    return chosen


def positive(**values: float) -> None:
    """Refuses, by name, a value that is not above 0.

    Raises:
        RecordingError: the first of them.
    """
    for name, value in values.items():
        if not value > 0:
            raise RecordingError(f"{name} is {value}: it must be above 0")


def splits(n_conditions: int, n_trials: int, valid: float, test: float = 0.0) -> np.ndarray | None:
    """Each trial's part, condition by condition: the last are the test set, those before them the validation set.

    Args:
        n_conditions: how many conditions.
        n_trials: trials of each.
        valid: fraction of each condition's trials; above 0, one at least.
        test: fraction of each condition's trials.

    Returns:
        `train`, `valid` or `test` for each trial, `(n_conditions * n_trials,)`; None for single trials.

    Raises:
        RecordingError: no fractions, or together more than there is.
    """
    for name, fraction in (("valid", valid), ("test", test)):
        if not 0 <= fraction < 1:
            raise RecordingError(f"{name} is {fraction}: a fraction of at least 0 and below 1 is needed")
    if n_trials == 1:
        return None
    n_rest = n_trials - round(test * n_trials)
    n_train = n_rest - max(round(valid * n_trials), valid > 0)
    if n_train < 0:
        raise RecordingError(f"valid={valid} and test={test} are more than all {n_trials} trials: make them smaller")
    parts = np.full((n_conditions, n_trials), "train", dtype="<U5")
    parts[:, n_train:n_rest], parts[:, n_rest:] = "valid", "test"
    return parts.ravel()


def recording(rng: np.random.RandomState, rates: np.ndarray, bin_width_s: float, **parts: Any) -> Recording:
    """Poisson counts of each segment's rates `(segments, bins, neurons)`, in spikes/s, and what `parts` adds."""
    n, n_bins, n_neurons = rates.shape
    rates = rates.astype(np.float32).reshape(-1, n_neurons)
    counts = rng.poisson(rates * bin_width_s)
    return Recording(
        counts=counts.astype(np.min_scalar_type(counts.max())),
        bin_width_s=bin_width_s,
        segments=n_bins * np.stack([np.arange(n), np.arange(1, n + 1)], axis=1),
        true_rates=rates,
        **parts,
    )

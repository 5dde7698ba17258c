"""The lfads-torch HDF5 layout: trials by time by channel, one set of arrays for each split.

    {split}_encod_data (n, t, c)    what the encoder sees
    {split}_recon_data (n, T, C)    what is reconstructed: T >= t (forward bins), C >= c (held-out neurons)
    {split}_truth (n, T, C)         optional: true spikes a bin, times `conversion_factor`
    {split}_ext_input (n, T, U), {split}_behavior (n, T, K), {split}_cond_idx (n,)    optional

The layout does not say how wide a bin is: the attribute or dataset `bin_width_s` does, or whoever loads it.
Other datasets are not read. Test trials that lack `test_recon_data` are read where nothing is held out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rtdsae.errors import RecordingError
from rtdsae.recordings.recording import SPLITS

__all__ = ["convert", "recognises"]


def recognises(fields: Mapping[str, Any]) -> bool:
    """Whether a file with these datasets is of this layout."""
    return "counts" not in fields and "train_encod_data" in fields


def convert(fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The parts of a Recording, from the datasets of a file of this layout.

    Args:
        fields: datasets by name.
        origin: the file, for errors.

    Raises:
        RecordingError: a required dataset is missing, or shapes do not fit one another.
    """
    if "bin_width_s" not in fields:
        raise RecordingError(f"{origin}: does not say how wide a bin is: set its attribute 'bin_width_s', in seconds")
    encod = {split: _trials(fields, f"{split}_encod_data", origin) for split in _splits(fields, origin)}
    recon = {split: _recon(fields, split, encod[split], origin) for split in encod}
    lengths = [trials.shape[1] for trials in recon.values() for _ in trials]
    stops = np.cumsum(lengths)
    parts = {
        "counts": _flat(recon, "recon_data", origin),
        "bin_width_s": fields["bin_width_s"],
        "session": fields.get("session", ""),
        "segments": np.stack([stops - lengths, stops], axis=1),
        "splits": np.repeat(list(recon), [len(trials) for trials in recon.values()]),
        "heldout": _heldout(encod["train"].shape[2], recon["train"].shape[2]),
        "true_rates": _true_rates(fields, recon, origin),
        "behaviour": _beside(fields, recon, "behavior", origin),
        "external": _beside(fields, recon, "ext_input", origin),
        "conditions": _conditions(fields, recon, origin),
    }
    return {name: value for name, value in parts.items() if value is not None}


def _splits(fields: Mapping[str, Any], origin: str) -> list[str]:
    for name in ("train_recon_data", "valid_encod_data", "valid_recon_data"):
        if name not in fields:
            raise RecordingError(f"{origin}: no {name!r} beside 'train_encod_data': lfads-torch needs both")
    return [split for split in SPLITS if split != "test" or _has_test(fields)]


def _has_test(fields: Mapping[str, Any]) -> bool:
    seen, all_channels = (np.shape(fields.get(f"{name}_data", ()))[2:] for name in ("test_encod", "train_recon"))
    return "test_encod_data" in fields and ("test_recon_data" in fields or seen == all_channels)


def _trials(fields: Mapping[str, Any], name: str, origin: str) -> np.ndarray:
    array = np.asarray(fields[name])
    if array.ndim == 2:
        array = array[:, :, None]  # a single channel, squeezed by whoever wrote it
    if array.ndim != 3 or array.dtype.kind not in "iufb":
        raise RecordingError(
            f"{origin}: {name!r} is {array.dtype} {array.shape}: numbers (trials, bins, channels) are needed"
        )
    return array


def _recon(fields: Mapping[str, Any], split: str, encod: np.ndarray, origin: str) -> np.ndarray:
    name = f"{split}_recon_data"
    recon = _trials(fields, name, origin) if name in fields else encod
    n, bins, channels = encod.shape
    if len(recon) != n or recon.shape[1] < bins or recon.shape[2] < channels:
        raise RecordingError(f"{origin}: {name!r} is {recon.shape}, smaller than '{split}_encod_data' {encod.shape}")
    if not np.array_equal(recon[:, :bins, :channels], encod):
        raise RecordingError(f"{origin}: '{split}_encod_data' is not the first channels and bins of {name!r}")
    return recon


def _flat(trials: Mapping[str, np.ndarray], name: str, origin: str) -> np.ndarray:
    widths = {array.shape[2] for array in trials.values()}
    if len(widths) > 1:
        raise RecordingError(f"{origin}: {name!r} has {sorted(widths)} channels in different splits: make them equal")
    return np.concatenate([trial for array in trials.values() for trial in array])


def _heldout(n_seen: int, n_channels: int) -> np.ndarray | None:
    return None if n_seen == n_channels else np.arange(n_channels) >= n_seen


def _beside(fields: Mapping[str, Any], recon: Mapping[str, np.ndarray], name: str, origin: str) -> np.ndarray | None:
    """A series given trial by trial, as `(T, K)`; None where the file has none, or one without columns."""
    present = [split for split in recon if f"{split}_{name}" in fields]
    if not present:
        return None
    if len(present) < len(recon):
        raise RecordingError(f"{origin}: '{present[0]}_{name}' is there, but not every split has its own")
    trials = {split: _trials(fields, f"{split}_{name}", origin) for split in recon}
    for split, array in trials.items():
        if array.shape[:2] != recon[split].shape[:2]:
            raise RecordingError(
                f"{origin}: '{split}_{name}' is {array.shape}, '{split}_recon_data' is {recon[split].shape}: "
                "trials and bins must agree"
            )
    series = _flat(trials, name, origin)
    return series if series.shape[1] else None


def _true_rates(fields: Mapping[str, Any], recon: Mapping[str, np.ndarray], origin: str) -> np.ndarray | None:
    truth = _beside(fields, recon, "truth", origin)
    if truth is None:
        return None
    if "conversion_factor" not in fields:
        raise RecordingError(f"{origin}: 'train_truth' without 'conversion_factor': truth / factor is spikes a bin")
    try:
        factor, width = (float(np.asarray(fields[name]).item()) for name in ("conversion_factor", "bin_width_s"))
    except (TypeError, ValueError):
        raise RecordingError(f"{origin}: 'conversion_factor' and 'bin_width_s' must be single numbers") from None
    return truth / factor / width


def _conditions(fields: Mapping[str, Any], recon: Mapping[str, np.ndarray], origin: str) -> np.ndarray | None:
    names = [f"{split}_cond_idx" for split in recon]
    if not all(name in fields for name in names):
        return None
    conditions = np.concatenate([np.ravel(fields[name]) for name in names])
    whole = conditions.dtype.kind in "fb" and (np.rint(conditions) == conditions).all()
    return conditions.astype(np.int64) if whole else conditions  # a half is refused later

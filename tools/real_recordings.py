"""Real recordings, and one synthetic standard, as rtdsae HDF5 files: for measurements on a machine that has them.

    python tools/real_recordings.py OUT [--sets center_out pursuit ...] [--heldout-every 4] [--baseline]

They are not part of the project, and most may not be redistributed. The folder that holds them is RTDSAE_DATA;
its default is `data_folder`'s. The sets:

    center_out       macaque M1, 8-target centre-out reaches: 286 trials, 84 units, 50 ms; hand velocity, direction
                     test: the last 57 trials; valid: 10 % of the others, evenly spaced
    center_out_stream  the same as one stream, cut in time at the same test set
    pursuit          macaque M1, 13 minutes without a break: 171 units, 50 ms; hand velocity (Stevenson et al. 2011)
                     test: the last 20 % of time; valid: the 8 % before
    lorenz_tutorial  the Neural Latents Benchmark tutorial's Lorenz set: 800 trials, 60 neurons, 10 ms; true rates
                     train and valid: the file's own

`--heldout-every 4` marks units 3, 7, 11, ... as held out, for co-smoothing. `--baseline` scores a plain ridge
regression on each set that has behaviour: what a latent model must not fall below. The last line is then JSON.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold

from rtdsae.errors import RecordingError, RtdsaeError
from rtdsae.evaluate.metrics import r2
from rtdsae.recordings import Recording, save
from rtdsae.recordings.segments import lengths_of

BIN_WIDTH_S = 0.05
HISTORY = 10
ALPHAS = np.logspace(0, 6, 13)
FOLDS = 5
VELOCITY = ("vel_x", "vel_y")


def data_folder() -> Path:
    """Where the recordings lie."""
    beside = Path(__file__).parent.parent / Path("..") / "shared" / "data"
    return Path(os.environ.get("RTDSAE_DATA") or beside)


def center_out() -> Recording:
    """Every trial, whole, one after another."""
    trials = _matlab("m1_center_out", "center_out_data.mat")["trial_data"]
    stops = np.cumsum([len(trial.M1_spikes) for trial in trials])
    degrees = np.degrees([float(trial.target_direction) for trial in trials])
    return Recording(
        counts=np.concatenate([trial.M1_spikes for trial in trials]),
        bin_width_s=BIN_WIDTH_S,
        channels=tuple(f"elec{electrode}_unit{unit}" for electrode, unit in trials[0].M1_unit_guide),
        segments=np.stack([np.r_[0, stops[:-1]], stops], axis=1),
        behaviour=np.concatenate([trial.vel for trial in trials]),
        behaviour_labels=VELOCITY,
        conditions=np.round(degrees).astype(int) % 360,
        session="center_out",
    ).split(valid=0.1, test=0.2)


def center_out_stream() -> Recording:
    """The same bins as a daemon will get them, one trial after another without a pause, cut in time.

    Trials cut apart never show a model their first S bins (here the hand's way back), since it is anchored on them.
    """
    trials = center_out()
    test = int(trials.segments[np.asarray(trials.splits) == "test"][0, 0])
    valid = int(trials.segments[:, 0][trials.segments[:, 0] <= 0.9 * test][-1])
    cuts = np.array([[0, valid], [valid, test], [test, trials.n_bins]])
    whole = {"conditions": None, "splits": np.array(["train", "valid", "test"]), "session": "center_out_stream"}
    return dataclasses.replace(trials, segments=cuts, **whole)


def pursuit() -> Recording:
    """One session without a break, cut in time."""
    session = _matlab("m1_pursuit_stevenson", "m1_stevenson_2011.mat")
    return Recording(
        counts=session["spikes"].T,
        bin_width_s=BIN_WIDTH_S,
        behaviour=session["handVel"].T[:, :2],  # the third dimension is constant
        behaviour_labels=VELOCITY,
        session="pursuit",
    ).split(valid=0.1, test=0.2)


def lorenz_tutorial() -> Recording:
    """Synthetic trials with true rates; its validation trials share initial states with the others."""
    import h5py

    with h5py.File(_file("lorenz_lfads", "lfads_lorenz.h5"), "r") as file:
        data = {name: file[name][()] for name in file}
    n, n_bins, n_neurons = data["train_data"].shape
    n += len(data["valid_data"])
    both = {name: np.concatenate([data[f"train_{name}"], data[f"valid_{name}"]]) for name in ("data", "truth", "inds")}
    return Recording(
        counts=both["data"].reshape(-1, n_neurons).astype(np.uint8),
        bin_width_s=0.01,
        segments=n_bins * np.stack([np.arange(n), np.arange(1, n + 1)], axis=1),
        conditions=both["inds"] // int(data["n_trials_per_init_cond"][0]),
        true_rates=both["truth"].reshape(-1, n_neurons),
        splits=np.repeat(["train", "valid"], [len(data["train_data"]), len(data["valid_data"])]),
        session="lorenz_tutorial",
    )


SETS: dict[str, Callable[[], Recording]] = {
    "center_out": center_out,
    "center_out_stream": center_out_stream,
    "pursuit": pursuit,
    "lorenz_tutorial": lorenz_tutorial,
}


def hold_out(recording: Recording, every: int) -> Recording:
    """The same recording with every so many-th channel held out, the last of each group first."""
    return dataclasses.replace(recording, heldout=np.arange(recording.n_channels) % every == every - 1)


def ridge_baseline(recording: Recording, skip: int = 0, alpha: float | None = 1.0) -> dict[str, float]:
    """R2 on the test segments of a causal ridge regression from spikes to behaviour, fitted on all other segments.

    Args:
        recording: with behaviour and splits.
        skip: how many first bins of each test segment are not scored.
        alpha: the penalty; None chooses it by cross-validation over whole segments, or tenths of a long one.

    Returns:
        R2 by behaviour label, their `mean`, and the `alpha` used.
    """
    is_test = np.asarray(recording.splits) == "test"
    rest, test = recording.select(~is_test), recording.select(is_test)
    x, y = _design(rest)
    model = Ridge(alpha) if alpha is not None else _search(rest)
    model.fit(x, y)
    scored = np.concatenate([np.arange(start + skip, stop) for start, stop in test.segments])
    x, y = _design(test)
    scores = r2(y[scored], model.predict(x[scored]))
    used = model.alpha if isinstance(model, Ridge) else model.best_params_["alpha"]
    return dict(zip(recording.behaviour_labels, scores.tolist(), strict=True)) | {
        "mean": float(scores.mean()),
        "alpha": float(used),
    }


def _design(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """The last 10 bins of every channel, side by side; before a segment's first bin there are no spikes."""
    x = np.concatenate([_lagged(recording.counts[start:stop]) for start, stop in recording.segments])
    return x, np.asarray(recording.behaviour)


def _lagged(counts: np.ndarray) -> np.ndarray:
    padded = np.concatenate([np.zeros((HISTORY - 1, counts.shape[1])), counts])
    return np.concatenate([padded[lag : lag + len(counts)] for lag in range(HISTORY)], axis=1)


def _search(recording: Recording) -> GridSearchCV:
    lengths = lengths_of(recording.segments)
    groups = np.repeat(np.arange(len(lengths)), lengths)
    if len(lengths) < FOLDS:
        groups = np.arange(recording.n_bins) * 10 // recording.n_bins
    folds = list(GroupKFold(FOLDS).split(groups, groups=groups))
    return GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=folds, scoring="r2")


def _file(*parts: str) -> Path:
    path = data_folder().joinpath(*parts)
    if not path.is_file():
        raise RecordingError(f"{path}: no such recording here; set RTDSAE_DATA to the folder that holds {parts[0]}")
    return path


def _matlab(*parts: str) -> dict[str, Any]:
    from scipy.io import loadmat

    return loadmat(_file(*parts), squeeze_me=True, struct_as_record=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the HDF5 files")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--heldout-every", type=int, default=0, metavar="N", help="hold out every Nth unit")
    parser.add_argument("--baseline", action="store_true", help="also score ridge regression")
    return parser.parse_args()


def _baselines(recording: Recording) -> dict[str, dict[str, float]]:
    return {
        f"{name}, skip {skip}": ridge_baseline(recording, skip, alpha)
        for name, alpha in (("untuned", 1.0), ("tuned", None))
        for skip in (0, 10)
    }


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    scores = {}
    for name in args.sets:
        recording = SETS[name]()
        if args.heldout_every:
            recording = hold_out(recording, args.heldout_every)
        save(recording, args.out / f"{name}.h5")
        counts = f"{recording.n_segments} segments, {recording.n_bins} bins, {recording.n_channels} channels"
        print(f"{args.out / name}.h5: {counts}, data hash {recording.hash[:12]}")
        if args.baseline and recording.behaviour is not None:
            scores[name] = _baselines(recording)
            for variant, result in scores[name].items():
                print(f"  ridge, {variant:18}" + "  ".join(f"{key} {value:.4g}" for key, value in result.items()))
    if args.baseline:
        print(json.dumps(scores))


if __name__ == "__main__":
    try:
        main()
    except RtdsaeError as error:
        sys.exit(str(error))

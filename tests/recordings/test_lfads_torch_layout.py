"""The lfads-torch HDF5 layout, written here as its users write it."""

import h5py
import numpy as np
import pytest

from rtdsae.errors import RecordingError
from rtdsae.recordings import load

TRIALS = {"train": 4, "valid": 2}


def layout(seen: int = 3, channels: int = 5, bins: int = 6, forward: int = 0, trials: dict[str, int] = TRIALS) -> dict:
    rng = np.random.RandomState(1)
    arrays = {}
    for split, n in trials.items():
        recon = rng.poisson(1.0, (n, bins + forward, channels)).astype(np.float32)
        arrays[f"{split}_encod_data"], arrays[f"{split}_recon_data"] = recon[:, :bins, :seen], recon
    return arrays


def write(path, arrays, bin_width_s=0.02):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        if bin_width_s is not None:
            file.attrs["bin_width_s"] = bin_width_s
    return path


def test_trials_become_segments_with_their_splits_and_held_out_channels(tmp_path):
    arrays = layout()
    read = load(write(tmp_path / "a.h5", arrays))
    assert read.counts.shape == (36, 5)
    assert read.segments.tolist() == [[i * 6, i * 6 + 6] for i in range(6)]
    assert read.splits.tolist() == ["train"] * 4 + ["valid"] * 2
    assert read.heldout.tolist() == [False, False, False, True, True]
    assert np.array_equal(read.counts[24:30], arrays["valid_recon_data"][0])
    assert read.behaviour is read.external is read.true_rates is read.conditions is None


def test_all_that_the_layout_may_hold_is_read(tmp_path):
    arrays = layout(seen=5, forward=2)
    rates = {split: np.random.RandomState(2).rand(n, 8, 5) for split, n in TRIALS.items()}
    for split, n in TRIALS.items():
        arrays[f"{split}_truth"] = rates[split] * 7
        arrays[f"{split}_ext_input"] = np.arange(n * 8.0).reshape(n, 8, 1)
        arrays[f"{split}_behavior"] = np.zeros((n, 8, 2))
        arrays[f"{split}_cond_idx"] = np.arange(n)
    arrays["conversion_factor"] = np.array([7.0])  # as MATLAB writes a number
    read = load(write(tmp_path / "a.h5", arrays))
    assert read.segments[0].tolist() == [0, 8]
    assert read.heldout is None
    assert np.allclose(read.true_rates[:8], rates["train"][0] / 0.02)
    assert read.external[8, 0] == 8
    assert read.behaviour.shape == (48, 2)
    assert read.conditions.tolist() == [0, 1, 2, 3, 0, 1]


def test_conditions_are_whole_numbers_or_texts(tmp_path):
    def with_conditions(values):
        return layout() | {f"{split}_cond_idx": np.resize(values, n) for split, n in TRIALS.items()}

    texts = load(write(tmp_path / "a.h5", with_conditions(np.array(["left", "right"], "S"))))
    assert texts.conditions.tolist() == ["left", "right"] * 3
    assert load(write(tmp_path / "b.h5", with_conditions([3.0, 1.0]))).conditions.tolist() == [3, 1] * 3
    for wrong in ([0.5, 1.5], [np.nan, 1]):
        with pytest.raises(RecordingError, match=r"conditions is float64 .*: one integer or text for each"):
            load(write(tmp_path / "c.h5", with_conditions(wrong)))


def test_external_input_without_columns_is_none(tmp_path):
    arrays = layout() | {f"{split}_ext_input": np.zeros((n, 6, 0)) for split, n in TRIALS.items()}
    assert load(write(tmp_path / "a.h5", arrays)).external is None


def test_test_trials_are_read_where_all_their_channels_are_known(tmp_path):
    whole = layout(trials=TRIALS | {"test": 3})
    assert load(write(tmp_path / "a.h5", whole)).splits.tolist()[6:] == ["test"] * 3
    del whole["test_recon_data"]
    assert load(write(tmp_path / "b.h5", whole)).n_segments == 6
    seen = layout(seen=5, trials=TRIALS | {"test": 3})
    del seen["test_recon_data"]
    assert load(write(tmp_path / "c.h5", seen)).n_segments == 9


def test_the_bin_width_must_come_from_somewhere(tmp_path):
    path = write(tmp_path / "a.h5", layout(), bin_width_s=None)
    with pytest.raises(RecordingError, match=r"a.h5: does not say how wide a bin is"):
        load(path)
    assert load(path, bin_width_s=0.005).bin_width_s == 0.005


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"valid_recon_data": None}, "no 'valid_recon_data'"),
        ({"train_recon_data": np.ones((4, 6, 2))}, r"'train_recon_data' is \(4, 6, 2\), smaller"),
        ({"train_recon_data": np.ones((3, 6, 5))}, r"'train_recon_data' is \(3, 6, 5\), smaller"),
        ({"train_encod_data": np.full((4, 6, 3), 9.0)}, "is not the first channels and bins of 'train_recon_data'"),
        ({"train_encod_data": np.ones(4)}, r"'train_encod_data' is float64 \(4,\)"),
        ({"valid_encod_data": np.ones((2, 6, 2)), "valid_recon_data": np.ones((2, 6, 4))}, r"\[4, 5\] channels"),
        ({"train_truth": np.ones((4, 6, 5))}, "'train_truth' is there, but not every split"),
        ({f"{s}_truth": np.ones((n, 6, 5)) for s, n in TRIALS.items()}, "without 'conversion_factor'"),
        ({f"{s}_behavior": np.ones((n, 5, 2)) for s, n in TRIALS.items()}, r"'train_behavior' is \(4, 5, 2\)"),
        ({"train_recon_data": np.full((4, 6, 5), np.nan)}, "not the first channels|not finite"),
        (
            {"conversion_factor": "x", **{f"{s}_truth": np.ones((n, 6, 5)) for s, n in TRIALS.items()}},
            "conversion_factor",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, says):
    arrays = {name: array for name, array in (layout() | change).items() if array is not None}
    with pytest.raises(RecordingError, match=says) as caught:
        load(write(tmp_path / "a.h5", arrays))
    assert "a.h5" in str(caught.value)

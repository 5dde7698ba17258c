"""tools/real_recordings.py: its own arithmetic always, the real recordings on a machine that has them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import gammaln

from rtdsae.errors import RecordingError
from rtdsae.evaluate.metrics import poisson_nll
from rtdsae.recordings import Recording

TOOL = Path(__file__).parent.parent / "tools" / "real_recordings.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("real_recordings", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


real = load_tool()


def the(name: str) -> Recording:
    try:
        return real.SETS[name]()
    except RecordingError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RTDSAE_DATA", str(tmp_path))


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", list(real.SETS))
def test_absent_recordings_are_one_clear_error(name, tmp_path):
    with pytest.raises(RecordingError, match="set RTDSAE_DATA to the folder that holds") as caught:
        real.SETS[name]()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.usefixtures("no_data")
def test_the_program_says_the_same_and_fails(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path / "out"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith(str(tmp_path))
    assert "Traceback" not in done.stderr


def decodable(n_segments: int, delay: int) -> Recording:
    """Behaviour that is a known linear read-out of the spikes `delay` bins before, within each segment."""
    counts = np.random.RandomState(0).poisson(1.0, (n_segments, 60, 5)).astype(float)
    behaviour = np.zeros((n_segments, 60, 2))
    behaviour[:, delay:] = counts[:, : 60 - delay] @ np.random.RandomState(1).randn(5, 2)
    stops = 60 * np.arange(1, n_segments + 1)
    recording = Recording(
        counts.reshape(-1, 5),
        0.05,
        segments=np.stack([stops - 60, stops], axis=1),
        behaviour=behaviour.reshape(-1, 2),
        behaviour_labels=("a", "b"),
    )
    return recording.split()


def test_ridge_finds_what_is_within_its_history_and_only_that():
    assert real.ridge_baseline(decodable(20, delay=9), alpha=1e-6)["mean"] == pytest.approx(1)
    assert real.ridge_baseline(decodable(20, delay=10), alpha=1e-6)["mean"] < 0.3


def test_ridge_scores_bins_after_the_skipped_ones_only():
    recording = decodable(20, delay=9)
    spoilt = recording.behaviour.copy()
    for start, _ in recording.select(recording.splits == "test").segments + 960:
        spoilt[start : start + 10] += 100
    wrong = Recording(**recording.fields() | {"behaviour": spoilt})
    assert real.ridge_baseline(wrong, alpha=1e-6)["mean"] < 0.5
    assert real.ridge_baseline(wrong, skip=10, alpha=1e-6)["mean"] == pytest.approx(1)


def test_ridge_chooses_a_small_penalty_for_what_is_certain_and_a_large_one_for_noise():
    recording = decodable(20, delay=2)
    chosen = real.ridge_baseline(recording, alpha=None)
    assert chosen["alpha"] == real.ALPHAS[0]
    assert chosen["a"] > 0.99
    noise = np.random.RandomState(2).randn(*recording.behaviour.shape)
    assert real.ridge_baseline(Recording(**recording.fields() | {"behaviour": noise}), alpha=None)["alpha"] > 1000


def test_ridge_cuts_a_long_segment_to_choose_its_penalty():
    assert real.ridge_baseline(decodable(1, delay=0), alpha=None)["alpha"] in real.ALPHAS


def test_every_fourth_is_held_out_from_the_fourth_on():
    assert np.flatnonzero(real.hold_out(Recording(np.ones((2, 12)), 0.05), 4).heldout).tolist() == [3, 7, 11]


def test_center_out():
    recording = the("center_out")
    assert (recording.n_segments, recording.n_bins, recording.n_channels) == (286, 22263, 84)
    assert sorted(set(recording.conditions.tolist())) == list(range(0, 360, 45))
    assert recording.splits[-57:].tolist() == ["test"] * 57
    assert (recording.splits == "test").sum() == 57
    assert (recording.splits == "valid").sum() == 23
    scores = real.ridge_baseline(recording)
    assert scores["vel_x"] == pytest.approx(0.68, abs=0.005)
    assert scores["vel_y"] == pytest.approx(0.67, abs=0.005)


def test_pursuit():
    recording = the("pursuit")
    assert (recording.n_bins, recording.n_channels) == (15536, 171)
    assert recording.splits.tolist() == ["train", "valid", "test"]
    assert np.diff(recording.segments).ravel() / 15536 == pytest.approx([0.72, 0.08, 0.2], abs=1e-3)
    scores = real.ridge_baseline(recording)
    assert scores["vel_x"] == pytest.approx(0.83, abs=0.005)
    assert scores["vel_y"] == pytest.approx(0.71, abs=0.005)


def stirlings_error(counts):
    """Published scores of this set take log n! from Stirling's approximation: what that changes, a bin and neuron."""
    n = np.maximum(counts, 2).astype(float)
    approximate = n * np.log(n) - n + 0.5 * np.log(2 * np.pi * n)
    return np.where(counts > 1, approximate - gammaln(n + 1), 0).mean()


def test_lorenz_tutorial():
    recording = the("lorenz_tutorial")
    assert (recording.n_segments, recording.n_bins, recording.n_channels) == (800, 80_000, 60)
    assert (recording.splits == "valid").sum() == 160
    valid = recording.select(recording.splits == "valid")
    expected = valid.true_rates * valid.bin_width_s
    assert poisson_nll(expected, valid.counts) == pytest.approx(0.07755, abs=1e-5)
    assert poisson_nll(expected, valid.counts) + stirlings_error(valid.counts) == pytest.approx(0.07752, abs=1e-5)
    for condition in range(20):
        trials = recording.select(recording.conditions == condition).true_rates.reshape(40, 100, 60)
        assert np.allclose(trials, trials[0])

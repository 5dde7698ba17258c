"""FALCON's interface: the predictions are what the daemon publishes, and no file knows of another."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lsl_source import LslSource
from toy_bundle import Toy

from rtdsae import Subscriber
from rtdsae.errors import BundleError, ConfigError, RecordingError
from rtdsae.serve.falcon import FalconDecoder

S = 5


@pytest.fixture(scope="module")
def toy():
    return Toy(n_anchor=S)


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    return toy.write(tmp_path_factory.mktemp("falcon") / "toy")


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    """A bundle of two days, whose neurons are others."""
    toy = Toy(n_anchor=S)
    return toy.write(tmp_path_factory.mktemp("falcon") / "week", further={"20201028": toy.for_neurons(6)})


def predictions(decoder, x):
    """Of one file, `(T, out)`."""
    decoder.reset()
    return np.concatenate([decoder.predict(counts[None]) for counts in x])


@pytest.mark.parametrize("lanes", [1, 2])
def test_predictions_are_what_the_daemon_publishes_bit_for_bit(tmp_path, lanes):
    toy = Toy(n_anchor=S, lanes=lanes)
    bundle, x, endpoint = toy.write(tmp_path / "toy"), toy.counts(120), f"ipc://{tmp_path}/pub"
    with LslSource(x, 50.0, labels=toy.channels, pace=200) as source, Subscriber(endpoint, timeout_s=20) as subscriber:
        command = [sys.executable, "-m", "rtdsae", "serve", bundle, "--stream", f"source_id={source.source_id}"]
        daemon = subprocess.Popen([*command, "--pub", endpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            messages = [message for message, _ in zip(subscriber, range(100), strict=False)]
        finally:
            daemon.kill()
            daemon.wait(20)
    published = {message.bin: message["behaviour"] for message in messages}
    assert len(published) == 100
    predicted = predictions(FalconDecoder(bundle), x)
    assert all(np.array_equal(predicted[bin_], values) for bin_, values in published.items())


def test_the_bins_of_the_anchor_are_zeros_and_the_others_the_models(toy, folder):
    x = toy.counts(60)
    predicted = predictions(FalconDecoder(folder), x)
    assert predicted.dtype == np.float32
    assert not predicted[:S].any()
    np.testing.assert_allclose(predicted[S:], toy.run(x)["behaviour"], atol=1e-4)


def test_what_is_only_observed_counts_as_well(toy, folder):
    x, decoder = toy.counts(60), FalconDecoder(folder)
    expected = predictions(decoder, x)
    decoder.reset()
    for counts in x[:37]:
        assert decoder.observe(counts[None]) is None
    assert np.array_equal(np.concatenate([decoder.predict(counts[None]) for counts in x[37:]]), expected[37:])


def test_a_reset_forgets_and_the_end_of_a_trial_does_not(toy, folder):
    x, decoder = toy.counts(60), FalconDecoder(folder)
    expected = predictions(decoder, x)
    assert np.array_equal(predictions(decoder, x), expected)
    decoder.reset()
    for counts, wanted in zip(x, expected, strict=True):
        assert np.array_equal(decoder.predict(counts[None])[0], wanted)
        assert decoder.on_done(np.array([True])) is None


def test_a_batch_is_its_files_one_by_one(toy, folder):
    files = np.stack([toy.counts(40, seed) for seed in (1, 2, 3)])
    decoder = FalconDecoder(folder, batch_size=3)
    decoder.reset(["a", "b", "c"])
    batch = np.stack([decoder.predict(files[:, t]) for t in range(40)], axis=1)
    assert batch.shape == (3, 40, decoder.out_dim)
    for x, predicted in zip(files, batch, strict=True):
        assert np.array_equal(predictions(FalconDecoder(folder), x), predicted)


def test_each_file_is_decoded_by_its_session(week):
    toy = Toy(n_anchor=S)
    x = toy.counts(40)
    decoder = FalconDecoder(week, session_of=lambda file: {"toy": "toy", "run1": "20201028"}[file.stem])
    decoder.reset([Path("data/toy.nwb"), "data/run1.nwb"])
    batch = np.stack([decoder.predict(np.stack([counts, counts])) for counts in x], axis=1)
    for neurons, predicted in zip((toy, toy.for_neurons(6)), batch, strict=True):
        np.testing.assert_allclose(predicted[S:], neurons.run(x)["behaviour"], atol=1e-4)


def test_without_a_rule_a_file_is_named_like_its_session(week):
    decoder = FalconDecoder(week)
    decoder.reset(["data/20201028.nwb"])
    with pytest.raises(BundleError, match="has no session '20201030': it has toy, 20201028"):
        decoder.reset(["data/20201030.nwb"])


def test_counts_of_any_number_type_will_do(toy, folder):
    x, decoder = toy.counts(30), FalconDecoder(folder)
    assert np.array_equal(predictions(decoder, x), predictions(decoder, x.astype(np.uint8)))


@pytest.mark.parametrize(
    ("observations", "problem"),
    [
        (np.zeros(6), r"has the shape \(6,\): it must be \(1, 6\), a row for each tag"),
        (np.zeros((2, 6)), r"has the shape \(2, 6\): it must be \(1, 6\)"),
        (np.zeros((1, 7)), r"has the shape \(1, 7\): it must be \(1, 6\)"),
        (np.full((1, 6), np.nan), r"neural_observations\[0, 0\] is nan: it must be a spike count"),
        ([[0, 0, 0, 0, -1, 0]], r"neural_observations\[0, 4\] is -1.0: it must be a spike count"),
    ],
)
def test_what_is_no_bin_of_the_batch_is_refused(folder, observations, problem):
    decoder = FalconDecoder(folder)
    decoder.reset()
    with pytest.raises(RecordingError, match=problem):
        decoder.predict(observations)
    with pytest.raises(RecordingError, match=problem):
        decoder.observe(observations)


def test_other_wrong_calls_are_told_what_is_right(folder, tmp_path):
    decoder = FalconDecoder(folder)
    with pytest.raises(RecordingError, match=r"call reset\(dataset_tags\) first"):
        decoder.predict(np.zeros((1, 6)))
    decoder.reset()
    with pytest.raises(RecordingError, match=r"dones has the shape \(2,\): it must be \(1,\)"):
        decoder.on_done([True, False])
    with pytest.raises(ConfigError, match="dataset_tags is empty"):
        decoder.reset([])
    with pytest.raises(ConfigError, match="batch_size is 0"):
        FalconDecoder(folder, batch_size=0)
    with pytest.raises(BundleError, match="no such folder"):
        FalconDecoder(tmp_path / "nowhere")


def test_a_bundle_without_behaviour_is_refused():
    models = Path(__file__).parents[2] / "models"
    with pytest.raises(BundleError, match="no output 'behaviour'"):
        FalconDecoder(models / "lfads_lorenz")


def test_falcons_own_evaluator_runs_it(toy, folder, monkeypatch, tmp_path):
    """Where falcon_challenge is installed; its data are replaced by the toy's."""
    evaluator = pytest.importorskip("falcon_challenge.evaluator", reason="falcon_challenge is not all here")
    x = toy.counts(60)
    file = tmp_path / "sub-MonkeyN-held-in-minival_ses-2020-10-19-Run1_behavior+ecephys.nwb"
    file.touch()
    monkeypatch.setattr(evaluator, "load_nwb", lambda *_, **__: (x, x[:, :2], np.zeros(60, bool), np.ones(60, bool)))
    subject = evaluator.FalconEvaluator(split="m2", dataloader_workers=0)
    predicted, *_ = subject.predict_files(FalconDecoder(folder), [file])
    assert np.array_equal(predicted["Run1_20201019"], predictions(FalconDecoder(folder), x))

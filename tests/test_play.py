"""The player, in its own process, seen through a real inlet."""

import subprocess
import sys
import uuid

import numpy as np
import pylsl
import pytest

from rtdsae import recordings
from rtdsae.errors import StreamError
from rtdsae.play import Player
from rtdsae.recordings import Recording

PLAY = """
import sys
from rtdsae import recordings
from rtdsae.play import Player
file, source_id, options = sys.argv[1:]
player = Player(recordings.load(file), source_id=source_id, **eval(options))
print(player.run(wait_s=20), flush=True)
"""


@pytest.fixture
def recording():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (60, 5)).astype(np.uint8)
    return Recording(counts=counts, bin_width_s=0.02, channels=tuple("abcde"), true_rates=rng.random((60, 5)) + 1)


@pytest.fixture
def play(recording, tmp_path):
    """Starts a player; `play(**options)` returns its process and the stream's source_id."""
    started = []

    def start(**options):
        path, source_id = tmp_path / "recording.npz", f"test-{uuid.uuid4().hex}"
        recordings.save(recording, path)
        command = [sys.executable, "-c", PLAY, str(path), source_id, repr(options)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1], source_id

    yield start
    for process in started:
        process.stdout.close()
        process.kill()
        process.wait(10)


def inlet_of(source_id):
    (info,) = pylsl.resolve_byprop("source_id", source_id, timeout=20)
    inlet = pylsl.StreamInlet(info, recover=False, as_numpy=True)
    inlet.open_stream(10)
    return inlet


def pull(inlet, n):
    samples, stamps = [], []
    for _ in range(n):
        sample, stamp = inlet.pull_sample(10)
        assert stamp is not None
        samples.append(sample)
        stamps.append(stamp)
    return np.array(samples), np.array(stamps)


def test_plays_every_bin_on_schedule(play, recording):
    process, source_id = play()
    inlet = inlet_of(source_id)
    samples, stamps = pull(inlet, 60)
    arrived = pylsl.local_clock()
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, recording.counts)
    np.testing.assert_allclose(np.diff(stamps), 0.02, atol=1e-9)
    assert 0 <= arrived - stamps[-1] < 1.0  # in real time: neither ahead of its stamp nor seconds behind
    assert int(process.stdout.readline()) == 60
    assert process.wait(10) == 0


def test_describes_the_stream(play):
    _, source_id = play()
    info = inlet_of(source_id).info(10)
    assert (info.type(), info.nominal_srate(), info.channel_count()) == ("Spikes", 50.0, 5)
    assert info.get_channel_labels() == list("abcde")
    assert info.get_channel_units() == ["counts"] * 5
    assert float(info.desc().child_value("bin_width_s")) == 0.02


def test_truth_has_the_same_stamps(play, recording):
    _, source_id = play(truth=True)
    truth = inlet_of(f"{source_id}-truth")
    counts = inlet_of(source_id)
    rates, truth_stamps = pull(truth, 60)
    _, stamps = pull(counts, 60)
    assert truth.info(10).type() == "Rates"
    np.testing.assert_array_equal(truth_stamps, stamps)
    np.testing.assert_allclose(rates, recording.true_rates, rtol=1e-6)


def test_faster_keeps_the_stamps_apart_and_loops(play, recording):
    _, source_id = play(speed=20.0, loop=True)
    begin = pylsl.local_clock()
    samples, stamps = pull(inlet_of(source_id), 150)
    assert pylsl.local_clock() - begin < 150 * 0.02
    np.testing.assert_allclose(np.diff(stamps), 0.02, atol=1e-9)
    np.testing.assert_array_equal(samples, np.tile(recording.counts, (3, 1))[:150])


def test_a_player_without_a_consumer_gives_up(recording):
    player = Player(recording, source_id=f"test-{uuid.uuid4().hex}")
    with pytest.raises(StreamError, match=r"nobody listens to stream test-.* after 0.1 s"):
        player.run(wait_s=0.1)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_an_impossible_speed(recording, speed):
    with pytest.raises(StreamError, match="speed is"):
        Player(recording, source_id="x", speed=speed)


def test_refuses_truth_that_is_not_there(recording):
    blind = Recording(counts=recording.counts, bin_width_s=0.02)
    with pytest.raises(StreamError, match="no true rates"):
        Player(blind, source_id="x", truth=True)

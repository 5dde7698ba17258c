"""The player, in its own process, seen through a real inlet."""

import uuid

import numpy as np
import pylsl
import pytest

from rtdsae import recordings
from rtdsae.bins import EventsBinner
from rtdsae.errors import StreamError
from rtdsae.play import Player
from rtdsae.recordings import Original, Recording
from rtdsae.recordings.binning import count_spikes

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
def play(recording, tmp_path, launch):
    """Starts a player; `play(**options)` returns its process and the stream's source_id."""

    def play(**options):
        path, source_id = tmp_path / "recording.npz", f"test-{uuid.uuid4().hex}"
        recordings.save(recording, path)
        return launch("-c", PLAY, path, source_id, repr(options)), source_id

    return play


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


# originals ------------------------------------------------------------------------------------------------------------

ORIGINAL = """
import sys
import numpy as np
from rtdsae.play import Player
from rtdsae.recordings import Original
file, source_id, options = sys.argv[1:]
with np.load(file) as data:
    original = Original("day", float(data["rate"]), tuple("abcde"), data["samples"], data["stamps"], 0.02)
print(Player(original, source_id=source_id, **eval(options)).run(wait_s=20), flush=True)
"""


@pytest.fixture
def play_original(tmp_path, launch):
    """Plays samples with stamps; `play_original(rate, samples, stamps, **options)` returns the stream's source_id."""

    def play(rate, samples, stamps, **options):
        source_id = f"test-{uuid.uuid4().hex}"
        np.savez(tmp_path / "original.npz", rate=rate, samples=samples, stamps=stamps)
        launch("-c", ORIGINAL, tmp_path / "original.npz", source_id, repr(options))
        return source_id

    return play


def test_jitter_gaps_and_steps_back_are_played_as_they_are(play_original):
    rng = np.random.default_rng(0)
    stamps = 5000 + 0.001 * np.arange(600) + rng.uniform(-4e-4, 4e-4, 600)
    stamps[200:] += 0.3  # a gap
    stamps[300] -= 0.004  # late
    stamps[400:] -= 100.0  # a clock that was set back
    samples = rng.poisson(1.0, (600, 5))
    source_id = play_original(1000.0, samples, stamps, speed=3.0)
    inlet = inlet_of(source_id)
    begin = pylsl.local_clock()
    got, at = pull(inlet, 600)
    took = pylsl.local_clock() - begin
    np.testing.assert_array_equal(got, samples)
    np.testing.assert_allclose(at - at[0], stamps - stamps[0], atol=2e-9)
    assert took > 0.9 / 3 - 0.1  # on the schedule of the stamps, at that speed


@pytest.mark.parametrize("width", [0.02, 1 / 30])
def test_spikes_played_live_are_binned_as_they_are_offline(play_original, width):
    rng = np.random.default_rng(1)
    stamps = 70000.5 + np.sort(rng.integers(0, 3000, 900)) / 1000  # on whole milliseconds: many on the edge of a bin
    channels = rng.integers(0, 5, (900, 1))
    source_id = play_original(0.0, channels, stamps, speed=10.0)
    inlet = inlet_of(source_id)
    description = inlet.info(10)
    assert (description.nominal_srate(), description.channel_count()) == (0.0, 1)
    binner, live = EventsBinner(5, width), []
    for _ in range(900):
        sample, stamp = inlet.pull_sample(10)
        live += list(binner.push(sample[None], np.array([stamp])).counts.copy())
    times = [stamps[channels[:, 0] == c] for c in range(5)]
    np.testing.assert_array_equal(count_spikes(times, stamps[0], width, len(live)), live)


def test_the_stamps_of_a_loop_go_on_rising(play_original):
    stamps = np.array([10.0, 10.1, 10.15, 10.3])
    source_id = play_original(0.0, np.arange(4)[:, None], stamps, speed=50.0, loop=True)
    got, at = pull(inlet_of(source_id), 14)
    np.testing.assert_array_equal(got[:, 0], np.tile(np.arange(4), 4)[:14])
    np.testing.assert_allclose(np.diff(at)[:8], [0.1, 0.05, 0.15, 0.1, 0.1, 0.05, 0.15, 0.1], atol=2e-9)


def test_names_of_spikes_and_their_width_go_along(play_original, tmp_path):
    description = inlet_of(play_original(0.0, np.zeros((3, 1)), np.arange(3.0), speed=10.0)).info(10)
    names, label = description.desc().child("spike_channels"), []
    channel = names.child("channel")
    while not channel.empty():
        label.append(channel.child_value("label"))
        channel = channel.next_sibling("channel")
    assert label == list("abcde")
    assert float(description.desc().child_value("bin_width_s")) == 0.02


@pytest.mark.parametrize("stamps", [[], [1.0, float("nan")]])
def test_nothing_that_has_no_time_is_played(stamps):
    samples = np.zeros((len(stamps), 1))
    with pytest.raises(StreamError, match="no samples, or stamps that are no times"):
        Player(Original("day", 0.0, ("a",), samples, np.array(stamps)), source_id="x")

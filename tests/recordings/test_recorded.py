"""What `rtdsae record` stored comes back as a recording: written here by the recorder itself, from a station's bins."""

import threading

import h5py
import numpy as np
import pytest
from damaged_files import read_or_refused_in_one_line
from station import Station, until

from rtdsae.client import Control, Subscriber
from rtdsae.errors import RecordingError
from rtdsae.record import Recorder
from rtdsae.recordings import load
from rtdsae.recordings.recorded import _segments
from rtdsae.wire import Array, Flags, Schema

COUNTS = Schema("toy", "00", 0.02, (Array("factors", (3,)), Array("counts", (4,), "spikes", ("a", "b", "c", "d"))))
BEHAVIOUR = Schema("toy", "00", 0.02, (Array("behaviour", (2,), "", ("x", "y")),))


def recorded(path, schema, play):
    """Has a recorder store what `play(station)` publishes."""
    station = Station(f"ipc://{path.parent}/pub", f"ipc://{path.parent}/control")
    station.use(schema)
    try:
        with Subscriber(station.pub, timeout_s=20) as subscriber, Control(station.ask, timeout_s=1) as control:
            recorder = Recorder(path, subscriber, control)
            thread = threading.Thread(target=recorder.run)
            thread.start()
            station.greet(lambda: subscriber.schema is not None, "a subscriber")
            play(station)
            until(lambda: recorder.bins >= station.next_seq, "the recording")
            recorder.should_exit = True
            thread.join(20)
    finally:
        station.close()
    return path


def refused(path, says):
    with pytest.raises(RecordingError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_come_back_and_gaps_cut_segments(tmp_path):
    def play(station):
        station.bins(5)
        station.bins(2, flags=Flags.GAP)
        station.bins(4)

    recording = load(recorded(tmp_path / "day.h5", COUNTS, play))
    np.testing.assert_array_equal(recording.counts[:, 0], [0, 1, 2, 3, 4, 0, 0, 7, 8, 9, 10])
    assert recording.segments.tolist() == [[0, 5], [7, 11]]
    assert (recording.bin_width_s, recording.channels, recording.session) == (0.02, tuple("abcd"), "day")
    assert recording.behaviour is None  # what the model decoded is not what the hand did
    assert load(tmp_path / "day.h5", 0.04).counts[:, 0].tolist() == [1, 5, 15, 19]


def test_holes_and_another_run_cut_segments(tmp_path):
    path = recorded(tmp_path / "day.h5", COUNTS, lambda station: station.bins(12))
    with h5py.File(path, "a") as file:
        file["part000/bin"][6:] += 3  # bins that never came
        file.copy("part000", "part001")
        file["part001"].attrs["run"] = 8
    assert load(path).segments.tolist() == [[0, 6], [6, 12], [12, 18], [18, 24]]


def test_without_counts_it_says_what_to_publish(tmp_path):
    path = recorded(tmp_path / "day.h5", BEHAVIOUR, lambda station: station.bins(3))
    refused(path, "part000 holds no counts: record a daemon that publishes them: rtdsae serve BUNDLE --publish counts")


def test_another_models_channels_are_refused(tmp_path):
    path = recorded(tmp_path / "day.h5", COUNTS, lambda station: station.bins(3))
    with h5py.File(path, "a") as file:
        file.copy("part000", "part001")
        file["part001/arrays/counts"].attrs["labels"] = ["e", "f", "g", "h"]
    refused(path, "it changed to a model with other channels")


def test_nothing_but_gaps_is_refused(tmp_path):
    refused(recorded(tmp_path / "a.h5", COUNTS, lambda s: s.bins(3, flags=Flags.GAP)), "every bin of it is a gap")


@pytest.mark.parametrize("lost", ["bin", "seq"])
def test_one_without_a_dataset_is_not_called_unreadable(tmp_path, lost):
    path = recorded(tmp_path / "a.h5", COUNTS, lambda station: station.bins(3))
    with h5py.File(path, "a") as file:
        del file[f"part000/{lost}"]
    refused(path, f"an HDF5 file that lacks what is looked for.*{lost}")


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, seed, good):
    rng = np.random.default_rng(seed)
    data = bytearray(good[: len(good) if seed % 4 else int(rng.uniform(0, len(good)))])
    for place in rng.integers(0, max(1, len(data)), 3):
        if len(data):
            data[place] ^= int(rng.integers(1, 256))
    (tmp_path / "a.h5").write_bytes(data)
    assert read_or_refused_in_one_line(tmp_path / "a.h5")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "day.h5"
    return recorded(path, COUNTS, lambda station: station.bins(12)).read_bytes()


def test_another_run_of_the_daemon_begins_a_segment_even_where_its_bins_go_on():
    bins, run = np.arange(6), np.array([1, 1, 1, 2, 2, 2])
    assert _segments(bins, run, np.ones(6, bool)).tolist() == [[0, 3], [3, 6]]

"""Recordings of what is published: whole, in order, and readable however they end."""

import errno
import json
import os
import resource
import signal
import threading

import h5py
import numpy as np
import pytest
from station import OTHER, SCHEMA, Station, until

from rtdsae import record
from rtdsae.client import Control, Subscriber
from rtdsae.errors import ControlError, EndpointError, RecordingError
from rtdsae.record import Recorder
from rtdsae.recordings import recorded
from rtdsae.wire import Array, Encoder, Flags, Schema


@pytest.fixture
def station():
    station = Station()
    yield station
    station.close()


class Recording:
    """A recorder of a station, in a thread."""

    def __init__(self, out, station, control=None, timeout_s=20.0, **limits):
        self.subscriber = Subscriber(station.pub, timeout_s=timeout_s)
        self.control = Control(control or station.ask, timeout_s=1.0)
        self.recorder = Recorder(out, self.subscriber, self.control)
        self.error = None
        self.thread = threading.Thread(target=self.run, kwargs=limits)
        self.thread.start()

    def run(self, **limits):
        try:
            self.recorder.run(**limits)
        except Exception as error:
            self.error = error

    def has(self, n):
        until(lambda: self.recorder.bins + self.recorder.missing >= n or not self.thread.is_alive(), f"bin {n}")

    def end(self):
        self.recorder.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.subscriber.close()
        self.control.close()
        if self.error:
            raise self.error


@pytest.fixture
def start(station, tmp_path):
    """Starts a recording of the station that has heard of it."""
    started = []

    def start(station=station, **options):
        started.append(Recording(tmp_path / "out.h5", station, **options))
        station.greet(lambda: started[-1].subscriber.schema is not None)
        return started[-1]

    yield start
    for one in started:
        if one.thread.is_alive():
            one.end()


def read(path):
    """The seq of each part, with all else checked against it."""
    with h5py.File(path) as file:
        parts = []
        for name in sorted(set(file) - {"status"}):
            part = file[name]
            seq = part["seq"][:].astype(float)
            np.testing.assert_array_equal(part["bin"], seq + 100)
            np.testing.assert_array_equal(part["t_bin"], seq * 0.02)
            np.testing.assert_array_equal(part["t_out"], seq * 0.02 + 0.002)
            for array in part["arrays"].values():
                np.testing.assert_array_equal(array[:].reshape(len(seq), -1).T, [seq] * array[0].size)
            parts.append(part["seq"][:].tolist())
        return parts


def test_every_bin_is_stored_with_its_names_times_and_flags(station, start, tmp_path):
    recording = start()
    station.bins(3)
    station.bins(1, flags=Flags.GAP | Flags.LATE)
    recording.has(4)
    station.say_status()
    until(lambda: recording.subscriber.status)
    recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1, 2, 3]]
    with h5py.File(tmp_path / "out.h5") as file:
        part = file["part000"]
        assert part["flags"][:].tolist() == [0, 0, 0, Flags.GAP | Flags.LATE]
        assert [part[name].dtype.str for name in ("seq", "bin", "flags", "t_in")] == ["<u8", "<u8", "<u2", "<f8"]
        assert part["arrays/z"].shape == (4, 2, 2)
        assert part["arrays/z"].attrs["unit"] == "mm"
        assert list(part["arrays/factors"].attrs["labels"]) == ["a", "b", "c"]
        assert (part.attrs["run"], part.attrs["bundle"], part.attrs["bin_width_s"]) == (7, "toy", 0.02)
        assert part.attrs["schema"].encode() == SCHEMA.json
        assert (file.attrs["missing"], file.attrs["endpoint"]) == (0, station.pub)
        assert [json.loads(line) for line in file["status"].asstr()[:]] == [{"run": 7, "bins": 4}]


def test_more_labels_than_an_attribute_holds_are_in_the_schema(station, start, tmp_path):
    labels = tuple(f"electrode{i}" for i in range(5000))
    station.use(Schema("large", "0" * 64, 0.02, (Array("counts", (5000,), "spikes", labels),)))
    recording = start()
    station.bins(3)
    recording.has(3)
    recording.end()
    assert recorded.read(tmp_path / "out.h5").channels == labels


def test_holes_are_filled_from_history_in_their_place(station, start, tmp_path):
    recording = start()
    station.bins(5)
    for n in (1, 3, 2500):  # more than a reply has, too
        station.bins(n, lost=True)
        station.bins(2)
    recording.has(station.next_seq)
    recording.end()
    assert read(tmp_path / "out.h5") == [list(range(5 + 1 + 3 + 2500 + 6))]
    assert (recording.recorder.filled, recording.recorder.missing) == (2504, 0)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["missing"] == 0
        assert "holes" not in file.attrs
        backfilled = file["part000/flags"][:] == Flags.BACKFILL
        assert np.flatnonzero(backfilled)[:4].tolist() == [5, 8, 9, 10]


def test_what_the_daemon_has_no_longer_is_said_in_the_file_and_in_a_line(station, start, tmp_path):
    recording = start()
    station.bins(5)
    station.bins(2, lost=True, forgotten=True)
    station.bins(3, lost=True)
    station.bins(2, lost=True, forgotten=True)
    station.bins(1)
    recording.has(station.next_seq)
    with pytest.raises(RecordingError, match=r"out.h5: 4 of 13 bins are missing .*'holes'.*no longer") as caught:
        recording.end()
    assert len(str(caught.value).splitlines()) == 1
    assert read(tmp_path / "out.h5") == [[0, 1, 2, 3, 4, 7, 8, 9, 12]]
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["missing"] == 4
        assert file.attrs["holes"].tolist() == [[7, 5, 6], [7, 10, 11]]


def test_holes_longer_than_a_number_in_the_file_end_it_as_others_do(station, start, tmp_path):
    recording = start()
    station.bins(1)
    for run in (7, 8):
        station.encoder = Encoder(SCHEMA, run)
        station.next_seq = 2**64 - 101  # its bin is the largest number there is
        station.bins(1)
    recording.has(2**64)
    with pytest.raises(RecordingError, match=f"{2**65 - 203} of {2**65 - 200} bins are missing"):
        recording.end()
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["missing"] == 2**64 - 1
        assert len(file.attrs["holes"]) == 2


def test_bins_of_another_run_fill_no_hole(station, start, tmp_path):
    """The daemon was started again since, and its history is the new run's."""
    recording = start()
    station.bins(3)
    station.bins(2, lost=True)
    for seq in (3, 4):
        station.frames[seq][12:16] = (8).to_bytes(4, "little")
    station.bins(1)
    recording.has(6)
    with pytest.raises(RecordingError, match=r"2 of 6 bins are missing"):
        recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1, 2, 5]]


def test_a_history_that_could_not_be_had_is_asked_for_again(station, start, tmp_path, monkeypatch):
    recording, asked, history = start(), [], station.history

    def fails_once(first, last):
        asked.append((first, last))
        if len(asked) == 1:
            raise ControlError("not now")
        return history(first, last)

    monkeypatch.setattr(station, "history", fails_once)
    station.bins(3)
    station.bins(2, lost=True)
    station.bins(1)
    recording.has(6)
    recording.end()
    assert asked == [(3, 4)] * 2
    assert read(tmp_path / "out.h5") == [list(range(6))]


def test_of_a_hole_longer_than_the_history_its_end_is_filled(station, start, tmp_path):
    recording = start()
    station.bins(1)
    station.bins(3000, lost=True, forgotten=True)
    station.bins(1200, lost=True)
    del station.frames[0]  # a history begins somewhere, and has no hole
    station.bins(1)
    recording.has(station.next_seq)
    with pytest.raises(RecordingError, match=r"3000 of 4202 bins are missing"):
        recording.end()
    assert read(tmp_path / "out.h5") == [[0, *range(3001, 4202)]]


def test_without_control_what_was_missed_stays_missing_and_the_rest_is_recorded(station, start, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "TRIES", 1)
    recording = start(control=f"ipc://{tmp_path}/nobody")
    station.bins(2)
    station.bins(1, lost=True)
    station.bins(2)
    recording.has(5)
    with pytest.raises(RecordingError, match=r"1 of 5 bins are missing.*--control"):
        recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1, 3, 4]]


def test_a_swap_begins_a_new_part_even_inside_a_hole(station, start, tmp_path):
    recording = start()
    station.bins(3)
    station.bins(2, lost=True)
    station.use(OTHER)
    station.bins(2, lost=True)
    station.bins(2)
    station.use(SCHEMA)
    station.bins(1)
    recording.has(10)
    recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_model_of_which_no_bin_came_by_itself_is_filled_in(station, start, tmp_path):
    recording = start()
    station.bins(2)
    station.use(OTHER)
    until(lambda: len(recording.subscriber.schemas) == 2, "the other schema")
    station.bins(3, lost=True)
    station.use(SCHEMA)
    station.bins(1)
    recording.has(6)
    recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1], [2, 3, 4], [5]]


def test_a_model_that_was_never_heard_of_is_missing_and_said_so(station, start, tmp_path):
    recording = start()
    station.bins(2)
    station.encoder = Encoder(OTHER, station.run)
    station.bins(3, lost=True)
    station.encoder = Encoder(SCHEMA, station.run)
    station.bins(1)
    recording.has(6)
    with pytest.raises(RecordingError, match=r"3 of 6 bins are missing .* swapped in and out unheard"):
        recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1, 5]]


def test_a_restart_begins_a_new_part_and_what_it_published_first_is_filled_in(start, tmp_path):
    pub, ask = f"ipc://{tmp_path}/pub", f"ipc://{tmp_path}/ask"
    first = Station(pub, ask)
    recording = start(first)
    first.bins(3)
    recording.has(3)
    first.close()
    second = Station(pub, ask, run=8)
    second.bins(2)  # nobody has found it yet
    until(lambda: second.publisher._socket.poll(0))
    second.greet(lambda: second.publisher._socket.poll(0) == 0)
    second.bins(2)
    recording.has(7)
    recording.end()
    second.close()
    assert read(tmp_path / "out.h5") == [[0, 1, 2], [0, 1, 2, 3]]
    with h5py.File(tmp_path / "out.h5") as file:
        assert [file[part].attrs["run"] for part in ("part000", "part001")] == [7, 8]


def test_a_count_or_a_time_ends_it(station, start, tmp_path):
    recording = start(count=3)
    station.bins(3)
    recording.thread.join(20)
    recording.end()
    assert read(tmp_path / "out.h5") == [[0, 1, 2]]
    (tmp_path / "out.h5").unlink()
    recording = start(seconds=0.1)
    station.bins(1)
    recording.thread.join(20)
    assert not recording.thread.is_alive()
    recording.end()


def test_what_has_arrived_when_it_is_told_to_stop_is_recorded(station, tmp_path):
    with Subscriber(station.pub, timeout_s=20) as subscriber, Control(station.ask) as control:
        station.greet(lambda: subscriber.receive(0.01) or subscriber.schema)
        station.bins(10)
        assert subscriber._socket.poll(20_000)
        recorder = Recorder(tmp_path / "out.h5", subscriber, control)
        recorder.should_exit = True
        recorder.run()
    (seq,) = read(tmp_path / "out.h5")
    assert seq[0] == 0


def test_a_file_that_is_there_is_left_alone(station, tmp_path):
    (tmp_path / "out.h5").write_text("mine")
    with Subscriber(station.pub) as subscriber, Control(station.ask) as control:
        with pytest.raises(RecordingError, match="is there already: name another file"):
            Recorder(tmp_path / "out.h5", subscriber, control)
        with pytest.raises(RecordingError, match="cannot be made"):
            Recorder(tmp_path / "nowhere" / "out.h5", subscriber, control)
    assert (tmp_path / "out.h5").read_text() == "mine"


def test_silence_is_an_error_and_leaves_no_file(tmp_path, station, start):
    recording = start(timeout_s=0.3)
    recording.thread.join(20)
    with pytest.raises(EndpointError, match=r"no bin from .* for 0\.3 s"):
        recording.end()
    assert not (tmp_path / "out.h5").exists()


def test_a_full_disk_ends_it_with_a_line_and_what_was_written_can_be_read(station, start, tmp_path, monkeypatch):
    recording = start()
    station.bins(1500)
    until(lambda: recording.recorder.bins == 1500 and recording.recorder._file.n_pending == 0, "a flush")
    monkeypatch.setattr(record.os, "posix_fallocate", full)
    station.bins(10)
    recording.thread.join(20)
    with pytest.raises(
        RecordingError, match=r"out\.h5: cannot be written any further: No space left on device"
    ) as caught:
        recording.end()
    assert len(str(caught.value).splitlines()) == 1
    assert read(tmp_path / "out.h5") == [list(range(1500))]


def full(file, offset, size):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def run(station, tmp_path, launch):
    """Starts the verb on the station."""

    def run(*args, **options):
        endpoints = ("--endpoint", station.pub, "--control", station.ask)
        process = launch("-m", "rtdsae", "record", tmp_path / "out.h5", *endpoints, *args, **options)
        until(lambda: station.publisher._socket.poll(0) or process.poll() is not None, "a subscription")
        until(lambda: station.publisher.greet() or station.publisher._socket.poll(20) == 0)
        return process

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_verb_well(station, run, tmp_path, number):
    process = run()
    station.bins(100)
    station.bins(10, lost=True)
    station.bins(10)
    until(lambda: bins_on_disk(tmp_path / "out.h5"), "a flush")
    process.send_signal(number)
    assert process.communicate(timeout=20) == (
        f"recording what {station.pub} publishes to {tmp_path / 'out.h5'}\n"
        "recorded 120 bins, 10 of them from the daemon's history, none missing\n",
        "",
    )
    assert process.returncode == 0
    assert read(tmp_path / "out.h5") == [list(range(120))]


def test_a_kill_leaves_what_was_written_readable(station, run, tmp_path):
    process = run()
    station.bins(2000)
    until(lambda: bins_on_disk(tmp_path / "out.h5"), "a flush")
    station.bins(500)
    process.kill()
    process.wait(20)
    (seq,) = read(tmp_path / "out.h5")
    assert seq == list(range(len(seq)))
    assert len(seq) >= 1000


def test_a_file_that_may_grow_no_further_ends_the_verb_with_a_line(station, run, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (record.SPARE_BYTES + 400_000,) * 2)

    process = run(preexec_fn=limit)
    for _ in range(20):
        station.bins(1000)
    said, error = process.communicate(timeout=20)
    assert (process.returncode, said.count("\n")) == (2, 1)  # where it records to
    assert error.count("\n") == 1, error
    assert "out.h5: cannot be written any further" in error
    (seq,) = read(tmp_path / "out.h5")
    assert seq == list(range(len(seq)))
    assert len(seq) >= 1000


def bins_on_disk(path):
    """How many can be read of a file that is being written."""
    try:
        with h5py.File(path, locking=False) as file:
            return len(file["part000/seq"])
    except (OSError, KeyError, RuntimeError):
        return 0

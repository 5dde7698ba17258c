"""What rigs write, through Neo: a Blackrock .nev and a NeuroExplorer file made byte by byte, and their damaged kin."""

import struct

import numpy as np
import pytest
from damaged_files import read_or_refused_in_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdsae.errors import RecordingError
from rtdsae.recordings import load, load_original

pytest.importorskip("neo")
HZ = 30000
W = 0.02


def nev(spikes):
    """A Blackrock .nev, version 2.3, of `(tick, electrode, unit)`."""
    electrodes = sorted({electrode for _, electrode, _ in spikes})
    packet = 8 + 2 * 48  # head and a waveform of 48 samples
    size = 336 + 32 * len(electrodes)
    head = b"NEURALEV" + bytes([2, 3]) + struct.pack("<HIIII8H", 1, size, packet, HZ, HZ, 2020, 1, 3, 1, 0, 0, 0, 0)
    head += b"a test".ljust(32, b"\0") + bytes(256) + struct.pack("<I", len(electrodes))
    for electrode in electrodes:
        head += (
            b"NEUEVWAV" + struct.pack("<HBBHHhhBBH", electrode, 1, electrode % 32, 250, 0, 0, 0, 5, 2, 48) + bytes(8)
        )
    body = b"".join(struct.pack("<IHBB48h", tick, electrode, unit, 0, *range(48)) for tick, electrode, unit in spikes)
    return head + body


def some(n=300, seed=0):
    rng = np.random.default_rng(seed)
    ticks = np.sort(rng.integers(0, 5 * HZ, n))
    return [(int(t), int(rng.choice([1, 5, 96])), int(rng.choice([0, 1, 255]))) for t in ticks]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "day.nev"
    path.write_bytes(nev(some()))
    return path


def refused(path, says, *args):
    with pytest.raises(RecordingError, match=says) as caught:
        load(path, *args)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_units_of_a_blackrock_file_are_channels_without_its_noise(file, caplog):
    recording = load(file, W)
    assert recording.channels == ("ch1#0", "ch1#1", "ch5#0", "ch5#1", "ch96#0", "ch96#1")
    assert "3 units that the rig marked as noise are left out" in caplog.text
    kept = [(t, e, u) for t, e, u in some() if u != 255]
    first, last = kept[0][0], kept[-1][0]
    expected = np.zeros((int((last - first) / HZ / W), 6))
    for tick, electrode, unit in kept:
        bin_ = (tick - first) * 1_000_000_000 // HZ // 20_000_000
        if bin_ < len(expected):
            expected[bin_, recording.channels.index(f"ch{electrode}#{unit}")] += 1
    np.testing.assert_array_equal(recording.counts, expected)
    assert (recording.session, recording.n_segments) == ("day", 1)


def test_the_original_is_its_spikes_in_order(file):
    original = load_original(file)
    kept = [(t, e, u) for t, e, u in some() if u != 255]
    np.testing.assert_allclose(original.stamps, [t / HZ for t, _, _ in kept], atol=1e-9)
    assert [original.channels[i] for i in original.samples[:, 0]] == [f"ch{e}#{u}" for _, e, u in kept]


def test_a_clock_that_was_set_back_is_a_segment_and_a_step_back_in_the_original(tmp_path):
    spikes = some(200, seed=1) + some(200, seed=2)
    (tmp_path / "a.nev").write_bytes(nev(spikes))
    assert load(tmp_path / "a.nev", W).n_segments == 2
    original = load_original(tmp_path / "a.nev")
    kept = [(t, e, u) for t, e, u in spikes if u != 255]
    np.testing.assert_allclose(original.stamps, [t / HZ for t, _, _ in kept], atol=1e-9)
    assert (np.diff(original.stamps) < 0).sum() == 1
    assert [original.channels[i] for i in original.samples[:, 0]] == [f"ch{e}#{u}" for _, e, u in kept]


def test_the_bin_width_must_be_said(file):
    refused(file, "the file has spike times and no bins: say it with --bin-width SECONDS")


def test_a_folder_without_spikes_of_a_rig_is_no_recording(tmp_path):
    refused(tmp_path, "is a folder without .spikes, .nse, .ntt: name a file", W)


def test_a_file_without_spikes_is_refused(tmp_path):
    (tmp_path / "a.nev").write_bytes(nev([(5, 1, 255), (6, 1, 255)]))
    refused(tmp_path / "a.nev", "it holds no spikes", W)


class Mark:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".nev", ".plx", ".nex"])
def test_nothing_is_unpickled(tmp_path, suffix):
    import pickle

    (tmp_path / f"a{suffix}").write_bytes(pickle.dumps(Mark(tmp_path / "written")))
    refused(tmp_path / f"a{suffix}", "not readable as|neither HDF5", W)
    assert not (tmp_path / "written").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    kept=st.just(1.0) | st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, edits, kept):
    data = bytearray(nev(some(60)))
    data = data[: int(kept * len(data))]
    for place, value in edits:
        if data:
            data[int(place * len(data))] ^= value
    (tmp_path / "a.nev").write_bytes(data)
    assert read_or_refused_in_one_line(tmp_path / "a.nev", W)

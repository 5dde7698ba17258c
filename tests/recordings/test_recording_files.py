"""Files: what is written is read back, and what is not a recording is refused with the path and the reason."""

import contextlib
import dataclasses
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rtdsae.errors import RecordingError
from rtdsae.recordings import Recording, load, save

SUFFIXES = [".h5", ".npz"]
FULL = """
import resource, signal, sys
import numpy as np
from rtdsae.errors import RecordingError
from rtdsae.recordings import Recording, save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(Recording(np.random.default_rng(0).poisson(9.0, (20_000, 50)), 0.02), sys.argv[1])
except RecordingError as error:
    print(error)
"""
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@st.composite
def recordings(draw) -> Recording:
    n_bins, n_channels, n_columns = draw(st.integers(2, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cut = draw(st.integers(1, n_bins - 1))
    n = draw(st.sampled_from([1, 2]))
    segments = np.array([[0, cut], [cut, n_bins]][:n])
    reals = st.floats(-1e6, 1e6, width=32)
    dtype = draw(st.sampled_from([np.uint8, np.int32, np.float32, np.float64]))
    known = {
        "channels": st.lists(TEXT, min_size=n_channels, max_size=n_channels, unique=True).map(tuple),
        "behaviour": hnp.arrays(np.float64, (n_bins, n_columns), elements=reals),
        "external": hnp.arrays(np.float32, (n_bins, n_columns), elements=reals),
        "true_rates": hnp.arrays(np.float32, (n_bins, n_channels), elements=st.floats(0, 500, width=32)),
        "conditions": hnp.arrays(np.int64, n) | st.lists(TEXT, min_size=n, max_size=n),
        "labels": hnp.arrays(np.float64, (n, n_columns), elements=reals),
        "splits": st.lists(st.sampled_from(["train", "valid", "test"]), min_size=n, max_size=n),
        "heldout": hnp.arrays(bool, n_channels).filter(lambda mask: not mask.all()),
        "session": TEXT,
        "generator": TEXT,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(known))))
    if "labels" in chosen:
        known["label_names"] = st.lists(TEXT, min_size=n_columns, max_size=n_columns, unique=True).map(tuple) | st.just(
            ()
        )
        chosen |= {"label_names"}
    return Recording(
        counts=draw(hnp.arrays(dtype, (n_bins, n_channels), elements=st.integers(0, 9))),
        bin_width_s=draw(st.floats(1e-4, 10)),
        segments=segments,
        **{name: draw(known[name]) for name in sorted(chosen)},
    )


def small(**parts) -> Recording:
    return Recording(np.arange(12).reshape(6, 2), 0.02, **parts)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(original=recordings())
def test_what_is_saved_is_loaded(tmp_path, suffix, original):
    path = tmp_path / f"session{suffix}"
    save(original, path)
    again = load(path)
    assert again.hash == original.hash
    for field in dataclasses.fields(Recording):
        before, after = getattr(original, field.name), getattr(again, field.name)
        assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after
        assert type(before) is type(after)
    assert list(tmp_path.iterdir()) == [path]


def test_content_decides_and_not_the_name(tmp_path):
    save(small(), tmp_path / "a.npz")
    save(small(), tmp_path / "b.h5")
    (tmp_path / "a.npz").rename(tmp_path / "a.h5")
    (tmp_path / "b.h5").rename(tmp_path / "b.npz")
    assert load(tmp_path / "a.h5").hash == load(tmp_path / "b.npz").hash == small().hash


def test_a_file_made_by_hand_with_two_names_is_enough(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["counts"] = np.ones((5, 2))
        file.attrs["bin_width_s"] = 0.01
    assert load(tmp_path / "a.h5").bin_width_s == 0.01


def test_the_bin_width_may_be_told_but_not_contradicted(tmp_path):
    np.savez(tmp_path / "a.npz", counts=np.ones((5, 2)))
    assert load(tmp_path / "a.npz", bin_width_s=0.05).bin_width_s == 0.05
    save(small(), tmp_path / "b.h5")
    with pytest.raises(RecordingError, match=r"b.h5: its bins are 0.02 s wide, 0.05 s was asked for"):
        load(tmp_path / "b.h5", bin_width_s=0.05)


def refused(path, says):
    with pytest.raises(RecordingError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_width_that_the_file_does_not_say_is_taken_and_said(tmp_path, suffix, caplog):
    caplog.set_level("INFO")
    path, counts = tmp_path / f"a{suffix}", np.ones((6, 2), np.uint8)
    if suffix == ".npz":
        np.savez(path, counts=counts)
    else:
        with h5py.File(path, "w") as file:
            file["counts"] = counts
    assert load(path, 0.02).bin_width_s == 0.02
    assert "does not say how wide its bins are: taken to be 20 ms" in caplog.text
    caplog.clear()
    save(load(path, 0.001), tmp_path / f"b{suffix}")
    caplog.clear()
    assert load(tmp_path / f"b{suffix}", 0.004).counts.tolist() == [[4, 4]]
    assert caplog.messages == ["2 of 6 bins do not fill a wider one at the end of their segment: left out"]


@pytest.mark.parametrize("width", [0.0, -0.02, float("nan"), 20.0])
def test_a_bin_width_that_is_none_is_refused(tmp_path, width):
    save(small(), tmp_path / "a.h5")
    with pytest.raises(RecordingError, match=r"a\.h5: a bin width of .*: expected 0.0001 to 10 s"):
        load(tmp_path / "a.h5", width)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "none.h5", "no such file")
    refused(tmp_path, "is a folder without .spikes")


@pytest.mark.parametrize("content", [b"", b"trial,unit\n1,2\n", b"\x89HDF", b"PK\x03"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "notes.h5"
    path.write_bytes(content)
    refused(path, "neither HDF5 nor npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, suffix, part):
    path = tmp_path / f"a{suffix}"
    save(small(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    refused(path, "not a readable")


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_damaged_file_is_refused_or_read(tmp_path, suffix, place, value):
    path, original = tmp_path / f"a{suffix}", small(session="mondäy", conditions=["x"])
    save(original, path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= value
    path.write_bytes(data)
    with contextlib.suppress(RecordingError):
        read = load(path)
        assert suffix == ".npz" or read.hash == original.hash  # a zip's table of contents has no checksum


def test_hdf5_is_written_with_checksums_throughout(tmp_path):
    # Without them a damaged file can hang or crash the HDF5 library, out of reach of any error handling.
    save(small(session="monday", conditions=["x"], splits=["train"], heldout=[0, 1]), tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes()[8] == 3  # the superblock's version
    with h5py.File(tmp_path / "a.h5") as file:
        assert all(dataset.fletcher32 for dataset in file.values())
        assert not any(h5py.check_vlen_dtype(dataset.dtype) for dataset in file.values())
        assert h5py.check_string_dtype(file.attrs.get_id("session").dtype).length == len("monday")


def test_wrong_keys_are_listed(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["spikes"] = np.ones((5, 2))
        file.create_group("units")
    refused(path, r"neither 'counts' .* nor 'train_encod_data' .*; found spikes, units")
    np.savez(tmp_path / "a.npz", spikes=np.ones((5, 2)), bin_width_s=0.01)
    refused(tmp_path / "a.npz", "unknown key 'spikes'; a recording holds counts, bin_width_s")
    np.savez(tmp_path / "b.npz", counts=np.ones((5, 2)))
    refused(tmp_path / "b.npz", "no 'bin_width_s'; found counts: say it with --bin-width SECONDS")


def test_a_mistyped_key_is_not_passed_over(tmp_path):
    save(small(), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["behavior"] = np.ones((6, 2))
    refused(tmp_path / "a.h5", "unknown key 'behavior'")


def test_a_group_in_place_of_a_dataset_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("counts")
        file.attrs["bin_width_s"] = 0.01
    refused(tmp_path / "a.h5", "counts is of type object")


@pytest.mark.parametrize("bad", [np.nan, -1.0])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_impossible_values_name_the_file_and_the_bin(tmp_path, suffix, bad):
    counts = np.ones((5, 2))
    counts[3, 1] = bad
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, counts=counts, bin_width_s=0.01)
    else:
        with h5py.File(path, "w") as file:
            file["counts"] = counts
            file.attrs["bin_width_s"] = 0.01
    refused(path, "bin 3, column 1")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", counts=np.array([[Hostile(tmp_path / "written")]]), bin_width_s=0.01)
    refused(tmp_path / "a.npz", "not a readable npz: Object arrays cannot be loaded")
    assert not (tmp_path / "written").exists()


def test_a_zip_that_is_not_npz_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("notes.txt", "hello")
    refused(tmp_path / "a.npz", "unknown key|not a readable")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    save(small(), path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(RecordingError, match=f"a{suffix}: cannot be written: No space left"):
        save(small(session="new"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whoever_reads_while_it_is_saved_reads_the_old_file_whole(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save(small(), path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save(small(session="new"), path)
        assert reader.read() == before
    assert load(path).session == "new"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_into_no_folder_is_refused(tmp_path, suffix):
    path = tmp_path / "none" / f"a{suffix}"
    with pytest.raises(RecordingError, match=r"none/a.* cannot be written"):
        save(small(), path)


@pytest.mark.parametrize("name", ["a.csv", "a.nwb", "a"])
def test_a_name_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(RecordingError, match=r"only HDF5 and npz are written: name it \.h5, \.hdf5, \.npz"):
        save(small(), tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_there_is_no_room_for_is_said_and_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    path.write_bytes(b"what was there")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]

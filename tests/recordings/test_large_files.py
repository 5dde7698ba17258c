"""Recordings that are larger than what is held in memory: unpacked beside, mapped, and the same in every respect."""

import resource
import subprocess
import sys
import tempfile
import tracemalloc

import h5py
import numpy as np
import pytest

from rtdsae.recordings import Recording, checks, hdf5, load, mapped, save
from rtdsae.train.windows import Tensors

LIMITED = """
import resource, sys
from rtdsae.errors import RtdsaeError
from rtdsae.recordings import load, mapped
mapped.LARGE = 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    load(sys.argv[1])
except RtdsaeError as error:
    print(error)
"""

MAPPED = """
import resource, sys
from pathlib import Path
import numpy as np
from rtdsae.recordings import Recording, save
counts = np.memmap(sys.argv[1], np.uint8, "r", shape=(40_000, 1000))
save(Recording(counts[:1000], 0.02), sys.argv[2])
taken = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (taken + (25 << 20),) * 2)
save(Recording(counts, 0.02), sys.argv[2])
"""


@pytest.fixture
def recording():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (5001, 40)).astype(np.uint8)
    return Recording(counts, 0.02, behaviour=rng.normal(size=(5001, 2)), session="long")


def test_a_large_array_is_mapped_and_is_the_same(recording, tmp_path, monkeypatch):
    save(recording, tmp_path / "long.h5")
    monkeypatch.setattr(mapped, "LARGE", 1000)
    read = load(tmp_path / "long.h5")
    assert isinstance(read.counts.base, np.memmap)
    np.testing.assert_array_equal(read.counts, recording.counts)
    np.testing.assert_array_equal(read.behaviour, recording.behaviour)
    assert read.hash == recording.hash


def test_windows_are_taken_from_the_mapping_itself(recording, tmp_path, monkeypatch):
    save(recording, tmp_path / "long.h5")
    monkeypatch.setattr(mapped, "LARGE", 1000)
    read = load(tmp_path / "long.h5")
    assert Tensors(read.split()).counts.data_ptr() == read.counts.ctypes.data  # no copy of them all


@pytest.mark.parametrize(
    "kind", ["bool", "uint8", "int16", "uint16", "uint32", "int64", ">i4", "float16", "float32", "float64"]
)
def test_from_file_to_windows_memory_holds_no_copy_whatever_the_type(recording, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "LARGE", 100_000)
    counts = np.minimum(recording.counts, 1).astype(kind)
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file.attrs["bin_width_s"] = 0.02
        file["counts"], file["external"] = counts, counts
    load(tmp_path / "long.h5")  # with what is imported on the way
    tracemalloc.start()
    tensors = Tensors(load(tmp_path / "long.h5").split())
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < counts.size / 2  # bytes
    np.testing.assert_array_equal(tensors.counts, counts)
    np.testing.assert_array_equal(tensors.u, counts)


@pytest.mark.parametrize(
    ("said", "usual", "taken"),
    [(None, "/tmp", "/var/tmp"), ("/tmp", "/tmp", "/tmp"), ("/scratch", "/scratch", "/scratch")],
)
def test_it_is_not_in_tmp_which_may_be_memory_unless_tmpdir_says_so(said, usual, taken, tmp_path, monkeypatch):
    folders = []

    def temporary(dir, **_):
        folders.append(dir)
        return (tmp_path / "file").open("w+b")

    monkeypatch.setattr(mapped, "LARGE", 1000)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: usual)
    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    monkeypatch.setenv("TMPDIR", said) if said else monkeypatch.delenv("TMPDIR", raising=False)
    assert mapped.zeros((2000,), np.uint8, "it").shape == (2000,)
    assert folders == [taken]


@pytest.mark.parametrize("chunks", [(5001, 1), (700, 3), (1, 40), None])
def test_no_chunk_is_unpacked_twice(recording, tmp_path, monkeypatch, chunks):
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file.attrs["bin_width_s"] = 0.02
        file.create_dataset("counts", data=recording.counts, chunks=chunks)
    monkeypatch.setattr(mapped, "LARGE", 50_000)
    taken, read = [], h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, part: taken.append(part) or read(self, part))
    np.testing.assert_array_equal(load(tmp_path / "long.h5").counts, recording.counts)
    assert len(taken) > 1
    for part in taken:
        for one, size, n in zip(np.atleast_1d(part), chunks or (), recording.counts.shape, strict=False):
            assert one.start % size == 0
            assert one.stop % size == 0 or one.stop >= n


def test_it_is_written_without_being_held_in_memory(tmp_path):
    (tmp_path / "counts").write_bytes(np.random.default_rng(0).bytes(40_000_000))
    subprocess.run([sys.executable, "-c", MAPPED, tmp_path / "counts", tmp_path / "long.h5"], check=True)
    with h5py.File(tmp_path / "long.h5") as file:
        last = np.fromfile(tmp_path / "counts", np.uint8, offset=39_000_000).reshape(-1, 1000)
        np.testing.assert_array_equal(file["counts"][39_000:], last)


@pytest.mark.parametrize("limit", [0, 20, 100, 2000, 30_000, 60_000, -1])
def test_wherever_the_disk_is_full_it_is_one_error_and_the_process_lives(recording, limit, tmp_path):
    hdf5.write(recording, tmp_path / "whole.h5")
    room = limit % (tmp_path / "whole.h5").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            hdf5.write(recording, tmp_path / "part.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_room_for_it_the_line_says_where_room_is_needed(recording, tmp_path):
    save(recording, tmp_path / "long.h5")
    said = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "long.h5"], capture_output=True, text=True, check=True
    ).stdout
    assert " needs 0.0 GB in" in said
    assert "set TMPDIR to a folder with room" in said


def test_neither_checking_nor_surveying_makes_a_second_array_of_that_size(monkeypatch):
    counts = np.random.default_rng(0).poisson(0.3, (10_000, 100)).astype(np.float32)  # a million
    monkeypatch.setattr(mapped, "LARGE", 1 << 19)
    tracemalloc.start()
    look = checks.Look(Recording(counts, 0.02))
    assert look.whole
    assert list(checks._clipped(look)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000

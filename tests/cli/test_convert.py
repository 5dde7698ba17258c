"""rtdsae convert as a person runs it, and replay of what it reads, up to the daemon's bins."""

import json
import subprocess
import sys
import uuid

import numpy as np
import pylsl
import pytest
from toy_bundle import Toy

from rtdsae import recordings
from rtdsae.client import Subscriber
from rtdsae.recordings import Recording
from rtdsae.wire import Flags

RTDSAE = [sys.executable, "-m", "rtdsae"]
W = 0.02


def run(*args):
    return subprocess.run([*RTDSAE, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def fine(tmp_path):
    """A recording in bins of 5 ms whose last channel is silent."""
    counts = np.random.default_rng(0).poisson(0.5, (20000, 5)).astype(np.uint8)
    counts[:, 4] = 0
    recording = Recording(counts, 0.005, behaviour=np.arange(20000.0)[:, None], behaviour_labels=("x",))
    recordings.save(recording, tmp_path / "fine.npz")
    return tmp_path / "fine.npz", recording


def test_convert_writes_and_says_what_there_is(tmp_path, fine):
    path, recording = fine
    done = run("convert", path, tmp_path / "wide.h5", "--bin-width", W, "--session", "monday")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "channels    5"
    assert "bins        5000 of 20 ms: 100 s" in lines
    assert "warning: 1 channel without a spike: ch4; leave them out" in lines
    wide = recordings.load(tmp_path / "wide.h5")
    assert (wide.session, wide.bin_width_s) == ("monday", W)
    np.testing.assert_array_equal(wide.counts, recording.counts.reshape(5000, 4, 5).sum(axis=1))
    assert lines[-1] == f"wrote {tmp_path}/wide.h5, data hash {wide.hash[:12]}"


def test_convert_without_out_is_the_summary_alone_and_json_is_its_last_line(tmp_path, fine):
    before = sorted(tmp_path.iterdir())
    done = run("convert", fine[0], "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["silent"], found["channels"], found["out"]) == (0, ["ch4"], 5, None)
    assert found["hash"] == fine[1].hash
    assert found["notes"] == []
    assert sorted(tmp_path.iterdir()) == before


def test_convert_notes_what_a_reader_chose(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    counts = np.random.default_rng(0).poisson(1.0, (400, 3))
    scipy_io.savemat(tmp_path / "a.mat", {"spikes": counts.T, "dt": 0.02})
    done = run("convert", tmp_path / "a.mat", tmp_path / "a.h5")
    assert "note: spikes is 3 x 400: the second side is taken as time: far longer than the other\n" in done.stdout
    assert done.stderr == ""
    np.testing.assert_array_equal(recordings.load(tmp_path / "a.h5").counts, counts)


def test_convert_says_in_one_line_what_it_cannot(tmp_path, fine):
    path, _ = fine
    for args, says in [
        ((tmp_path / "none.h5",), "none.h5: no such file"),
        ((path, path), "fine.npz is there already: name another file, or say --overwrite"),
        ((path, "--bin-width", 0.007), "its bins are 0.005 s wide, 0.007 s was asked for: no whole multiple"),
        ((path, tmp_path / "a.nwb"), "only HDF5 and npz are written: name it .h5, .hdf5, .npz"),
        ((path, "--bin-width", 0), "a bin width of 0.0 s: expected 0.0001 to 10 s"),
        ((path, "--stream", "x"), "--stream means nothing for npz: leave it out"),
        ((path, tmp_path / "no" / "a.h5"), f"a.h5: cannot be written: there is no folder {tmp_path}/no\n"),
    ]:
        done = run("convert", *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert run("convert", path, path, "--overwrite").returncode == 0


@pytest.fixture
def xdf(tmp_path):
    """A day's file of LabRecorder: samples at 1 kHz with jitter and a gap, and the daemon's own stream."""
    pytest.importorskip("pyxdf")
    sys.path.insert(0, str(tmp_path.parent))
    from xdf_files import XdfFile

    rng = np.random.default_rng(0)
    stamps = 100 + 0.001 * np.arange(1, 2001) + rng.uniform(-2e-4, 2e-4, 2000)
    stamps[1000:] += 0.1
    samples = rng.poisson(0.2, (2000, 3))
    file = XdfFile().add("array", samples, stamps, rate=1000.0, labels="abc", type="Spikes")
    file.add("decoder", rng.random((100, 2)), stamps[19::20], rate=50.0, type="Latents")
    return file.write(tmp_path / "day.xdf")


def test_a_replayed_file_makes_the_same_bins_in_the_daemon_as_offline(start, tmp_path, xdf):
    """Through convert: offline. Through replay --original, LSL and the daemon: live. The same model of both."""
    converted = run("convert", xdf, tmp_path / "day.h5", "--bin-width", W)
    assert "note: stream array: gaps 5" in converted.stdout
    offline = recordings.load(tmp_path / "day.h5")
    assert offline.segments.tolist() == [[0, 50], [55, 105]]

    source_id, endpoint = f"test-{uuid.uuid4().hex}", f"ipc://{tmp_path}/pub"
    toy = Toy(n_channels=3, bin_width_s=W)
    toy.channels[:] = "abc"
    with Subscriber(endpoint, timeout_s=40) as subscriber:
        start(
            "serve",
            toy.write(tmp_path / "toy"),
            "--stream",
            f"source_id={source_id}",
            "--pub",
            endpoint,
            "--timeout",
            30,
        )
        start("replay", xdf, "--original", "--source-id", source_id, "--wait", 30)
        live = {message.bin: message for message in (subscriber.receive() for _ in range(100)) if message}
    observed = np.zeros(105, bool)
    for first, stop in offline.segments:
        observed[first:stop] = True
    expected = toy.run(offline.counts.astype(np.float32), observed=observed)["factors"]
    for bin_, message in live.items():
        assert bool(message.flags & Flags.GAP) != observed[bin_]
        np.testing.assert_allclose(message["factors"], expected[bin_ - toy.n_anchor], atol=2e-4)
    assert sorted(live) == list(range(toy.n_anchor, 105))


def test_replay_plays_spikes_of_a_rigs_file_as_they_are(start, tmp_path):
    pytest.importorskip("pyxdf")
    from xdf_files import XdfFile

    stamps = np.array([5.0, 5.01, 5.05, 5.3])
    channels = np.array([[0], [2], [1], [0]])
    XdfFile().add("spikes", channels, stamps, fmt="int16", spike_labels="xyz").write(tmp_path / "a.xdf")
    source_id = f"test-{uuid.uuid4().hex}"
    replay = start("replay", tmp_path / "a.xdf", "--original", "--source-id", source_id, "--wait", 30)
    (info,) = pylsl.resolve_byprop("source_id", source_id, timeout=30)
    inlet = pylsl.StreamInlet(info, recover=False)
    pulled = [inlet.pull_sample(10) for _ in range(4)]
    assert [sample for sample, _ in pulled] == channels.tolist()
    np.testing.assert_allclose(np.diff([stamp for _, stamp in pulled]), np.diff(stamps), atol=2e-9)
    assert replay.communicate(timeout=20)[0] == (
        f"streaming spikes of 3 channels as source_id={source_id}\npushed 4 spikes\n"
    )


def test_replay_original_of_what_has_bins_only_is_refused(fine):
    done = run("replay", fine[0], "--original")
    assert (done.returncode, done.stdout) == (2, "")
    assert "npz has bins, and no stamps that the samples came with" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "leave --bin-width, --split and --truth out" in run("replay", fine[0], "--original", "--truth").stderr

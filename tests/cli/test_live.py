"""The live verbs as a person runs them: the command in a process, real streams and sockets around it."""

import json
import subprocess
import sys
import uuid

import numpy as np
import pylsl
import pytest
from station import Station, until
from toy_bundle import Toy

from rtdsae import recordings
from rtdsae.recordings import Recording

RTDSAE = [sys.executable, "-m", "rtdsae"]


def run(*args):
    return subprocess.run([*RTDSAE, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def source_id():
    return f"test-{uuid.uuid4().hex}"


def pull(source_id, n):
    (info,) = pylsl.resolve_byprop("source_id", source_id, timeout=30)
    inlet = pylsl.StreamInlet(info, recover=False, as_numpy=True)
    inlet.open_stream(10)
    samples = [inlet.pull_sample(10)[0] for _ in range(n)]
    return inlet.info(10), np.array(samples)


@pytest.fixture
def recording(tmp_path):
    rng = np.random.default_rng(0)
    splits = np.array(["train"] * 4 + ["valid", "test"])
    segments = np.arange(0, 60, 10)[:, None] + [0, 10]
    heldout = np.array([False, True, False, False])
    counts = rng.poisson(1.0, (60, 4)).astype(np.uint8)
    found = Recording(counts=counts, bin_width_s=0.01, segments=segments, splits=splits, heldout=heldout)
    recordings.save(found, tmp_path / "recording.h5")
    return tmp_path / "recording.h5", found


def test_replay_plays_a_split_of_the_held_in_channels(start, recording, source_id):
    path, content = recording
    replay = start("replay", path, "--split", "test", "--source-id", source_id, "--wait", "30")
    info, samples = pull(source_id, 10)
    assert info.get_channel_labels() == ["ch0", "ch2", "ch3"]
    np.testing.assert_array_equal(samples, content.counts[50:, [0, 2, 3]])
    said, _ = replay.communicate(timeout=20)
    assert said == f"streaming 3 channels in bins of 10 ms as source_id={source_id}\npushed 10 bins\n"
    assert replay.returncode == 0


def test_replay_plays_everything_when_told(start, recording, source_id):
    path, content = recording
    start("replay", path, "--channels", "all", "--speed", "10", "--source-id", source_id, "--wait", "30")
    np.testing.assert_array_equal(pull(source_id, 60)[1], content.counts)


def test_replay_without_a_file_or_a_listener(tmp_path, recording, source_id):
    missing = run("replay", tmp_path / "nothing.h5")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"rtdsae replay: {tmp_path}/nothing.h5: no such file\n"
    alone = run("replay", recording[0], "--source-id", source_id, "--wait", "0.1")
    assert alone.returncode == 2
    assert alone.stderr.endswith("after 0.1 s: start the decoder\n")


@pytest.mark.parametrize("system", ["lorenz", "rnn", "reach"])
def test_simulate_streams_counts_and_truth(start, source_id, system):
    start("simulate", "--system", system, "--seconds", "2", "--source-id", source_id, "--wait", "30")
    (truth,) = pylsl.resolve_byprop("source_id", f"{source_id}-truth", timeout=30)
    info, samples = pull(source_id, 20)
    assert (truth.type(), truth.channel_count()) == ("Rates", info.channel_count())
    assert (samples == samples.round()).all()
    assert samples.any()


def test_simulate_takes_of_one_seed_are_the_same_neurons_at_other_times(start, tmp_path):
    played = []
    for take in ("1", "1", "2"):
        source_id = f"test-{uuid.uuid4().hex}"
        start("simulate", "--seconds", "1", "--take", take, "--source-id", source_id, "--speed", "20", "--wait", "30")
        played.append(pull(source_id, 50)[1])
    np.testing.assert_array_equal(played[0], played[1])
    assert (played[0] != played[2]).any()


def test_listen_prints_what_serve_decodes(start, tmp_path, recording, source_id):
    toy = Toy(n_channels=3, bin_width_s=0.01)
    endpoint = f"ipc://{tmp_path}/pub"
    bundle = toy.write(tmp_path / "toy")
    text = start("listen", endpoint, "--count", "20", "--arrays", "z", "--timeout", "30")
    lines = start("listen", endpoint, "--count", "20", "--json", "--timeout", "30")
    serve = ("serve", bundle, "--stream", f"source_id={source_id}", "--pub", endpoint, "--timeout", "30")
    serve += ("--provider", "auto")  # on most computers the CPU's is the only one
    start(*serve, "--set", "match=count")  # the stream has ch0, ch2 and ch3, the toy ch0 to ch2
    path, content = recording
    start("replay", path, "--source-id", source_id, "--wait", "30")
    bins = [json.loads(line) for line in lines.communicate(timeout=40)[0].splitlines()]
    assert [b["seq"] for b in bins] == list(range(20))
    factors = toy.run(content.counts[:, [0, 2, 3]].astype(np.float32))["factors"]
    np.testing.assert_allclose([b["factors"] for b in bins], factors[:20], atol=2e-4)
    assert "anchored" in bins[0]["flags"]
    assert all(set(b["flags"]) <= {"late"} for b in bins[1:])  # a busy machine may be late, never early
    said = text.communicate(timeout=40)[0].splitlines()
    assert len(said) == 20
    assert said[0].startswith("0 bin 5 t ")
    assert " z=[" in said[0]
    assert "factors" not in said[0]
    assert (text.returncode, lines.returncode) == (0, 0)


def test_what_is_no_number_in_json_is_null(start):
    station = Station()
    listening = start("listen", station.pub, "--count", "1", "--json", "--timeout", "30")
    until(lambda: station.publisher._socket.poll(20), "a subscription")
    until(lambda: station.publisher.greet() or not station.publisher._socket.poll(100))
    values = station.encoder.values
    values[:] = [np.nan, np.inf, -np.inf, *range(len(values) - 3)]
    station.publisher.send(station.encoder.encode(0, 100, 0.0, 0.001, 0.002))
    line = json.loads(listening.communicate(timeout=20)[0], parse_constant=lambda word: pytest.fail(word))
    assert (line["factors"], line["z"]) == ([None, None, None], [[0.0, 1.0], [2.0, 3.0]])
    station.close()


def test_listen_gives_up_when_nothing_is_published(tmp_path):
    result = run("listen", f"ipc://{tmp_path}/nobody", "--timeout", "0.2")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "verb", ["serve", "listen", "simulate", "replay", "record", "control", "keys", "doctor", "bench"]
)
def test_help_fits_a_screen_and_imports_nothing_heavy(verb):
    code = (
        "import sys; from rtdsae.cli import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(sorted({'torch', 'onnxruntime', 'pylsl', 'h5py', 'zmq'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) < 40
    assert said[-1] == "[]"

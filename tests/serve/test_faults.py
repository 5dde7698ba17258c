"""What goes wrong in a lab, done to a real daemon: nothing is lost without a word, and nothing wrong goes unflagged."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import h5py
import numpy as np
import pylsl
import pytest
import zmq
from lsl_source import LslSource
from station import until
from test_daemon import Served
from toy_bundle import Toy

from rtdsae import wire
from rtdsae.client import Control, Subscriber
from rtdsae.serve.search import find
from rtdsae.serve.source import Source, Wanted
from rtdsae.wire import Flags

WIDTH = 0.02
MINUTE = pytest.mark.slow, pytest.mark.timeout(180)


@contextlib.contextmanager
def program(*command, **options):
    """A process that ends with the block."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def flagged(served, flag):
    return [bool(frame.flags & flag) for frame in served.frames]


# the source -----------------------------------------------------------------------------------------------------------


def test_a_source_that_was_stopped_goes_on_and_no_sample_is_lost(tmp_path):
    toy = Toy()
    x = toy.counts(250)
    with (
        LslSource(x, 50.0) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(20).receive(lambda self: self.statuses[-1]["stream"]["connected"])
        source.process.send_signal(signal.SIGSTOP)
        served.receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        before = len(served.frames)
        source.process.send_signal(signal.SIGCONT)
        served.bins(245).receive(lambda self: self.statuses[-1]["bins"] == 245)
        served.check_order()
        served.check_values(x)  # the stamps say that there was no gap
        assert all(flagged(served, Flags.LATE)[before : before + 20])
        assert not any(flagged(served, Flags.GAP))
        last = served.statuses[-1]
        assert (last["gaps"], last["late"], last["resets"], last["stream"]["losses"]) == (0, 0, 0, 0)
        assert last["bins_late"] == sum(flagged(served, Flags.LATE))


@pytest.mark.parametrize("seconds", [2, pytest.param(65, marks=MINUTE)])
def test_a_source_that_is_gone_for_a_time_and_comes_again(tmp_path, seconds):
    """Its time is gaps, up to a minute; beyond, the clock counts as set anew, and bins go on after one gap."""
    toy = Toy()
    first, second = (Toy().counts(n) for n in (4000, 200))
    with Served(tmp_path, toy, f"source_id=gone-{tmp_path.name}") as served:
        with LslSource(first, 50.0, source_id=f"gone-{tmp_path.name}"):
            served.bins(30)
        gone = len(served.statuses)
        served.receive(lambda self: len(self.statuses) >= gone + seconds)
        assert not served.statuses[-1]["stream"]["connected"]
        before = len(served.frames)
        with LslSource(second, 50.0, source_id=f"gone-{tmp_path.name}"):
            served.receive(lambda self: len(self.frames) > before + 50 and not self.frames[-1].flags & Flags.GAP)
            served.receive(lambda self: self.statuses[-1]["bins"] > before + 50)
        served.check_order()
        gaps = np.array(flagged(served, Flags.GAP))
        assert served.statuses[-1]["stream"]["losses"] == 1
        if seconds < 60:
            assert abs(gaps.sum() * WIDTH - seconds) < 2
            assert served.statuses[-1]["resets"] == 0
        else:
            assert gaps.sum() == 1
            assert served.statuses[-1]["resets"] == 1
        n_first = int(np.flatnonzero(gaps)[0]) + toy.n_anchor
        n_gaps = int(gaps.sum())
        rest = len(served.frames) + toy.n_anchor - n_first - n_gaps
        whole = np.concatenate([first[:n_first], np.zeros((n_gaps, toy.n_channels), np.float32), second[:rest]])
        seen = np.r_[np.ones(toy.n_anchor), ~gaps].astype(np.float32)
        served.check_values(whole, seen)


def test_a_long_gap_does_not_silence_the_daemon(tmp_path):
    """Its bins take seconds to decode, in which whoever watches it has to hear of it."""
    toy, n_gaps = Toy(n_channels=200, n_hidden=400, bin_width_s=0.001), 40_000
    offsets = np.arange(200) * 0.001
    offsets[100:] += n_gaps * 0.001
    endpoint, said = f"ipc://{tmp_path}/control", set()
    with (
        LslSource(toy.counts(200), 1000.0, offsets=offsets, pace=100) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--control", endpoint),
        Control(endpoint, timeout_s=20) as control,
    ):
        until(lambda: said.add(control.status()["bins"]) or max(said) > n_gaps, "the bins after the gap")
    assert any(1000 < bins < n_gaps - 1000 for bins in said), said


def test_each_kind_of_impossible_value_is_a_flagged_gap(tmp_path):
    toy = Toy()
    x, observed = toy.counts(80), np.ones(80, np.float32)
    sent, bad = x.copy(), {20: np.nan, 25: np.inf, 26: -np.inf, 30: -1.0, 35: 1e30, 36: 2.0**24 + 2}
    for at, value in bad.items():
        sent[at, at % toy.n_channels] = value
        observed[at] = 0
    with (
        LslSource(sent, 50.0, pace=200) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(75).receive(lambda self: self.statuses[-1]["bins"] == 75)
        served.check_order()
        served.check_values(x, observed)
        assert flagged(served, Flags.GAP) == (observed[toy.n_anchor :] == 0).tolist()
        assert (served.statuses[-1]["nan"], served.statuses[-1]["overflow"], served.statuses[-1]["gaps"]) == (4, 2, 6)


@pytest.mark.parametrize(
    ("leaves", "stays", "cure"),
    [("leaving", "staying", "add source_id="), ("first", "first", "give each a source_id of its own")],
)
def test_two_streams_in_place_of_the_lost_one_are_named_and_the_one_that_stays_is_taken(tmp_path, leaves, stays, cure):
    toy, name = Toy(), f"twins-{uuid.uuid4().hex[:12]}"
    x = toy.counts(2000)
    with Served(tmp_path, toy, f"name={name}") as served, contextlib.ExitStack() as twins:
        with LslSource(x, 50.0, source_id=f"{name}-first", name=name):
            served.bins(5)
            leaving = twins.enter_context(LslSource(x, 50.0, source_id=f"{name}-{leaves}", name=name))
            twins.enter_context(LslSource(x, 50.0, source_id=f"{name}-{stays}", name=name))
        served.receive(lambda self: "2 LSL streams match" in self.statuses[-1]["stream"]["problem"])
        problem = served.statuses[-1]["stream"]["problem"]
        assert f"{name}-{leaves}" in problem
        assert f"{name}-{stays}" in problem
        assert cure in problem
        assert not served.statuses[-1]["stream"]["connected"]
        before = len(served.frames)
        leaving.process.kill()
        served.receive(lambda self: len(self.frames) > before and not self.frames[-1].flags & Flags.GAP)
        served.check_order()
        status = served.receive(lambda self: self.statuses[-1]["bins"] > before).statuses[-1]
        assert (status["stream"]["source_id"], status["stream"]["problem"]) == (f"{name}-{stays}", "")
        assert served.stop()[0] == 0


def test_a_source_that_answers_no_clock_probes_is_decoded_all_the_same(monkeypatch, caplog):
    def silent(inlet, timeout):
        raise pylsl.util.TimeoutError

    monkeypatch.setattr(pylsl.StreamInlet, "time_correction", silent)  # as where a firewall stops UDP
    toy = Toy()
    with LslSource(toy.counts(20), 50.0, pace=200) as stream:
        source = Source(find(f"source_id={stream.source_id}", 10), Wanted(toy.channels, WIDTH))
        try:
            assert sum(source.pull(1, 10.0) for _ in range(20)) == 20
            assert source.clock_offset_s == 0
            assert "answers no clock probes" in caplog.text
        finally:
            source.close()


def test_what_lsl_drops_for_a_daemon_that_is_stopped_comes_out_as_gaps(tmp_path):
    toy = Toy(n_channels=1024)
    x = toy.counts(3200)  # 13 MB: more than LSL's 10 s at 50 Hz and the sockets between keep
    with (
        LslSource(x, 50.0, pace=800, chunk=4) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(100)
        served.process.send_signal(signal.SIGSTOP)
        source.wait_pushed()
        served.process.send_signal(signal.SIGCONT)
        served.bins(len(x) - toy.n_anchor)
        served.check_order()
        gaps = np.array(flagged(served, Flags.GAP))
        assert gaps.sum() > 100
        assert not gaps[-400:].any()  # the newest are kept
        served.check_values(x, np.r_[np.ones(toy.n_anchor), ~gaps].astype(np.float32))
        status = served.receive(lambda self: self.statuses[-1]["bins"] == len(self.frames)).statuses[-1]
        assert (status["gaps"], status["late"], status["duplicates"]) == (gaps.sum(), 0, 0)


# subscribers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=MINUTE)])
def test_a_subscriber_that_is_stopped_keeps_nobody_waiting(tmp_path, seconds):
    toy = Toy(bin_width_s=0.01)
    x = toy.counts(100 * seconds)
    with (
        LslSource(x, 100.0) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
        program("-m", "rtdsae", "listen", served.endpoint, "--json") as listening,
    ):
        heard = [json.loads(listening.stdout.readline())["seq"]]
        listening.send_signal(signal.SIGSTOP)
        n = len(x) - toy.n_anchor
        served.bins(n)
        served.check_order()
        served.check_values(x)
        listening.send_signal(signal.SIGCONT)
        while heard[-1] < n - 1:  # what waited for it meanwhile
            heard.append(json.loads(listening.stdout.readline())["seq"])
        assert heard == list(range(heard[0], n))


def test_a_recorder_that_is_stopped_ends_with_every_bin(tmp_path):
    """More is published meanwhile than the sockets between keep: the rest comes from the daemon's history.

    The source runs at four times its rate: what LSL has no room for meanwhile is a gap, as for every subscriber.
    """
    toy, endpoint, out = Toy(bin_width_s=0.001), f"ipc://{tmp_path}/control", tmp_path / "out.h5"
    x = toy.counts(24_000)
    with (
        LslSource(x, 1000.0, pace=4000, chunk=40) as source,
        Served(
            tmp_path,
            toy,
            f"source_id={source.source_id}",
            "--publish",
            "factors,rates",
            "--control",
            endpoint,
            "--set",
            "model.history_s=30",
        ) as served,
        program("-m", "rtdsae", "record", out, "--endpoint", served.endpoint, "--control", endpoint) as recorder,
    ):
        served.bins(4000)
        recorder.send_signal(signal.SIGSTOP)
        served.bins(22_000)
        recorder.send_signal(signal.SIGCONT)
        served.bins(len(x) - toy.n_anchor)
        recorder.send_signal(signal.SIGINT)
        said = recorder.communicate(timeout=60)[0]
        with h5py.File(out) as file:
            seq, flags, factors = (file["part000"][name][:] for name in ("seq", "flags", "arrays/factors"))
            assert (file.attrs["missing"], "part001" in file) == (0, False)
        assert (flags & Flags.BACKFILL).any(), said
        np.testing.assert_array_equal(seq, np.arange(seq[0], len(seq) + seq[0]))
        assert len(seq) + seq[0] >= 22_000
        gaps = np.array(flagged(served, Flags.GAP))
        np.testing.assert_array_equal((flags & Flags.GAP) > 0, gaps[seq])
        assert gaps.mean() < 0.9
        observed = np.concatenate([np.ones(toy.n_anchor), ~gaps])
        np.testing.assert_allclose(factors, toy.run(x, observed)["factors"][seq], atol=2e-4)


def test_a_conflated_subscriber_has_the_newest_bin_and_no_old_one(tmp_path):
    toy = Toy()
    with (
        LslSource(toy.counts(100), 50.0, pace=100) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
        served.context.socket(zmq.SUB) as newest,
    ):
        newest.setsockopt(zmq.CONFLATE, 1)
        newest.subscribe(wire.LATENTS)
        newest.connect(served.endpoint)
        served.bins(95)
        heard = []
        while heard[-1:] != [94]:
            assert newest.poll(20_000)
            heard.append(wire.decode(newest.recv()).seq)
        assert len(heard) <= 3  # the last may have been on its way


CROWD = """
import random, sys, zmq
context, sockets, came, heard = zmq.Context(), [], 0, 0
while sys.stdin.readline():
    for _ in range(10):
        socket = context.socket(zmq.SUB)
        socket.connect(sys.argv[1])
        socket.subscribe(random.choice([b"", b"latents", b"schema", b"status"]))
        sockets.append(socket)
        came += 1
    for socket in random.sample(sockets, len(sockets) // 2):
        while socket.poll(0):
            heard += socket.recv().startswith(b"latents")
    while len(sockets) > 50:
        sockets.pop(random.randrange(len(sockets))).close(0)
    print(came, heard, flush=True)
context.destroy(0)
"""


def test_fifty_subscribers_that_come_and_go_leave_no_hole_with_another(tmp_path):
    toy = Toy()
    x = toy.counts(300)
    with (
        LslSource(x, 50.0, pace=100) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
        program("-c", CROWD, served.endpoint, stdin=subprocess.PIPE) as crowd,
    ):
        for n in range(1, 60):
            served.bins(5 * n)
            crowd.stdin.write("\n")
            crowd.stdin.flush()
            came, heard = map(int, crowd.stdout.readline().split())
        served.bins(295)
        served.check_order()
        served.check_values(x)
        assert came == 590
        assert heard > 100


# control --------------------------------------------------------------------------------------------------------------


def test_garbage_for_control_leaves_the_bins_and_other_clients_alone(tmp_path):
    toy, rng = Toy(), np.random.default_rng(0)
    x = toy.counts(200)
    endpoint = f"ipc://{tmp_path}/control"
    texts = [b"", b"{", b"null", b'{"request": "stop"', b'{"request": "swap", "bundle": "/dev/zero"}', b"[" * 4000]
    with (
        LslSource(x, 50.0, pace=100) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--control", endpoint) as served,
        served.context.socket(zmq.DEALER) as hostile,
    ):
        hostile.connect(endpoint)
        for n, text in zip(range(1, 36), itertools.cycle(texts), strict=False):
            served.bins(5 * n)
            hostile.send_multipart([rng.bytes(50)] * (n % 7), zmq.NOBLOCK) if n % 7 else None
            hostile.send(text, zmq.NOBLOCK)
        with Control(endpoint, timeout_s=20) as client:
            assert client.status()["bundle"] == "toy"
        served.bins(195)
        served.check_order()
        served.check_values(x)
        assert hostile.poll(20_000)
        assert not json.loads(hostile.recv_multipart()[-1])["ok"]


# the daemon -----------------------------------------------------------------------------------------------------------


def test_two_interrupts_end_it_as_one_does(tmp_path):
    toy = Toy()
    with (
        LslSource(toy.counts(10_000), 50.0) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(5)
        served.process.send_signal(signal.SIGINT)
        code, said = served.stop(signal.SIGINT)
        assert code == 0
        assert "Traceback" not in said
        served.receive(lambda self: self.statuses and self.statuses[-1]["bins"] == len(self.frames))
        served.check_order()


def test_a_daemon_that_is_killed_and_started_again_publishes_from_the_bin_after_its_anchor(tmp_path):
    toy = Toy()
    x = toy.counts(1000)
    with LslSource(x, 50.0) as source:
        query = f"source_id={source.source_id}"
        with (
            Served(tmp_path, toy, query) as first,
            Subscriber(first.endpoint, timeout_s=20) as subscriber,
        ):
            first.bins(10)
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait(20)
            with Served(tmp_path, toy, query, bundle=first.bundle) as second:
                second.bins(10)
                second.check_order()
                assert second.frames[0].bin == toy.n_anchor
                assert second.frames[0].run != first.frames[0].run
                # Its values are those of a model anchored on the first S samples that it saw, wherever they were.
                bins_later = round((second.frames[0].t_bin - first.frames[0].t_bin) / WIDTH)
                second.check_values(x[bins_later : bins_later + len(second.frames) + toy.n_anchor])
                heard = next(bin_ for bin_ in subscriber if bin_.run == second.frames[0].run)
                second.bins(heard.seq + 1)
                assert heard.payload.tobytes() == second.frames[heard.seq].payload.tobytes()
                assert (subscriber.restarts, subscriber.holes, subscriber.errors) == (1, heard.seq, 0)


# real time stamps -----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent.parent
STAMPS = Path(os.environ.get("RTDSAE_DATA") or ROOT.parent / "shared" / "data") / "xdf" / "timing_only"


def stamps_of(file, stream):
    if not (path := STAMPS / file).is_file():
        pytest.skip(f"{path}: no such time stamps here; set RTDSAE_DATA to the folder that holds xdf/timing_only")
    with np.load(path) as arrays:
        return arrays[stream]


def accounted(status, counts):
    return counts + sum(status[name] for name in ("late", "duplicates", "nan", "overflow", "partial"))


@pytest.mark.parametrize(
    ("file", "stream", "rate", "part", "faults"),
    [
        ("polar_ecg_acc_S002.npz", "s0_raw_ts", 200.0, slice(2000, 3500), ("late", "duplicates", "gaps")),
        ("clock_resets.npz", "s1_raw_ts", 100.0, "reset", ("resets", "gaps")),
    ],
)
def test_real_stamps_of_a_regular_stream_go_through(tmp_path, file, stream, rate, part, faults):
    stamps = stamps_of(file, stream)
    if part == "reset":
        at = int(np.diff(stamps).argmin())
        part = slice(at - 600, at + 600)
    stamps = stamps[part]
    n, toy = len(stamps), Toy(bin_width_s=1 / rate)
    x = toy.counts(n)
    with (
        LslSource(x, rate, offsets=stamps - stamps[0], pace=600) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.receive(
            lambda self: (
                self.frames
                and self.statuses
                and accounted(s := self.statuses[-1], toy.n_anchor + s["bins"] - s["gaps"]) == n
            )
        )
        status = served.receive(lambda self: len(self.frames) == self.statuses[-1]["bins"]).statuses[-1]
        assert all(status[name] for name in faults)
        assert [f.seq for f in served.frames] == list(range(status["bins"]))
        assert [f.bin for f in served.frames] == list(range(toy.n_anchor, toy.n_anchor + status["bins"]))
        seen = ~np.array(flagged(served, Flags.GAP))
        assert (~seen).sum() == status["gaps"]
        # An observed bin's end is its sample's stamp, which says which sample it was, and so what the answer must be.
        ends = np.array([f.t_bin for f in served.frames])
        distance = np.abs((ends - ends[0])[:, None] - (stamps - stamps[toy.n_anchor])[None, :])
        which = distance.argmin(axis=1)
        assert distance.min(axis=1)[seen].max() < 1e-4
        assert (np.diff(which[seen]) > 0).all()
        whole = np.concatenate([x[: toy.n_anchor], np.where(seen[:, None], x[which], 0)])
        served.check_values(whole, np.r_[np.ones(toy.n_anchor), seen].astype(np.float32))


def test_real_stamps_of_events_go_through_in_real_time(tmp_path):
    stamps = stamps_of("tobii_gaze.npz", "s0_raw_ts")
    at = int(np.diff(stamps).argmax())  # eighth of a second without an event
    stamps = stamps[at - 150 : at + 150]
    phase = (stamps - stamps[0]) % WIDTH  # without those on an edge, which a clock's correction may move across it
    stamps = stamps[(phase > 5e-4) & (phase < WIDTH - 5e-4) | (stamps == stamps[0])]
    n, toy = len(stamps), Toy(bin_width_s=WIDTH)
    channels = np.random.default_rng(0).integers(0, toy.n_channels, n)
    with (
        LslSource(channels[:, None].astype(float), 0.0, offsets=stamps - stamps[0], on_time=True) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--set", "lateness_s=0.1") as served,
    ):
        served.receive(lambda self: self.frames and self.frames[-1].t_bin > self.frames[0].t_bin + np.ptp(stamps) + 0.5)
        served.check_order()
        np.testing.assert_allclose(np.diff([f.t_bin for f in served.frames]), WIDTH, atol=1e-6)
        end = len(served.frames) + toy.n_anchor
        times = np.round((stamps - stamps[0]) * 1e9).astype(np.int64)
        x = np.zeros((end, toy.n_channels), np.float32)
        np.add.at(x, (times // round(1e9 * WIDTH), channels), 1)
        served.check_values(x)
        assert not any(flagged(served, Flags.GAP))
        status = served.receive(lambda self: self.statuses[-1]["bins"] >= len(self.frames)).statuses[-1]
        assert [status[name] for name in ("late", "nan", "overflow", "partial", "resets")] == [0] * 5

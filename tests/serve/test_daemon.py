"""The daemon, end to end: a real source, a real daemon and a real subscriber, each in a process of its own."""

import contextlib
import gc
import signal
import subprocess
import sys
import uuid

import numpy as np
import pylsl
import pytest
import zmq
from lsl_source import LslSource
from station import until
from toy_bundle import Lanes, Toy

from rtdsae import wire
from rtdsae.bundle import load
from rtdsae.client import keys
from rtdsae.serve.daemon import Daemon
from rtdsae.serve.decoder import Decoder
from rtdsae.serve.engine import Engine
from rtdsae.serve.publisher import Publisher
from rtdsae.serve.realtime import RealTime
from rtdsae.serve.search import find
from rtdsae.serve.settings import Model, Settings
from rtdsae.serve.wake import Rehearsal
from rtdsae.signals import caught
from rtdsae.wire import Flags

ARRAYS = ("factors", "z", "behaviour")


class Served:
    """A daemon on a bundle and a stream, and a subscriber that was there before it."""

    def __init__(self, folder, toy, query, *options, bundle=None):
        self.toy = toy
        self.bundle = bundle or toy.write(folder / "toy")
        self.endpoint = f"ipc://{folder}/pub"
        self.command = [sys.executable, "-m", "rtdsae", "serve", str(self.bundle), "--stream", query]
        self.command += ["--pub", self.endpoint, *options]
        self.schema, self.frames, self.statuses = None, [], []

    def __enter__(self):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.subscribe(b"")
        self.socket.connect(self.endpoint)
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self

    def receive(self, until):
        """Takes in messages until `until(self)`."""
        while not until(self):
            assert self.socket.poll(20_000), self.stop()
            match wire.decode(self.socket.recv()):
                case wire.Schema() as schema:
                    self.schema = schema
                case wire.Latents() as latents:
                    self.frames.append(latents.bind(self.schema))
                case wire.Status() as status:
                    self.statuses.append(status)
        return self

    def bins(self, n):
        return self.receive(lambda self: len(self.frames) >= n)

    def stop(self, number=signal.SIGTERM):
        """Ends it by a signal; its exit code, and what it said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        said = "".join(self.process.communicate(timeout=20))
        return self.process.returncode, said

    def __exit__(self, *error):
        self.process.kill()
        with contextlib.suppress(ValueError):  # already read to its end
            self.process.communicate(timeout=20)
        self.context.destroy(linger=0)

    def check_order(self):
        """Every bin exactly once, in order, and its times in theirs."""
        assert [f.seq for f in self.frames] == list(range(len(self.frames)))
        assert [f.bin for f in self.frames] == [self.frames[0].bin + i for i in range(len(self.frames))]
        assert len({f.run for f in self.frames}) == 1
        t_bin, t_in, t_out = np.array([(f.t_bin, f.t_in, f.t_out) for f in self.frames]).T
        assert (np.diff(t_bin) > 0).all()
        assert (np.diff(t_in) >= 0).all()
        assert (t_in < t_out).all()
        assert (t_out[:-1] <= t_out[1:]).all()
        late = t_out > t_bin + self.schema.bin_width_s
        assert [bool(f.flags & Flags.LATE) for f in self.frames] == late.tolist()

    def check_values(self, x, observed=None):
        expected = self.toy.run(x, observed)
        for name in ARRAYS:
            found = np.stack([f[name] for f in self.frames])
            np.testing.assert_allclose(found, expected[name], atol=2e-4, err_msg=name)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Makes daemons that run in this process, on a source."""
    monkeypatch.setattr(RealTime, "apply", lambda self: [])  # it is for a process of its own

    def here(toy, source, **settings):
        stream, pub = f"source_id={source.source_id}", f"ipc://{tmp_path}/pub"
        return Daemon(Settings(bundle=toy.write(tmp_path / "toy"), stream=stream, pub=pub, **settings))

    return here


@pytest.mark.parametrize("lanes", [1, 2])
def test_every_bin_once_in_order_with_the_models_values(tmp_path, lanes):
    toy = Toy(lanes=lanes)
    x = toy.counts(100)
    with (
        LslSource(x, 50.0, labels=toy.channels) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--anchor", "once") as served,
    ):
        served.bins(95)
        served.check_order()
        served.check_values(x)
        assert [a.name for a in served.schema.arrays] == list(ARRAYS)
        assert served.frames[0].bin == toy.n_anchor
        assert served.frames[0].flags & ~Flags.LATE == Flags.ANCHORED
        assert all(not f.flags & ~Flags.LATE for f in served.frames[1:])
        stamps = np.array([f.t_bin for f in served.frames])
        np.testing.assert_allclose(np.diff(stamps), 0.02, atol=1e-3)
        assert all(f.t_bin < f.t_in for f in served.frames)


def test_a_bundle_of_two_lanes_runs_in_lanes(tmp_path):
    toy = Toy(lanes=2)
    x = toy.counts(100)
    with (
        LslSource(x, 50.0, labels=toy.channels) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(90)
        served.check_order()
        expected, anchored = Lanes.run(toy, x[: served.frames[-1].bin + 1])
        assert [i for i, f in enumerate(served.frames) if f.flags & Flags.ANCHORED] == anchored
        for name in ARRAYS:
            np.testing.assert_allclose(np.stack([f[name] for f in served.frames]), expected[name], atol=2e-4)


def test_an_anchor_waits_until_the_bins_that_it_needs_are_published(here, monkeypatch):
    toy, done = Toy(), []
    for owner, name in ((Decoder, "decode"), (Publisher, "send"), (Engine, "anchor")):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _call=call, _name=name: (done.append(_name), _call(*a))[1])
    with LslSource(toy.counts(120), 50.0, pace=500) as source:
        daemon = here(toy, source, model=Model(anchor="every"))
        monkeypatch.setattr(daemon, "_housekeep", lambda: daemon._seq < 100 or daemon.stop())
        daemon.run()
    anchors = [i for i, name in enumerate(done) if name == "anchor"]
    assert len(anchors) >= 4  # one of the golden run, one before the first bin
    assert {tuple(done[i - 2 : i]) for i in anchors[2:]} == {("decode", "send")}


def test_a_gap_is_forecast_and_flagged(tmp_path):
    toy = Toy()
    x, observed = toy.counts(60), np.ones(60, np.float32)
    observed[20:24] = 0
    seen = observed == 1
    offsets = (np.arange(60) + 1) * 0.02
    with (
        LslSource(x[seen], 50.0, offsets=offsets[seen], pace=100) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(55).receive(lambda self: self.statuses[-1]["bins"] == 55)
        served.check_order()
        served.check_values(x, observed)
        assert [bool(f.flags & Flags.GAP) for f in served.frames] == (observed[5:] == 0).tolist()
        assert served.statuses[-1]["gaps"] == 4


def test_what_is_not_a_count_becomes_a_gap_with_a_name(tmp_path):
    toy = Toy()
    x, observed = toy.counts(40), np.ones(40, np.float32)
    sent = x.copy()
    sent[20, 2] = np.nan
    observed[20] = 0
    with (
        LslSource(sent, 50.0, pace=200) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(35).receive(lambda self: self.statuses[-1]["bins"] == 35)
        served.check_order()
        served.check_values(x, observed)
        assert served.frames[15].flags & Flags.GAP
        assert served.statuses[-1]["nan"] == 1


@pytest.mark.parametrize(("rate", "told"), [(25.0, True), (50.0, False)])
def test_a_stream_that_is_slower_than_it_says_is_told_of(here, monkeypatch, caplog, rate, told):
    monkeypatch.setattr("rtdsae.serve.daemon.PATIENCE_S", 1.0)
    toy = Toy()
    with LslSource(toy.counts(200), 50.0, offsets=np.arange(1, 201) / rate, pace=rate) as source:
        daemon = here(toy, source)
        explain = daemon._explain
        monkeypatch.setattr(daemon, "_explain", lambda: explain() and (daemon.stop() or True))
        with caplog.at_level("WARNING", "rtdsae"):
            daemon.run()
    assert ("nothing is published yet: no 5 bins came without a gap" in caplog.text) == told


def test_an_anchor_that_gaps_forbid_is_told_of_once(tmp_path):
    toy = Toy(lanes=2)
    sent = toy.counts(600)
    sent[20::4, 0] = np.nan
    with (
        LslSource(sent, 50.0, pace=200) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(590).receive(lambda self: self.statuses[-1]["bins"] > 590)
        _, said = served.stop()
    assert said.count("bins overdue, for want of 5 without a gap") == 1
    assert served.statuses[-1]["anchors"] < 5


@pytest.mark.parametrize(("mode", "n_bins", "rehearses"), [("warm", 200, True), ("off", 10, False)])
def test_it_rehearses_before_its_bins_where_it_is_told_to(here, monkeypatch, mode, n_bins, rehearses):
    toy, rehearse, rehearsals = Toy(bin_width_s=0.05), Rehearsal.__call__, []
    monkeypatch.setattr(Rehearsal, "__call__", lambda self: rehearsals.append(self) or rehearse(self))
    with LslSource(toy.counts(205), 20.0) as source:
        daemon = here(toy, source, wake=mode)
        publish = daemon._publish

        def publish_and_count(*bin_):
            publish(*bin_)
            if daemon._seq == n_bins or len(rehearsals) >= 3:
                daemon.stop()

        monkeypatch.setattr(daemon, "_publish", publish_and_count)
        daemon.run()
    assert len(rehearsals) >= 3 if rehearses else not rehearsals


def test_what_was_loaded_is_out_of_the_collectors_sight_before_the_first_bin(thawed, here, monkeypatch):
    toy, frozen = Toy(), []
    with LslSource(toy.counts(1), 50.0) as source:
        daemon = here(toy, source)
        monkeypatch.setattr(daemon, "_take", lambda _: (frozen.append(gc.get_freeze_count()), daemon.stop()))
        daemon.run()
    assert frozen[0] > 10_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(tmp_path, number):
    toy = Toy()
    with (
        LslSource(toy.counts(100_000), 50.0) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(5)
        code, said = served.stop(number)
        assert code == 0
        last = served.receive(lambda self: self.statuses and self.statuses[-1]["bins"] == len(self.frames) >= 5)
        last.check_order()
        assert f"published {len(last.frames)} bins" in said
        assert "CPUExecutionProvider" in said
        assert not served.socket.poll(100)  # the last status was the last word


@pytest.mark.parametrize(("interrupts", "n_bins", "unread"), [(1, 45, 0), (2, 0, 50)])
def test_what_has_arrived_by_the_end_is_published_or_counted_if_it_is_interrupted_twice(
    here, monkeypatch, interrupts, n_bins, unread
):
    """In this process, since no signal to another one finds it with samples in hand that it has not yet decoded."""
    toy = Toy()
    with LslSource(toy.counts(50), 50.0, pace=500) as source:
        daemon = here(toy, source)

        def main_loop():
            until(lambda: daemon._link.source.available() == 50, "all samples")
            for _ in range(interrupts):
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(daemon, "_main_loop", main_loop)
        daemon.run()
        assert daemon.status()["bins"] == n_bins
        assert daemon.status()["stream"]["unread"] == unread


def test_what_was_sent_before_the_end_and_is_still_on_its_way_is_published_too(here, monkeypatch):
    """As after a pause of the whole process: of what waits in the socket LSL has the first sample in hand."""
    monkeypatch.setattr("rtdsae.serve.intake.PATIENCE_S", 5.0)
    monkeypatch.setattr("rtdsae.serve.daemon.DRAIN_S", 60.0)
    toy = Toy()
    with LslSource(toy.counts(50), 50.0, offsets=0.02 * np.arange(50) - 2.0, pace=100) as source:
        daemon = here(toy, source)
        monkeypatch.setattr(daemon, "_main_loop", lambda: until(lambda: daemon._link.source.available(), "a sample"))
        daemon.run()
    assert daemon.status()["bins"] == 45
    assert daemon.status()["stream"]["unread"] == 0


def test_two_interrupts_end_a_long_gap_too(here, monkeypatch):
    toy, n_gaps = Toy(bin_width_s=0.001), 40_000
    offsets = np.arange(20) * 0.001
    offsets[10:] += n_gaps * 0.001
    with LslSource(toy.counts(20), 1000.0, offsets=offsets) as source:
        daemon = here(toy, source)
        housekeep = daemon._housekeep

        def interrupted():
            housekeep()
            if daemon._seq > 10 and not daemon.should_exit:  # in the gap
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(daemon, "_housekeep", interrupted)
        daemon.run()
    assert 10 < daemon.status()["bins"] < n_gaps


def test_status_has_what_was_promised_from_the_start(tmp_path):
    toy = Toy()
    source = LslSource(toy.counts(100), 50.0)
    with Served(tmp_path, toy, f"source_id={source.source_id}") as served:
        first = served.receive(lambda self: self.statuses).statuses[0]
        assert served.schema.bundle == "toy"
        stream = {
            "connected": False,
            "source_id": None,
            "kind": None,
            "clock_offset_s": None,
            "losses": 0,
            "unread": 0,
            "problem": "",
        }
        assert first["stream"] == stream
        assert first["latency_us"] == {"p50": None, "p99": None, "p99.9": None, "max": None}
        with source:
            later = served.receive(lambda self: self.statuses[-1]["bins"]).statuses[-1]
        counters = "bins bins_late gaps late duplicates nan overflow partial resets anchors"
        assert set(later) == set(f"{counters} stream latency_us bundle session run".split())
        assert later["session"] == "toy"  # the only one, unnamed
        assert (later["bundle"], later["anchors"], later["run"]) == ("toy", 1, served.frames[0].run)
        assert later["stream"]["source_id"] == source.source_id
        assert (later["stream"]["connected"], later["stream"]["kind"]) == (True, "counts")
        assert abs(later["stream"]["clock_offset_s"]) < 0.01
        times = later["latency_us"]
        assert 0 < times["p50"] <= times["p99"] <= times["p99.9"] <= times["max"]


def test_a_silent_stream_is_told_and_waited_for(tmp_path):
    toy = Toy()
    with (
        LslSource(toy.counts(20), 50.0, pace=200) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(15).receive(lambda self: self.statuses[-1]["stream"]["connected"])
        served.receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        assert served.process.poll() is None
        code, said = served.stop()
        assert code == 0
        assert f"stream {source.source_id} is silent: waiting for it" in said


def test_silent_spikes_are_told_too_though_their_bins_go_on(tmp_path):
    """The clock completes their bins; that is no sign of life."""
    toy = Toy()
    spikes, offsets = np.zeros((200, 1), np.float32), np.arange(200) * 0.005
    with (
        LslSource(spikes, 0, offsets=offsets, on_time=True) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--set", "silence_s=0.5") as served,
    ):
        served.bins(15).receive(lambda self: self.statuses[-1]["stream"]["connected"])
        served.receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        n = len(served.frames)
        served.receive(lambda self: len(self.frames) > n + 20)
        assert served.frames[-1].flags & Flags.GAP


def test_a_stream_that_pauses_is_not_left_for_another(tmp_path):
    toy, name = Toy(), f"pausing-{tmp_path.name}"
    x = toy.counts(20)
    with (
        LslSource(x, 50.0, pace=200, source_id=f"{name}-a", name=name),
        Served(tmp_path, toy, f"name={name}") as served,
    ):
        served.bins(15).receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        with LslSource(toy.counts(400), 50.0, source_id=f"{name}-b", name=name) as other:
            find(f"source_id={other.source_id}", 20)
            n = len(served.statuses)
            served.receive(lambda self: len(self.statuses) >= n + 4)
            assert served.statuses[-1]["stream"]["source_id"] == f"{name}-a"
        with LslSource(x, 50.0, source_id=f"{name}-a", name=name):  # itself, restarted: the old connection stands yet
            served.receive(lambda self: self.statuses[-1]["stream"]["connected"])


@pytest.mark.slow
def test_a_stream_that_pauses_for_long_is_heard_by_the_connection_that_stands(tmp_path):
    """Another is tried after 14 s, for 5, and again after 32, where it is open just then: no sample is lost by it."""
    toy, pause = Toy(), 32
    x = toy.counts(200)
    offsets = (np.arange(200) + 1) * 0.02
    offsets[100:] += pause
    with (
        LslSource(x, 50.0, offsets=offsets, on_time=True) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(90).receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        n = 200 + pause * 50
        served.bins(n - toy.n_anchor)
        served.check_order()
        whole, observed = np.zeros((n, toy.n_channels), np.float32), np.zeros(n, np.float32)
        whole[:100], whole[-100:], observed[:100], observed[-100:] = x[:100], x[100:], 1, 1
        served.check_values(whole, observed)
        code, said = served.stop()
        assert code == 0
        assert "is back" not in said


@pytest.mark.parametrize("same_id", [True, False])
def test_a_source_that_dies_and_returns_goes_on_on_the_same_grid(tmp_path, same_id):
    toy, name = Toy(), f"returning-{tmp_path.name}"
    x = toy.counts(400)
    first, second = ("one", "one" if same_id else "two")
    with Served(tmp_path, toy, f"name={name}") as served:
        with LslSource(x, 50.0, source_id=f"{name}-{first}", name=name):
            served.bins(20)
        served.receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        before = len(served.frames)
        with LslSource(x, 50.0, source_id=f"{name}-{second}", name=name):
            served.receive(lambda self: self.statuses[-1]["stream"]["connected"])
            served.receive(lambda self: len(self.frames) > before and not self.frames[-1].flags & Flags.GAP)
        served.check_order()
        assert any(f.flags & Flags.GAP for f in served.frames[before:])  # the time between, bin by bin
        stream = served.receive(lambda self: self.statuses[-1]["bins"] > before).statuses[-1]["stream"]
        assert stream["losses"] >= 1
        assert served.stop()[0] == 0


def test_a_daemon_whose_source_has_died_still_exits_0(tmp_path):
    toy = Toy()
    with Served(tmp_path, toy, "source_id=test-dying") as served:
        with LslSource(toy.counts(400), 50.0, source_id="test-dying"):
            served.bins(5)
        served.receive(lambda self: not self.statuses[-1]["stream"]["connected"])
        assert served.stop()[0] == 0


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"n_channels": 5}, "has 5 channels, the model was trained on 6"),
        ({"rate": 100.0}, "came back with samples at 100 Hz, it was counts before"),
        ({"rate": 30.0}, "samples at 30 Hz do not make whole bins"),
        ({"sample_format": "string"}, "has string samples"),
    ],
)
def test_another_stream_in_place_of_the_lost_one_is_checked_and_the_right_one_waited_for(tmp_path, other, problem):
    toy, name = Toy(), f"changed-{tmp_path.name}"
    x = toy.counts(400)
    with Served(tmp_path, toy, f"name={name}") as served:
        with LslSource(x, 50.0, source_id=name, name=name):
            served.bins(5)
        wrong, rate = x[:, : other.get("n_channels", 6)], other.get("rate", 50.0)
        with LslSource(wrong, rate, source_id=name, name=name, sample_format=other.get("sample_format", "float32")):
            served.receive(lambda self: problem in self.statuses[-1]["stream"]["problem"])
        before = len(served.frames)
        with LslSource(x, 50.0, source_id=name, name=name):
            served.receive(lambda self: len(self.frames) > before and not self.frames[-1].flags & Flags.GAP)
        served.check_order()
        code, said = served.stop()
        assert (code, said.count(problem)) == (0, 1)


def test_a_second_interrupt_forces(tmp_path):
    daemon = Daemon(Settings(bundle=tmp_path))
    with caught(daemon._on_signal):
        signal.raise_signal(signal.SIGINT)
        assert (daemon.should_exit, daemon.force_exit) == (True, False)
        signal.raise_signal(signal.SIGINT)
        assert daemon.force_exit
    with pytest.raises(KeyboardInterrupt):  # afterwards it means again what it meant before
        signal.raise_signal(signal.SIGINT)


def test_a_signal_while_waiting_for_the_stream_exits_0(tmp_path):
    with Served(tmp_path, Toy(), "source_id=nobody", "--timeout", "60") as served:
        served.receive(lambda self: self.statuses)
        assert served.stop()[0] == 0


def test_publishes_what_is_asked_for(tmp_path):
    toy = Toy()
    x = toy.counts(20)
    with LslSource(x, 50.0, pace=100) as source:
        query = f"name=test,source_id={source.source_id}"
        with Served(tmp_path, toy, query, "--publish", "rates,f") as served:
            served.bins(10)
            expected = toy.run(x)
            for i, frame in enumerate(served.frames):
                assert frame.payload.size == toy.n_channels + 2
                np.testing.assert_allclose(frame["rates"], expected["rates"][i], atol=2e-4)
                np.testing.assert_allclose(frame["f"], expected["f"][i], atol=2e-4)
            assert served.schema.arrays[0].unit == "spikes/s"
            assert served.schema.arrays[0].labels == tuple(toy.channels)


def two_sessions(folder, **options):
    """A bundle of two sessions, and what each of them gives."""
    first = Toy()
    sessions = {"toy": first, "day2": first.for_neurons(9)}
    return first.write(folder / "two", further={"day2": sessions["day2"]}, **options), sessions


@pytest.mark.parametrize("session", ["toy", "day2"])
def test_a_session_is_served_by_name_on_its_own_neurons(tmp_path, session):
    bundle, sessions = two_sessions(tmp_path)
    toy = sessions[session]
    x = toy.counts(60)
    with LslSource(x, 50.0, labels=toy.channels, pace=100) as source:
        query = f"source_id={source.source_id}"
        options = ("--session", session, "--publish", ",".join((*ARRAYS, "rates")))
        with Served(tmp_path, toy, query, *options, bundle=bundle) as served:
            served.bins(55)
            served.check_order()
            served.check_values(x)
            rates = np.stack([f["rates"] for f in served.frames])
            np.testing.assert_allclose(rates, toy.run(x)["rates"], atol=2e-4)
            assert served.schema.arrays[-1].labels == tuple(toy.channels)
            assert served.schema.bundle_hash == load(bundle).hash
            assert {(s["bundle"], s["session"]) for s in served.statuses} == {("toy", session)}


def refused(served):
    """The one line on stderr of a daemon that does not start."""
    with served:
        said = served.process.communicate(timeout=30)[1].splitlines()
        assert (served.process.returncode, len(said)) == (2, 1)
        return said[0]


def test_no_such_stream(tmp_path):
    said = refused(Served(tmp_path, Toy(), "source_id=nobody", "--timeout", "0.5"))
    assert said.startswith("rtdsae serve: no LSL stream matches source_id=nobody after 0.5 s; ")


def test_a_stream_that_does_not_fit(tmp_path):
    with LslSource(np.zeros((1, 3)), 50.0) as source:
        said = refused(Served(tmp_path, Toy(), f"source_id={source.source_id}"))
        assert said.endswith(f"stream {source.source_id} has 3 channels, the model was trained on 6")


def test_several_sessions_and_none_named(tmp_path):
    bundle, _ = two_sessions(tmp_path)
    said = refused(Served(tmp_path, Toy(), "type=Spikes", bundle=bundle))
    assert said == f"rtdsae serve: {bundle}: has the sessions toy, day2: say which one with --session"


def test_no_such_session(tmp_path):
    bundle, _ = two_sessions(tmp_path)
    said = refused(Served(tmp_path, Toy(), "type=Spikes", "--session", "day3", bundle=bundle))
    assert said == f"rtdsae serve: {bundle}: has no session 'day3': it has toy, day2"


def test_a_stream_of_another_session(tmp_path):
    bundle, sessions = two_sessions(tmp_path)
    with LslSource(np.zeros((1, 6)), 50.0, labels=sessions["toy"].channels) as source:
        query = f"source_id={source.source_id}"
        said = refused(Served(tmp_path, Toy(), query, "--session", "day2", bundle=bundle))
        assert said.endswith(f"stream {source.source_id} has 6 channels, the model was trained on 9")


def test_a_port_in_use(tmp_path):
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        said = refused(Served(tmp_path, Toy(), "type=Spikes", "--pub", f"tcp://127.0.0.1:{port}"))
        assert said.startswith(f"rtdsae serve: cannot publish on tcp://127.0.0.1:{port}: Address already in use")


def test_an_array_that_the_bundle_does_not_have(tmp_path):
    said = refused(Served(tmp_path, Toy(), "type=Spikes", "--publish", "factors,latents"))
    assert "there is no 'latents' to publish" in said
    assert said.endswith("has factors, z, f, rates, behaviour, counts, forecast, forecast_behaviour")


def test_a_golden_run_that_does_not_come_out(tmp_path):
    bundle = Toy().write(tmp_path / "tampered", golden_error=0.01)
    said = refused(Served(tmp_path, Toy(), "type=Spikes", bundle=bundle))
    assert "golden.npz replayed on CPUExecutionProvider differs in factors" in said


def test_a_golden_run_of_a_session_that_does_not_come_out(tmp_path):
    bundle, _ = two_sessions(tmp_path, golden_error=0.01)
    said = refused(Served(tmp_path, Toy(), "type=Spikes", "--session", "day2", bundle=bundle))
    assert f"{bundle}/sessions/day2: golden.npz replayed on CPUExecutionProvider differs in factors" in said


def test_the_daemon_never_imports_torch():
    code = "import sys, rtdsae.serve.daemon; print(sorted({'torch', 'h5py', 'rtdsae.model'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_samples_become_bins_on_the_way(tmp_path):
    toy, k = Toy(), 10
    samples = np.random.default_rng(2).poisson(0.2, (60 * k, toy.n_channels)).astype(np.float32)
    with (
        LslSource(samples, 500.0, labels=toy.channels) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}") as served,
    ):
        served.bins(55)
        served.check_order()
        served.check_values(samples.reshape(60, k, -1).sum(axis=1))
        assert not any(f.flags & Flags.GAP for f in served.frames)


def test_events_become_bins_by_the_clock(tmp_path):
    toy = Toy()
    rng = np.random.default_rng(3)
    times = np.concatenate([[0.0], np.sort(rng.uniform(0, 1.6, 200))])
    channels = rng.integers(0, toy.n_channels, len(times))
    x = np.zeros((80, toy.n_channels), np.float32)
    np.add.at(x, ((times / 0.02).astype(int), channels), 1)
    with (
        LslSource(channels[:, None].astype(np.float32), 0.0, offsets=times, on_time=True) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--set", "lateness_s=0.2") as served,
    ):
        served.bins(75)
        served.check_order()
        served.frames = served.frames[:75]
        served.check_values(x)


def test_the_forecast_is_what_the_model_says_without_the_bins_to_come(tmp_path):
    toy, ahead = Toy(), 3
    x = toy.counts(60)
    options = ("--publish", "factors,forecast,forecast_behaviour", "--set", f"model.forecast_bins={ahead}")
    with (
        LslSource(x, 50.0, pace=200) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", *options) as served,
    ):
        served.bins(50)
        for f in served.frames[::7]:
            seen = np.concatenate([x[: f.bin + 1], np.zeros((ahead, toy.n_channels), np.float32)])
            observed = np.r_[np.ones(f.bin + 1), np.zeros(ahead)].astype(np.float32)
            expected = toy.run(seen, observed)
            np.testing.assert_allclose(f["factors"], expected["factors"][-1 - ahead], atol=2e-4)
            np.testing.assert_allclose(f["forecast"], expected["rates"][-1], atol=2e-4)
            np.testing.assert_allclose(f["forecast_behaviour"], expected["behaviour"][-1], atol=2e-4)


def test_the_bins_themselves_are_published_where_asked_for(tmp_path):
    toy = Toy()
    x, seen = toy.counts(60), np.r_[0:20, 24:60]
    with (
        LslSource(x[seen], 50.0, offsets=(seen + 1) * 0.02, pace=100) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--publish", "factors,counts") as served,
    ):
        served.bins(55)
        for f in served.frames:
            expected = np.zeros(toy.n_channels) if f.flags & Flags.GAP else x[f.bin]
            np.testing.assert_array_equal(f["counts"], expected)
        assert sum(bool(f.flags & Flags.GAP) for f in served.frames) == 4
        (array,) = [array for array in served.frames[0].schema.arrays if array.name == "counts"]
        assert (array.shape, array.unit, array.labels) == ((toy.n_channels,), "spikes", tuple(toy.channels))


def test_that_lsl_knows_no_keys_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(RealTime, "apply", lambda self: [])  # it is for a process of its own
    monkeypatch.setattr(Daemon, "_main_loop", lambda self: None)
    keys.make(tmp_path / "keys", ["arm"])
    toy, name = Toy(), f"out-{uuid.uuid4().hex}"
    with LslSource(toy.counts(20), 50.0) as source:
        folder, stream = toy.write(tmp_path / "toy"), f"source_id={source.source_id}"
        Daemon(
            Settings(bundle=folder, stream=stream, pub=f"ipc://{tmp_path}/pub", keys=tmp_path / "keys", lsl_out=name)
        ).run()
    assert f"lsl_out: the LSL stream {name} is open to all that LSL reaches" in caplog.text


def test_the_latents_go_out_as_an_lsl_stream_too(tmp_path):
    toy, name = Toy(), f"out-{tmp_path.name}"
    x = toy.counts(400)
    with (
        LslSource(x, 50.0) as source,
        Served(tmp_path, toy, f"source_id={source.source_id}", "--lsl-out", name) as served,
    ):
        served.bins(1)
        (info,) = pylsl.resolve_byprop("name", name, timeout=20)
        inlet = pylsl.StreamInlet(info, recover=False)
        samples = [inlet.pull_sample(10) for _ in range(20)]
        labels = inlet.info(10).get_channel_labels()
        assert (info.type(), info.source_id()) == ("Latents", f"rtdsae-{name}")
        assert labels[:4] == [f"factors.{i}" for i in range(4)]
        assert labels[-3:] == ["behaviour.vel_x", "behaviour.vel_y", "flags"]
        served.receive(lambda self: self.frames[-1].t_bin >= samples[-1][1])
        published = {round(f.t_bin, 6): f for f in served.frames}
        for values, stamp in samples:
            frame = published[round(stamp, 6)]
            np.testing.assert_allclose(values[:-1], frame.payload)
            assert values[-1] == frame.flags
        del inlet

"""What the decoding thread does and does not do, said by Python itself: nothing here depends on how fast a computer is.

The daemon runs in this process, and its main loop is profiled: which functions it calls, Python's and built-in ones.
"""

import contextlib
import gc
import json
import sys
import threading
from types import ModuleType

import numpy as np
import pytest
import zmq
from lsl_source import LslSource
from station import until
from toy_bundle import Toy

from rtdsae import wire
from rtdsae.serve import publisher
from rtdsae.serve.control import Control
from rtdsae.serve.daemon import Daemon
from rtdsae.serve.intake import EventsIntake, RegularIntake
from rtdsae.serve.pipeline import Pipeline
from rtdsae.serve.publisher import Publisher
from rtdsae.serve.realtime import RealTime
from rtdsae.serve.settings import Model, Settings
from rtdsae.serve.source import Lost
from rtdsae.serve.wake import Rehearsal

WIDTH = 0.01
N_BINS = 100
PULLS = {way.__code__ for kind in (RegularIntake, EventsIntake) for way in (kind.pull, kind.pull_early)}
SEND, PUBLISH = Publisher.send.__code__, Daemon._publish.__code__

# Whose functions have business on the path of a bin.
OURS = ("daemon", "decoder", "engine", "intake", "pipeline", "publisher", "recent", "source")
PATH = {f"rtdsae.serve.{name}" for name in OURS}
PATH |= {"rtdsae.bins", "rtdsae.wire", "numpy", "onnxruntime", "pylsl", "zmq", "builtins", "_struct", "namedtuple_Bins"}

CLOCK = "time", "monotonic"

lock, reentrant_lock = threading.Lock, threading.RLock


class Visible:
    """A lock that the profile sees: `with` does not call a built-in one as a function."""

    def __init__(self, lock):
        self._lock = lock

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *error):
        return self._lock.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._lock, name)


def called(frame, event, arg):
    """The module and the name of what an event of the profile calls."""
    if event == "call":
        return frame.f_globals["__name__"], frame.f_code.co_qualname
    owner = arg.__self__
    return arg.__module__ or (owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__), arg.__name__


class Paths:
    """What was called on each bin's way: from the pull that completed it until it was sent."""

    def __init__(self):
        self.of_bins, self._now = [], None

    def __call__(self, frame, event, arg):
        code = frame.f_code
        if code in PULLS:
            self._now = [] if event == "return" and arg else None
        elif self._now is not None and event in ("call", "c_call"):
            self._now.append(called(frame, event, arg))
        elif self._now is not None and code is SEND and frame.f_back.f_code is PUBLISH:
            self.of_bins.append(self._now)
            self._now = None


@contextlib.contextmanager
def profiled(function):
    sys.setprofile(function)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a daemon of this process; no garbage is collected, whose finalisers may do anything anywhere."""
    monkeypatch.setattr(RealTime, "apply", lambda self: [])  # it is for a process of its own
    monkeypatch.setattr(threading, "Lock", lambda: Visible(lock()))
    monkeypatch.setattr(threading, "RLock", lambda: Visible(reentrant_lock()))

    def make(toy, source, **settings):
        stream, pub, control = f"source_id={source.source_id}", f"ipc://{tmp_path}/pub", f"ipc://{tmp_path}/control"
        bundle = toy.write(tmp_path / "toy")
        return Daemon(Settings(bundle=bundle, stream=stream, pub=pub, control=control, **settings))

    gc.collect()
    gc.disable()
    yield make
    gc.enable()


def counts(toy):
    return LslSource(toy.counts(2000), 1 / WIDTH)


def samples(toy):
    return LslSource(np.random.default_rng(2).poisson(0.2, (10_000, toy.n_channels)), 5 / WIDTH)


def events(toy):
    spikes = np.random.default_rng(2).integers(0, toy.n_channels, (2000, 1)).astype(np.float32)
    return LslSource(spikes, 0, offsets=WIDTH * np.arange(2000), on_time=True)


@pytest.mark.parametrize("kind", [counts, samples, events])
@pytest.mark.parametrize("lanes", [1, 2])
def test_between_the_last_sample_of_a_bin_and_its_latents_there_is_nothing_but_decoding(make, monkeypatch, kind, lanes):
    """No logging, no JSON, no lock; nor anything else that has no business there."""
    toy, paths = Toy(bin_width_s=WIDTH, lanes=lanes), Paths()
    with kind(toy) as source:
        model = Model(publish=("factors", "rates", "counts", "forecast"), forecast_bins=3)
        daemon = make(toy, source, model=model)
        main_loop, housekeep, published = daemon._main_loop, daemon._housekeep, []

        def watched():
            with profiled(paths):
                main_loop()
            published.append(daemon._seq)

        monkeypatch.setattr(daemon, "_main_loop", watched)
        monkeypatch.setattr(daemon, "_housekeep", lambda: housekeep() or len(paths.of_bins) < N_BINS or daemon.stop())
        daemon.run()
    decode = (Pipeline.__module__, Pipeline.decode.__qualname__)
    steady = [path for path in paths.of_bins if path.count(decode) == 1]  # not the first after bins that had no answer
    assert len(steady) >= N_BINS - 1
    assert kind is events or len(steady) == published[0]  # of events, one pull may complete several bins
    strange = {(module, name) for path in steady for module, name in path if not _has_business(module, name)}
    assert not strange


LONG = 0.1  # of a bin, so that a busy computer, too, rests before some


@pytest.mark.parametrize(("kind", "intake"), [(samples, RegularIntake), (events, EventsIntake)])
def test_what_has_come_of_a_bin_is_taken_before_the_rehearsal_and_after_it(make, monkeypatch, kind, intake):
    pull_early, rehearse, done = intake.pull_early, Rehearsal.__call__, []
    with kind(Toy(bin_width_s=WIDTH)) as source:
        daemon = make(Toy(bin_width_s=LONG), source)

        def watched(*args):
            came = pull_early(*args)
            done.append("taken" if came else "nothing")
            return came

        monkeypatch.setattr(intake, "pull_early", watched)
        send = Publisher.rehearse
        monkeypatch.setattr(Rehearsal, "__call__", lambda rehearsal: done.append("rehearsed") or rehearse(rehearsal))
        monkeypatch.setattr(Publisher, "rehearse", lambda *args: done.append("sent") or send(*args))
        housekeep = daemon._housekeep
        monkeypatch.setattr(daemon, "_housekeep", lambda: housekeep() or daemon._seq < N_BINS or daemon.stop())
        daemon.run()
    assert "taken" in done
    n = len(done) // 4
    assert done[1::4] == ["rehearsed"] * n  # between what is taken before and after it
    assert done[2::4] == ["sent"] * n


def test_a_bin_that_comes_while_it_is_prepared_for_leaves_the_next_one_a_rehearsal_of_its_own(make, monkeypatch):
    toy, rehearse, rehearsals, n_bins = Toy(bin_width_s=LONG), Rehearsal.__call__, [], 30
    with LslSource(toy.counts(2000), 1 / LONG) as source:
        daemon = make(toy, source)

        def rehearses_until_it_has_come(rehearsal):
            rehearsals.append(daemon._seq)
            until(daemon._ready)
            return rehearse(rehearsal)

        monkeypatch.setattr(Rehearsal, "__call__", rehearses_until_it_has_come)
        housekeep = daemon._housekeep
        monkeypatch.setattr(daemon, "_housekeep", lambda: housekeep() or daemon._seq < n_bins or daemon.stop())
        daemon.run()
    assert len(set(rehearsals)) > 0.8 * n_bins  # a busy computer may leave no time for some


def test_a_stream_that_is_lost_while_a_bin_is_half_taken_is_lost_once_and_found_again(make, monkeypatch):
    pull, pull_early, lost, stale = RegularIntake.pull, RegularIntake.pull_early, [], []

    def loses(intake, source):
        if not lost:
            lost.append(source)
            raise Lost("the stream is lost")
        return pull_early(intake, source)

    def watched(intake, source):
        if source in lost:
            stale.append(source)
        if lost and source not in lost:
            daemon.stop()
        return pull(intake, source)

    monkeypatch.setattr(RegularIntake, "pull_early", loses)
    monkeypatch.setattr(RegularIntake, "pull", watched)
    with samples(Toy(bin_width_s=WIDTH)) as source:
        daemon = make(Toy(bin_width_s=LONG), source)
        housekeep = daemon._housekeep
        monkeypatch.setattr(daemon, "_housekeep", lambda: housekeep() or daemon._seq < N_BINS or daemon.stop())
        daemon.run()
    assert not stale
    assert daemon._link.losses == 1


def _has_business(module, name):
    return (module, name) == CLOCK or any(module == known or module.startswith(f"{known}.") for known in PATH)


FULL = 2000  # messages wait for a subscriber here: more than there are bins, so that one that reads loses none


@pytest.fixture
def connect():
    context, sockets = zmq.Context(), []

    def connect(kind, endpoint, **options):
        socket = context.socket(kind)
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name), value)
        socket.connect(endpoint)
        sockets.append(socket)
        return socket

    yield connect
    context.destroy(linger=0)


@contextlib.contextmanager
def flooded(*hostile):
    """Clients of the control that ask without end, for much or for nonsense, and read no answer."""
    over, texts = threading.Event(), (json.dumps({"request": "history", "last": 1000}).encode(), b"[")

    def flood():
        while not over.wait(0.001):
            for socket, text in zip(hostile, texts, strict=True):
                with contextlib.suppress(zmq.Again):
                    socket.send(text, zmq.NOBLOCK)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_nobody_who_does_not_read_or_asks_without_end_is_waited_for(make, connect, monkeypatch):
    """A subscriber's queue is full before the first bin comes, and the control has something to answer all the time."""
    monkeypatch.setattr(publisher, "HIGH_WATER", FULL)
    toy, here, answered, bins = Toy(bin_width_s=WIDTH), set(), [], []
    answer = Control._answer
    monkeypatch.setattr(Control, "_answer", lambda *message: answer(*message) or answered.append(message))
    with counts(toy) as source:
        daemon = make(toy, source)
        main_loop, housekeep, settings = daemon._main_loop, daemon._housekeep, daemon.settings

        def watched():
            deaf = connect(zmq.SUB, settings.pub, SUBSCRIBE=b"", RCVHWM=1)
            other = connect(zmq.SUB, settings.pub, SUBSCRIBE=wire.LATENTS, RCVHWM=0)
            other.subscribe(wire.SCHEMA)
            until(lambda: daemon._publisher.greet() or (deaf.poll(0) and other.poll(0)), "the greeting of both")
            for _ in range(2 * FULL):
                daemon._publisher.send(b"fill" + bytes(1000))
            hostile = [connect(zmq.DEALER, settings.control, RCVHWM=1, SNDHWM=10) for _ in range(2)]
            with flooded(*hostile), profiled(lambda frame, *_: here.add(frame.f_globals["__name__"])):
                main_loop()
            while len(bins) < daemon._seq:
                assert other.poll(20_000), "bins are missing"
                bins.extend(found for found in [wire.decode(other.recv())] if isinstance(found, wire.Latents))
            heard = [deaf.recv()[:4] for _ in range(FULL) if deaf.poll(0)]
            assert set(heard) == {b"sche", b"fill"}  # of the bins it had none: there was no room

        monkeypatch.setattr(daemon, "_main_loop", watched)
        monkeypatch.setattr(
            daemon, "_housekeep", lambda: housekeep() or min(daemon._seq, len(answered)) < N_BINS or daemon.stop()
        )
        daemon.run()
    assert [found.seq for found in bins] == list(range(len(bins)))
    assert [found.bin for found in bins] == list(range(toy.n_anchor, toy.n_anchor + len(bins)))
    assert not here & {"rtdsae.serve.control", "rtdsae.serve.metrics", "rtdsae.serve.console"}

"""What the decoding thread does and does not do, said by Python itself: nothing here depends on how fast a computer is.

The daemon runs in this process, and its main loop is profiled: which functions it calls, Python's and built-in ones.
"""

import contextlib
import gc
import sys
import threading
from types import ModuleType

import numpy as np
import pytest
from lsl_source import LslSource
from toy_bundle import Toy

from rtdsae.serve.daemon import Daemon
from rtdsae.serve.intake import EventsIntake, RegularIntake
from rtdsae.serve.pipeline import Pipeline
from rtdsae.serve.publisher import Publisher
from rtdsae.serve.realtime import RealTime
from rtdsae.serve.settings import Model, Settings

WIDTH = 0.01
N_BINS = 100
PULLS = {RegularIntake.pull.__code__, EventsIntake.pull.__code__}
SEND, PUBLISH = Publisher.send.__code__, Daemon._publish.__code__

# Whose functions have business on the path of a bin.
OURS = ("daemon", "decoder", "engine", "intake", "pipeline", "publisher", "recent", "source")
PATH = {f"rtdsae.serve.{name}" for name in OURS}
PATH |= {"rtdsae.bins", "rtdsae.wire", "numpy", "onnxruntime", "pylsl", "zmq", "builtins", "_struct", "namedtuple_Bins"}

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
    gc.unfreeze()


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
    strange = {(module, name) for path in steady for module, name in path if not _has_business(module)}
    assert not strange


def _has_business(module):
    return any(module == known or module.startswith(f"{known}.") for known in PATH)

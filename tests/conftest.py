"""What all tests share: LSL on loopback, before anything imports pylsl; programs that end with the test; and which
tests share a process.
"""

import functools
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["LSLAPICFG"] = str(Path(__file__).parent.parent / "configs" / "lsl_loopback.cfg")

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how long an example takes says nothing on a computer that does something else too

# Several processes share the tests (`-n`), each a file at a time. Those with streams, daemons and browsers have one of
# them to themselves, one after another: they need time at once, and the documentation's pages the ports that they name.
ALONGSIDE = {"model", "train", "evaluate", "recordings"}
ALONGSIDE |= {
    "test_axes",
    "test_bins",
    "test_bundle",
    "test_completion",
    "test_decimate",
    "test_decoder",
    "test_engine",
    "test_fuzz",
    "test_messages",
    "test_offline",
    "test_package",
    "test_picture",
    "test_shipped_models",
    "test_site",
    "test_timing",
    "test_tools",
    "test_training",
    "test_view",
    "test_wire",
}
# What takes a minute and more begins first, so that nobody waits for it at the end: xdist goes by the number of tests.
LONG = ["live", "test_offline", "test_calibrate", "test_export", "test_fit", "test_timing"]


@pytest.fixture
def launch():
    """Starts Python programs, whose output is text in pipes; they are killed at the end."""
    processes = []

    def launch(*command, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *map(str, command)], **pipes | options))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture
def start(launch):
    """Starts verbs of `rtdsae`, likewise."""
    return functools.partial(launch, "-m", "rtdsae")


freeze, unfreeze = gc.freeze, gc.unfreeze


def pytest_collection_finish():
    """Puts what the tests' imports have made out of the garbage collector's sight, for good: half a million objects,
    which each training and daemon in this process would look through before it begins, for half a second.
    """
    gc.collect()
    freeze()
    gc.freeze = gc.unfreeze = lambda: None  # their own, which would bring it all back


@pytest.fixture
def thawed(monkeypatch):
    """Nothing is frozen yet, as in a program of its own, and what the test has do it does."""
    monkeypatch.setattr(gc, "freeze", freeze)
    monkeypatch.setattr(gc, "unfreeze", unfreeze)
    unfreeze()
    yield
    unfreeze()
    gc.collect()
    freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0])
            return str(file) if ALONGSIDE & {file.parent.name, file.stem} else "live"

        def _assign_work_unit(self, node):
            ranks = {scope: LONG.index(Path(scope).stem) for scope in self.workqueue if Path(scope).stem in LONG}
            if ranks:
                self.workqueue.move_to_end(min(ranks, key=ranks.get), last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)

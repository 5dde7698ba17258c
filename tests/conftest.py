"""LSL on loopback for all tests and their children, before anything imports pylsl; and which tests share a process."""

import os
from pathlib import Path

import pytest

os.environ["LSLAPICFG"] = str(Path(__file__).parent.parent / "configs" / "lsl_loopback.cfg")

# Several processes share the tests (`-n`), each a file at a time. Those with streams, daemons and browsers have one of
# them to themselves, one after another: they need time at once, and the documentation's pages the ports that they name.
ALONGSIDE = {"model", "train", "evaluate", "recordings"}
ALONGSIDE |= {
    "test_bins",
    "test_bundle",
    "test_fuzz",
    "test_offline",
    "test_shipped_models",
    "test_site",
    "test_training",
    "test_wire",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0])
            return str(file) if ALONGSIDE & {file.parent.name, file.stem} else "live"

    return Scheduling(config, log)

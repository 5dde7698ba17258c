"""LSL on loopback for all tests and their children, before anything imports pylsl; and which tests share a process."""

import os
from pathlib import Path

import pytest

os.environ["LSLAPICFG"] = str(Path(__file__).parent.parent / "configs" / "lsl_loopback.cfg")

# Several processes share the tests (`-n`). Those with streams, daemons and browsers have one of them to themselves, one
# after another: they need time at once, and the pages of the documentation the ports that they name.
ALONGSIDE = {"model", "train", "evaluate", "recordings", "network"}
ALONGSIDE |= {"test_bins", "test_bundle", "test_fuzz", "test_offline", "test_shipped_models", "test_site", "test_wire"}


def pytest_collection_modifyitems(items):
    for item in items:
        alongside = ALONGSIDE & {item.path.parent.name, item.path.stem}
        item.add_marker(pytest.mark.xdist_group(str(item.path) if alongside else "live"))

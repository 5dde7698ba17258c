"""The daemon's clock is LSL's."""

import sys
import time

import pylsl
import pytest

from rtdsae.serve import clock


def test_it_is_lsls_clock():
    for _ in range(1000):
        before, here, after = pylsl.local_clock(), clock.local_clock(), pylsl.local_clock()
        assert before <= here <= after


@pytest.mark.skipif(sys.platform != "linux", reason="Python's and LSL's clocks are the same on Linux")
def test_pythons_own_is_read():
    assert clock.local_clock is time.monotonic


def test_lsls_is_read_where_pythons_is_another(monkeypatch):
    monkeypatch.setattr(pylsl, "local_clock", lambda: time.monotonic() - 1.0)
    assert clock._quickest() is pylsl.local_clock

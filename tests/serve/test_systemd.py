"""What the service manager hears: over a real datagram socket, in the file system and in the abstract namespace."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rtdsae.serve.systemd import Notifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    """A manager's socket, and the address that it gives."""
    address = f"{tmp_path}/notify" if request.param == "file" else f"@rtdsae-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        listener.bind(address.replace("@", "\0"))
        yield listener, address


@pytest.fixture
def notify():
    """Makes a notifier, and closes it in the end."""
    with contextlib.ExitStack() as made:

        def make(environ):
            notifier = Notifier(environ)
            made.callback(notifier.close)
            return notifier

        yield make


def heard(listener):
    listener.setblocking(False)
    said = []
    try:
        while True:
            said.append(listener.recv(4096).decode())
    except BlockingIOError:
        return said


def test_all_that_is_said(manager, notify):
    listener, address = manager
    notifier = notify({"NOTIFY_SOCKET": address})
    assert notifier.wanted
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    assert heard(listener) == ["READY=1", "STOPPING=1"]
    notifier.close()
    notifier.stopping()
    assert heard(listener) == []


def test_the_watchdog_is_fed_twice_a_period_however_often_it_is_offered(manager, notify):
    listener, address = manager
    notifier = notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())})
    began, fed = time.monotonic(), []
    while len(fed) < 3:
        notifier.watchdog()
        if said := heard(listener):
            assert said == ["WATCHDOG=1"]
            fed.append(time.monotonic() - began)
        time.sleep(0.001)
    assert fed[0] < fed[1] - 0.19
    assert fed[1] < fed[2] - 0.19


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_of_ours(manager, notify, watchdog):
    listener, address = manager
    notify({"NOTIFY_SOCKET": address, **watchdog}).watchdog()
    assert heard(listener) == []


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_happens(notify, environ):
    notifier = notify({**environ, "WATCHDOG_USEC": "1000"})
    assert not notifier.wanted
    for say in (notifier.ready, notifier.watchdog, notifier.stopping, notifier.close):
        say()


def test_a_manager_that_is_gone_or_reads_nothing_stops_nobody(manager, notify, tmp_path):
    listener, address = manager
    notify({"NOTIFY_SOCKET": f"{tmp_path}/nobody"}).ready()
    notifier = notify({"NOTIFY_SOCKET": address})
    for _ in range(2000):  # more than the socket holds
        notifier.ready()
    assert len(heard(listener)) < 2000
    listener.close()
    notifier.ready()


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    """Where systemd is there to ask; the program's path is another on each rig."""
    unit = (Path(__file__).parents[2] / "configs/rtdsae.service").read_text()
    assert "Type=notify" in unit
    assert "WatchdogSec=" in unit
    copy = tmp_path / "rtdsae.service"
    copy.write_text(unit.replace("/opt/rtdsae/bin/rtdsae", sys.executable))
    try:
        done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no systemd here")
    assert (done.returncode, done.stderr) == (0, "")

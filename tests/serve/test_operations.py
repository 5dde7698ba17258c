"""The daemon as a service manager, a scraper and a log reader see it: a real daemon, with real sockets around it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from lsl_source import LslSource
from prometheus_client.parser import text_string_to_metric_families
from toy_bundle import Toy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"{tmp_path}/notify")
        listener.settimeout(30)
        yield listener


@pytest.fixture
def serve(tmp_path, start):
    def serve(source, *options, **environ):
        toy = source.toy.write(tmp_path / "toy")
        flags = ("--stream", f"source_id={source.source_id}", "--pub", f"ipc://{tmp_path}/pub", "--timeout", 30)
        return start("serve", toy, *flags, *options, env=os.environ | environ)

    return serve


def source(n_bins=3000):
    toy = Toy()
    made = LslSource(toy.counts(n_bins), 50.0, labels=toy.channels)
    made.toy = toy
    return made


def hear(listener, word):
    """Waits for a message."""
    while (said := listener.recv(4096).decode()) != word:
        assert said in ("READY=1", "WATCHDOG=1"), said


def test_a_manager_hears_ready_then_the_watchdog_then_the_end(manager, serve):
    with source() as stream:
        environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}
        daemon = serve(stream, **environ)
        hear(manager, "READY=1")
        for _ in range(4):
            hear(manager, "WATCHDOG=1")
        daemon.send_signal(signal.SIGTERM)
        hear(manager, "STOPPING=1")
        assert daemon.wait(20) == 0


def test_the_watchdog_is_fed_while_there_is_no_stream_and_not_while_the_daemon_is_stopped(manager, serve):
    missing = source()
    daemon = serve(missing, NOTIFY_SOCKET=manager.getsockname(), WATCHDOG_USEC="400000")
    hear(manager, "READY=1")
    for _ in range(3):
        hear(manager, "WATCHDOG=1")
    daemon.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            manager.recv(4096)
    manager.settimeout(1)
    with pytest.raises(TimeoutError):
        manager.recv(4096)
    missing.folder.cleanup()


def test_a_scrape_counts_what_was_published(serve):
    address = f"127.0.0.1:{free_port()}"
    with source() as stream:
        daemon = serve(stream, "--metrics", address)
        bins = 0
        while bins < 20:
            assert daemon.poll() is None, daemon.communicate()
            try:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as reply:
                    text = reply.read().decode()
            except OSError:  # not yet
                continue
            found = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
            bins = found.get("rtdsae_bins_total", 0)
        assert found["rtdsae_stream_connected"] == 1
        assert found["rtdsae_anchors_total"] == 1
        assert bins <= found["rtdsae_latency_seconds_count"]


def test_the_log_in_json(serve):
    with source(60) as stream:
        daemon = serve(stream, "--set", "log_json=true")
        first = json.loads(daemon.stdout.readline())
        assert first["level"] == "info"
        stream.wait_pushed()
        daemon.send_signal(signal.SIGTERM)
        said = [json.loads(line) for line in daemon.communicate(timeout=20)[0].splitlines()]
        assert daemon.returncode == 0
        assert said[-1]["event"].startswith("published ")


def test_nobody_reads_the_log_and_every_bin_is_published(serve):
    read, write = os.pipe()
    os.set_blocking(write, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * size)
    os.set_blocking(write, True)
    with source(100) as stream:
        address = f"127.0.0.1:{free_port()}"
        toy = stream.toy.write(Path(stream.folder.name) / "toy")
        command = [sys.executable, "-m", "rtdsae", "serve", str(toy), "--stream", f"source_id={stream.source_id}"]
        command += ["--pub", f"ipc://{stream.folder.name}/pub", "--timeout", "30", "--metrics", address]
        daemon = subprocess.Popen(command, stdout=write)
        try:
            stream.wait_pushed()
            count = -1
            while count < 95:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as reply:
                    families = text_string_to_metric_families(reply.read().decode())
                found = {s.name: s.value for f in families for s in f.samples}
                count = found["rtdsae_latency_seconds_count"]
            assert count == 95
            daemon.terminate()
            assert daemon.wait(20) == 0
        finally:
            daemon.kill()
            daemon.wait(20)
            os.close(read)
            os.close(write)


def test_the_daemon_runs_on_the_cores_that_it_was_given(serve):
    with source(60) as stream:
        daemon = serve(stream, "--cpu", "0")
        assert "golden run" in daemon.stdout.readline()
        assert os.sched_getaffinity(daemon.pid) == {0}


def test_the_daemon_has_the_priority_and_the_memory_that_it_asked_for_or_says_why_not(serve):
    with source(60) as stream:
        daemon, said = serve(stream, "--priority", 7, "--set", "lock_memory=true"), ""
        while "decoding stream" not in said:
            line = daemon.stdout.readline()
            assert line, daemon.communicate()
            said += line
        names = {}
        for task in Path(f"/proc/{daemon.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                names[(task / "comm").read_text().strip()] = int(task.name)
        expected = (os.SCHED_OTHER, 0) if "priority 7 was refused" in said else (os.SCHED_FIFO, 7)
        for task in (daemon.pid, names["ZMQbg/IO/0"]):  # the one that decodes, and the one that sends
            assert (os.sched_getscheduler(task), os.sched_getparam(task).sched_priority) == expected
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert ("VmLck:\t       0 kB" in status) == ("lock_memory was refused" in said)

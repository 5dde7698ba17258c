"""The log: through a real pipe, a real terminal and a full disk, none of which may make the one who logs wait."""

import contextlib
import fcntl
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rtdsae.serve.console import CAPACITY, Console, JsonFormatter, set_up, status_line

log = logging.getLogger("rtdsae.test")

STATUS = {
    "bins": 1500,
    "gaps": 2,
    "stream": {"connected": True, "source_id": "array-1", "problem": ""},
    "latency_us": {"p50": 212.4, "p99": 801.0},
}


@pytest.fixture
def pipe():
    """Reads what is written to it until its writers are closed."""
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture(autouse=True)
def _root_logger():
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def read_all(end):
    with open(end, "rb") as file:
        return file.read().decode()


def fill(end):
    """Writes until the pipe takes no more; then it blocks again."""
    os.set_blocking(end, False)
    written = 0
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                written += os.write(end, b"x" * size)
    os.set_blocking(end, True)
    return written


def test_lines_as_they_were_said_in_their_order(pipe):
    read, write = pipe
    with set_up(json=False, tty=False, fd=write) as console:
        for i in range(50):
            log.info("published %d bins on %s", i, "ipc://x")
        log.debug("not this")
    os.close(write)
    assert read_all(read).splitlines() == [f"rtdsae serve: published {i} bins on ipc://x" for i in range(50)]
    assert console.dropped == 0
    log.warning("after it")  # goes nowhere, and fails nowhere


def test_what_a_terminal_would_obey_is_written_out(pipe):
    read, write = pipe
    with set_up(json=False, tty=False, fd=write):
        log.info("decoding stream %s", "rig\x1b[2J\nzwei ü")
    os.close(write)
    assert read_all(read) == "rtdsae serve: decoding stream rig\\x1b[2J\\nzwei ü\n"
    assert status_line({"stream": {"connected": True, "source_id": "rig\x1b[2J\nnext"}}, 1.0).isprintable()


def test_json_has_an_object_a_line_with_the_records_own_fields(pipe):
    read, write = pipe
    with set_up(json=True, tty=True, fd=write):
        log.warning("lost %s", "array-1\nagain", extra={"losses": 3, "path": Path("/x")})
        try:
            raise ValueError("no such thing")
        except ValueError:
            log.exception("failed", extra={"time": "of no use"})
    os.close(write)
    first, second = map(json.loads, read_all(read).splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning",
        "logger": "rtdsae.test",
        "event": "lost array-1\nagain",
        "losses": 3,
        "path": "/x",
    }
    assert second["level"] == "error"
    assert second["event"].startswith("failed\nTraceback")
    assert second["time"][:2] == "20"


def test_nobody_waits_for_a_reader_that_does_not_read(pipe):
    read, write = pipe
    filled = fill(write)
    console = set_up(json=False, tty=False, fd=write)
    done = threading.Event()

    def work():
        for i in range(3 * CAPACITY):
            log.info("line %d", i)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(30)
    assert 2 * CAPACITY - 2 <= console.dropped <= 2 * CAPACITY
    console.close()  # returns although the thread is blocked
    taken = 0
    while taken < filled:
        taken += len(os.read(read, min(4096, filled - taken)))
    os.close(write)
    console._thread.join(10)
    lines = [line.removeprefix("rtdsae serve: ") for line in read_all(read).splitlines()]
    said = [line for line in lines if line.startswith("line")]
    told = [line.split(" ", 1) for line in lines if not line.startswith("line")]
    assert said[: CAPACITY // 2] == [f"line {i}" for i in range(CAPACITY // 2)]
    assert len(said) + console.dropped == 3 * CAPACITY
    assert sum(int(n) for n, _ in told) == console.dropped
    assert {text for _, text in told} == {"lines of the log were dropped: they could not be written in time"}


def test_a_process_ends_although_nobody_reads_what_it_said(pipe):
    _, write = pipe
    fill(write)
    code = (
        "import logging\nfrom rtdsae.serve.console import set_up\n"
        "with set_up(json=False, tty=False):\n    for i in range(5000): logging.getLogger('x').info('line %d', i)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_costs_lines_only():
    with open("/dev/full", "wb") as full:
        console = set_up(json=False, tty=False, fd=full.fileno())
        for i in range(20):
            log.info("line %d", i)
        console.close()
        console._thread.join(10)
    assert console.dropped >= 20


def test_a_reader_that_went_away_costs_lines_only(pipe):
    read, write = pipe
    os.close(read)
    with set_up(json=False, tty=False, fd=write) as console:
        log.info("line")
    console._thread.join(10)
    assert console.dropped == 1


@pytest.fixture
def terminal():
    """A terminal's two ends: what a person sees, and what a program writes to."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, 0x5414, b"\x18\x00\x78\x00\x00\x00\x00\x00")  # TIOCSWINSZ: 24 rows of 120
    yield master, slave
    os.close(master)
    os.close(slave)


def read_until(end, word):
    text = ""
    while word not in text:
        text += os.read(end, 4096).decode()
    return text


def test_a_terminal_shows_one_line_of_status_below_the_log(terminal):
    master, slave = terminal
    assert os.isatty(slave)
    with set_up(json=False, tty=True, fd=slave) as console:
        console.show(lambda: STATUS)
        first = read_until(master, "array-1 live")
        assert first == "\r\x1b[K1500 bins  0.0 Hz  2 gaps  p50 212 p99 801 µs  array-1 live"
        log.info("stream is back")
        second = read_until(master, "array-1 live")
        assert second.startswith("\r\x1b[Krtdsae serve: stream is back\r\n1500 bins")
    assert read_until(master, "\n").endswith("array-1 live\r\n")


def test_a_terminal_before_there_is_a_status(terminal):
    master, slave = terminal
    with set_up(json=False, tty=True, fd=slave) as console:
        console.show(dict)
        log.info("starting")
    assert read_until(master, "\n") == "rtdsae serve: starting\r\n"


def test_a_status_that_fails_does_not_end_the_log(terminal):
    master, slave = terminal
    with set_up(json=False, tty=True, fd=slave) as console:
        asked = threading.Event()

        def status():
            asked.set()
            raise RuntimeError("not now")

        console.show(status)
        assert asked.wait(30)
        log.info("still here")
        assert "still here" in read_until(master, "still here")


@pytest.mark.parametrize(
    ("stream", "end"),
    [
        ({"connected": False, "problem": "two streams match"}, "two streams match"),
        ({"connected": False, "problem": ""}, "waiting for the stream"),
        (None, "waiting for the stream"),
    ],
)
def test_the_line_says_what_is_amiss(stream, end):
    line = status_line({"bins": 3, "gaps": 0, "stream": stream, "latency_us": {"p50": None}}, 49.96)
    assert line == f"3 bins  50.0 Hz  0 gaps  {end}"


def test_no_line_without_a_status():
    assert status_line({}, 0.0) == ""


def test_a_field_that_is_no_json_is_written_as_text():
    record = logging.LogRecord("x", logging.INFO, "", 0, "said", (), None)
    record.odd = {1, 2}
    assert json.loads(JsonFormatter().format(record))["odd"] == "{1, 2}"


def test_a_console_ends_with_its_block(pipe):
    _read, write = pipe
    console = Console(write, logging.Formatter(), tty=False)
    with console:
        pass
    console._thread.join(10)
    assert not console._thread.is_alive()

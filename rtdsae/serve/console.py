"""What the daemon says: a log, plain or JSON, and on a terminal a line of status that is rewritten in place.

Whoever logs only puts a record into a queue. A thread writes: where nobody reads, or the disk is full, lines are
dropped and counted, and no bin waits.

    with set_up(json=False, tty=sys.stdout.isatty()) as console:
        console.show(daemon.status)
        daemon.run()
"""

import contextlib
import datetime
import json as json_
import logging
import logging.handlers
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rtdsae.errors import one_line
from rtdsae.serve.realtime import ordinary_thread

__all__ = ["Console", "JsonFormatter", "set_up", "status_line"]

PLAIN = "rtdsae serve: %(message)s"
CAPACITY = 1000  # lines that wait to be written
EVERY_S = 1.0  # between two status lines
LAST_WORDS_S = 0.5  # of writing what still waits, at the end
ERASE = "\r\x1b[K"  # the terminal's line, from its beginning

Status = Callable[[], Mapping[str, Any]]


def set_up(*, json: bool, tty: bool, fd: int = 1) -> "Console":
    """Has everything that is logged go to a file descriptor, stdout, through a `Console`.

    Args:
        json: an object a line; else plain text.
        tty: whether a terminal is there, for a status line. JSON and a status line do not go together.
        fd: where to write.
    """
    console = Console(fd, JsonFormatter() if json else PlainFormatter(PLAIN), tty=tty and not json)
    root = logging.getLogger()
    root.addHandler(console.handler)
    root.setLevel(logging.INFO)
    return console


class PlainFormatter(logging.Formatter):
    """A line a record, without what a terminal would obey: a stream's name is whatever somebody sends."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message; an exception's lines follow it."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().formatMessage(record))


class Console:
    """Writes what is logged, from a thread of its own; see `set_up`.

    Attributes:
        handler: for a logger.
    """

    def __init__(self, fd: int, formatter: logging.Formatter, *, tty: bool) -> None:
        self._fd, self._formatter, self._tty = os.dup(fd), formatter, tty
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(CAPACITY)
        self.handler = Dropping(self._queue)
        self._unwritten = 0
        self._status: Status | None = None
        self._rate = Rate()
        self._line = ""
        self._told = 0  # of the dropped ones
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written: nobody read, or the disk was full."""
        return self.handler.dropped + self._unwritten

    def show(self, status: Status) -> None:
        """From here on shows this once a second, on a terminal; called from the console's thread."""
        self._status = status

    def close(self) -> None:
        """Writes what waits, for half a second at most, and takes the handler from the root logger."""
        logging.getLogger().removeHandler(self.handler)
        self._closing = True
        with contextlib.suppress(queue.Full):  # else the thread sees it when it has written what waits
            self._queue.put_nowait(None)
        self._thread.join(LAST_WORDS_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        ordinary_thread()
        due = time.monotonic() + EVERY_S
        while True:
            try:
                record = self._queue.get(timeout=max(0.0, due - time.monotonic()) if self._tty else None)
            except queue.Empty:
                due = time.monotonic() + EVERY_S
                self._show_status()
                continue
            if record is not None:
                self._log(record)
            if self._closing and self._queue.empty():
                break
        if self._line:
            self._show_status()
            self._write("\n")
        os.close(self._fd)

    def _show_status(self) -> None:
        with contextlib.suppress(Exception):  # the log outlives a status that cannot be shown
            status = self._status() if self._status else {}
            if line := status_line(status, self._rate(status)):
                self._line = line[: _columns(self._fd) - 1]
                self._write(ERASE + self._line)

    def _log(self, record: logging.LogRecord) -> None:
        if self.dropped > self._told:
            missing, self._told = self.dropped - self._told, self.dropped
            note = f"{missing} lines of the log were dropped: they could not be written in time"
            self._emit(logging.LogRecord(__name__, logging.WARNING, "", 0, note, (), None))
        self._emit(record)

    def _emit(self, record: logging.LogRecord) -> None:
        text = self._formatter.format(record) + "\n"
        if not self._write(ERASE + text + self._line if self._line else text):
            self._unwritten += 1

    def _write(self, text: str) -> bool:
        """Not through `sys.stdout`, whose lock would be held when the process ends; False on a full disk."""
        data = text.encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return False
        return True


class Dropping(logging.handlers.QueueHandler):
    """Puts records into a queue, and drops those that have no room."""

    def __init__(self, waiting: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(waiting)
        self._waiting = waiting
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Puts a record into the queue, or drops and counts it; never waits."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, event, and the record's own fields (`extra=`)."""

    KNOWN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        time_ = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="microseconds")
        said = {"time": time_, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        fields = {name: value for name, value in vars(record).items() if name not in self.KNOWN}
        return json_.dumps({**fields, **said}, default=str)


class Rate:
    """Bins a second, from one status to the next that is another."""

    def __init__(self) -> None:
        self._bins, self._at = 0, -float("inf")
        self.hz = 0.0

    def __call__(self, status: Mapping[str, Any]) -> float:
        """Takes a status, and gives the last rate that is known, in Hz."""
        bins, now = status.get("bins", 0), time.monotonic()
        if bins != self._bins or now - self._at > 2 * EVERY_S:
            self.hz = (bins - self._bins) / (now - self._at)
            self._bins, self._at = bins, now
        return self.hz


def status_line(status: Mapping[str, Any], rate: float) -> str:
    """The line for a terminal; empty before there is a status."""
    if not status:
        return ""
    stream, latency = status.get("stream") or {}, status.get("latency_us") or {}
    if stream.get("connected"):
        state = f"{one_line(stream.get('source_id'))} live"
    else:
        state = one_line(stream.get("problem") or "waiting for the stream")
    said = [f"{status.get('bins', 0)} bins", f"{rate:.1f} Hz", f"{status.get('gaps', 0)} gaps"]
    if latency.get("p50") is not None:
        said.append(f"p50 {latency['p50']:.0f} p99 {latency['p99']:.0f} µs")
    return "  ".join([*said, state])


def _columns(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80

"""Telling systemd how the daemon is (`Type=notify`, `WatchdogSec=`): the sd_notify protocol, a datagram a message."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Speaks to the service manager that started this process; without one it does nothing.

    No call blocks: a manager that does not listen misses a message.

    Args:
        environ: where the manager has left its address and the watchdog's period.

    Attributes:
        wanted: whether a manager wants to hear.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self.wanted = address[:1] in ("/", "@") and hasattr(socket, "AF_UNIX")
        self._socket = _connect(address) if self.wanted else None
        period_s = _watchdog_s(environ) if self.wanted else None
        self._every_s = period_s / 2 if period_s else None
        self._last = -float("inf")

    def ready(self) -> None:
        """The daemon can be used: its endpoints are there."""
        self._send("READY=1")

    def watchdog(self) -> None:
        """The main loop is alive; may be called at any rate, and sends twice a period."""
        if self._every_s is None:
            return
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon has begun to end."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Frees the socket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket:
            with contextlib.suppress(OSError):  # full, or gone
                self._socket.send(message.encode())


def _connect(address: str) -> socket.socket | None:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.setblocking(False)
    try:
        found.connect("\0" + address[1:] if address[0] == "@" else address)  # @ stands for the abstract namespace
    except OSError:
        found.close()
        return None
    return found


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """The watchdog's period; None where there is none, or it is another process's."""
    period = environ.get("WATCHDOG_USEC", "")
    if not period.isdecimal() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return 1e-6 * int(period) or None

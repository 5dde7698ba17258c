"""The daemon's counters for Prometheus, over HTTP, in a thread of its own.

A scrape reads the last status and the histogram of latencies; it asks the decoding for nothing. Between two scrapes the
thread rests, so that no client, however hasty, takes the interpreter from the decoding.
"""

import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from rtdsae.errors import EndpointError, one_line
from rtdsae.serve.latency import BOUNDS_S, Latency
from rtdsae.serve.realtime import ordinary_thread

__all__ = ["Metrics"]

log = logging.getLogger(__name__)

PAUSE_S = 0.1  # between two scrapes, each a millisecond or two of Python
CLIENT_S = 1.0  # that a client may take; others wait meanwhile
POLL_S = 0.1
BOUNDS = [f"{bound:g}" for bound in BOUNDS_S] + ["+Inf"]

# What the status counts, and what it is
COUNTERS = {
    "bins": "Bins published.",
    "bins_late": "Bins published more than a bin width after their end.",
    "gaps": "Bins published without having been observed.",
    "late": "Samples that came after their time.",
    "duplicates": "Samples for a time that had one already.",
    "nan": "Samples that held no number, or whose stamp was none.",
    "overflow": "Samples that held a number that cannot be a count, or spikes of channels that do not exist.",
    "partial": "Good samples of bins that others were missing from.",
    "resets": "Resets of the stream's clock.",
    "anchors": "Times that the model was anchored.",
}


class Metrics:
    """Serves metrics at `http://ADDRESS/metrics` until it is closed.

    Args:
        address: `127.0.0.1:PORT`, or another of this machine's own; port 0 for any that is free.
        status: the daemon's last status; called from the metrics' thread.
        latency: where the daemon notes its bins.

    Attributes:
        address: as bound.

    Raises:
        EndpointError: it is no address, can be reached from other machines, or is in use.
    """

    def __init__(self, address: str, status: Callable[[], Mapping[str, Any]], latency: Latency) -> None:
        registry = CollectorRegistry()
        registry.register(Status(status, latency))
        ProcessCollector(registry=registry)
        host, port = _parse(address)
        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise EndpointError(f"cannot serve metrics on {address}: {error.strerror}") from error
        self._server.set_app(_answering(make_wsgi_app(registry)))
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and frees the address; a scrape that is under way may last CLIENT_S."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _run(self) -> None:
        ordinary_thread()
        self._server.serve_forever(POLL_S)


class Status(Collector):
    """The status, and the histogram, as metrics."""

    def __init__(self, status: Callable[[], Mapping[str, Any]], latency: Latency) -> None:
        self._status, self._latency = status, latency

    def collect(self) -> Iterator[Metric]:
        """All of it, as it is now; what the status does not say yet is left out."""
        status = self._status()
        stream = status.get("stream") or {}
        about = {name: str(status.get(name) or "") for name in ("bundle", "session", "run")}
        about["source_id"] = str(stream.get("source_id") or "")
        yield InfoMetricFamily("rtdsae", "What is decoded, and by what.", about)
        for name, meaning in COUNTERS.items():
            if name in status:
                yield CounterMetricFamily(f"rtdsae_{name}", meaning, status[name])
        yield GaugeMetricFamily("rtdsae_stream_connected", "Whether samples come.", bool(stream.get("connected")))
        yield CounterMetricFamily("rtdsae_stream_losses", "Times that the stream was lost.", stream.get("losses", 0))
        unread = "Samples that had arrived and were lost with a connection."
        yield CounterMetricFamily("rtdsae_stream_unread", unread, stream.get("unread", 0))
        if (offset := stream.get("clock_offset_s")) is not None:
            yield GaugeMetricFamily("rtdsae_stream_clock_offset_seconds", "From the source's clock to this.", offset)
        counts = zip(BOUNDS, self._latency.histogram(), strict=True)
        meaning = "From a bin's last sample in hand to its latents sent."
        yield HistogramMetricFamily("rtdsae_latency_seconds", meaning, list(counts), self._latency.total_s)


class Server(WSGIServer):
    """One client after another, with a rest between."""

    request_queue_size = 16

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers one, and rests."""
        super().process_request(request, client_address)
        time.sleep(PAUSE_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours."""


class Handler(WSGIRequestHandler):
    """Does not wait for ever, and does not log."""

    timeout = CLIENT_S

    def setup(self) -> None:
        """Sees to it that a request has come by then, in however many pieces."""
        super().setup()
        self.rfile = io.BufferedReader(_Until(self.connection, time.monotonic() + CLIENT_S))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class _Until(socket.SocketIO):
    """What comes on a connection until `end`; its own time limit would be for each piece."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        super().__init__(connection, "r")
        self._connection, self._end = connection, end

    def readinto(self, buffer: Any) -> int | None:
        """As a socket's file does it."""
        self._connection.settimeout(max(self._end - time.monotonic(), 1e-3))
        return super().readinto(buffer)


def _answering(app: Any) -> Any:
    """The application; what it stumbles over, a client's nonsense as a rule, is a line in the log."""

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except Exception as error:
            log.warning("a scrape could not be answered: %s", one_line(error))
            start_response("500 Internal Server Error", [])
            return [b""]

    return answer


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16) or not host:
        raise EndpointError(f"metrics {address!r} is not an address: use 127.0.0.1:9464")
    if host != "localhost" and not host.startswith("127."):
        raise EndpointError(
            f"metrics on {address} could be read from other machines, by anybody: use 127.0.0.1:{port}, and a proxy or "
            "an agent on this machine to pass them on"
        )
    return host, int(port)

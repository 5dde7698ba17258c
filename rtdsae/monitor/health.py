"""How the daemon and its stream are: counters, latencies, and one plain sentence where nothing arrives."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdsae.client.subscriber import GONE_S
from rtdsae.errors import one_line
from rtdsae.monitor.feed import Feed
from rtdsae.monitor.ring import Ring

__all__ = ["health"]

EDGES_US = np.round(10.0 ** np.arange(1, 6.01, 0.1), 3)  # of the latency histograms: 10 µs to 1 s
SILENT_S = 1.0  # without a bin, or five of them where they are longer
FOREVER_S = 1e9  # longer is no latency
SAME_CLOCK_S = (-1e-3, 5.0)  # between `t_out` and its arrival, if both are of one computer's clock

COUNTERS = ("bins", "gaps", "bins_late", "late", "duplicates", "nan", "overflow", "partial", "resets", "anchors")


def health(feed: Feed, now: float, window_s: float) -> dict[str, Any]:
    """What the page says beside the bins themselves; latencies are those of the last `window_s` seconds."""
    ring, schema, subscriber = feed.ring, feed.schema, feed.subscriber
    state, say = verdict(feed, now)
    per_second = feed.arrivals.per_second(now) if ring else []
    return {
        "state": state,
        "say": say,
        "endpoint": subscriber.endpoint,
        "bundle": schema.bundle if schema else None,
        "bundle_hash": schema.bundle_hash[:12] if schema else None,
        "bin_width_s": schema.bin_width_s if schema else None,
        "age_s": _age(ring, now),
        "status": _daemon(feed, now),
        "monitor": {
            "received": feed.received,
            "holes": subscriber.holes,
            "restarts": subscriber.restarts,
            "errors": subscriber.errors,
            "last_error": one_line(subscriber.last_error),
            "refused": feed.refused,
        },
        "per_second": per_second,
        "bins_per_s": per_second[-1] if ring else None,
        "latency": _latencies(ring, window_s),
    }


def verdict(feed: Feed, now: float) -> tuple[str, str]:
    """`live`, `silent` (a daemon without bins) or `gone`; and, but for `live`, why, and what to do about it."""
    ring, subscriber = feed.ring, feed.subscriber
    age = _age(ring, now)
    if ring is not None and age is not None and age < max(SILENT_S, 5 * ring.schema.bin_width_s):
        return "live", ""
    status_age = now - feed.status[1] if feed.status else math.inf
    if status_age < GONE_S and feed.status:
        return "silent", _why_silent(feed.status[0], age)
    endpoint = subscriber.endpoint
    if age is not None:
        quiet = min(age, status_age)
        return "gone", (
            f"Nothing from {endpoint} for {quiet:.1f} s: the daemon has stopped. "
            "This page goes on by itself when it is back."
        )
    if subscriber.errors:
        return "gone", f"Messages from {endpoint} cannot be read: {one_line(subscriber.last_error)}"
    if feed.status:
        return "gone", f"Nothing from {endpoint} for {status_age:.1f} s: the daemon stopped before its first bin."
    return "gone", (
        f"No daemon publishes on {endpoint}. Start one: rtdsae serve BUNDLE --stream source_id=... --pub {endpoint}"
    )


def _why_silent(status: Mapping[str, Any], age: float | None) -> str:
    stream = status.get("stream")
    stream = stream if isinstance(stream, dict) else {}
    name = one_line(stream.get("source_id") or "")
    problem = one_line(stream.get("problem") or "")
    why = f" ({problem})" if problem else ""
    if age is not None:
        found = "is connected" if stream.get("connected") else "is silent"
        return f"The daemon runs, its stream {name or '(unnamed)'} {found}; no bin for {age:.1f} s{why}."
    if not name:
        return f"The daemon runs and looks for its stream; no bin yet{why}."
    if not stream.get("connected"):
        return f"The daemon runs, its stream {name} is silent; no bin yet{why}."
    return f"The daemon runs, stream {name} is there; it collects the first bins to anchor the model{why}."


def _age(ring: Ring | None, now: float) -> float | None:
    """Seconds since the last bin came."""
    return max(0.0, now - float(ring.received[(ring.end - 1) % ring.slots])) if ring and ring.end else None


def _daemon(feed: Feed, now: float) -> dict[str, Any] | None:
    """The last status, as far as the page shows it."""
    if feed.status is None:
        return None
    status, came = feed.status
    stream, latency = (found if isinstance(found := status.get(key), dict) else {} for key in ("stream", "latency_us"))
    return {
        "age_s": now - came,
        "run": _number(status.get("run")),
        "session": _text(status.get("session")),
        "counters": {name: _number(status.get(name)) for name in COUNTERS},
        "connected": bool(stream.get("connected")),
        "source_id": _text(stream.get("source_id")),
        "clock_offset_s": _number(stream.get("clock_offset_s")),
        "losses": _number(stream.get("losses")),
        "problem": _text(stream.get("problem")),
        "latency_us": {name: _number(latency.get(name)) for name in ("p50", "p99", "p99.9", "max")},
    }


def _latencies(ring: Ring | None, window_s: float) -> dict[str, Any] | None:
    if ring is None:
        return None
    slots = ring.at(ring.since(window_s), ring.end)
    arrival = ring.received[slots] - ring.t_bin[slots]
    one_clock = SAME_CLOCK_S[0] < float(np.median(ring.received[slots] - ring.t_out[slots])) < SAME_CLOCK_S[1]
    return {
        "edges_us": EDGES_US.tolist(),
        "daemon": _latency(ring.daemon_s[slots]),
        "arrival": _latency(arrival) if one_clock else None,
    }


def _latency(seconds: NDArray[np.float64]) -> dict[str, Any]:
    """Some latencies as a histogram over EDGES_US, whose end classes take what lies outside, and as quantiles in µs."""
    us = 1e6 * seconds[np.abs(seconds) < FOREVER_S]
    if not len(us):
        return {"counts": [0] * (len(EDGES_US) - 1), "p50": None, "p99": None, "max": None}
    classes = np.clip(np.searchsorted(EDGES_US, us, side="right") - 1, 0, len(EDGES_US) - 2)
    p50, p99, most = np.percentile(us, [50, 99, 100]).round(1).tolist()
    counts = np.bincount(classes, minlength=len(EDGES_US) - 1).tolist()
    return {"counts": counts, "p50": p50, "p99": p99, "max": most}


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return one_line(value) if value else None

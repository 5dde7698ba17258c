"""What one page has been shown, and the next frame of it: only what is new, however long the page did not look.

    u32       bytes of JSON that follow, little-endian
    JSON      what this frame is; `blocks` are [name, type, shape] of the arrays behind it, in order
    arrays    f4, f8 or u2, little-endian, C order, without padding

A page that is too slow gets fewer frames, each with more in it; nothing waits for it here.
"""

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdsae.monitor.axes import Axes
from rtdsae.monitor.decimate import any_flag, bins_a_point, extremes, group_columns, means, point_times
from rtdsae.monitor.feed import Feed
from rtdsae.monitor.health import health
from rtdsae.monitor.ring import KEPT_S, Ring
from rtdsae.monitor.view import Choice, View, choose

__all__ = ["Picture"]

HEALTH_S = 0.25  # between two looks at the daemon's health
TRAIL_S, TRAIL_POINTS = 4.0, 240  # of the state's trajectory
CURSOR_S, CURSOR_POINTS = 1.5, 90
CHUNK_ROWS = 2048  # at once: a whole window of wide arrays would need several copies of it
TYPES = {"float32": "f4", "float64": "f8", "uint16": "u2"}

Blocks = dict[str, NDArray[Any]]


class Picture:
    """The frames of one page.

    Args:
        feed: what is received.
        axes: the state's directions, which all pages share.
    """

    def __init__(self, feed: Feed, axes: Axes) -> None:
        self._feed, self._axes = feed, axes
        self._view = View()
        self._choice = Choice({}, None)
        self._ring_number = -1  # whose bins the page has
        self._next_row = self._seen_row = 0
        self._health_at = -np.inf

    def look(self, view: View) -> None:
        """From here on the page sees this; it gets the time window anew."""
        self._view = view
        self._ring_number = -1
        self._health_at = -np.inf

    def frame(self, now: float) -> bytes | None:
        """What is new since the last frame; None where nothing is."""
        head: dict[str, Any] = {}
        blocks: Blocks = {}
        ring = self._feed.ring
        if ring is not None and not self._view.paused:
            self._add_bins(ring, now, head, blocks)
        if now - self._health_at >= HEALTH_S:
            self._health_at = now
            head["health"] = health(self._feed, now, self._view.window_s)
        return encode(head, blocks) if head else None

    def _add_bins(self, ring: Ring, now: float, head: dict[str, Any], blocks: Blocks) -> None:
        end = ring.end
        if ring.number == self._ring_number and end == self._seen_row:
            return
        self._axes.follow(ring, now)
        if ring.number != self._ring_number:
            head["layout"] = self._begin(ring)
        self._seen_row = end
        last = (end - 1) % ring.slots
        head["newest"] = {
            "seq": int(ring.seq[last]),
            "t": float(ring.t_bin[last]),
            "age_s": max(0.0, now - float(ring.received[last])),
            "not_finite": int((~np.isfinite(ring.values[last])).sum()),
        }
        for name, columns in self._choice.traces.items():
            blocks[f"now.{name}"] = ring.values[last, _places(ring, name, columns)]
        self._add_points(ring, end, blocks)
        self._add_trails(ring, end, blocks)

    def _begin(self, ring: Ring) -> dict[str, Any]:
        """The page starts over: what its arrays, points and colours are."""
        view, schema = self._view, ring.schema
        self._ring_number = ring.number
        self._choice = choose(view, schema)
        self._k = bins_a_point(view.window_s, schema.bin_width_s)
        first = ring.since(view.window_s)
        self._next_row = first + -first % self._k  # the same bins make the same points for every page
        return {
            "arrays": [
                {"name": a.name, "size": a.size, "unit": a.unit, "labels": _labels(a.labels, a.size)}
                for a in schema.arrays
            ],
            "traces": self._choice.traces,
            "heat": self._choice.heat,
            "trajectory": self._axes.array,
            "window_s": view.window_s,
            "longest_s": min(KEPT_S, (ring.slots - 1) * schema.bin_width_s),
            "bin_width_s": schema.bin_width_s,
            "bins_a_point": self._k,
            "points_a_group": 1 if self._k == 1 else 2,
        }

    def _add_points(self, ring: Ring, end: int, blocks: Blocks) -> None:
        """The points of the groups that are complete since the last frame."""
        first = self._next_row
        if first < ring.first:  # the page slept for longer than is kept
            first = ring.first + -ring.first % self._k
        end -= (end - first) % self._k
        if end <= first:
            return
        self._next_row = end
        step = self._k * max(1, CHUNK_ROWS // self._k)
        parts = [self._points(ring, row, min(row + step, end)) for row in range(first, end, step)]
        for name in parts[0]:
            blocks[name] = np.concatenate([part[name] for part in parts])

    def _points(self, ring: Ring, first: int, end: int) -> Blocks:
        slots, k = ring.at(first, end), self._k
        points: Blocks = {"t": point_times(ring.t_bin[slots], k), "flags": any_flag(ring.flags[slots], k)}
        for name, columns in self._choice.traces.items():
            points[f"traces.{name}"] = extremes(ring.values[slots[:, None], _places(ring, name, columns)], k)
        if self._choice.heat:
            points["heat"] = group_columns(means(ring.values[slots, ring.columns(self._choice.heat)], k))
        return points

    def _add_trails(self, ring: Ring, end: int, blocks: Blocks) -> None:
        trail = self._axes.trail(ring, TRAIL_S, TRAIL_POINTS)
        if trail is not None:
            blocks["trajectory"] = trail
        sizes = {array.name: array.size for array in ring.schema.arrays}
        if sizes.get("behaviour") != 2:
            return
        first = ring.since(CURSOR_S)
        step = max(1, -(-(end - first) // CURSOR_POINTS))
        slots = np.append(ring.at(first + -first % step, end - 1, step), (end - 1) % ring.slots)
        blocks["cursor"] = ring.values[slots, ring.columns("behaviour")]
        if sizes.get("target") == 2:
            blocks["target"] = ring.values[(end - 1) % ring.slots, ring.columns("target")]


def encode(head: dict[str, Any], blocks: Blocks) -> bytes:
    """A frame. JSON has no NaN: the numbers that may be none are in blocks."""
    described = [[name, TYPES[block.dtype.name], block.shape] for name, block in blocks.items()]
    text = json.dumps({**head, "blocks": described}, allow_nan=False, separators=(",", ":")).encode()
    arrays = [block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes() for block in blocks.values()]
    return b"".join([struct.pack("<I", len(text)), text, *arrays])


def _places(ring: Ring, name: str, columns: list[int]) -> NDArray[np.intp]:
    places: NDArray[np.intp] = ring.columns(name).start + np.array(columns, np.intp)
    return places


def _labels(labels: tuple[str, ...], size: int) -> list[str]:
    """A label a value, where the array has them for all of its values."""
    return list(labels) if len(labels) == size else []

"""The directions in which the factors vary most, followed as bins come: a picture that turns slowly and never jumps.

C is the covariance of the last minute: nothing is remembered for longer, whatever it was. Its leading directions Q are
found by orthogonal iteration, one step at a time from where they were:

    Q R = (C + e I) Q,   the signs of Q's columns such that R's diagonal is positive

so that a direction keeps its sign and turns into another one gradually, even where two have the same variance.
"""

import numpy as np
from numpy.typing import NDArray

from rtdsae.monitor.ring import Ring, Slots
from rtdsae.wire import Flags

__all__ = ["Axes", "Directions"]

N_AXES = 3
MAX_COLUMNS = 512  # of the array; further ones are left out
TURN_S = 0.25  # between two steps
FIRST_STEPS = 100
FIRST_ROWS = 10  # before which there are no directions
MOST_ROWS = 1000  # of a minute, evenly spread
MOST, FAR = 0.8, 100  # a row that is FAR times as far from the middle as the share MOST of all is broken, and left out

Float64 = NDArray[np.float64]


class Directions:
    """The leading principal directions of rows that change as time goes by.

    Args:
        n_columns: of a row.

    Attributes:
        basis: `(n_columns, axes)`, orthonormal columns; three axes, or as many as there are columns.
        mean: `(n_columns,)`, what the picture is centred on.
        ready: whether there have been enough rows.
    """

    def __init__(self, n_columns: int) -> None:
        start = np.random.default_rng(0).standard_normal((n_columns, min(N_AXES, n_columns)))
        self.basis: Float64 = np.linalg.qr(start)[0]
        self.mean = np.zeros(n_columns)
        self.ready = False

    def turn(self, rows: NDArray[np.float32]) -> None:
        """One step towards the directions of rows `(n, n_columns)`, those of late; the first time, all the way."""
        good = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
        if len(good) < FIRST_ROWS:
            return
        good = _usual(good)
        self.mean = good.mean(axis=0)
        apart = good - self.mean
        covariance = apart.T @ apart / len(apart)
        covariance += (1e-9 * np.trace(covariance) + 1e-30) * np.eye(len(covariance))
        for _ in range(1 if self.ready else FIRST_STEPS):
            basis, upper = np.linalg.qr(covariance @ self.basis)
            self.basis = basis * np.where(np.diag(upper) < 0, -1.0, 1.0)
        self.ready = True

    def project(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows in these directions, `(n, axes)`."""
        return ((rows - self.mean) @ self.basis).astype(np.float32)


def _usual(rows: Float64) -> Float64:
    """The rows without those that are broken: a single one of 1e30 would make the picture one of itself."""
    distances = np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
    usual: Float64 = rows[distances <= FAR * np.quantile(distances, MOST, method="lower")]
    return usual


class Axes:
    """The directions of one array of whatever ring there is, kept up to date by those who look.

    Attributes:
        array: the array's name; None where nothing has two columns to draw.
        since: the row from which on they count: a new model's factors have directions of their own.
    """

    def __init__(self) -> None:
        self.array: str | None = None
        self.since = 0
        self._ring = self._next_row = 0
        self._turned_at = -np.inf
        self._directions = Directions(1)

    def follow(self, ring: Ring, now: float) -> None:
        """Turns towards what has come of late."""
        if ring.number != self._ring:
            self._ring, self._next_row = ring.number, ring.first
            self.array = next((name for name in ("factors", "z") if _n_columns(ring, name) > 1), None)
            self._begin(ring, ring.first)
        end = ring.end
        if self.array is None or end == self._next_row:
            return
        first = max(self._next_row, ring.first)
        swaps = np.flatnonzero(ring.flags[ring.at(first, end)] & Flags.SWAPPED)
        if len(swaps):
            first += int(swaps[-1])
        if len(swaps) or first > self._next_row:  # a swap may have been among what nobody saw
            self._begin(ring, first)
        self._next_row = end
        if now - self._turned_at >= TURN_S:
            self._turned_at = now
            self._directions.turn(self._values(ring, _evenly(ring, max(self.since, ring.first), MOST_ROWS)))

    def trail(self, ring: Ring, seconds: float, max_points: int) -> NDArray[np.float32] | None:
        """The last seconds in these directions, `(points, axes)`, the newest last; None where there are none yet."""
        if self.array is None or not self._directions.ready:
            return None
        slots = _evenly(ring, max(self.since, ring.since(seconds)), max_points)
        newest = (ring.end - 1) % ring.slots
        if slots.size == 0 or slots[-1] != newest:
            slots = np.append(slots, newest)
        return self._directions.project(self._values(ring, slots))

    def _begin(self, ring: Ring, row: int) -> None:
        n_columns = min(MAX_COLUMNS, _n_columns(ring, self.array)) if self.array else 1
        self._directions = Directions(n_columns)
        self.since, self._turned_at = row, -np.inf

    def _values(self, ring: Ring, slots: NDArray[np.intp]) -> NDArray[np.float32]:
        start = ring.columns(self.array or "").start
        return ring.values[slots, start : start + len(self._directions.mean)]


def _evenly(ring: Ring, first: int, most: int) -> Slots:
    """The slots of at most so many rows from `first` on; the same ones again as others come behind them."""
    end = ring.end
    step = max(1, -(-(end - first) // most))
    return ring.at(first + -first % step, end, step)


def _n_columns(ring: Ring, name: str | None) -> int:
    where = ring.schema.slices.get(name or "")
    return where[0].stop - where[0].start if where else 0

"""The directions in which the factors vary most, followed as bins come: a picture that turns slowly and never jumps.

The covariance C forgets with a half-life. Its leading directions Q are found by orthogonal iteration, one step at a
time from where they were:

    Q R = (C + e I) Q,   the signs of Q's columns such that R's diagonal is positive

so that a direction keeps its sign and turns into another one gradually, even where two have the same variance.
"""

import numpy as np
from numpy.typing import NDArray

from rtdsae.monitor.ring import Ring
from rtdsae.wire import Flags

__all__ = ["Axes", "Directions"]

N_AXES = 3
MAX_COLUMNS = 512  # of the array; further ones are left out
HALF_LIFE_S = 30.0
TURN_S = 0.25  # between two steps
FIRST_STEPS = 100
FIRST_ROWS = 10  # before which there are no directions
CATCH_UP_ROWS = 4000  # of what came while nobody looked

Float64 = NDArray[np.float64]


class Directions:
    """The leading principal directions of rows that keep coming.

    Args:
        n_columns: of a row.
        half_life: in rows.

    Attributes:
        basis: `(n_columns, axes)`, orthonormal columns; three axes, or as many as there are columns.
        mean: `(n_columns,)`, what the picture is centred on.
    """

    def __init__(self, n_columns: int, half_life: float) -> None:
        start = np.random.default_rng(0).standard_normal((n_columns, min(N_AXES, n_columns)))
        self.basis: Float64 = np.linalg.qr(start)[0]
        self.mean = np.zeros(n_columns)
        self._half_life = half_life
        self._weight = self._started = 0.0
        self._sum, self._outer = np.zeros(n_columns), np.zeros((n_columns, n_columns))

    @property
    def ready(self) -> bool:
        """Whether enough rows have come."""
        return self._weight >= FIRST_ROWS

    def learn(self, rows: NDArray[np.float32]) -> None:
        """Takes rows `(n, n_columns)` into account; those that are not finite are passed over."""
        good = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
        kept = 0.5 ** (len(good) / self._half_life)
        self._weight = kept * self._weight + len(good)
        self._sum = kept * self._sum + good.sum(axis=0)
        self._outer = kept * self._outer + good.T @ good

    def turn(self) -> None:
        """One step towards the directions of all that was learned; the first time, all the way."""
        if not self.ready:
            return
        self.mean = self._sum / self._weight
        covariance = self._outer / self._weight - np.outer(self.mean, self.mean)
        covariance += (1e-9 * np.trace(covariance) + 1e-30) * np.eye(len(covariance))
        for _ in range(1 if self._started else FIRST_STEPS):
            basis, upper = np.linalg.qr(covariance @ self.basis)
            self.basis = basis * np.where(np.diag(upper) < 0, -1.0, 1.0)
        self._started = True

    def project(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows in these directions, `(n, axes)`."""
        return ((rows - self.mean) @ self.basis).astype(np.float32)


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
        self._directions = Directions(1, 1.0)

    def follow(self, ring: Ring, now: float) -> None:
        """Learns what has come since the last look."""
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
        self._directions.learn(self._rows(ring, max(first, end - CATCH_UP_ROWS), end))
        self._next_row = end
        if now - self._turned_at >= TURN_S:
            self._turned_at = now
            self._directions.turn()

    def trail(self, ring: Ring, seconds: float, max_points: int) -> NDArray[np.float32] | None:
        """The last seconds in these directions, `(points, axes)`, the newest last; None where there are none yet."""
        if self.array is None or not self._directions.ready:
            return None
        first, end = max(self.since, ring.since(seconds)), ring.end
        step = max(1, -(-(end - first) // max_points))
        slots = ring.at(first + -first % step, end, step)
        if slots.size == 0 or (end - 1) % step:
            slots = np.append(slots, (end - 1) % ring.slots)
        return self._directions.project(self._values(ring, slots))

    def _begin(self, ring: Ring, row: int) -> None:
        n_columns = min(MAX_COLUMNS, _n_columns(ring, self.array)) if self.array else 1
        self._directions = Directions(n_columns, HALF_LIFE_S / ring.schema.bin_width_s)
        self.since, self._turned_at = row, -np.inf

    def _rows(self, ring: Ring, first: int, end: int) -> NDArray[np.float32]:
        return self._values(ring, ring.at(first, end))

    def _values(self, ring: Ring, slots: NDArray[np.intp]) -> NDArray[np.float32]:
        start = ring.columns(self.array or "").start
        return ring.values[slots, start : start + len(self._directions.mean)]


def _n_columns(ring: Ring, name: str | None) -> int:
    where = ring.schema.slices.get(name or "")
    return where[0].stop - where[0].start if where else 0

"""Being awake and warm when a sample arrives.

After 20 ms of sleep the same bin costs several times what it costs in a tight loop: caches and branch predictors are
cold, the core is asleep. A regular stream's next sample has a known time, so the daemon rises shortly before it, sends
a bin through all stages in vain, and only then blocks for the sample. It never spins: that would starve the threads
that receive it.
"""

import time
from collections.abc import Callable

import numpy as np
import pylsl

from rtdsae.bins import RegularBinner
from rtdsae.serve.engine import Engine
from rtdsae.wire import Encoder, Schema

__all__ = ["Rehearsal", "Wake"]

SHORTEST_PERIOD_S = 0.004  # below it the core has no time to fall asleep
LONGEST_PERIOD_S = 0.2  # above it signals and status would wait for the sleep to end
LEAD_S = 0.0005  # of being warm before the likely arrival, plus twice the jitter
FORGET = 0.01  # of the shortest delay's distance from the present one, a sample: it follows a source that slows down
LONGEST_LEAD = 0.25  # of a period: a source that comes when it likes is not anticipated


class Wake:
    """Expects a sample a period, and rehearses before each.

    Args:
        period_s: time between samples.
        rehearse: what to do in vain.
        wanted: False for one that never does anything.

    Attributes:
        active: whether it does anything: it is wanted, and the period is one that it helps.
        due: when the next sample is expected, LSL seconds.
    """

    def __init__(self, period_s: float, rehearse: Callable[[], None], *, wanted: bool = True) -> None:
        self._period_s, self._rehearse = period_s, rehearse
        self.active = wanted and SHORTEST_PERIOD_S <= period_s <= LONGEST_PERIOD_S
        self.due = -np.inf
        self._delay_s = np.inf
        self._jitter_s = 0.0

    def arrived(self, now: float, stamp: float) -> None:
        """Learns when samples come, from one stamped `stamp` that was in hand at `now`, both LSL seconds.

        Expected is the stamp's own time plus the shortest delay of late. The time at which a sample was taken would be
        the wrong measure: after one that was taken late the next would be slept through, and so on for many.
        """
        delay_s = now - stamp
        excess_s = max(0.0, delay_s - self._delay_s)
        self._jitter_s += 0.05 * (min(excess_s, self._period_s) - self._jitter_s)
        self._delay_s = min(delay_s, self._delay_s + FORGET * excess_s)
        self.due = stamp + self._period_s + self._delay_s

    def rest(self) -> None:
        """Sleeps until shortly before the next sample is due and rehearses; returns at once when that is past."""
        lead_s = LEAD_S + 2 * self._jitter_s
        left = self.due - lead_s - pylsl.local_clock()
        if self.active and lead_s < LONGEST_LEAD * self._period_s and left > 0:
            time.sleep(left)
            self._rehearse()


class Rehearsal:
    """A bin through binner, engine and encoder that leaves no trace: only the engine is the real one."""

    def __init__(self, engine: Engine, n_channels: int, bin_width_s: float, schema: Schema) -> None:
        self._binner, self._engine = RegularBinner(n_channels, bin_width_s), engine
        self._encoder = Encoder(schema, run=0)
        self._values, self._stamps = np.zeros((1, n_channels), np.float32), np.zeros(1)
        self._bin_width_s = bin_width_s

    def __call__(self) -> None:
        """Goes through it once."""
        self._stamps += self._bin_width_s
        bins = self._binner.push(self._values, self._stamps)
        self._engine.warm_up()
        now = pylsl.local_clock()
        self._encoder.encode(0, int(bins.index[0]), float(bins.t_end[0]), now, now)

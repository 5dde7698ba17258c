"""Being awake and warm when a bin's last sample arrives.

After 20 ms of sleep the same bin costs several times what it costs in a tight loop: caches and branch predictors are
cold, the core is asleep. A regular stream's next sample has a known time, so the daemon rises shortly before it, takes
what has come of a bin that is made of more, and sends one through all stages in vain. Then it either blocks for the
sample (`warm`) or asks for it again and again for a bounded time (`poll`), which saves its own waking up and costs the
core meanwhile: on a computer with few cores that starves the threads that receive the sample, so that it is not the
default.
"""

import os
import time
from collections.abc import Callable
from typing import get_args

import numpy as np

from rtdsae.bins import RegularBinner
from rtdsae.errors import ConfigError
from rtdsae.serve.clock import local_clock
from rtdsae.serve.engine import Engine
from rtdsae.serve.settings import WakeMode
from rtdsae.wire import Encoder, Schema

__all__ = ["Rehearsal", "Wake"]

SHORTEST_PERIOD_S = 0.004  # below it the core has no time to fall asleep
LONGEST_PERIOD_S = 0.2  # above it signals and status would wait for the sleep to end
SPARE_S = 0.00005  # between being ready and the earliest time at which the sample is expected
FIRST_LEAD_S = 0.001  # before anything is known of how long it takes to rise and to prepare
FORGET = 0.01  # of the shortest delay's distance from the present one, a sample: it follows a source that slows down
LONGEST_LEAD = 0.25  # of a period: a source that comes when it likes is not anticipated
LATENESS = 4.0  # how many times its usual lateness a sample is polled for
LONGEST_POLL = 0.1  # of a period, after the sample was due
USUAL = 0.95  # share of the samples for which the lead is enough
LEARN = 0.05  # of the lead, that one sample can change it by

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


class Wake:
    """Expects a sample a period, the last of each bin, and prepares for it.

    Args:
        period_s: time between such samples, a bin's width.
        prepare: what to do shortly before each sample.
        mode: whether to block for the sample afterwards, to poll for it, or never to do anything.

    Attributes:
        active: whether it does anything: it is wanted, and the period is one that it helps.
        due: when the next sample is expected, LSL seconds.

    Raises:
        ConfigError: there is no such mode.
    """

    def __init__(self, period_s: float, prepare: Callable[[], None], mode: WakeMode = "warm") -> None:
        if mode not in get_args(WakeMode):
            raise ConfigError(f"wake {mode!r}: it must be one of {', '.join(get_args(WakeMode))}")
        self._period_s, self._prepare, self._polls = period_s, prepare, mode == "poll"
        self.active = mode != "off" and SHORTEST_PERIOD_S <= period_s <= LONGEST_PERIOD_S
        self.due = -np.inf
        self._delay_s = np.inf
        self._jitter_s = 0.0
        self._lead_s = FIRST_LEAD_S

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

    def rest(self, available: Callable[[], object]) -> None:
        """Sleeps until shortly before the next sample is due, prepares and perhaps polls, until `available`.

        Returns at once where there is no time for that.
        """
        due = self.due
        left = due - self._lead_s - local_clock()
        if not (self.active and 2 * self._jitter_s < LONGEST_LEAD * self._period_s and left > 0):
            return
        time.sleep(left)
        overslept = bool(available())
        if not overslept:
            self._prepare()
        self._learn(in_time=local_clock() < due - SPARE_S)
        if self._polls and not overslept:
            patience_s = SPARE_S + LATENESS * self._jitter_s
            self._poll(available, due + min(patience_s, LONGEST_POLL * self._period_s))

    def _learn(self, *, in_time: bool) -> None:
        """Moves the lead to where it is enough in the share USUAL of all cases."""
        change = -LEARN * (1 - USUAL) if in_time else LEARN * USUAL
        self._lead_s = min(self._lead_s * (1 + change), LONGEST_LEAD * self._period_s)

    def _poll(self, available: Callable[[], object], until: float) -> None:
        while not available() and local_clock() < until:
            _yield()


class Rehearsal:
    """A bin through binner, engine and encoder that leaves no trace: only the engine is the real one."""

    def __init__(self, engine: Engine, n_channels: int, bin_width_s: float, schema: Schema) -> None:
        self._binner, self._engine = RegularBinner(n_channels, bin_width_s), engine
        self._encoder = Encoder(schema, run=0)
        self._values, self._stamps = np.zeros((1, n_channels), np.float32), np.zeros(1)
        self._bin_width_s = bin_width_s

    def __call__(self) -> bytearray:
        """Sends one bin through all stages: the frame, which is not to be published."""
        self._stamps += self._bin_width_s
        bins = self._binner.push(self._values, self._stamps)
        self._engine.warm_up()
        now = local_clock()
        return self._encoder.encode(0, int(bins.index[0]), float(bins.t_end[0]), now, now)

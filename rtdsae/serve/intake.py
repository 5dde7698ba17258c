"""What the daemon takes from a stream: how many samples at a time, and the bins that they make.

Of `counts` a sample is a bin; of `samples` as many as the open bin still needs; of `events` all that come until the
open bin is due by the clock, so that a bin without spikes ends on time too.
"""

import logging
import math
import time
from typing import Literal, Protocol

import numpy as np

from rtdsae.bins import BinCounters, Bins, EventsBinner, Kind, RegularBinner
from rtdsae.serve.clock import local_clock
from rtdsae.serve.source import MAX_PULL, Source

__all__ = ["EventsIntake", "Intake", "RegularIntake", "make"]

log = logging.getLogger(__name__)

PATIENCE_S = 0.1  # how soon a daemon without input notices a signal


class Intake(Protocol):
    """Bins from a stream."""

    counters: BinCounters

    def pull(self, source: Source) -> bool:
        """Waits a moment for input; False when none came. Then `bins` has what it completed.

        Raises:
            StreamError: the stream is lost.
        """

    def pull_early(self, source: Source) -> bool:
        """Takes what has come of the open bin, without waiting; False where nothing has. As after `pull`, see `bins`.

        So little is left to do when the bin is complete, and the way of a pull is in the caches even for nothing.
        """

    def bins(self, source: Source) -> Bins:
        """The bins that the last pull completed."""

    def idle(self, source: Source) -> bool:
        """Whether there is time for something else: the open bin cannot be completed yet."""

    def without_stream(self) -> Bins:
        """The bins that the clock completes while there is no stream; waits a moment."""


class RegularIntake:
    """Bins of a stream of counts or samples."""

    def __init__(
        self, n_channels: int, bin_width_s: float, samples_per_bin: int, reduce: Literal["sum", "mean"]
    ) -> None:
        self._binner = RegularBinner(n_channels, bin_width_s, samples_per_bin, reduce)
        self.counters = self._binner.counters
        self._nothing = np.zeros((0, n_channels), np.float32), np.zeros(0)

    def pull(self, source: Source) -> bool:
        """Waits for the samples that the open bin needs."""
        return source.pull(self._binner.missing, PATIENCE_S) > 0

    def pull_early(self, source: Source) -> bool:
        """Takes the samples of the open bin that have come."""
        return source.pull(self._binner.missing, 0.0) > 0

    def bins(self, source: Source) -> Bins:
        """The bins that the last pull completed."""
        return self._binner.push(*source.taken())

    def idle(self, source: Source) -> bool:
        """Whether the open bin still lacks samples."""
        return source.available() < self._binner.missing

    def without_stream(self) -> Bins:
        """No bins: those without samples come out when the stream is back, which says where they are."""
        time.sleep(PATIENCE_S)
        return self._binner.push(*self._nothing)


class EventsIntake:
    """Spikes. A bin closes `lateness_s` after its end, by the clock.

    A stream of spikes that has been silent for `silence_s` is taken to be away: from then on its bins are gaps, since
    LSL does not tell an array that is silent from a source that is stuck.
    """

    def __init__(self, n_channels: int, bin_width_s: float, lateness_s: float, silence_s: float) -> None:
        self._binner = EventsBinner(n_channels, bin_width_s, lateness_s)
        self.counters = self._binner.counters
        self._silence_s = silence_s
        self._last_spike = -math.inf
        self._backlog = 0  # spikes taken since there were fewer waiting than a pull takes
        self._source: Source | None = None
        if lateness_s >= bin_width_s:
            said = "lateness_s=%g: bins of %g s, which close so long after their end, are all late: make it shorter"
            log.warning(said, lateness_s, bin_width_s)

    def pull(self, source: Source, patience_s: float = PATIENCE_S) -> bool:
        """Waits for spikes until the open bin is due."""
        if source is not self._source:  # what the open bin had before this connection is not known
            self._source = source
            self._binner.miss()
        left = self._binner.due - local_clock()
        taken = source.pull(MAX_PULL, min(max(left, 0.0), patience_s))
        if taken:
            self._last_spike = local_clock()
        self._heed_backlog(source, taken)
        return taken > 0 or left <= patience_s

    def pull_early(self, source: Source) -> bool:
        """Takes the spikes that have come."""
        return self.pull(source, 0.0)

    def _heed_backlog(self, source: Source, taken: int) -> None:
        """Says once that so many spikes have waited that LSL may have dropped some, which it does not say itself."""
        before, waited = self._backlog, self._backlog + taken
        self._backlog = waited if taken == MAX_PULL else 0
        if before < source.kept <= waited:
            said = "stream %s: %d spikes waited, as many as LSL keeps: the bins since may lack some"
            log.warning(said, source.source_id, waited)

    def bins(self, source: Source) -> Bins:
        """The bins that the last pull or the clock completed."""
        now = local_clock()
        bins = self._binner.push(*source.taken(), now)
        # The clock's come with the next call: the buffer of these is the binner's. Nor does the clock close a bin whose
        # spikes may still wait to be taken.
        if len(bins.index) or source.n_taken == MAX_PULL:
            return bins
        return self._binner.advance(now, observed=now - self._last_spike < self._silence_s)

    def idle(self, source: Source) -> bool:
        """Whether the open bin is not due yet, and no more spikes wait than a pull takes."""
        return bool(self._binner.due > local_clock()) and source.available() < MAX_PULL

    def without_stream(self) -> Bins:
        """Unobserved bins, as they fall due."""
        time.sleep(min(max(self._binner.due - local_clock(), 0.0), PATIENCE_S))
        return self._binner.advance(local_clock(), observed=False)


def make(
    kind: Kind,
    samples_per_bin: int,
    n_channels: int,
    bin_width_s: float,
    *,
    reduce: Literal["sum", "mean"] = "sum",
    lateness_s: float = 0.002,
    silence_s: float = 1.0,
) -> Intake:
    """The intake of a kind of stream."""
    if kind == "events":
        return EventsIntake(n_channels, bin_width_s, lateness_s, silence_s)
    return RegularIntake(n_channels, bin_width_s, samples_per_bin, reduce)

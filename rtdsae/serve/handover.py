"""A swap: a new pipeline is offered by the control thread and taken by the decoding one, between two bins."""

import threading

from rtdsae.errors import BundleError, ConfigError
from rtdsae.serve.history import History
from rtdsae.serve.pipeline import Pipeline

__all__ = ["Handover"]

PATIENCE_S = 30.0  # for S bins without a gap to come, on which the new model is anchored


class Handover:
    """Where the new pipeline waits.

    Attributes:
        waiting: whether there is one: all that the hot path looks at.
        past: the histories of the pipelines before the present one, oldest first, as far back as it will itself reach.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.past: tuple[History, ...] = ()
        self._lock = threading.Lock()  # between taking and giving up; taken only where one is waiting
        self._new: Pipeline | None = None
        self._taken = threading.Event()

    def offer(self, new: Pipeline, running: Pipeline) -> None:
        """Waits until the new pipeline has been taken.

        Raises:
            ConfigError: its channels or bins are others than the running one's.
            BundleError: it could not be anchored in time.
        """
        if new.bin_width_s != running.bin_width_s or len(new.channels) != len(running.channels):
            raise ConfigError(
                f"{new.bundle.path} decodes {len(new.channels)} channels in bins of {new.bin_width_s:g} s, "
                f"{running.bundle.path} {len(running.channels)} in bins of {running.bin_width_s:g} s: "
                "a swap needs the same channels and bins"
            )
        for i, (its, ours) in enumerate(zip(new.channels, running.channels, strict=True)):
            if its != ours:
                raise ConfigError(
                    f"channel {i} of {new.bundle.path} is {its}, of {running.bundle.path} {ours}: "
                    "a swap needs the same channels in the same order"
                )
        self._taken.clear()
        self._new, self.waiting = new, True
        if self._taken.wait(PATIENCE_S):
            oldest = new.history.first - new.history.capacity
            self.past = tuple(kept for history in self.past if (kept := history.since(oldest)))
            return
        with self._lock:
            self._new, self.waiting = None, False
        if not self._taken.is_set():
            raise BundleError(
                f"{new.bundle.path} could not be anchored: no {new.n_anchor} bins without a gap came within "
                f"{PATIENCE_S:g} s; {running.bundle.path} runs on"
            )

    def take(self, running: Pipeline, seq: int) -> Pipeline | None:
        """The new pipeline, anchored on the last bins, for the bin `seq` and after; None while it cannot be."""
        with self._lock:
            new = self._new
            if new is None:
                return None
            new.decoder.anchor_if_due()
            if not new.decoder.anchors:
                return None
            self.past, self._new, self.waiting = (*self.past, running.history), None, False
            new.history.begin(seq)
            self._taken.set()
            return new

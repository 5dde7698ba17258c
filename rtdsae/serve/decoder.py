"""From bins to latents: anchors the model on the last S bins, when it is time, and steps it, bin by bin."""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rtdsae.errors import ConfigError
from rtdsae.serve.engine import Engine
from rtdsae.serve.recent import KEPT, Recent
from rtdsae.serve.settings import Anchoring
from rtdsae.wire import Flags

__all__ = ["Decoder", "triangles"]


class Decoder:
    """Keeps a model anchored while it runs for longer than the windows that it was trained on.

    once     anchored on the first S bins that follow one another without a gap, then run on for ever
    every    anchored anew on the last S bins, each R bins
    lanes    the engine's L lanes are anchored in turn, each every R bins and R/L after the one before. What is
             published is their mean, weighted by a triangle over a lane's age: a lane counts for nothing when it is
             anchored and nothing when it is about to be, so that nothing jumps

    Where one of the last S bins is a gap, the anchor waits until S whole bins have come, and the ages with it.

    Args:
        engine: the model.
        n_anchor: S.
        horizon: R.
        n_channels: C.
        anchor: which of the three.
        recent: the last bins; another decoder's where this one takes over from it.

    Attributes:
        outputs: the answer to the last bin, by name, in the manifest's shapes.
        anchors: how often the model, or a lane of it, was anchored.
        overdue: for how many bins an anchor has been due that gaps forbid: it runs on, older than it was trained for.

    Raises:
        ConfigError: the model cannot be anchored so.
    """

    def __init__(
        self,
        engine: Engine,
        n_anchor: int,
        horizon: int,
        n_channels: int,
        anchor: Anchoring,
        recent: Recent | None = None,
    ) -> None:
        _check(anchor, engine.lanes, n_anchor, horizon)
        self.recent = recent or Recent(n_channels)
        self.outputs = engine.outputs
        self.anchors = self.overdue = 0
        self._engine, self._n_anchor = engine, n_anchor
        self._lanes = engine.lanes if anchor == "lanes" else 1
        self._stride = 0 if anchor == "once" else horizon // self._lanes  # bins between two anchors
        self._age = 0  # of lane 0, in bins
        self._due = self._wanted = False
        self._news = _NONE  # flags for the next bin that has an answer
        if self._lanes > 1:
            self._weights = triangles(self._lanes, self._stride)
            self.outputs = {name: np.zeros_like(lane) for name, lane in engine.outputs.items()}
            lanes = engine.results.items()
            self._mixes = [(values.reshape(self._lanes, -1), self.outputs[name].reshape(-1)) for name, values in lanes]

    def decode(self, counts: NDArray[np.float32], observed: bool) -> int | None:
        """Takes the next bin, counts `(C,)`.

        Returns:
            The bin's wire flags, with the answer in `outputs`; None while the model is not anchored yet.
        """
        self.recent.add(counts, observed)
        if not self.anchors:
            return None
        self._engine.step(counts, observed)
        if self._due:
            self.overdue += 1
        elif self._stride:
            self._grow_older()
        self._mix()
        flags, self._news = self._news, _NONE
        return flags if observed else flags | _GAP

    def look_ahead(self, n_bins: int) -> None:
        """Puts into `outputs` what the model forecasts for `n_bins` after the last bin; its state stays."""
        self._engine.forecast(n_bins)
        self._mix()

    def anchor_if_due(self) -> None:
        """Anchors the model, if it is time; to be called after a bin was published, never before."""
        if not (self._due or self._wanted or not self.anchors):
            return
        window = self.recent.window(self._n_anchor)
        if window is None:
            return
        everything = self._lanes == 1 or self._wanted or not self.anchors
        self._due = self._wanted = False  # here: another may be asked for while the graph runs
        self._engine.anchor(window, None if everything else self._age // self._stride)
        if everything:
            self._age = 0
        self.anchors += 1
        self.overdue = 0
        self._news = _ANCHORED

    def want_anchor(self) -> None:
        """Asks for a new anchor, of all lanes, as soon as S whole bins are there."""
        self._wanted = True

    def _grow_older(self) -> None:
        self._age = (self._age + 1) % (self._stride * self._lanes)
        self._due = self._age % self._stride == 0

    def _mix(self) -> None:
        if self._lanes > 1:
            weights = self._weights[self._age]
            for lanes, mixed in self._mixes:
                np.dot(weights, lanes, out=mixed)


def triangles(n_lanes: int, stride: int) -> NDArray[np.float32]:
    """The lanes' weights `(n_lanes * stride, n_lanes)` by the age of lane 0; each row adds up to one.

    Lane l is anchored when lane 0 is l strides old.
    """
    period = n_lanes * stride
    age = (np.arange(period)[:, None] - stride * np.arange(n_lanes)) % period
    weights = 1 - np.abs(2 * age / period - 1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _check(anchor: str, lanes: int, n_anchor: int, horizon: int) -> None:
    if anchor not in get_args(Anchoring):
        raise ConfigError(f"anchor {anchor!r}: it must be one of {', '.join(get_args(Anchoring))}")
    if n_anchor > KEPT:
        raise ConfigError(f"the model is anchored on {n_anchor} bins, more than the {KEPT} that are kept")
    if anchor == "lanes" and lanes < 2:
        raise ConfigError("anchor lanes needs a bundle of 2 lanes or more, this one has 1: export it with --lanes 2")
    if anchor == "lanes" and horizon < lanes:
        raise ConfigError(f"anchor lanes: {lanes} lanes cannot take turns within {horizon} bins")


_NONE, _GAP, _ANCHORED = 0, int(Flags.GAP), int(Flags.ANCHORED)  # plain: enum arithmetic costs microseconds

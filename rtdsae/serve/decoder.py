"""From bins to latents: collects the bins that anchor the model, then steps it, bin by bin."""

import numpy as np
from numpy.typing import NDArray

from rtdsae.serve.engine import Engine
from rtdsae.wire import Flags

__all__ = ["Decoder"]


class Decoder:
    """Anchors an engine once, on the first S bins that follow one another without a gap, and then runs it on.

    Attributes:
        outputs: the engine's; those of the last bin that `decode` had an answer for.
        anchors: how often the model was anchored.
    """

    def __init__(self, engine: Engine, n_anchor: int, n_channels: int) -> None:
        self.outputs = engine.outputs
        self.anchors = 0
        self._engine = engine
        self._window = np.zeros((n_anchor, n_channels), np.float32)
        self._collected = 0
        self._news = 0  # flags for the next bin that has an answer

    def decode(self, counts: NDArray[np.float32], observed: bool) -> int | None:
        """Takes the next bin, counts `(C,)`.

        Returns:
            The bin's wire flags, with the answer in `outputs`; None while the model is not anchored yet.
        """
        if not self.anchors:
            self._collect(counts, observed)
            return None
        self._engine.step(counts, observed)
        flags, self._news = self._news, _NONE
        return flags if observed else flags | _GAP

    def _collect(self, counts: NDArray[np.float32], observed: bool) -> None:
        """A gap begins the collection anew: the static encoder has never seen a window with a hole."""
        if not observed:
            self._collected = 0
            return
        self._window[self._collected] = counts
        self._collected += 1
        if self._collected == len(self._window):
            self._engine.anchor(self._window)
            self.anchors, self._news = 1, int(Flags.ANCHORED)


_NONE, _GAP = 0, int(Flags.GAP)  # plain integers: enum arithmetic costs microseconds

"""The last bins of input: what an anchor is made of, whichever model is running."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEPT", "Recent"]

KEPT = 1024  # bins: more than any anchor needs


class Recent:
    """A ring of the last bins, `(KEPT, C)`, shared by the model that runs and the one that takes over.

    Attributes:
        run: how many bins up to the last one were observed without a gap.
    """

    def __init__(self, n_channels: int) -> None:
        self._counts: NDArray[np.float32] = np.zeros((KEPT, n_channels), np.float32)
        self._n = 0
        self.run = 0

    def add(self, counts: NDArray[np.float32], observed: bool) -> None:
        """Takes the next bin, counts `(C,)`."""
        self._counts[self._n & (KEPT - 1)] = counts
        self._n += 1
        self.run = self.run + 1 if observed else 0

    def window(self, n_bins: int) -> NDArray[np.float32] | None:
        """The last bins `(n_bins, C)`, in order, as a copy; None where not all of them were observed.

        The static encoder has never seen a window with a hole.
        """
        if self.run < n_bins:
            return None
        return np.take(self._counts, np.arange(self._n - n_bins, self._n) & (KEPT - 1), axis=0)

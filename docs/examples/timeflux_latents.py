"""Latents in Timeflux: a node whose output is what `rtdsae serve` has published since the last update.

    graphs:
      - rate: 100
        nodes:
          - id: latents
            module: timeflux_latents
            class: Latents
            params: {endpoint: "tcp://127.0.0.1:5556", array: behaviour}

Run with Timeflux 0.17.
"""

import time

import pandas as pd
import pylsl
from timeflux.core.node import Node

from rtdsae import Subscriber
from rtdsae.wire import Latents as Bin


class Latents(Node):
    """Receives one array.

    Attributes:
        o (Port): a row a bin, a column a value; the index is the bin's end, by this computer's clock.
        o_flags (Port): the bins' flags, as docs/wire.md has them; 1 is a gap, whose values are a forecast.

    Args:
        endpoint: where the daemon publishes; on this computer, whose LSL clock is then the daemon's.
        array: which of what it publishes.
    """

    def __init__(self, endpoint: str = "tcp://127.0.0.1:5556", array: str = "factors") -> None:
        super().__init__()
        self._subscriber = Subscriber(endpoint)
        self._array = array

    def update(self) -> None:
        """Puts out what has come."""
        bins = list(iter(lambda: self._subscriber.receive(0), None))
        if not bins:
            return
        ahead = time.time() - pylsl.local_clock()
        index = pd.to_datetime([bin.t_bin + ahead for bin in bins], unit="s")
        self.o.data = pd.DataFrame([self._row(bin) for bin in bins], index)
        self.o.meta = {"rate": 1 / bins[-1].schema.bin_width_s}
        self.o_flags.data = pd.DataFrame({"flags": [int(bin.flags) for bin in bins]}, index)

    def _row(self, bin: Bin) -> dict[str, float]:
        array = next(array for array in bin.schema.arrays if array.name == self._array)
        names = array.labels or [f"{self._array}_{i}" for i in range(array.size)]
        return dict(zip(names, bin[self._array].ravel(), strict=True))

    def terminate(self) -> None:
        """Hangs up."""
        self._subscriber.close()

"""The latents as an LSL stream too, so that a recorder of LSL stores them beside the neural data."""

import logging

import numpy as np
import pylsl

from rtdsae.wire import Schema

__all__ = ["Outlet"]

log = logging.getLogger(__name__)


class Outlet:
    """An LSL stream of type Latents: a bin's payload and, in the last channel, its flags; the stamp is the bin's end.

    Args:
        name: of the stream; its source_id is rtdsae- and this.
        schema: what is published.
    """

    def __init__(self, name: str, schema: Schema) -> None:
        self._name = name
        self._count = 0
        self.reopen(schema)

    def reopen(self, schema: Schema) -> None:
        """Makes the stream for another schema; the same stream goes on where its values are as many."""
        if schema.count == self._count:
            return
        if self._count:
            log.warning("LSL stream %s begins anew: the new model publishes %d values", self._name, schema.count)
        self._count = schema.count
        self._sample = np.zeros((1, schema.count + 1), np.float32)
        rate = 1 / schema.bin_width_s
        source_id = f"rtdsae-{self._name}"
        info = pylsl.StreamInfo(self._name, "Latents", schema.count + 1, rate, pylsl.cf_float32, source_id)
        info.set_channel_labels(_labels(schema))
        info.desc().append_child_value("bundle", schema.bundle)
        info.desc().append_child_value("bundle_hash", schema.bundle_hash)
        self._outlet = pylsl.StreamOutlet(info)

    def push(self, payload: np.ndarray, t_bin: float, flags: int) -> None:
        """Sends a bin's payload `(count,)`."""
        self._sample[0, :-1] = payload
        self._sample[0, -1] = flags
        self._outlet.push_chunk(self._sample, t_bin)


def _labels(schema: Schema) -> list[str]:
    labels = []
    for array in schema.arrays:
        names = array.labels if len(array.labels) == array.size else range(array.size)
        labels += [f"{array.name}.{name}" for name in names]
    return [*labels, "flags"]

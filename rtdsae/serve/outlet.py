"""The latents as an LSL stream too, so that a recorder of LSL stores them beside the neural data."""

import numpy as np
import pylsl

from rtdsae.wire import Schema

__all__ = ["Outlet"]


class Outlet:
    """An LSL stream of type Latents: a bin's payload and, in the last channel, its flags; the stamp is the bin's end.

    Its description names the bundle that it began with. Where another takes over that publishes the same arrays, the
    stream goes on, and the flag `swapped` says where; `fits` tells.

    Args:
        name: of the stream; its source_id is rtdsae- and this.
        schema: what is published.
    """

    def __init__(self, name: str, schema: Schema) -> None:
        self._arrays = schema.arrays
        self._sample = np.zeros((1, schema.count + 1), np.float32)
        rate = 1 / schema.bin_width_s
        info = pylsl.StreamInfo(name, "Latents", schema.count + 1, rate, pylsl.cf_float32, f"rtdsae-{name}")
        info.set_channel_labels(_labels(schema))
        info.desc().append_child_value("bundle", schema.bundle)
        info.desc().append_child_value("bundle_hash", schema.bundle_hash)
        self._outlet: pylsl.StreamOutlet | None = pylsl.StreamOutlet(info)

    def fits(self, schema: Schema) -> bool:
        """Whether the stream's channels are these arrays' values."""
        return self._arrays == schema.arrays

    def close(self) -> None:
        """Ends the stream; LSL takes some 20 ms for it."""
        self._outlet = None

    def push(self, payload: np.ndarray, t_bin: float, flags: int) -> None:
        """Sends a bin's payload `(count,)`."""
        self._sample[0, :-1] = payload
        self._sample[0, -1] = flags
        if self._outlet:
            self._outlet.push_chunk(self._sample, t_bin)


def _labels(schema: Schema) -> list[str]:
    labels = []
    for array in schema.arrays:
        names = array.labels if len(array.labels) == array.size else range(array.size)
        labels += [f"{array.name}.{name}" for name in names]
    return [*labels, "flags"]

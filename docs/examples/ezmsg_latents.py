"""Latents in ezmsg: a unit that publishes each bin of `rtdsae serve` as an AxisArray.

    latents = Latents(LatentsSettings(array="behaviour"))
    ez.run(LATENTS=latents, ..., connections=((latents.OUTPUT_SIGNAL, ...),))

Run with ezmsg 3.9.
"""

import asyncio
from collections.abc import AsyncIterator

import ezmsg.core as ez
import numpy as np
from ezmsg.util.messages.axisarray import AxisArray

from rtdsae import Subscriber
from rtdsae.wire import Latents as Bin


class LatentsSettings(ez.Settings):
    """What to receive."""

    endpoint: str = "tcp://127.0.0.1:5556"
    """Where the daemon publishes."""
    array: str = "factors"
    """Which of what it publishes."""


class LatentsState(ez.State):
    """The connection."""

    subscriber: Subscriber


class Latents(ez.Unit):
    """Publishes a bin a message: `time` (1) by the array's own axes, the last of which is `ch`.

    The time axis' offset is the bin's end on the daemon's LSL clock; `seq` and `flags` (1 is a gap, whose values are a
    forecast) are in `attrs`.
    """

    SETTINGS = LatentsSettings
    STATE = LatentsState

    OUTPUT_SIGNAL = ez.OutputStream(AxisArray)

    async def initialize(self) -> None:
        """Connects; the daemon need not be there yet."""
        self.STATE.subscriber = Subscriber(self.SETTINGS.endpoint)

    async def shutdown(self) -> None:
        """Hangs up."""
        self.STATE.subscriber.close()

    @ez.publisher(OUTPUT_SIGNAL)
    async def publish(self) -> AsyncIterator[tuple[ez.OutputStream, AxisArray]]:
        """Waits in a thread, so that other units of the process run meanwhile."""
        while True:
            message = await asyncio.to_thread(self.STATE.subscriber.receive, 0.1)
            if message is not None:
                yield self.OUTPUT_SIGNAL, axis_array(message, self.SETTINGS.array)


def axis_array(message: Bin, name: str) -> AxisArray:
    """One array of one bin."""
    array = next(array for array in message.schema.arrays if array.name == name)
    labels = array.labels or [str(i) for i in range(array.shape[-1])]
    return AxisArray(
        data=message[name][None].copy(),
        dims=["time", *(f"dim{i}" for i in range(len(array.shape) - 1)), "ch"],
        axes={
            "time": AxisArray.TimeAxis(fs=1 / message.schema.bin_width_s, offset=message.t_bin),
            "ch": AxisArray.CoordinateAxis(data=np.array(labels), dims=["ch"]),
        },
        attrs={"seq": message.seq, "flags": int(message.flags)},
        key=name,
    )

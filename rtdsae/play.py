"""A recording as a live LSL stream: one sample a bin, on schedule, where known with its true rates beside it."""

import time
from typing import Any

import numpy as np
import pylsl

from rtdsae.errors import StreamError
from rtdsae.recordings import Recording

__all__ = ["Player"]

LEAD_S = 0.05  # between the start and the first bin's end, at least: nothing is late before it has begun
LINGER_S = 0.5  # LSL sends in the background: an outlet that is destroyed at once takes its last samples along


class Player:
    """Plays a recording's counts `(T, C)` as float32 samples, one a bin, at 1 / `bin_width_s` Hz.

    The stream exists from here on; `run` plays it. A sample's stamp is its bin's end, one bin width after the one
    before. At `speed` 1 it is pushed at that very time on LSL's clock, by a schedule that cannot drift; at other speeds
    the stamps keep their spacing, so that a decoder sees the same stream, sooner or later.

    Args:
        recording: what to play; its bins follow one another, segments are not set apart.
        source_id: by which a decoder finds the stream, and finds it again; make it unique.
        name: for people.
        stream_type: LSL's content type.
        speed: bins a second, relative to real time.
        loop: begin again at the end, for ever.
        truth: play `true_rates` too, as a second stream of type Rates, `source_id` + "-truth", with the same stamps.

    Raises:
        StreamError: `truth` is asked for and the recording has none, or `speed` is not a positive number.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        source_id: str,
        name: str = "rtdsae",
        stream_type: str = "Spikes",
        speed: float = 1.0,
        loop: bool = False,
        truth: bool = False,
    ) -> None:
        if not 0 < speed < np.inf:
            raise StreamError(f"speed is {speed:g}: it must be a positive number, 1 is real time")
        self.source_id = source_id
        self.bin_width_s, self.speed, self.loop = recording.bin_width_s, speed, loop
        series, info = recording.counts, _info(recording, name, stream_type, source_id, "counts")
        self._tracks = [(pylsl.StreamOutlet(info), _samples(series))]
        if truth:
            if recording.true_rates is None:
                raise StreamError("the recording has no true rates to play: leave truth out")
            info = _info(recording, f"{name}-truth", "Rates", f"{source_id}-truth", "spikes/s")
            self._tracks.append((pylsl.StreamOutlet(info), _samples(recording.true_rates)))

    def run(self, wait_s: float = 0.0) -> int:
        """Plays to the end and says how many bins were pushed; with `loop` it ends only by an exception.

        Args:
            wait_s: wait so long for a consumer of the counts; 0 begins at once.

        Raises:
            StreamError: no consumer came.
        """
        counts = self._tracks[0][0]
        if wait_s and not counts.wait_for_consumers(wait_s):
            raise StreamError(f"nobody listens to stream {self.source_id} after {wait_s:g} s: start the decoder")
        pushed = self._play(pylsl.local_clock() + max(LEAD_S - self.bin_width_s, 0.0))
        if counts.have_consumers():
            time.sleep(LINGER_S)
        return pushed

    def _play(self, start: float) -> int:
        n_bins, pushed = len(self._tracks[0][1]), 0
        while pushed < n_bins or self.loop:
            pushed += 1
            _sleep_until(start + pushed * self.bin_width_s / self.speed)
            stamp, row = start + pushed * self.bin_width_s, (pushed - 1) % n_bins
            for outlet, samples in self._tracks:
                outlet.push_chunk(samples[row : row + 1], stamp)
        return pushed


def _samples(series: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(series, np.float32)


def _sleep_until(due: float) -> None:
    if (left := due - pylsl.local_clock()) > 0:
        time.sleep(left)


def _info(recording: Recording, name: str, stream_type: str, source_id: str, unit: str) -> pylsl.StreamInfo:
    rate = 1 / recording.bin_width_s
    info: Any = pylsl.StreamInfo(name, stream_type, recording.n_channels, rate, pylsl.cf_float32, source_id)
    info.set_channel_labels(list(recording.channels))
    info.set_channel_units(unit)
    info.desc().append_child_value("bin_width_s", repr(recording.bin_width_s))
    return info

"""A recording as a live LSL stream, on schedule: one sample a bin, or the file's own samples with their own stamps."""

import time
from typing import Any, NamedTuple

import numpy as np
import pylsl

from rtdsae.errors import StreamError
from rtdsae.recordings import Original, Recording

__all__ = ["Player"]

LEAD_S = 0.05  # between the start and the first stamp, at least: nothing is late before it has begun
LINGER_S = 0.5  # LSL sends in the background: an outlet that is destroyed at once takes its last samples along
RESET_S = 1.0  # a stamp further back than this is a clock that was reset: what follows it is not late
SLOWEST = 1e-6  # speed, relative to real time
MAX_CHUNK = 4096  # samples pushed in one call


class _Track(NamedTuple):
    """One stream: its outlet, and its samples `(n, C)`."""

    outlet: pylsl.StreamOutlet
    samples: np.ndarray


class Player:
    """Plays a recording's counts `(T, C)` as float32 samples, one a bin; or an `Original`, as the file holds it.

    The stream exists from here on; `run` plays it. A bin's stamp is its end, one bin width after the one before; a
    sample of an `Original` keeps its distance to the first one, jitter, gaps and steps back included. At `speed` 1 each
    is pushed at its stamp on LSL's clock, by a schedule that cannot drift; at other speeds the stamps keep their
    spacing, so that a decoder sees the same stream, sooner or later.

    Args:
        recording: what to play; the bins of a `Recording` follow one another, segments are not set apart.
        source_id: by which a decoder finds the stream, and finds it again; make it unique.
        name: for people.
        stream_type: LSL's content type.
        speed: relative to real time.
        loop: begin again at the end, for ever; stamps go on rising.
        truth: play `true_rates` too, as a second stream of type Rates, `source_id` + "-truth", with the same stamps.

    Raises:
        StreamError: `truth` is asked for and the recording has none, there is nothing to play, or `speed` is not a
            positive number.
    """

    def __init__(
        self,
        recording: Recording | Original,
        *,
        source_id: str,
        name: str = "rtdsae",
        stream_type: str = "Spikes",
        speed: float = 1.0,
        loop: bool = False,
        truth: bool = False,
    ) -> None:
        if not SLOWEST <= speed < np.inf:
            raise StreamError(
                f"speed is {speed:g}: it must be a positive number, 1 is real time, {SLOWEST:g} the least"
            )
        self.source_id, self.speed, self.loop = source_id, speed, loop
        if isinstance(recording, Original):
            self._offsets, self._due, self._period = _as_stored(recording)
            samples, rates, channels = recording.samples, None, recording.channels
        else:
            self._offsets, self._due, self._period = _regular(recording)
            samples, rates, channels = recording.counts, recording.true_rates, recording.channels
        info = _info(recording, name, stream_type, source_id, channels, "counts")
        self._tracks = [_Track(pylsl.StreamOutlet(info), _floats(samples))]
        if truth:
            if rates is None:
                raise StreamError("the recording has no true rates to play: leave truth out")
            info = _info(recording, f"{name}-truth", "Rates", f"{source_id}-truth", channels, "spikes/s")
            self._tracks.append(_Track(pylsl.StreamOutlet(info), _floats(rates)))

    def run(self, wait_s: float = 0.0) -> int:
        """Plays to the end and says how many samples were pushed; with `loop` it ends only by an exception.

        Args:
            wait_s: wait so long for a consumer of the counts; 0 begins at once.

        Raises:
            StreamError: no consumer came.
        """
        counts = self._tracks[0].outlet
        if wait_s and not counts.wait_for_consumers(wait_s):
            raise StreamError(f"nobody listens to stream {self.source_id} after {wait_s:g} s: start the decoder")
        pushed = self._play(_nanoseconds(pylsl.local_clock() + LEAD_S))
        if counts.have_consumers():
            time.sleep(LINGER_S)
        return pushed

    def _play(self, start: int) -> int:
        """Pushes all that is due, then sleeps until more is; times are whole nanoseconds from `start` on."""
        n, pushed = len(self._due), 0
        while pushed < n or self.loop:
            lap, row = divmod(pushed, n)
            lap_start = start + lap * self._period
            begun = lap * self._period
            _sleep_until(start + (begun + self._due[row]) / self.speed)
            passed = (_nanoseconds(pylsl.local_clock()) - start) * self.speed - begun
            last = max(row + 1, min(int(np.searchsorted(self._due, passed, side="right")), row + MAX_CHUNK))
            stamps = ((lap_start + self._offsets[row:last]) / 1e9).tolist()
            for outlet, samples in self._tracks:
                outlet.push_chunk(samples[row:last], stamps)
            pushed += last - row
        return pushed


def _regular(recording: Recording) -> tuple[np.ndarray, np.ndarray, int]:
    """The schedule of bins, in whole nanoseconds: stamps after the first, when each is due, and the whole length."""
    offsets = np.rint(1e9 * recording.bin_width_s * np.arange(recording.n_bins)).astype(np.int64)
    return offsets, offsets, round(1e9 * recording.bin_width_s * recording.n_bins)


def _as_stored(original: Original) -> tuple[np.ndarray, np.ndarray, int]:
    """The same of stamped samples: they are pushed in the order in which they were stored, none before its stamp."""
    if not len(original.stamps) or not np.isfinite(original.stamps).all():
        raise StreamError(f"stream {original.name} has no samples, or stamps that are no times: nothing can be played")
    stamps = np.rint(original.stamps * 1e9).astype(np.int64)
    offsets = stamps - stamps[0]
    steps = np.diff(offsets, prepend=0)
    resets = np.cumsum(np.where(steps < -RESET_S * 1e9, -steps, 0))
    due = np.maximum.accumulate(offsets + resets)
    rate = original.nominal_rate_hz
    step = round(1e9 / rate) if rate else max(1, int(due[-1]) // max(1, len(due) - 1))
    return offsets, due, int(due[-1]) + step


def _floats(series: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(series, np.float32)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _sleep_until(due_ns: float) -> None:
    if (left := due_ns / 1e9 - pylsl.local_clock()) > 0:
        time.sleep(left)


def _info(
    recording: Recording | Original,
    name: str,
    stream_type: str,
    source_id: str,
    channels: tuple[str, ...],
    unit: str,
) -> pylsl.StreamInfo:
    rate = recording.nominal_rate_hz if isinstance(recording, Original) else 1 / recording.bin_width_s
    spikes = rate == 0
    n = 1 if spikes else len(channels)
    info: Any = pylsl.StreamInfo(name, stream_type, n, rate, pylsl.cf_float32, source_id)
    if spikes:
        names = info.desc().append_child("spike_channels")
        for label in channels:
            names.append_child("channel").append_child_value("label", label)
    else:
        info.set_channel_labels(list(channels))
        info.set_channel_units(unit)
    if recording.bin_width_s is not None:
        info.desc().append_child_value("bin_width_s", repr(recording.bin_width_s))
    return info

"""An open LSL stream: checked against the model, its samples in the model's channels and on this machine's clock.

Stamps come raw from LSL: its own corrections stall the first pull for half a second, and its smoothing moves spikes
between bins. The offset from the source's clock to this machine's is measured in the background and added here, so
that the data path never waits for it.
"""

import ctypes
import logging
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pylsl
from numpy.typing import NDArray
from pylsl.lib import cf_string, lib

from rtdsae.bins import Kind, input_kind
from rtdsae.errors import BinError, StreamError, one_line
from rtdsae.serve.realtime import ordinary_thread

lib.lsl_time_correction_ex.restype = ctypes.c_double  # pylsl does not use it

__all__ = ["MAX_PULL", "Lost", "Source", "Wanted", "within"]

log = logging.getLogger(__name__)

BUFFER_S = 10  # of samples that LSL keeps for a daemon that stalls; beyond it LSL drops the oldest, silently
KEPT_SPIKES = 3000  # of a channel, likewise: a minute of 50 a second; a longer one is taken as a reset of the clock
SEND_SINGLY_HZ = 2000  # up to here a bin's last sample is sent at once; above, as the source pushes
MAX_PULL = 4096  # samples taken at a time
OPEN_S = 10.0
FIRST_CLOCK_S = 3.0  # to answer the first clock probe; the service's watchdog is not patient for much longer
CLOCK_PERIOD_S = 2.0
CLOCK_ANSWER_S = 1.0
LOST = -2  # LSL's error code
NO_SAMPLE = -np.inf  # where LSL has put no stamp


class Lost(StreamError):
    """The connection to the source is gone."""


@dataclass(frozen=True)
class Wanted:
    """What a stream must be like.

    Attributes:
        channels: the model's channel labels.
        bin_width_s: of the model.
        kind: what its samples are, where the user says so.
        match: how its channels are the model's: by name where both have names; by name, and it may have others
            beside (`subset`); or by their number alone.
    """

    channels: Sequence[str]
    bin_width_s: float
    kind: Kind | None = None
    match: Literal["name", "subset", "count"] = "name"

    def check(self, info: pylsl.StreamInfo) -> tuple[Kind, int]:
        """What the stream's samples are, and how many make a bin (0 for events).

        Raises:
            StreamError: its format, channel count or rate does not fit, with what was found and what was expected.
        """
        where = f"stream {one_line(info.source_id() or info.name())}"
        if info.channel_format() == cf_string:
            raise StreamError(f"{where} has string samples, the model needs numbers: choose another stream")
        try:
            kind, k = input_kind(info.nominal_srate(), self.bin_width_s, self.kind)
        except BinError as error:
            raise StreamError(f"{where}: {error}") from error
        if kind == "events":  # a channel is a number in the sample
            return kind, k
        self.check_number(info.channel_count(), where)
        if k > MAX_PULL:
            raise StreamError(f"{where} makes a bin of {k} samples, more than {MAX_PULL}: send it at a lower rate")
        return kind, k

    def check_number(self, n: int, where: str) -> None:
        """Refuses a stream of fewer or more channels than the model has.

        Raises:
            StreamError: it does not fit.
        """
        expected = len(self.channels)
        if n < expected or (n > expected and self.match != "subset"):
            cure = "; if these are among them by name, say match=subset" if n > expected else ""
            raise StreamError(f"{where} has {n} channels, the model was trained on {expected}{cure}")

    def order(self, labels: Sequence[str | None] | None, where: str) -> NDArray[np.intp] | None:
        """Which of the stream's channels is each of the model's, by their labels; None to take them as they come.

        Labels that only count (`ch0`, `ch1`, ...) name nothing: then the channels are told by their number.

        Raises:
            StreamError: both have names, and they are not the same; or some of a subset's are not there, or twice.
        """
        names, channels = [str(label) for label in labels or ()], list(self.channels)
        if self.match == "subset":
            return self._among(names, where)
        if not labels or names == channels or self.match == "count":
            return None
        if sorted(names) == sorted(channels) and len(set(names)) == len(names):
            log.info("%s has the model's channels in another order: put in order here", where)
            return np.array([names.index(channel) for channel in channels])
        differ = next(i for i, (found, expected) in enumerate(zip(names, channels, strict=True)) if found != expected)
        said = f"channel {differ} of {where} is {names[differ]}, the model's is {channels[differ]}"
        if _name_nothing(names, channels) or _name_nothing(channels, names):
            log.warning("%s: not names, so taken in the stream's order", said)
            return None
        raise StreamError(
            f"{said}: {len(set(names) & set(channels))} of the model's {len(channels)} channels are there by name; "
            "if they are the same under other names and in this order, say match=count"
        )

    def _among(self, names: list[str], where: str) -> NDArray[np.intp]:
        for channel in self.channels:
            if (n := names.count(channel)) != 1:
                found = f"has {n} channels of the name" if n else "has no channel"
                raise StreamError(
                    f"{where} {found} {channel}: match=subset needs each of the model's once, by its name"
                )
        log.info("%s has %d channels: the model's %d are taken by name", where, len(names), len(self.channels))
        return np.array([names.index(channel) for channel in self.channels])


def _name_nothing(labels: Sequence[str], others: Sequence[str]) -> bool:
    """Whether labels only count, `ch0`, `ch1`, ..., where others are not a choice of such (`ch3`, `ch7`)."""
    return _count(labels) and (_count(others) or not all(re.fullmatch(r"ch\d+", label) for label in others))


def _count(labels: Sequence[str]) -> bool:
    return any(list(labels) == [f"ch{i}" for i in range(first, first + len(labels))] for first in (0, 1))


def _spiking(info: pylsl.StreamInfo) -> list[str]:
    """The names of the channels whose numbers a stream of spikes has; none where its description has not all."""
    names, channel = [], info.desc().child("spike_channels").child("channel")
    while not channel.empty():
        names.append(channel.child_value("label"))
        channel = channel.next_sibling("channel")
    return names if all(names) else []


class Source:
    """An open stream. `pull` takes samples, `taken` gives them: values `(n, C)` float32, stamps `(n,)` seconds.

    Args:
        info: of the stream.
        wanted: what it must be like.
        clock_offset_s: of the source's clock, where it is known; else it is measured first, half a second.
        like: another connection to the very same stream, whose channels were put in order already.

    Attributes:
        kind: counts, samples or events.
        samples_per_bin: 0 for events.
        clock_offset_s: what is added to its stamps.
        n_taken: how many samples the last pull took.
        kept: how many spikes LSL keeps for a daemon that stalls.

    Raises:
        StreamError: it does not fit or has vanished.
    """

    def __init__(
        self,
        info: pylsl.StreamInfo,
        wanted: Wanted,
        clock_offset_s: float | None = None,
        like: "Source | None" = None,
    ) -> None:
        self.kind, self.samples_per_bin = wanted.check(info)
        self.source_id: str = info.source_id() or info.name()
        self.uid, self.hostname = info.uid(), info.hostname()
        self.clock_offset_s = clock_offset_s or 0.0
        rows = self.samples_per_bin or MAX_PULL
        self._values: NDArray[np.float32] = np.zeros((rows, info.channel_count()), np.float32)
        self._stamps: NDArray[np.float64] = np.zeros(rows)
        self.n_taken = 0
        hundreds = max(1000, math.ceil(KEPT_SPIKES * len(wanted.channels) / 100))
        self.kept = 100 * hundreds
        events = self.kind == "events"
        self._timeout, self._error = ctypes.c_double(), ctypes.c_int()
        self._error_at = ctypes.byref(self._error)
        self._buffers: dict[int, tuple[object, ...]] = {}
        self._order: NDArray[np.intp] | None = None
        self._closing = threading.Event()
        self._clock: threading.Thread | None = None
        try:
            self._inlet = pylsl.StreamInlet(
                info,
                max_buflen=hundreds if events else BUFFER_S,  # LSL counts irregular samples in hundreds
                max_chunklen=1 if 0 < info.nominal_srate() <= SEND_SINGLY_HZ else 0,
                recover=False,
            )
            self._order = like._order if like else self._read_order(wanted)
            self._open(clock_offset_s is None)
        except (RuntimeError, pylsl.util.LostError) as error:
            raise StreamError(f"stream {self.source_id}: {error}") from error

    def _read_order(self, wanted: Wanted) -> NDArray[np.intp] | None:
        info, where = self._inlet.info(OPEN_S), f"stream {one_line(self.source_id)}"
        if self.kind == "events":
            labels = _spiking(info)
            if labels:
                wanted.check_number(len(labels), where)
            order = wanted.order(labels, where)
            return None if order is None else _numbers(order, len(labels))
        n, labels = self._values.shape[1], info.get_channel_labels()
        if wanted.match != "count" and labels and len(labels) != n:
            raise StreamError(
                f"{where} has {n} channels and names {len(labels)}: mend its description, or say match=count"
            )
        return wanted.order(labels, where)

    def _open(self, unknown_clock: bool) -> None:
        if self._order is not None and self.kind != "events":
            self._ordered = np.zeros((len(self._values), len(self._order)), np.float32)
        if unknown_clock:
            try:
                self.clock_offset_s = self._inlet.time_correction(FIRST_CLOCK_S)
            except pylsl.util.TimeoutError:
                log.warning("stream %s answers no clock probes: its stamps are taken as this machine's", self.source_id)
        self._inlet.open_stream(OPEN_S)  # last: samples that wait for the clock would be decoded late
        self._clock = threading.Thread(target=self._follow_clock, name="lsl-clock", daemon=True)
        self._clock.start()

    def available(self) -> int:
        """How many samples are there already."""
        return int(lib.lsl_samples_available(self._inlet.obj))

    def unread(self) -> int:
        """How many samples are there that a lost connection no longer hands out."""
        return max(0, self.available() - 1)  # LSL ends its queue with an entry that is none

    def pull(self, n: int, timeout_s: float) -> int:
        """Takes `n` samples, or as many as come within `timeout_s`; says how many.

        Raises:
            Lost: the stream is gone, and what this call took before it was has been given.
        """
        buffers = self._buffers.get(n) or self._buffers_for(n)
        self._stamps.fill(NO_SAMPLE)
        self._timeout.value = timeout_s
        values: int = lib.lsl_pull_chunk_f(*buffers, self._timeout, self._error_at)
        if self._error.value == LOST:  # LSL does not say how many it took while it waited, but they are here
            self.n_taken = int(np.count_nonzero(self._stamps != NO_SAMPLE))
            if not self.n_taken:
                raise Lost(f"stream {self.source_id} is lost")
        else:
            self.n_taken = values // self._values.shape[1]
        return self.n_taken

    def _buffers_for(self, n: int) -> tuple[object, ...]:
        """Arguments of LSL's pull function, made once for each n: building them costs more than the call."""
        assert n <= len(self._stamps), "LSL would write beyond them"
        n_values, n_stamps = ctypes.c_ulong(n * self._values.shape[1]), ctypes.c_ulong(n)
        values, stamps = (array.ctypes.data_as(ctypes.c_void_p) for array in (self._values, self._stamps))
        self._buffers[n] = (self._inlet.obj, values, stamps, n_values, n_stamps)
        return self._buffers[n]

    def taken(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The samples of the last pull, the model's channels in the model's order; valid until the next. Once only."""
        if self.n_taken != len(self._stamps):
            values, stamps = self._values[: self.n_taken], self._stamps[: self.n_taken]
        else:
            values, stamps = self._values, self._stamps
        if len(stamps) == 1:
            stamps[0] += self.clock_offset_s  # in cold caches an array's own addition takes four times as long
        else:
            stamps += self.clock_offset_s
        if self._order is not None:
            if self.kind == "events":
                _renumber(values[:, 0], self._order)
            else:
                values = np.take(values, self._order, axis=1, out=self._ordered[: self.n_taken], mode="clip")
        return values, stamps

    def _follow_clock(self) -> None:
        ordinary_thread()
        while not self._closing.wait(CLOCK_PERIOD_S):
            measured = _measure_clock(self._inlet.obj)
            if measured is not None:  # silent for now: the last correction stands
                self.clock_offset_s = within(self.clock_offset_s, *measured)

    def close(self) -> None:
        """Closes the stream; bounded by one clock probe."""
        self._closing.set()
        if self._clock:
            self._clock.join()
        self._inlet = None


def _numbers(order: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """The model's number of each of a stream's n channels; of those that it lacks, one that is none of its."""
    numbers = np.full(n, len(order), np.intp)
    numbers[order] = np.arange(len(order))
    return numbers


def _renumber(channels: NDArray[np.float32], numbers: NDArray[np.intp]) -> None:
    """Puts the model's number in place of the stream's; what is the number of no channel stays so."""
    known = (channels >= 0) & (channels < len(numbers)) & (channels == np.floor(channels))
    channels[known] = numbers[channels[known].astype(np.intp)]


def _measure_clock(inlet: object) -> tuple[float, float] | None:
    """A source's clock offset and how far it may be off, seconds; None where the source does not answer."""
    remote, uncertainty, error = ctypes.c_double(), ctypes.c_double(), ctypes.c_int()
    answer = ctypes.byref(remote), ctypes.byref(uncertainty), ctypes.c_double(CLOCK_ANSWER_S), ctypes.byref(error)
    offset = float(lib.lsl_time_correction_ex(inlet, *answer))
    return None if error.value else (offset, uncertainty.value)


def within(before: float, offset: float, uncertainty: float) -> float:
    """A clock offset, moved from `before` no further than a measurement proves.

    A source or a daemon that is held up while the clock is probed is measured wrong by up to 80 ms, which would move
    all samples by several bins and back again; LSL says how long the probe was away, and so how wrong it may be.
    """
    return min(max(before, offset - uncertainty), offset + uncertainty)

"""An LSL stream as the daemon's input: found by a query, checked against the model, pulled a sample at a time.

Stamps come raw from LSL. The correction from the source's clock to this machine's is measured in the background and
added here, so that the data path never waits for it.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pylsl
from numpy.typing import NDArray
from pylsl.lib import cf_string, lib

from rtdsae.bins import input_kind
from rtdsae.errors import BinError, StreamError

__all__ = ["Source", "check", "find", "predicate"]

log = logging.getLogger(__name__)

PROPERTIES = ("name", "type", "source_id", "hostname", "uid", "session_id", "channel_count", "nominal_srate")
BUFFER_S = 10  # of samples that LSL keeps for a daemon that stalls; beyond it LSL drops the oldest, silently
PULL_TIMEOUT_S = 0.1  # how soon a daemon without input notices a signal
CLOCK_PERIOD_S = 2.0
LOOK_S = 0.1  # between two looks at what a search has found: the caller has its turn
SECOND_STREAM_S = 0.6  # LSL may find the second of several streams half a second after the first


def predicate(query: str) -> str:
    """A `--stream` query as the XPath predicate that LSL resolves.

    `key=value[,key=value]` on LSL's properties becomes one; anything else is taken to be one already.

    >>> predicate("source_id=rig1,type=Spikes")
    "source_id='rig1' and type='Spikes'"
    >>> predicate("starts-with(name, 'rig')")
    "starts-with(name, 'rig')"

    Raises:
        StreamError: it is empty, or a value has both kinds of quotes.
    """
    if not query.strip():
        raise StreamError("the stream query is empty: say source_id=..., name=... or type=...")
    pairs = [part.strip().partition("=") for part in query.split(",")]
    if not all(key in PROPERTIES and value and value[0] not in "'\"" for key, _, value in pairs):
        return query
    return " and ".join(f"{key}={_literal(value)}" for key, _, value in pairs)


def _literal(value: str) -> str:
    """XPath 1.0 has no escapes: a text is between the quotes that it does not contain."""
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise StreamError(f"the stream query's value {value} has both kinds of quotes: leave one kind out")
    return f"{quote}{value}{quote}"


def find(query: str, timeout_s: float, tick: Callable[[], bool] = lambda: True) -> pylsl.StreamInfo | None:
    """The one stream that matches a query; waits up to `timeout_s` for it to appear.

    `tick` is called ten times a second; when it returns False the search is given up and the answer is None.

    Raises:
        StreamError: none or several match, or the query is not valid XPath.
    """
    search = _search(predicate(query))
    deadline = pylsl.local_clock() + timeout_s
    while not search.results():
        if not tick():
            return None
        if (left := deadline - pylsl.local_clock()) <= 0:
            raise StreamError(f"no LSL stream matches {query} after {timeout_s:g} s; {_what_is_there()}")
        time.sleep(min(LOOK_S, left))
    time.sleep(SECOND_STREAM_S)
    found = search.results()
    if len(found) > 1:
        raise StreamError(f"{len(found)} LSL streams match {query}: {_listed(found)}; add source_id=...")
    return found[0]


def _search(wanted: str) -> pylsl.ContinuousResolver:
    """A search in the background, until it is dropped.

    It is one search, not several short ones: LSL asks streams of this machine one by one only some time after its
    multicast (`MulticastMinRTT`, half a second by default), and a search that ends before misses their answers.
    """
    # Asked at once first: it refuses a bad query by its answer, where the other writes to stderr.
    if lib.lsl_resolve_bypred(ctypes.byref(ctypes.c_void_p()), 0, wanted.encode(), 1, ctypes.c_double(0.0)) < 0:
        raise StreamError(f"the stream query is neither key=value on {', '.join(PROPERTIES)} nor XPath: {wanted}")
    return pylsl.ContinuousResolver(pred=wanted, forget_after=pylsl.FOREVER)


def _what_is_there() -> str:
    streams = pylsl.resolve_streams(SECOND_STREAM_S)
    if not streams:
        return "no LSL stream is visible from here at all: is the source running, and on this network?"
    lost = "LSL may miss others of this computer where no network helps: see configs/lsl_loopback.cfg"
    return f"visible are {_listed(streams)}; {lost}"


def _listed(streams: Sequence[pylsl.StreamInfo]) -> str:
    shown = ", ".join(map(_described, streams[:8]))
    return shown + (f" and {len(streams) - 8} more" if len(streams) > 8 else "")


def _described(info: pylsl.StreamInfo) -> str:
    shape = f"{info.channel_count()} channels, {info.nominal_srate():g} Hz"
    return f"{info.name()} (type={info.type()}, source_id={info.source_id()}, {shape})"


def check(info: pylsl.StreamInfo, n_channels: int, bin_width_s: float) -> None:
    """Refuses a stream that the model cannot take: its sample format, channel count and rate.

    Raises:
        StreamError: with what was found and what was expected.
    """
    where = f"stream {info.source_id() or info.name()}"
    if info.channel_format() == cf_string:
        raise StreamError(f"{where} has string samples, the model needs numbers: choose another stream")
    if info.channel_count() != n_channels:
        raise StreamError(f"{where} has {info.channel_count()} channels, the model was trained on {n_channels}")
    try:
        kind, _ = input_kind(info.nominal_srate(), bin_width_s)
    except BinError as error:
        raise StreamError(f"{where}: {error}") from error
    if kind != "counts":
        raise StreamError(
            f"{where} carries {kind} ({info.nominal_srate():g} Hz), this version decodes binned counts only: "
            f"send one sample a bin, at {1 / bin_width_s:g} Hz"
        )


def check_labels(labels: Sequence[str | None] | None, channels: Sequence[str], where: str) -> None:
    """Refuses known channels in another order; other names are only told, since rigs name channels as they like.

    Raises:
        StreamError: the stream's labels are the model's, in another order.
    """
    if not labels or list(labels) == list(channels):
        return
    first = next(i for i, (found, expected) in enumerate(zip(labels, channels, strict=True)) if found != expected)
    differ = f"channel {first} of {where} is {labels[first]}, the model's is {channels[first]}"
    if sorted(map(str, labels)) == sorted(channels):
        raise StreamError(f"{differ}: the same channels in another order; send them in the model's order")
    log.warning("%s: taken to be the same channels under other names", differ)


class Source:
    """An open stream of one sample a bin. `pull` fills `values` `(1, C)` float32 and `stamps` `(1,)` float64.

    Args:
        info: a stream that `check` accepted.
        channels: the model's channel labels.
        timeout_s: how long opening it may take.

    Raises:
        StreamError: it vanished, or its labels are in another order.
    """

    def __init__(self, info: pylsl.StreamInfo, channels: Sequence[str], timeout_s: float = 10.0) -> None:
        self.source_id: str = info.source_id() or info.name()
        self.values: NDArray[np.float32] = np.zeros((1, len(channels)), np.float32)
        self.stamps: NDArray[np.float64] = np.zeros(1)
        self.clock_offset_s = 0.0
        self._inlet = pylsl.StreamInlet(info, max_buflen=BUFFER_S, max_chunklen=1, recover=True)
        self._error = ctypes.c_int()
        self._arguments = self._pull_arguments()
        self._closing = threading.Event()
        self._clock = threading.Thread(target=self._follow_clock, name="lsl-clock", daemon=True)
        try:
            self._open(channels, timeout_s)
        except RuntimeError as error:
            raise StreamError(f"stream {self.source_id}: {error}") from error

    def _pull_arguments(self) -> tuple[object, ...]:
        """Those of LSL's pull function, made once: building them costs more than the call."""
        buffer, size = self.values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int(self.values.size)
        return (self._inlet.obj, buffer, size, ctypes.c_double(PULL_TIMEOUT_S), ctypes.byref(self._error))

    def _open(self, channels: Sequence[str], timeout_s: float) -> None:
        labels = self._inlet.info(timeout_s).get_channel_labels()
        check_labels(labels, channels, f"stream {self.source_id}")
        try:
            self.clock_offset_s = self._inlet.time_correction(timeout_s)
        except pylsl.util.TimeoutError:
            log.warning("stream %s answers no clock probes: its stamps are taken as this machine's", self.source_id)
        self._inlet.open_stream(timeout_s)  # last: samples that wait for the clock would be decoded late
        self._clock.start()

    def available(self) -> bool:
        """Whether a sample is there already."""
        return bool(lib.lsl_samples_available(self._inlet.obj))

    def pull(self) -> bool:
        """Takes the next sample, waiting a moment for it; False when none came.

        Raises:
            StreamError: the stream is gone, and LSL cannot find it again.
        """
        stamp = lib.lsl_pull_sample_f(*self._arguments)
        if not stamp:
            if self._error.value:
                raise StreamError(f"stream {self.source_id} is lost, and without a source_id LSL cannot find it again")
            return False
        self.stamps[0] = stamp + self.clock_offset_s
        return True

    def _follow_clock(self) -> None:
        while not self._closing.wait(CLOCK_PERIOD_S):
            try:
                self.clock_offset_s = self._inlet.time_correction(1.0)
            except RuntimeError:  # silent for now: the last correction stands
                continue

    def close(self) -> None:
        """Closes the stream; bounded by one clock probe."""
        self._closing.set()
        if self._clock.is_alive():
            self._clock.join()
        self._inlet = None

"""An LSL stream looked up by its query: at the start, and again when it was lost.

LSL's own recovery is off. It finds a source that was restarted only under the same source_id, format and size, waits
for others for ever without a word, and takes one of another rate unseen; with it off, a lost connection is an error at
once, and the stream is looked up again by its query and checked again.
"""

import ctypes
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pylsl
from pylsl.lib import lib

from rtdsae.errors import StreamError, one_line
from rtdsae.serve.clock import local_clock
from rtdsae.serve.realtime import ordinary_thread, scheduling
from rtdsae.serve.source import Source, Wanted

__all__ = ["Search", "find", "predicate"]

log = logging.getLogger(__name__)

NUMBERS = ("channel_count", "nominal_srate")
PROPERTIES = ("name", "type", "source_id", "hostname", "uid", "session_id", *NUMBERS)
RETRY_S = 1.0  # after a stream that was found did not fit
RESUMES_S = 13.0  # in which TCP goes on by itself after 10 s without a network, with what LSL has kept
SPEAKS_S = 5.0  # for a new connection to the same stream to bring a sample, before another is looked for
HEARD_S = 1.0  # from then on, in which the old one would have brought it too
LOOK_S = 0.1  # between two looks at what a search has found: the caller has its turn
SAME_CLOCK_S = 0.1  # as far as the offset of a busy computer's clock to itself may be measured
SECOND_STREAM_S = 0.6  # LSL may find the second of several streams half a second after the first


def predicate(query: str) -> str:
    """A `--stream` query as the XPath predicate that LSL resolves.

    `key=value[,key=value]` on LSL's properties becomes one; anything else is taken to be one already.

    >>> predicate("source_id=rig1,type=Spikes")
    "source_id='rig1' and type='Spikes'"
    >>> predicate("starts-with(name, 'rig')")
    "starts-with(name, 'rig')"

    Raises:
        StreamError: it is empty, names no property, or a value has both kinds of quotes.
    """
    if not query.strip():
        raise StreamError("the stream query is empty: say source_id=..., name=... or type=...")
    if re.fullmatch(r"[\w.-]+", query.strip()):  # XPath that nothing matches
        raise StreamError(f"the stream query {query!r} names no property: say source_id={query} or name={query}")
    pairs = [part.strip().partition("=") for part in query.split(",")]
    plain = all(re.fullmatch(r"[\w-]+", key) and re.fullmatch(r"[\w.-]+", value) for key, _, value in pairs)
    if plain and (unknown := [key for key, _, _ in pairs if key not in PROPERTIES]):
        raise StreamError(f"the stream query {query!r}: {unknown[0]} is none of {', '.join(PROPERTIES)}")
    if not all(key in PROPERTIES and value and value[0] not in "'\"" for key, _, value in pairs):
        return query
    return " and ".join(f"{key}={value if _is_number(key, value) else _literal(value)}" for key, _, value in pairs)


def _is_number(key: str, value: str) -> bool:
    """Whether a value is compared as a number: 50 with LSL's 50.00000000000000."""
    return key in NUMBERS and re.fullmatch(r"\d+(\.\d+)?", value) is not None


def _literal(value: str) -> str:
    """XPath 1.0 has no escapes: a text is between the quotes that it does not contain."""
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise StreamError(f"the stream query has both kinds of quotes in {value}: leave one kind out")
    return f"{quote}{value}{quote}"


def find(
    query: str,
    timeout_s: float,
    tick: Callable[[], bool] = lambda: True,
    *,
    again: str = "",
    in_place_of: str = "",
    itself_after_s: float = np.inf,
) -> pylsl.StreamInfo | None:
    """The one stream that matches a query; waits up to `timeout_s` for it to appear.

    Args:
        query: as `predicate` takes it.
        timeout_s: seconds.
        tick: called ten times a second; when it returns False the search is given up and the answer is None.
        again: the source_id of a stream that was lost: it is taken as soon as it is seen, alone.
        in_place_of: the uid of a stream that is silent and may speak again: nothing but itself, restarted, is meant.
        itself_after_s: then it may be itself, not restarted, too: it can be reached, if not by the old connection.

    Raises:
        StreamError: none or several match, or the query is not valid XPath.
    """
    search = _search(predicate(query))
    began = local_clock()
    deadline = began + timeout_s
    settled = np.inf  # when a second stream would have shown
    while True:
        found = search.results()
        if in_place_of:
            others = [info for info in found if info.uid() != in_place_of and info.source_id() in ("", again)]
            itself = [info for info in found if info.uid() == in_place_of]
            found = others or (itself if local_clock() >= began + itself_after_s else [])
        same = [info for info in found if again and info.source_id() == again]
        now = local_clock()
        if found and now >= (settled := min(settled, now + (LOOK_S if same else SECOND_STREAM_S))):
            found = same or found
            break
        if not tick():
            return None
        if not found and now >= deadline:
            raise StreamError(f"no LSL stream matches {query} after {timeout_s:g} s; {_what_is_there()}")
        time.sleep(min(LOOK_S, max(0.0, (settled if found else deadline) - now)))
    if len(found) > 1:
        told_apart = len({info.source_id() for info in found}) == len(found)
        cure = "add source_id=..." if told_apart else "give each a source_id of its own"
        raise StreamError(f"{len(found)} LSL streams match {query}: {cure}; {_listed(found)}")
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


class Search(threading.Thread):
    """Looks in the background for a stream that was lost, until one fits; it is open then.

    It is a thread of its own because finding and opening take a second, in which bins may be due.

    Attributes:
        found: the open stream; whoever takes it sets it to None. It is closed with the search otherwise.
        since: when it was opened.
        problem: why the last one that was found would not do; "" where none was.
    """

    def __init__(self, query: str, wanted: Wanted, before: Source, *, silent: bool) -> None:
        """`silent`: the old connection stands and may speak again, so that another stream is meant."""
        super().__init__(name="lsl-search", daemon=True)
        self.found: Source | None = None
        self.since = np.inf
        self.problem = ""
        self._query, self._wanted, self._before, self._silent = query, wanted, before, silent
        self._stopping = threading.Event()
        self._scheduled = scheduling()  # of the decoding, whose thread this is
        self.start()

    def run(self) -> None:
        """Finds, checks and opens a stream, until one is taken or the search is given up."""
        if not self._silent:
            self._before.close()
        while not self._stopping.is_set():
            try:
                ordinary_thread()
                info = self._find()
                if info is None or self._stopping.is_set():
                    return
                self._scheduled()  # and so are LSL's threads that carry the bins, which begin here
                self.since = local_clock()
                found = self._open(info)
                if self._speaks(found):
                    self.found = found
                    self._stopping.wait()
                    if self.found:
                        self.found.close()
                    return
                found.close()
            except Exception as error:  # whatever is wrong with it, another may come
                if one_line(error) != self.problem:
                    self.problem = one_line(error)
                    log.warning("%s: not taken, waiting for another", self.problem)
                self._stopping.wait(RETRY_S)

    def _find(self) -> pylsl.StreamInfo | None:
        before = self._before
        in_place_of = before.uid if self._silent else ""
        return find(
            self._query,
            np.inf,
            lambda: not self._stopping.is_set(),
            again=before.source_id,
            in_place_of=in_place_of,
            itself_after_s=RESUMES_S,
        )

    def _open(self, info: pylsl.StreamInfo) -> Source:
        before = self._before
        if info.uid() == before.uid:
            return Source(info, self._wanted, before.clock_offset_s, like=before)
        found = (info.nominal_srate(), *self._wanted.check(info))
        if found[1:] != (before.kind, before.samples_per_bin):
            raise StreamError(
                f"stream {info.source_id() or info.name()} came back with {found[1]} at {found[0]:g} Hz, "
                f"it was {before.kind} before"
            )
        # On this computer the clock is the same: no need to measure it before the first sample. Another's begins anew
        # when it is switched on, and may have this one's name.
        here = info.hostname() == before.hostname == socket.gethostname() and abs(before.clock_offset_s) < SAME_CLOCK_S
        return Source(info, self._wanted, before.clock_offset_s if here else None)

    def _speaks(self, found: Source) -> bool:
        """Whether it may take the old one's place: a new connection to the very same stream has to bring samples first.

        After a network was gone, TCP is silent for up to as long again. A stream that only pauses is silent here too.
        """
        if not self._silent or found.uid != self._before.uid:
            return True
        deadline = local_clock() + max(SPEAKS_S, 2 * self._wanted.bin_width_s)
        while not found.available():
            if self._stopping.wait(LOOK_S) or local_clock() > deadline:
                return False
        return not self._stopping.wait(HEARD_S)

    def stop(self) -> None:
        """Gives up."""
        self._stopping.set()

"""The daemon's connection to its stream: it falls silent, is lost, and is found again, on the same grid of bins."""

import logging
import threading
from collections.abc import Callable

import pylsl

from rtdsae.serve.realtime import scheduling
from rtdsae.serve.search import LOOK_S, Search, find
from rtdsae.serve.source import Lost, Source, Wanted

__all__ = ["Link"]

log = logging.getLogger(__name__)

SILENT_S = 1.0  # a stream without a sample for so long counts as not connected
CLOSE_S = 2.0


class Link:
    """Holds the source that there is, and looks for it in the background while there is none.

    Args:
        query: of the stream.
        wanted: what it must be like.
        silence_s: after which a stream of events counts as silent.

    Attributes:
        source: the open stream; None while it is lost.
        connected: whether samples come.
        losses: how often the connection was lost.
        unread: samples that had arrived and were lost with it, since LSL hands out none after that, or were abandoned.
    """

    def __init__(self, query: str, wanted: Wanted, silence_s: float = SILENT_S) -> None:
        self.source: Source | None = None
        self.connected = False
        self.losses = self.unread = 0
        self._query, self._wanted = query, wanted
        self._search: Search | None = None
        self._quiet_s = max(SILENT_S, 2 * wanted.bin_width_s)
        self._silence_s = silence_s
        self._heard = False

    def open(self, timeout_s: float, tick: Callable[[], bool]) -> Source | None:
        """The first connection; None when `tick` gave it up.

        Raises:
            StreamError: there is no such stream, or it does not fit.
        """
        if info := find(self._query, timeout_s, tick):
            self.source = opened(info, self._wanted, tick)
        if self.source:
            log.info("decoding stream %s, clock offset %.6f s", self.source.source_id, self.source.clock_offset_s)
        return self.source

    def lose(self, source: Source, error: Lost) -> None:
        """The connection is gone: looks for a stream to take its place."""
        log.warning("%s: looking for %s again", error, self._query)
        self.losses += 1
        self.unread += source.unread()
        self.source, self.connected = None, False
        self._stop_search()
        self._search = Search(self._query, self._wanted, source, silent=False)

    def renew(self, heard_at: float) -> None:
        """Takes the stream that a search has found, if it has; the present one last brought a sample at `heard_at`."""
        search, old = self._search, self.source
        if search is None or search.found is None:
            return
        if old and search.found.uid == old.uid and (heard_at > search.since or old.available()):
            self._stop_search()  # the old connection speaks again, and with what it has kept
            return
        if old is not None:  # it was silent all the while; closing may take a second
            self.losses += 1
            threading.Thread(target=old.close, daemon=True).start()
        self.source, search.found = search.found, None
        self._stop_search()
        log.info("stream %s is back, clock offset %.6f s", self.source.source_id, self.source.clock_offset_s)

    def watch(self, silent_s: float) -> None:
        """Notices that the stream has been silent for so long, or speaks again."""
        source = self.source
        if source is None:
            return
        quiet_s = self._silence_s if source.kind == "events" else self._quiet_s
        before, self.connected = self.connected, silent_s < quiet_s
        self._heard |= self.connected
        if self.connected != before:
            log.info("stream %s %s", source.source_id, "is live" if self.connected else "is silent: waiting for it")
        if self.connected:
            self._stop_search()
        elif self._search is None and self._heard:
            # Its computer may be gone without a word, and another source have taken its place.
            self._search = Search(self._query, self._wanted, source, silent=True)

    def abandon(self) -> None:
        """Counts what has arrived and will not be decoded, since the daemon ends."""
        if self.source and (n := self.source.available()):
            self.unread += n
            log.warning("%d samples had arrived and are not decoded", n)

    def status(self) -> dict[str, object]:
        """What the daemon's status says of it."""
        source, search = self.source, self._search
        return {
            "connected": self.connected,
            "source_id": source and source.source_id,
            "kind": source and source.kind,
            "clock_offset_s": source and source.clock_offset_s,
            "losses": self.losses,
            "unread": self.unread,
            "problem": search.problem if search else "",
        }

    def close(self) -> None:
        """Closes the stream; bounded."""
        search = self._search
        self._stop_search()
        if search:
            search.join(CLOSE_S)
        if self.source:
            self.source.close()

    def _stop_search(self) -> None:
        if self._search:
            self._search.stop()
            self._search = None


def opened(info: pylsl.StreamInfo, wanted: Wanted, tick: Callable[[], bool]) -> Source | None:
    """An open stream; None when `tick` gave it up, which is asked meanwhile: one that does not answer takes seconds.

    Raises:
        StreamError: it does not fit, or does not answer.
    """
    made: list[Source | Exception] = []
    scheduled = scheduling()

    def make() -> None:
        scheduled()  # so are LSL's threads that carry the bins, which begin here
        try:
            made.append(Source(info, wanted))
        except Exception as error:
            made.append(error)

    thread = threading.Thread(target=make, name="lsl-open", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        if not tick():
            return None
    (source,) = made
    if isinstance(source, Exception):
        raise source
    return source

"""The control socket: requests in JSON, answered in a thread of its own, at a pace that leaves the decoding alone."""

import contextlib
import itertools
import json
import logging
import queue
import threading
import time
from pathlib import Path
from typing import Annotated, Protocol, TypeAlias

import msgspec
import zmq
from msgspec import Meta

from rtdsae.errors import ControlError, RtdsaeError, one_line
from rtdsae.serve.endpoint import Endpoints, bound_at, free
from rtdsae.serve.realtime import ordinary_thread
from rtdsae.wire import Schema

__all__ = ["Backend", "Control"]

log = logging.getLogger(__name__)

MAX_REQUEST = 4096  # bytes of a frame
MAX_FRAMES = 4  # of a message that are kept: an address, an empty one, the request, and one too many
PASSED_OVER = 64  # frames of such a message between two pauses
MAX_BINS = 1000  # of history in one reply
MAX_BYTES = 8 << 20
TAKE = 16  # bins of history at a time: what MAX_BYTES can be overshot by
HIGH_WATER = 8  # requests and replies that wait, a client; one that does not read loses its own
PAUSE_S = 0.005  # between two requests: a client in a hurry cannot take the interpreter from the decoding
REST = 4  # times as long as a request took: a fifth of a core, unless one costs more than 50 ms
LONGEST_REST_S = 0.2  # on a busy computer a request takes long without costing much, and a recorder has many to ask
POLL_MS = 100
LAST_WORDS_MS = 200  # of sending what `stop` was answered


class Backend(Protocol):
    """What can be asked of the daemon. All but `swap` return at once; called from the control thread."""

    def status(self) -> dict[str, object]:
        """The last status."""

    def schema(self) -> Schema:
        """What is published now."""

    def kept(self) -> tuple[int, int] | None:
        """The oldest and the newest `seq` in the history."""

    def history(self, first: int, last: int) -> list[bytes]:
        """The frames of `seq` first to last that are kept, oldest first, flagged as backfill."""

    def anchor(self) -> None:
        """Asks for a new anchor."""

    def swap(self, bundle: Path, session: str | None) -> dict[str, object]:
        """Has another bundle take over; returns when it has."""

    def stop(self) -> None:
        """Asks the daemon to end."""


Seq: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Text: TypeAlias = Annotated[str, Meta(min_length=1, pattern="^[^\\0]+$")]


Id: TypeAlias = Annotated[str, Meta(max_length=256)] | Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None


class Named(msgspec.Struct, frozen=True):
    """All that is read of a request that is refused."""

    id: Id = None


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="request", forbid_unknown_fields=True):
    """What a client asks; `id` comes back with the reply."""

    id: Id = None


class AskStatus(Request, frozen=True, tag="status"):
    """Asks for the counters."""


class AskSchema(Request, frozen=True, tag="schema"):
    """Asks for what is published."""


class AskHistory(Request, frozen=True, kw_only=True, tag="history"):
    """Asks for bins again: those whose `seq` is `from` to `to`, both included, or the `last` so many."""

    first: Seq | None = msgspec.field(default=None, name="from")
    final: Seq | None = msgspec.field(default=None, name="to")
    last: Seq | None = None


class AskAnchor(Request, frozen=True, tag="anchor"):
    """Asks for a new anchor."""


class AskSwap(Request, frozen=True, kw_only=True, tag="swap"):
    """Asks for another bundle, a folder on the daemon's computer, to take over."""

    bundle: Text
    session: Text | None = None


class AskStop(Request, frozen=True, tag="stop"):
    """Asks the daemon to end."""


REQUESTS: dict[type[Request], str] = {
    kind: str(kind.__struct_config__.tag) for kind in (AskStatus, AskSchema, AskHistory, AskAnchor, AskSwap, AskStop)
}
_decoder = msgspec.json.Decoder(AskStatus | AskSchema | AskHistory | AskAnchor | AskSwap | AskStop)


class Control:
    """Answers requests on `endpoint` until it is closed. No request, whatever it is, ends it or goes further than here.

    Attributes:
        endpoint: as bound.

    Raises:
        EndpointError: as `Endpoints.bind`.
    """

    def __init__(self, endpoint: str, backend: Backend, endpoints: Endpoints) -> None:
        options = {zmq.MAXMSGSIZE: MAX_REQUEST, zmq.RCVHWM: HIGH_WATER, zmq.SNDHWM: HIGH_WATER}
        self._socket = endpoints.bind(zmq.ROUTER, endpoint, "take requests", options)
        self.endpoint = bound_at(self._socket)
        self._backend = backend
        self._swapping = threading.Lock()
        self._later: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()  # replies of swaps that have ended
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and frees the endpoint; a swap that is under way is not waited for."""
        self._closing.set()
        self._thread.join()
        free(self.endpoint)

    def _run(self) -> None:
        ordinary_thread()
        while not self._closing.is_set():
            if self._socket.poll(POLL_MS):
                began = time.monotonic()
                self._answer(self._receive())
                rest_s = min(LONGEST_REST_S, REST * (time.monotonic() - began))
                self._closing.wait(max(PAUSE_S, rest_s))
            while not self._later.empty():
                self._reply(self._later.get())
        self._socket.close(linger=LAST_WORDS_MS)

    def _receive(self) -> list[bytes]:
        """A message; of one that has many frames the first few, and the rest passed over without hurry."""
        message: list[bytes] = []
        for n in itertools.count(1):
            frame = self._socket.recv()
            if n <= MAX_FRAMES:
                message.append(frame)
            elif n % PASSED_OVER == 0:
                self._closing.wait(PAUSE_S)
            if self._closing.is_set() or not self._socket.get(zmq.RCVMORE):
                break
        return message

    def _answer(self, message: list[bytes]) -> None:
        """A message is the client's address, an empty frame where the client is a REQ, and the request."""
        n_envelope = 2 if len(message) > 2 and not message[1] else 1
        envelope, body = message[:n_envelope], message[n_envelope:]
        try:
            request = _parse(body)
            if isinstance(request, AskSwap):
                self._begin_swap(envelope, request)
            else:
                self._reply([*envelope, *self._serve(request)])
        except Exception as error:
            self._reply([*envelope, _refusal(_identity(body), error)])

    def _serve(self, request: Request) -> list[bytes]:
        """The reply to a request that is answered at once."""
        backend = self._backend
        match request:
            case AskStatus():
                return [_ok(request, status=backend.status())]
            case AskSchema():
                schema = backend.schema()
                return [_ok(request, schema=json.loads(schema.json), schema_id=schema.id), schema.encode()]
            case AskHistory():
                return self._history(request)
            case AskAnchor():
                log.info("a control client asks for a new anchor")
                backend.anchor()
            case AskStop():
                log.info("a control client asks to stop")
                backend.stop()
        return [_ok(request)]

    def _history(self, request: AskHistory) -> list[bytes]:
        if request.last is not None and (request.first, request.final) != (None, None):
            raise ControlError("history has `from` and `to`, or `last` alone: they do not go together")
        oldest, newest = self._backend.kept() or (None, None)
        frames: list[bytes] = []
        if oldest is not None and newest is not None:
            first, final = request.first or 0, newest if request.final is None else request.final
            if request.last is not None:
                first, final = newest + 1 - request.last, newest
            frames = self._frames(max(first, oldest), min(final, newest))
        first_there, last_there = (_seq(frames[0]), _seq(frames[-1])) if frames else (None, None)
        return [_ok(request, first=first_there, last=last_there, oldest=oldest, newest=newest), *frames]

    def _frames(self, first: int, final: int) -> list[bytes]:
        """The frames of `seq` first to final, as many as one reply may have."""
        frames: list[bytes] = []
        size = 0
        final = min(final, first + MAX_BINS - 1)
        for start in range(first, final + 1, TAKE):
            taken = self._backend.history(start, min(start + TAKE - 1, final))
            frames += taken
            size += sum(map(len, taken))
            if size > MAX_BYTES:
                break
        return frames

    def _begin_swap(self, envelope: list[bytes], request: AskSwap) -> None:
        if not self._swapping.acquire(blocking=False):
            raise ControlError("another swap is under way: ask again when it has ended")
        log.info("a control client asks to swap to %s", request.bundle)
        threading.Thread(target=self._swap, args=(envelope, request), name="swap", daemon=True).start()

    def _swap(self, envelope: list[bytes], request: AskSwap) -> None:
        try:
            reply = _ok(request, **self._backend.swap(Path(request.bundle), request.session))
        except Exception as error:
            reply = _refusal(request.id, error)
        finally:
            self._swapping.release()
        self._later.put([*envelope, reply])

    def _reply(self, message: list[bytes]) -> None:
        with contextlib.suppress(zmq.ZMQError):  # the client is gone, or does not read
            self._socket.send_multipart(message, zmq.NOBLOCK)


def _parse(body: list[bytes]) -> Request:
    """The request in the frames that came after the client's address.

    Raises:
        ControlError: there is none.
    """
    if len(body) != 1:
        raise ControlError("a request is one frame of JSON, after an empty one where the socket is a REQ")
    try:
        request: Request = _decoder.decode(body[0])
    except (ValueError, RecursionError) as error:
        known = ", ".join(REQUESTS.values())
        raise ControlError(f'{error}: a request is like {{"request": "status"}}, and one of {known}') from error
    return request


def _identity(body: list[bytes]) -> Id:
    """The `id` of a request that may not be one."""
    with contextlib.suppress(ValueError, RecursionError, IndexError):  # the last: broken off by the end
        return msgspec.json.decode(body[-1], type=Named).id
    return None


def _seq(frame: bytes) -> int:
    """Which bin a frame of the history has."""
    return int.from_bytes(frame[16:24], "little")


def _ok(request: Request, **fields: object) -> bytes:
    return json.dumps({"ok": True, "id": request.id, **fields}, allow_nan=False).encode()


def _refusal(identity: Id, error: Exception) -> bytes:
    """Says in one line why not; the log has it too, where it is not the client's mistake."""
    why = one_line(error)
    if not isinstance(error, ControlError):
        log.warning("a control request was refused: %s", why)
    if not isinstance(error, RtdsaeError):  # nothing foresaw it
        why = f"{type(error).__name__}: {why}"
    return json.dumps({"ok": False, "id": identity, "error": why}).encode()

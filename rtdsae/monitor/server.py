"""The page and its WebSocket, on loopback: a task a page sends frames, never faster than the page takes them."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from rtdsae.errors import EndpointError, WireError
from rtdsae.monitor.axes import Axes
from rtdsae.monitor.feed import Feed
from rtdsae.monitor.guard import HOSTS, SafeHeaders, same_origin
from rtdsae.monitor.picture import Picture
from rtdsae.monitor.view import MAX_MESSAGE, read
from rtdsae.signals import caught

__all__ = ["HOST", "Server"]

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
FRAME_S = 0.04  # 25 frames a second
MAX_PAGES = 8
END_S = 1  # that open pages have when it ends
POLICY_VIOLATION, TRY_LATER = 1008, 1013


class Server:
    """Serves the page until a signal.

    Args:
        feed: what is received.
        port: where; 0 for any that is free.

    Attributes:
        address: where it is, as bound: `http://127.0.0.1:5580`.

    Raises:
        EndpointError: the port is taken.
    """

    def __init__(self, feed: Feed, port: int) -> None:
        self._feed, self._axes, self._pages = feed, Axes(), 0
        self._socket = _bind(port)
        self.address = f"http://{HOST}:{self._socket.getsockname()[1]}"
        routes = [WebSocketRoute("/feed", self._serve_page), Mount("/", StaticFiles(directory=PAGE, html=True))]
        trusted = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
        self.app = Starlette(routes=routes, middleware=[Middleware(SafeHeaders), trusted])

    def run(self) -> None:
        """Receives and serves until Ctrl-C or SIGTERM."""
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,  # on loopback bytes are cheaper than cycles
            timeout_graceful_shutdown=END_S,
        )
        server = uvicorn.Server(config)

        def end(_: int) -> None:
            server.should_exit = True

        # Before uvicorn catches them and after it, too: a Ctrl-C while the feed begins or ends would have its socket
        # closed under its thread, and ZeroMQ abort.
        with caught(end):
            self._feed.start()
            try:
                server.run(sockets=[self._socket])
            finally:
                self._feed.close()

    async def _serve_page(self, websocket: WebSocket) -> None:
        if not same_origin(websocket.headers):
            await websocket.close(POLICY_VIOLATION)  # before it is accepted: 403
            return
        await websocket.accept()
        if self._pages >= MAX_PAGES:
            await websocket.close(TRY_LATER, f"{MAX_PAGES} pages are open already: close one")
            return
        self._pages += 1
        picture = Picture(self._feed, self._axes)
        tasks = [asyncio.create_task(task(websocket, picture)) for task in (_listen, _send)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a fault of ours is logged, and the page connects again
        finally:
            self._pages -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(websocket: WebSocket, picture: Picture) -> None:
    """What the page asks to see."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                picture.look(read(message.get("text") or ""))
            except WireError as error:
                with _ended():
                    await websocket.send_json({"error": str(error)})


async def _send(websocket: WebSocket, picture: Picture) -> None:
    """Frames; a send waits for a page that does not read, and the next frame has what it missed."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            began = time.monotonic()
            if frame := picture.frame(began):
                with _ended():
                    await websocket.send_bytes(frame)
            await asyncio.sleep(max(FRAME_S / 4, began + FRAME_S - time.monotonic()))


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    """A page whose connection uvicorn has ended by itself, for a broken message or no sign of life, has gone too."""
    try:
        yield
    except RuntimeError as error:
        raise WebSocketDisconnect from error


def _bind(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen()
    except OSError as error:
        found.close()
        raise EndpointError(
            f"cannot serve the page on {HOST}:{port}: {error.strerror}; choose another --port"
        ) from None
    return found

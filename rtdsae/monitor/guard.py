"""Who may read the page: people at this computer, and no web page of anybody else's.

A page from elsewhere could reach a server on loopback through the browser of whoever is at the rig: under a host name
of its own that resolves to 127.0.0.1 (DNS rebinding: the Host header tells), or by a WebSocket from its own origin (the
Origin header tells). Neither gets a byte.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HOSTS", "SafeHeaders", "same_origin"]

HOSTS = ["127.0.0.1", "localhost"]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def same_origin(headers: Headers) -> bool:
    """Whether a WebSocket is opened by a page that came from here, through a tunnel or not."""
    return headers.get("origin", "") == f"http://{headers.get('host', '')}"


class SafeHeaders:
    """Has every answer carry `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes all on, with headers."""

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, sealed)

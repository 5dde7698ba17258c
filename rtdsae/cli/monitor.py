"""The verb that shows a daemon at work: monitor."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
from tyro.conf import arg

from rtdsae.cli.arguments import unset
from rtdsae.defaults import ENDPOINT
from rtdsae.errors import ConfigError

__all__ = ["Monitor"]

PORT = 5580
NICE = 10  # bins come first


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """Watch a daemon in a web browser on this computer: latents, rates, behaviour, latency, and what is wrong."""

    sub: Annotated[str, arg(metavar="ENDPOINT")] = ENDPOINT
    """Where the daemon publishes; it need not be there yet."""
    port: int = PORT
    """Of the page, on 127.0.0.1; 0 for any that is free."""
    keys: Annotated[Path | None, unset("FOLDER")] = None
    """This client's keys: FOLDER/carry/NAME of rtdsae keys."""

    def run(self) -> None:
        """Serves until Ctrl-C or SIGTERM.

        Raises:
            EndpointError: the port is taken, the endpoint is not one, or the keys are not there.
        """
        from rtdsae.client import Subscriber
        from rtdsae.monitor.feed import Feed
        from rtdsae.monitor.server import Server

        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port {self.port}: must be 0 to 65535")
        if hasattr(os, "nice"):
            os.nice(NICE)
        with Subscriber(self.sub, keys=self.keys) as subscriber:
            server = Server(Feed(subscriber), self.port)
            print(f"watching {self.sub} on {server.address}  (Ctrl-C ends it)", flush=True)
            server.run()

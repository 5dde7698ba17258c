"""The verbs that deal with a daemon that runs: record, control, keys."""

import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from tyro.conf import Positional

from rtdsae.cli.arguments import unset
from rtdsae.defaults import CONTROL, ENDPOINT
from rtdsae.errors import ConfigError
from rtdsae.signals import caught

__all__ = ["Ask", "Keys", "Record"]

RECORD_TIMEOUT_S = 1.0  # for a reply: bins wait meanwhile

KeysFolder = Annotated[Path | None, unset("FOLDER")]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Store what a daemon publishes in an HDF5 file; what was missed is filled from the daemon's history."""

    out: Positional[Path]
    """The file, which must not be there yet."""
    endpoint: str = ENDPOINT
    """Where the daemon publishes."""
    control: str = CONTROL
    """Where it takes requests (its --control): without it what was missed stays missing."""
    keys: KeysFolder = None
    """This client's keys: FOLDER/carry/NAME of rtdsae keys."""
    seconds: Annotated[float | None, unset("SECONDS", "until Ctrl-C")] = None
    """How long to record, from the first bin on."""
    count: Annotated[int | None, unset("N", "until Ctrl-C")] = None
    """Stop after so many bins."""
    timeout: float = 10.0
    """Seconds to wait for the first bin; later, silence is waited out."""

    def run(self) -> None:
        """Records until the end is reached, Ctrl-C or SIGTERM.

        Raises:
            RtdsaeError: nothing is published, bins are missing in the end, or the file cannot be written.
        """
        from rtdsae.client import Control, Subscriber
        from rtdsae.record import Recorder

        limits = {"--seconds": self.seconds, "--count": self.count, "--timeout": self.timeout}
        for flag, value in limits.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{flag} {value:g}: it must be above 0")
        with (
            Subscriber(self.endpoint, timeout_s=self.timeout, keys=self.keys) as subscriber,
            Control(self.control, timeout_s=RECORD_TIMEOUT_S, keys=self.keys) as control,
        ):
            recorder = Recorder(self.out, subscriber, control)

            def end(_: int) -> None:
                recorder.should_exit = True  # what has come by then is still written

            with caught(end):
                print(f"recording what {self.endpoint} publishes to {self.out}", flush=True)
                recorder.run(self.seconds, self.count)
        print(f"recorded {recorder.bins} bins, {recorder.filled} of them from the daemon's history, none missing")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Ask a daemon for something, and print its reply as JSON."""

    request: Positional[Literal["status", "schema", "anchor", "swap", "stop"]]
    """What: its counters, what is published, to anchor anew, to swap its bundle, to stop."""
    bundle: Annotated[Positional[Path | None], unset("[BUNDLE]")] = None
    """Swap only: the folder of the new bundle, on the daemon's computer."""
    session: Annotated[str | None, unset("NAME")] = None
    """Swap only: which of the bundle's sessions."""
    endpoint: str = CONTROL
    """Where the daemon takes requests."""
    keys: KeysFolder = None
    """This client's keys: FOLDER/carry/NAME of rtdsae keys."""
    timeout: float = 5.0
    """Seconds to wait for the reply; once the daemon has it, a swap has two minutes."""

    def run(self) -> None:
        """Prints the reply.

        Raises:
            RtdsaeError: there is no reply, or the daemon says no.
        """
        from rtdsae.client import Control

        if not self.timeout > 0:
            raise ConfigError(f"--timeout {self.timeout:g}: it must be above 0")
        if (self.request == "swap") != (self.bundle is not None) or (self.session and not self.bundle):
            raise ConfigError("swap needs the BUNDLE that is to take over; the other requests have none")
        with Control(self.endpoint, timeout_s=self.timeout, keys=self.keys) as control:
            match self.request:
                case "status":
                    print(json.dumps(dict(control.status())))
                case "schema":
                    print(json.dumps(json.loads(control.schema().json)))
                case "swap" if self.bundle:
                    # The daemon's working directory is another one; a folder that is not here is on its computer.
                    bundle = self.bundle.absolute() if self.bundle.exists() else self.bundle
                    print(json.dumps(control.swap(bundle, self.session)))
                case request:
                    print(json.dumps(control.ask(request)[0]))


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """Make CURVE keys: for a daemon that other computers are to reach, and for each client that it lets in."""

    folder: Positional[Path]
    """Folder of the keys; further clients may be added to it later."""
    client: Annotated[list[str], unset("NAME", "client")] = msgspec.field(default_factory=list)
    """Name of a client; may be given several times."""

    def run(self) -> None:
        """Writes the keys, and says what to do with them.

        Raises:
            EndpointError: a client has keys already.
        """
        from rtdsae.client.keys import make

        carried = make(self.folder, self.client or ["client"])
        print(f"on the daemon's computer:  rtdsae serve ... --keys {self.folder}   (a running one must be restarted)")
        for own in carried:
            print(f"carry to the client's:     {own}   its --keys, or Subscriber(keys=...)")

"""Where the daemon's sockets may listen: on this machine alone, or with CURVE keys for the clients that are known."""

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from rtdsae.client import keys as key_files
from rtdsae.errors import EndpointError

__all__ = ["Endpoints", "bound_at", "free"]

# A client's computer that is gone without a word is forgotten, with what waits for it: after so long that a program may
# be stopped for a minute and miss nothing.
GONE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,  # s of silence until its kernel is asked for a sign of life
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 6,
    zmq.TCP_MAXRT: 90_000,  # ms in which it takes nothing in
}


class Endpoints:
    """The daemon's ZeroMQ context, and the keys that every socket bound here asks for.

    With keys, a client whose key is not known is turned away in the handshake: it gets nothing, on no socket.

    Args:
        keys: folder that `rtdsae keys` made; None for endpoints that this machine alone can reach.

    Raises:
        EndpointError: the keys are not there.
    """

    def __init__(self, keys: Path | None = None) -> None:
        self._keys = key_files.own_keys(keys / "daemon.key_secret") if keys else None
        clients = key_files.clients_folder(keys) if keys else None
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        if clients:
            self._authenticate(clients)

    def _authenticate(self, clients: Path) -> None:
        """Before the first bind: without an authenticator, ZeroMQ lets every key in."""
        self._authenticator = ThreadAuthenticator(self.context)
        self._authenticator.configure_curve(location=clients)
        self._authenticator.start()

    def bind(self, kind: int, endpoint: str, what: str, options: Mapping[zmq.SocketOption, int]) -> "zmq.Socket[bytes]":
        """A socket of a kind that listens at the endpoint; `what` it does is for the error.

        Raises:
            EndpointError: it is in use, is not an endpoint, or can be reached from other machines without keys.
        """
        _check(endpoint, guarded=self._keys is not None)
        bound = self.context.socket(kind)
        for option, value in {zmq.LINGER: 0, **GONE, **options}.items():
            bound.setsockopt(option, value)
        bound.setsockopt(zmq.IPV6, endpoint.startswith("tcp://["))
        if self._keys:
            bound.curve_publickey, bound.curve_secretkey = self._keys
            bound.curve_server = True
        try:
            bound.bind(endpoint)
        except zmq.ZMQError as error:
            bound.close()
            cure = "; end what listens there, or choose another" if error.errno == zmq.EADDRINUSE else ""
            raise EndpointError(f"cannot {what} on {endpoint}: {zmq.strerror(error.errno or 0)}{cure}") from error
        return bound

    def close(self) -> None:
        """Ends the authentication and the context; what a socket that is closed by then has to send is still sent."""
        if self._authenticator:
            self._authenticator.stop()
        self.context.destroy(linger=0)


def bound_at(bound: "zmq.Socket[bytes]") -> str:
    """The endpoint as bound: `tcp://127.0.0.1:*` has become a port."""
    return bound.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def free(endpoint: str) -> None:
    """Removes what libzmq leaves behind of an ipc endpoint."""
    path = endpoint.removeprefix("ipc://")
    if path != endpoint and not path.startswith("@"):  # an abstract name is no file
        Path(path).unlink(missing_ok=True)


def _check(endpoint: str, *, guarded: bool) -> None:
    """Stricter than ZeroMQ, which takes two addresses (;) and any port (65537 is 1), and binds to something else."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc" and address:
        return _check_free(address)
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not _is_port(port) or not (reach := _reach(host)):
        raise EndpointError(f"{endpoint!r} is not an endpoint: use tcp://ADDRESS:PORT or ipc://PATH")
    if reach == "others" and not guarded:
        raise EndpointError(
            f"{endpoint} can be reached from other machines and would be open to all of them: "
            "use tcp://127.0.0.1:PORT or ipc://PATH, or make keys with rtdsae keys FOLDER and serve with --keys FOLDER"
        )


def _is_port(text: str) -> bool:
    return text == "*" or (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16)


def _reach(host: str) -> str | None:
    """Who can reach an address of this machine: this machine or others; None if it is no address."""
    if host in ("localhost", "*"):
        return "this" if host == "localhost" else "others"
    try:
        bracketed = host.startswith("[") and host.endswith("]")
        address = ipaddress.IPv6Address(host[1:-1]) if bracketed else ipaddress.IPv4Address(host)
    except ValueError:
        return None
    return "this" if address.is_loopback else "others"


def _check_free(path: str) -> None:
    """ZeroMQ takes an ipc path over from whoever listens on it, without a word."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (OSError, ValueError):
            return
    raise EndpointError(f"cannot listen on ipc://{path}: another program listens there; stop it or choose another")

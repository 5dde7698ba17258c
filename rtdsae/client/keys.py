"""CURVE keys: files that say who may connect, in pyzmq's certificate format.

    FOLDER/daemon.key_secret        stays with the daemon, which reads FOLDER: rtdsae serve --keys FOLDER
    FOLDER/daemon.key               its public half
    FOLDER/clients/NAME.key         public: who is let in. Deleted, NAME is shut out from the daemon's next start on
    FOLDER/carry/NAME/              goes to NAME's computer, whole: Subscriber(keys="NAME"), rtdsae listen --keys NAME
        client.key_secret           NAME's own key
        daemon.key                  by which NAME knows the daemon

Keys are never written over. Whoever can read a `.key_secret` is who it says.
"""

import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from rtdsae.errors import EndpointError

__all__ = ["Pair", "clients_folder", "guard", "make", "own_keys"]

UNREADABLE = (OSError, ValueError, IndexError)  # what pyzmq stumbles over, the last in a file that is cut off
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a file name on every system

Pair = tuple[bytes, bytes]
"""A public and a secret key."""


def make(folder: Path, names: Iterable[str]) -> list[Path]:
    """Makes keys for new clients, and the daemon's where it has none; returns the folders to carry to the clients.

    Nothing that is there is changed. Secret files can be read by their owner alone.

    Raises:
        EndpointError: a name is no name, or has keys already.
        OSError: they cannot be written.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if not NAME.fullmatch(name):
            raise EndpointError(f"client name {name!r} must be letters, digits, - and _, 64 at most")
        if (folder / "clients" / f"{name}.key").exists() or (folder / "carry" / name).exists():
            raise EndpointError(f"{folder} has keys of {name!r} already: name another client, or delete its keys first")
    before = os.umask(0o077)  # from the first byte on, nobody else can read them
    try:
        return _make(folder, names)
    finally:
        os.umask(before)


def _make(folder: Path, names: list[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "daemon.key_secret").exists():
        with tempfile.TemporaryDirectory(dir=folder) as whole:  # on a full disk there is none, and not half of one
            for file in map(Path, create_certificates(whole, "daemon")):  # the secret one last
                file.rename(folder / file.name)
    try:
        own_keys(folder / "daemon.key_secret")
    except EndpointError as error:
        raise EndpointError(f"{error}, into another folder: the clients' keys go with the daemon's") from error
    if not (folder / "daemon.key").is_file():
        raise EndpointError(f"{folder}/daemon.key is missing, which the clients need: copy it from {folder}/carry/NAME")
    for part in ("clients", "carry"):
        (folder / part).mkdir(exist_ok=True)
    carried = [folder / "carry" / name for name in names]
    for own in carried:
        with tempfile.TemporaryDirectory(dir=folder) as whole:  # as above; "again" would find the half and refuse
            made = Path(whole) / own.name
            made.mkdir()
            public, _ = create_certificates(made, "client")
            shutil.copy(folder / "daemon.key", made)
            Path(public).rename(folder / "clients" / f"{own.name}.key")
            made.rename(own)
    return carried


def own_keys(file: Path) -> Pair:
    """The public and the secret key in a file.

    Raises:
        EndpointError: they are not there.
    """
    try:
        public, secret = load_certificate(file)
    except UNREADABLE as error:
        mend = "let this user read it" if isinstance(error, PermissionError) else "make keys with rtdsae keys"
        raise EndpointError(f"{file}: no key can be read there: {mend}") from error
    if not secret or not _is_pair(public, secret):
        raise EndpointError(f"{file}: is not a secret key, or damaged: make keys with rtdsae keys")
    return public, secret


def _is_pair(public: bytes, secret: bytes) -> bool:
    try:
        return zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        return False


def _is_key(text: bytes) -> bool:
    try:
        return len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):
        return False


def clients_folder(folder: Path) -> Path:
    """Where a daemon's folder of keys has those of the clients that are let in.

    Raises:
        EndpointError: there are none, or a file is not a key.
    """
    clients = folder / "clients"
    try:
        known = {file: load_certificate(file)[0] for file in sorted(clients.glob("*.key"))}
    except UNREADABLE as error:
        raise EndpointError(f"{clients}: client keys cannot be read there: make them with rtdsae keys") from error
    if damaged := [file for file, key in known.items() if not _is_key(key)]:
        raise EndpointError(f"{damaged[0]}: is no public key, or damaged: make it anew with rtdsae keys")
    if not known:
        raise EndpointError(f"{clients} is empty, nobody could connect: rtdsae keys {folder} --client NAME")
    return clients


def guard(socket: "zmq.Socket[bytes]", keys: Path) -> None:
    """Has a client's socket show its key, and talk to no other than its daemon.

    Raises:
        EndpointError: the keys are not there.
    """
    if (keys / "carry").is_dir():
        raise EndpointError(f"{keys} is the daemon's folder of keys: a client's is {keys}/carry/NAME")
    socket.curve_publickey, socket.curve_secretkey = own_keys(keys / "client.key_secret")
    try:
        socket.curve_serverkey, _ = load_certificate(keys / "daemon.key")
    except (*UNREADABLE, zmq.ZMQError) as error:
        raise EndpointError(f"{keys}/daemon.key: no key can be read there: copy the whole folder") from error

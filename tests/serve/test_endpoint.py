"""Where sockets may listen, and who gets in: real sockets, real CURVE keys."""

import stat
from pathlib import Path

import pytest
import zmq

from rtdsae import wire
from rtdsae.client import Control as Client
from rtdsae.client import Subscriber, keys
from rtdsae.errors import EndpointError
from rtdsae.serve.control import Control
from rtdsae.serve.endpoint import Endpoints, bound_at, free
from rtdsae.serve.publisher import Publisher

SCHEMA = wire.Schema("toy", "00", 0.02, (wire.Array("z", (2,)),))
OPEN = ["tcp://*:5556", "tcp://0.0.0.0:*", "tcp://192.168.1.7:5556", "tcp://[::]:5556", "tcp://[fe80::1]:5556"]


@pytest.fixture
def make():
    """Endpoints, with keys or without, and the sockets bound there; all closed at the end."""
    made = []

    def endpoints(folder=None):
        made.append(Endpoints(folder))
        return made[-1]

    yield endpoints
    for one in made:
        one.close()


def bind(endpoints, endpoint):
    socket = endpoints.bind(zmq.XPUB, endpoint, "publish", {})
    at = bound_at(socket)
    socket.close()
    free(at)
    return at


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:*", "tcp://127.3.2.1:*", "tcp://localhost:*", "tcp://[::1]:*", "ipc://@abstract"]
)
def test_this_machine_needs_no_keys(make, endpoint):
    assert bind(make(), endpoint)


def test_an_ipc_path_in_use_and_a_stale_one(make, tmp_path):
    endpoint, endpoints = f"ipc://{tmp_path}/pub", make()
    first = endpoints.bind(zmq.XPUB, endpoint, "publish", {})
    with pytest.raises(EndpointError, match="another program listens there"):
        bind(endpoints, endpoint)
    first.close()
    free(endpoint)
    (tmp_path / "pub").touch()  # what a killed daemon leaves
    assert bind(endpoints, endpoint) == endpoint
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use(make):
    endpoints = make()
    first = endpoints.bind(zmq.XPUB, "tcp://127.0.0.1:*", "publish", {})
    with pytest.raises(
        EndpointError,
        match=rf"^cannot take requests on {bound_at(first)}: Address already in use; end ",
    ):
        endpoints.bind(zmq.ROUTER, bound_at(first), "take requests", {})
    first.close()


@pytest.mark.parametrize("endpoint", OPEN)
def test_other_machines_are_kept_out_without_keys(make, endpoint):
    with pytest.raises(EndpointError, match=r"can be reached from other machines.*rtdsae keys FOLDER.*--keys FOLDER"):
        bind(make(), endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "5556",
        "udp://127.0.0.1:5556",
        "tcp://",
        "ipc://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",  # ZeroMQ would bind to another port
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:5556;0.0.0.0:5557",  # ZeroMQ would bind to the second one
        "tcp://127.evil.example:5556",
        "tcp://::1:5556",
        "tcp://[127.0.0.1]:5556",
    ],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_not_an_endpoint(make, tmp_path, endpoint, guarded):
    keys.make(tmp_path, ["arm"])
    with pytest.raises(EndpointError, match="is not an endpoint: use tcp://ADDRESS:PORT or ipc://PATH"):
        bind(make(tmp_path if guarded else None), endpoint)


class Nothing:
    """A daemon that can be asked for its status."""

    def status(self):
        return {"bins": 5}


class Guarded:
    """A publisher and a control socket with keys."""

    def __init__(self, make, folder, endpoint):
        endpoints = make(folder)
        self.publisher = Publisher(endpoint.format("pub"), SCHEMA, endpoints)
        self.control = Control(endpoint.format("control"), Nothing(), endpoints)
        at = "tcp://127.0.0.1:" if "0.0.0.0" in endpoint else None
        self.pub = at + self.publisher.endpoint.rpartition(":")[2] if at else self.publisher.endpoint
        self.ask = at + self.control.endpoint.rpartition(":")[2] if at else self.control.endpoint

    def close(self):
        self.control.close()
        self.publisher.close()


@pytest.fixture(params=["tcp://127.0.0.1:*", "tcp://0.0.0.0:*", "ipc"])
def guarded(request, make, tmp_path):
    keys.make(tmp_path / "keys", ["arm", "screen"])
    endpoint = f"ipc://{tmp_path}/{{}}" if request.param == "ipc" else request.param
    guarded = Guarded(make, tmp_path / "keys", endpoint)
    yield guarded
    guarded.close()


def until_known_is_served(guarded, folder):
    """A client that is known gets a message on either socket: what others have not got by then, they do not get."""
    with Subscriber(guarded.pub, keys=folder) as known, Client(guarded.ask, keys=folder) as control:
        for _ in range(500):
            guarded.publisher.greet()
            known.receive(0.01)
            if known.schema:
                break
        assert known.schema == SCHEMA
        for _ in range(5):
            assert control.status()["bins"] == 5
            assert known.receive(0.05) is None


@pytest.mark.parametrize("name", ["arm", "screen"])
def test_a_known_key_is_served_on_both_sockets(guarded, tmp_path, name):
    until_known_is_served(guarded, tmp_path / "keys" / "carry" / name)


def elsewhere(folder):
    if not (folder / "elsewhere").exists():
        keys.make(folder / "elsewhere", ["arm"])
    return folder / "elsewhere"


def no_key(socket, folder):
    pass


def another_daemons_client(socket, folder):
    own = elsewhere(folder) / "carry" / "arm"
    own.joinpath("daemon.key").write_bytes((folder / "keys" / "daemon.key").read_bytes())
    keys.guard(socket, own)


def the_wrong_daemon(socket, folder):
    own = folder / "keys" / "carry" / "arm"
    own.joinpath("daemon.key").write_bytes((elsewhere(folder) / "daemon.key").read_bytes())
    keys.guard(socket, own)


def a_public_key_with_a_made_up_secret(socket, folder):
    socket.curve_publickey = keys.own_keys(folder / "keys" / "carry" / "arm" / "client.key_secret")[0]
    socket.curve_secretkey = zmq.curve_keypair()[1]
    socket.curve_serverkey = keys.own_keys(folder / "keys" / "daemon.key_secret")[0]


@pytest.mark.parametrize("show", [no_key, another_daemons_client, the_wrong_daemon, a_public_key_with_a_made_up_secret])
def test_who_is_not_known_gets_nothing_on_either_socket(guarded, tmp_path, show):
    with zmq.Context() as context, context.socket(zmq.SUB) as sub, context.socket(zmq.DEALER) as dealer:
        sub.linger = dealer.linger = 0
        sub.subscribe(b"")
        for socket, endpoint in ((sub, guarded.pub), (dealer, guarded.ask)):
            show(socket, tmp_path)
            socket.connect(endpoint)
        dealer.send(b'{"request": "status"}')
        until_known_is_served(guarded, tmp_path / "keys" / "carry" / "screen")
        assert not sub.poll(200)
        assert not dealer.poll(200)


def test_who_is_no_longer_known_is_shut_out_from_the_next_start_on(make, tmp_path):
    keys.make(tmp_path / "keys", ["arm", "screen"])
    (tmp_path / "keys" / "clients" / "arm.key").unlink()
    guarded = Guarded(make, tmp_path / "keys", "tcp://127.0.0.1:*")
    with (
        Subscriber(guarded.pub, keys=tmp_path / "keys" / "carry" / "arm") as gone,
        Client(guarded.ask, keys=tmp_path / "keys" / "carry" / "arm", timeout_s=0.2) as asking,
    ):
        until_known_is_served(guarded, tmp_path / "keys" / "carry" / "screen")
        gone.receive(0.1)
        assert gone.schema is None
        with pytest.raises(EndpointError, match="with the same keys"):
            asking.status()
    guarded.close()


@pytest.mark.parametrize("missing", ["daemon.key_secret", "clients", "clients/arm.key"])
def test_a_daemon_without_its_keys_does_not_start(tmp_path, missing):
    keys.make(tmp_path, ["arm"])
    if missing == "clients":
        (tmp_path / "clients").rename(tmp_path / "moved")
    else:
        (tmp_path / missing).unlink()
    with pytest.raises(EndpointError, match="rtdsae keys"):
        Endpoints(tmp_path)


@pytest.mark.parametrize("spoiled", ["daemon.key_secret", "clients/arm.key"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"curve\n    public-key",
        b"curve\n    public-key = ",
        b'curve\n    public-key = "short"\n    secret-key = "short"\n',
    ],
)
def test_spoiled_keys_are_refused(tmp_path, spoiled, content):
    keys.make(tmp_path, ["arm", "screen"])
    (tmp_path / spoiled).write_bytes(content)
    with pytest.raises(EndpointError, match=spoiled.partition("/")[0]):
        Endpoints(tmp_path)


@pytest.mark.parametrize(("file", "half"), [("daemon.key_secret", "secret"), ("clients/arm.key", "public")])
def test_keys_of_which_a_few_letters_are_wrong_are_refused(tmp_path, file, half):
    keys.make(tmp_path, ["arm"])
    path = tmp_path / file
    head, tail = path.read_text().split(f'{half}-key = "')
    path.write_text(f'{head}{half}-key = "~~~{tail[3:]}')
    with pytest.raises(EndpointError, match=file.partition("/")[0]):
        Endpoints(tmp_path)


def test_a_clients_key_of_which_a_few_letters_are_wrong_is_refused(tmp_path):
    (carried,) = keys.make(tmp_path, ["arm"])
    path = carried / "client.key_secret"
    head, tail = path.read_text().split('public-key = "')
    path.write_text(f'{head}public-key = "abc{tail[3:]}')
    with pytest.raises(EndpointError, match=r"client.key_secret: is not a secret key, or damaged"):
        Subscriber("ipc://nowhere", keys=carried)


@pytest.mark.parametrize("file", ["client.key_secret", "daemon.key"])
def test_a_clients_keys_that_are_cut_off_are_refused(tmp_path, file):
    (carried,) = keys.make(tmp_path, ["arm"])
    whole = (carried / file).read_text()
    (carried / file).write_text(whole[: whole.index('-key = "') + len("-key")])
    with pytest.raises(EndpointError, match=rf"{file}: no key can be read there"):
        Subscriber("ipc://nowhere", keys=carried)


def test_keys_are_for_their_owner_and_never_written_over(tmp_path):
    carried = keys.make(tmp_path / "keys", ["arm", "screen", "arm"])
    assert carried == [tmp_path / "keys" / "carry" / name for name in ("arm", "screen")]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(str(path.relative_to(tmp_path / "keys")) for path in before) == [
        "carry/arm/client.key_secret",
        "carry/arm/daemon.key",
        "carry/screen/client.key_secret",
        "carry/screen/daemon.key",
        "clients/arm.key",
        "clients/screen.key",
        "daemon.key",
        "daemon.key_secret",
    ]
    for path in before:
        assert path.suffix == ".key" or stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.suffix != ".key" or b"secret-key" not in before[path]
    with pytest.raises(EndpointError, match="keys of 'screen' already"):
        keys.make(tmp_path / "keys", ["door", "screen"])
    keys.make(tmp_path / "keys", ["door"])
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "keys" / "clients" / "door.key").is_file()
    assert not (tmp_path / "keys" / "clients" / "door.key_secret").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-x", "x" * 65, "ä"])
def test_a_client_name_is_a_file_name(tmp_path, name):
    with pytest.raises(EndpointError, match="client name"):
        keys.make(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("client", [Subscriber, Client])
def test_a_client_without_its_keys_says_which(tmp_path, client):
    (carried,) = keys.make(tmp_path, ["arm"])
    with pytest.raises(EndpointError, match=rf"daemon's folder of keys: a client's is {tmp_path}/carry/NAME"):
        client("tcp://127.0.0.1:5556", keys=tmp_path)
    with pytest.raises(EndpointError, match=r"nowhere/client.key_secret: no key can be read there"):
        client("tcp://127.0.0.1:5556", keys="nowhere")
    (carried / "daemon.key").unlink()
    with pytest.raises(EndpointError, match=r"arm/daemon.key: no key can be read there: copy the whole folder"):
        client("tcp://127.0.0.1:5556", keys=carried)


def test_keys_that_could_not_be_written_whole_are_not_there(tmp_path, monkeypatch):
    real = keys.create_certificates

    def full(folder, name):
        Path(folder, f"{name}.key").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys, "create_certificates", full)
    with pytest.raises(OSError, match="No space left"):
        keys.make(tmp_path, ["arm"])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(keys, "create_certificates", real)
    keys.make(tmp_path, ["arm"])
    assert keys.own_keys(tmp_path / "daemon.key_secret")


def test_no_client_gets_keys_of_a_daemon_whose_own_are_damaged(tmp_path):
    keys.make(tmp_path, ["arm"])
    (tmp_path / "daemon.key_secret").write_bytes(b"")
    with pytest.raises(EndpointError, match=r"no key can be read there: make keys .*, into another folder"):
        keys.make(tmp_path, ["leg"])
    assert not (tmp_path / "carry" / "leg").exists()


def test_no_client_gets_half_of_its_keys(tmp_path, monkeypatch):
    keys.make(tmp_path, ["arm"])
    public = tmp_path / "daemon.key"
    content = public.read_bytes()
    public.unlink()
    with pytest.raises(EndpointError, match=r"daemon.key is missing, .*: copy it from .*carry/NAME"):
        keys.make(tmp_path, ["leg"])
    public.write_bytes(content)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(keys.shutil, "copy", full)
        with pytest.raises(OSError, match="No space left"):
            keys.make(tmp_path, ["leg"])
    (carried,) = keys.make(tmp_path, ["leg"])  # and not "has keys already"
    assert sorted(file.name for file in carried.iterdir()) == ["client.key_secret", "daemon.key"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["carry", "clients", "daemon.key", "daemon.key_secret"]

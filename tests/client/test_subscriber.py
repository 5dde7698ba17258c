"""The subscriber against real publishing sockets, honest and otherwise."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import zmq

from rtdsae import wire
from rtdsae.client import Subscriber
from rtdsae.client import subscriber as module
from rtdsae.errors import EndpointError
from rtdsae.wire import Array, Encoder, Flags, Schema, encode_status

SCHEMA = Schema("toy", "00", 0.02, (Array("factors", (3,)), Array("z", (2,))))
OTHER = Schema("other", "11", 0.02, (Array("z", (5,)),))
SOON = 10.0  # seconds that nothing here needs


class Station:
    """A publisher, as the daemon is one: XPUB, told of every subscription."""

    def __init__(self, endpoint, schema=SCHEMA, run=1):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.socket.bind(endpoint)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.encoder = Encoder(schema, run)

    def expect(self, n_subscribers=1):
        """Waits until so many more subscribers are connected, and greets them."""
        for _ in range(3 * n_subscribers):
            self.next_request()
        self.send(self.encoder.schema.encode())

    def next_request(self):
        assert self.socket.poll(int(1e3 * SOON))
        return self.socket.recv()

    def send(self, *frames):
        for frame in frames:
            self.socket.send(frame)

    def bins(self, *seqs, flags=0):
        for seq in seqs:
            for view in self.encoder.payload.values():
                view[:] = seq
            self.send(self.encoder.encode(seq, seq + 100, 0.02 * seq, 0.02 * seq + 0.001, 0.02 * seq + 0.002, flags))

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture(params=["tcp", "ipc"])
def endpoint(request, tmp_path):
    return "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/pub"


@pytest.fixture
def stations():
    made = []

    def make(*args, **kwargs):
        made.append(Station(*args, **kwargs))
        return made[-1]

    yield make
    for station in made:
        station.close()


@pytest.fixture
def station(stations):
    return stations("tcp://127.0.0.1:*")


@pytest.fixture
def listen():
    made = []

    def make(endpoint, **kwargs):
        made.append(Subscriber(endpoint, **{"timeout_s": SOON} | kwargs))
        return made[-1]

    yield make
    for subscriber in made:
        subscriber.close()


def take(subscriber, n):
    return [message.seq for message in itertools.islice(subscriber, n)]


def test_every_bin_comes_in_order_with_its_names(stations, listen, endpoint):
    station = stations(endpoint)
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(*range(100))
    for seq, message in enumerate(itertools.islice(subscriber, 100)):
        assert (message.seq, message.bin, message.run, message.flags) == (seq, seq + 100, 1, Flags(0))
        assert (message.t_bin, message.t_in) == (0.02 * seq, 0.02 * seq + 0.001)
        assert message["factors"].tolist() == [seq] * 3
        assert message["z"].tolist() == [seq] * 2
    assert subscriber.schema == SCHEMA
    assert (subscriber.holes, subscriber.errors, subscriber.skipped, subscriber.restarts) == (0, 0, 0, 0)


def test_values_are_views_of_the_received_bytes(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(0)
    message = subscriber.receive()
    assert isinstance(message.payload.base, bytes)
    assert np.shares_memory(message["z"], np.frombuffer(message.payload.base, np.uint8))
    assert not message["z"].flags.writeable


def test_who_comes_late_has_missed_nothing_of_theirs(station, listen):
    station.bins(*range(50))
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(50, 51)
    assert take(subscriber, 2) == [50, 51]
    assert subscriber.holes == 0


def test_who_comes_before_the_daemon_waits_for_it(stations, listen, tmp_path):
    subscriber = listen(f"ipc://{tmp_path}/pub")
    assert subscriber.receive(0) is None
    station = stations(f"ipc://{tmp_path}/pub")
    station.expect()
    station.bins(0, 1)
    assert take(subscriber, 2) == [0, 1]


def test_bins_wait_for_a_schema_that_comes_after_them(station, listen):
    subscriber = listen(station.endpoint)
    for _ in range(3):
        station.next_request()
    station.bins(0, 1, 2)
    assert subscriber.receive(0.2) is None
    assert station.next_request() == b"\x00" + wire.SCHEMA  # it asks once more, should it have missed the schema
    assert station.next_request() == b"\x01" + wire.SCHEMA
    station.send(SCHEMA.encode())
    station.bins(3)
    assert take(subscriber, 4) == [0, 1, 2, 3]
    assert subscriber.holes == 0


def test_a_new_schema_is_used_from_its_first_bin_on(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(0, 1)
    station.encoder = Encoder(OTHER, 1)
    station.send(OTHER.encode())
    station.bins(2, 3, flags=Flags.SWAPPED)
    station.encoder = Encoder(SCHEMA, 1)
    station.bins(4)
    messages = list(itertools.islice(subscriber, 5))
    assert [m["z"].tolist() for m in messages] == [[0] * 2, [1] * 2, [2] * 5, [3] * 5, [4] * 2]
    assert messages[2].flags == Flags.SWAPPED
    assert subscriber.schema == OTHER
    assert (subscriber.holes, subscriber.errors) == (0, 0)


def test_bins_whose_schema_never_comes_are_a_hole_and_not_misread(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(0)
    station.encoder = Encoder(OTHER, 1)
    station.bins(1, 2)
    station.encoder = Encoder(SCHEMA, 1)
    station.bins(3)
    assert take(subscriber, 2) == [0, 3]
    station.send(OTHER.encode())  # too late: what is given is in order
    station.bins(4)
    assert take(subscriber, 1) == [4]
    assert (subscriber.holes, subscriber.errors) == (2, 0)


def test_of_many_schemas_the_newest_are_known(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    newer = [Schema("toy", f"{i:02x}", 0.02, SCHEMA.arrays) for i in range(1, module.MAX_SCHEMAS + 1)]
    station.send(*[schema.encode() for schema in newer])
    for seq, schema in enumerate(newer):
        station.encoder = Encoder(schema, 1)
        station.bins(seq)
    assert take(subscriber, len(newer)) == list(range(len(newer)))
    station.encoder = Encoder(SCHEMA, 1)
    station.bins(len(newer))
    assert subscriber.receive(0.1) is None
    assert station.next_request() == b"\x00" + wire.SCHEMA  # the oldest was forgotten: it asks for it
    station.send(SCHEMA.encode())
    assert take(subscriber, 1) == [len(newer)]


def test_holes_are_counted_and_told(station, listen):
    told = []
    subscriber = listen(station.endpoint, on_hole=lambda first, n: told.append((first, n)))
    station.expect()
    station.bins(7, 8, 11, 12, 20)
    assert take(subscriber, 5) == [7, 8, 11, 12, 20]
    assert subscriber.holes == 9
    assert told == [(9, 2), (13, 7)]


def test_bins_again_from_history_are_given_and_not_counted(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(10, 12)
    station.bins(11, flags=Flags.BACKFILL)
    station.bins(13)
    assert take(subscriber, 4) == [10, 12, 11, 13]
    assert (subscriber.holes, subscriber.errors) == (1, 0)


def test_a_daemon_that_restarts_is_followed(stations, listen, endpoint):
    first = stations(endpoint)
    told = []
    subscriber = listen(first.endpoint, on_hole=lambda *hole: told.append(hole))
    first.expect()
    first.bins(0, 1, 2)
    assert take(subscriber, 3) == [0, 1, 2]
    first.close()
    second = stations(first.endpoint, OTHER, run=2)
    second.bins(0, 1, 2, 3)  # before the subscriber is back
    for _ in range(500):  # it subscribes again within its own calls
        if second.socket.poll(20):
            break
        assert subscriber.receive(0) is None
    second.expect()
    second.bins(4, 5)
    assert take(subscriber, 2) == [4, 5]
    assert (subscriber.restarts, subscriber.holes, told) == (1, 4, [(0, 4)])
    assert subscriber.schema == OTHER


def test_garbage_is_counted_and_passed_over(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(0)
    good = bytes(station.encoder.frame)
    garbage = [
        good[:50],
        good + b"x",
        good[:8] + b"\x07" + good[9:],
        b"schema\0\0{",
        b"status\0\0[]",
        b"schema\0\0" * 9,
    ]
    station.send(*garbage)
    station.bins(1, 1, 0, 2)  # and two that go back
    station.socket.send_multipart([b"latents\0", good])
    station.bins(3)
    assert take(subscriber, 4) == [0, 1, 2, 3]
    assert (subscriber.errors, subscriber.holes) == (len(garbage) + 4, 0)
    assert "same run" in subscriber.last_error


def test_a_bin_of_another_size_than_its_schema_says_is_refused(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.encoder = Encoder(Schema("x", "x", 1.0, (Array("z", (4,)),)), 1)
    station.encoder._schema_id = SCHEMA.id
    station.bins(0)
    station.encoder = Encoder(SCHEMA, 1)
    station.bins(1)
    assert take(subscriber, 1) == [1]
    assert (subscriber.errors, subscriber.holes) == (1, 0)


def test_the_latest_is_the_newest_and_what_it_skips_is_no_hole(station, listen):
    subscriber = listen(station.endpoint)
    station.expect()
    station.bins(*range(500))
    seen = [subscriber.latest().seq]
    while seen[-1] < 499:
        seen.append(subscriber.latest().seq)
    assert seen == sorted(set(seen))
    assert len(seen) < 50
    assert subscriber.skipped == 500 - len(seen)
    assert subscriber.holes == 0
    assert subscriber.latest(0) is None
    station.bins(500)
    assert subscriber.latest().seq == 500


def test_the_latest_is_the_newest_after_a_stall_too(station, listen):
    n = 3 * module.HIGH_WATER  # more than its queue holds: the rest waits in the publisher
    controller = listen(station.endpoint)
    station.expect()
    station.bins(*range(n))
    seen = [controller.latest().seq]
    while seen[-1] < n - 1:
        seen.append(controller.latest().seq)
    assert len(seen) < 50
    assert controller.skipped == n - len(seen)
    assert controller.holes == 0


def test_what_is_queued_behind_other_messages_is_found_without_waiting(station, listen):
    controller = listen(station.endpoint)
    station.expect()
    station.send(*[encode_status({"bins": i}) for i in range(20)])
    station.bins(5)
    assert controller.receive(SOON).seq == 5
    assert dict(controller.status) == {"bins": 19}


def test_a_flood_of_other_messages_does_not_outlast_the_timeout(station, listen, monkeypatch):
    subscriber = listen(station.endpoint)
    monkeypatch.setattr(subscriber, "_take", lambda wait_s: True)
    assert subscriber.receive(0.05) is None


def test_a_flood_of_other_messages_is_waited_through_while_there_is_time(station, listen, monkeypatch):
    subscriber = listen(station.endpoint)
    station.expect()
    monkeypatch.setattr(module, "HIGH_WATER", 5)
    station.send(*[encode_status({"bins": i}) for i in range(10)])
    station.bins(7)
    message = subscriber.receive()
    assert message is not None
    assert message.seq == 7


def test_fifty_subscribers_all_get_all(station, listen):
    everybody = [listen(station.endpoint) for _ in range(50)]
    station.expect(50)
    station.bins(*range(200))
    for one in everybody:
        assert take(one, 200) == list(range(200))
        assert (one.holes, one.errors) == (0, 0)


def test_silence_ends_the_loop_with_what_is_known(station, listen):
    subscriber = listen(station.endpoint, timeout_s=0.2)
    with pytest.raises(EndpointError, match=r"no bin from tcp.* for 0\.2 s: is rtdsae serve running"):
        next(iter(subscriber))
    station.expect()
    station.send(encode_status({"bins": 0}))
    with pytest.raises(EndpointError, match="the daemon is there, but publishes none"):
        next(iter(subscriber))
    station.send(b"status\0\0{")
    with pytest.raises(EndpointError, match="but 1 other messages: a status message is not JSON"):
        next(iter(subscriber))
    station.encoder = Encoder(OTHER, 1)
    station.bins(0)
    with pytest.raises(EndpointError, match="1 came without their schema"):
        next(iter(subscriber))


@pytest.mark.parametrize("usual", [None, 20])
def test_silence_is_told_of_as_long_as_it_was_waited_for(station, listen, usual):
    subscriber = listen(station.endpoint, timeout_s=usual)
    assert f"no bin from {station.endpoint}" in subscriber.why_silent()
    assert subscriber.latest(0.1) is None
    assert "for 0.1 s: is rtdsae serve running" in subscriber.why_silent()


@pytest.mark.parametrize("spin", [0.002, 0.05])  # a part of each bin, and all of it
def test_who_polls_gets_the_same_bins(station, listen, spin):
    subscriber = listen(station.endpoint, spin=spin)
    station.expect()
    for seq in range(5):
        station.bins(seq)
        assert subscriber.receive().seq == seq
    assert subscriber.receive(0) is None
    assert subscriber.receive(0.1) is None  # past the time when the next was due
    station.bins(5, 6, 9)
    assert take(subscriber, 3) == [5, 6, 9]
    assert subscriber.holes == 2
    assert subscriber.latest(0.01) is None


class Watched:
    """A socket whose waiting is written down."""

    def __init__(self, socket):
        self.socket, self.waits, self.last_poll = socket, [], 0.0

    def poll(self, timeout_ms):
        self.waits.append("sleep")
        return self.socket.poll(timeout_ms)

    def recv(self, flags):
        self.waits.append("poll" if flags == zmq.NOBLOCK else "block")
        self.last_poll = time.monotonic() if flags == zmq.NOBLOCK else self.last_poll
        return self.socket.recv(flags)

    def __getattr__(self, name):
        return getattr(self.socket, name)


def test_who_polls_sleeps_until_shortly_before_the_next_bin_and_again_after_it(station, listen):
    station.encoder = Encoder(Schema("slow", "22", 0.4, (Array("z", (2,)),)), 1)
    subscriber = listen(station.endpoint, spin=0.2)
    station.expect()
    station.bins(0)
    assert subscriber.receive().seq == 0
    due = time.monotonic() + 0.4
    watched = subscriber._socket = Watched(subscriber._socket)
    assert subscriber.receive(1.0) is None
    assert watched.waits[0] == "sleep"
    assert watched.waits[-1] == "block"
    assert set(watched.waits[1:-1]) == {"poll"}
    assert watched.last_poll > due
    watched.waits.clear()
    assert subscriber.receive(0.01) is None  # long past the time when it was due
    assert watched.waits == ["block"]


def test_who_polls_for_a_bin_that_is_never_due_gets_what_comes(station, listen):
    station.encoder = Encoder(Schema("slow", "22", 1e300, (Array("z", (2,)),)), 1)
    subscriber = listen(station.endpoint, spin=0.001, timeout_s=None)
    station.expect()
    station.bins(0, 1)
    assert take(subscriber, 2) == [0, 1]


def test_polling_ends_with_the_timeout(station, listen):
    subscriber = listen(station.endpoint, spin=60.0)
    station.expect()
    station.bins(0)
    assert subscriber.receive().seq == 0
    assert subscriber.receive(0.05) is None


@pytest.mark.parametrize("endpoint", ["", "5556", "tcp://", "carrier-pigeon://roof", "tcp://127.0.0.1:x"])
def test_what_is_no_endpoint_is_refused(endpoint):
    with pytest.raises(EndpointError, match="cannot connect to") as caught:
        Subscriber(endpoint)
    assert len(str(caught.value).splitlines()) == 1


def test_a_closed_subscriber_says_so(station):
    with Subscriber(station.endpoint) as subscriber:
        assert subscriber.receive(0) is None
    subscriber.close()
    with pytest.raises(EndpointError, match="is closed"):
        subscriber.receive(0)


def python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_needs_numpy_and_pyzmq_only():
    python("""
import sys
for name in ["msgspec", "yaml", "tyro", "torch", "onnxruntime", "pylsl", "h5py", "onnx", "scipy", "lightning_fabric"]:
    sys.modules[name] = None
from rtdsae import Subscriber
with Subscriber("tcp://127.0.0.1:9", timeout_s=0) as subscriber:
    assert subscriber.latest() is None
""")


def test_importing_the_package_imports_nothing_heavy():
    found = python("""
import json, sys
before = set(sys.modules)
import rtdsae
print(json.dumps([name.partition(".")[0] for name in set(sys.modules) - before]))
""")
    assert set(json.loads(found)) <= {"rtdsae"} | sys.stdlib_module_names

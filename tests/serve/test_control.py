"""The control socket, with real clients: honest, slow, hostile."""

import json
import re
import threading
import time

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdsae import wire
from rtdsae.errors import BundleError, StreamError
from rtdsae.serve import control as module
from rtdsae.serve.control import Control
from rtdsae.serve.endpoint import Endpoints
from rtdsae.wire import Flags

SCHEMA = wire.Schema("toy", "00", 0.02, (wire.Array("z", (2,)),))
SOON_MS = 10_000


class Daemon:
    """What is asked: it has the bins 1000 to 4999, and does as the tests say."""

    def __init__(self):
        self.asked, self.swapping, self.go_on = [], threading.Event(), threading.Event()
        self.encoder = wire.Encoder(SCHEMA, 7)
        self.oldest, self.newest = 1000, 4999

    def status(self):
        return {"bins": 5000, "latency_us": {"p50": None}}

    def schema(self):
        return SCHEMA

    def kept(self):
        return None if self.newest < self.oldest else (self.oldest, self.newest)

    def history(self, first, last):
        seqs = range(max(first, self.oldest), min(last, self.newest) + 1)
        return [bytes(self.encoder.encode(seq, seq, 0.0, 0.0, 0.0, Flags.BACKFILL)) for seq in seqs]

    def anchor(self):
        self.asked.append("anchor")
        if self.asked.count("anchor") > 1:
            raise StreamError("not\nnow")

    def swap(self, bundle, session):
        self.asked.append((str(bundle), session))
        self.swapping.set()
        assert self.go_on.wait(20)
        if str(bundle) == "bad":
            raise BundleError("bad: is no bundle")
        if str(bundle) == "worse":
            raise ZeroDivisionError("division by zero")
        return {"seq": 5000}

    def stop(self):
        self.asked.append("stop")


@pytest.fixture
def daemon():
    daemon = Daemon()
    yield daemon
    daemon.go_on.set()


@pytest.fixture(params=["tcp"])
def control(request, daemon, tmp_path):
    endpoints = Endpoints()
    endpoint = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/control"
    control = Control(endpoint, daemon, endpoints)
    yield control
    control.close()
    endpoints.close()


@pytest.fixture
def connect(control):
    context, sockets = zmq.Context(), []

    def connect(kind=zmq.REQ, **options):
        socket = context.socket(kind)
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name), value)
        socket.connect(control.endpoint)
        sockets.append(socket)
        return socket

    yield connect
    context.destroy(linger=0)


@pytest.fixture
def client(connect):
    return connect()


def reply(socket):
    assert socket.poll(SOON_MS), "no reply"
    first, *frames = socket.recv_multipart()
    return json.loads(first), frames


def ask(socket, request, **fields):
    socket.send(json.dumps({"request": request, **fields}).encode())
    return reply(socket)


@pytest.mark.parametrize("control", ["tcp", "ipc"], indirect=True)
def test_the_readme_of_a_request(client):
    found, frames = ask(client, "status", id="a")
    assert (found, frames) == ({"ok": True, "id": "a", "status": {"bins": 5000, "latency_us": {"p50": None}}}, [])
    found, (schema,) = ask(client, "schema", id=3)
    assert found == {"ok": True, "id": 3, "schema": json.loads(SCHEMA.json), "schema_id": SCHEMA.id}
    assert wire.decode(schema) == SCHEMA


def test_a_dealer_needs_no_empty_frame(connect):
    dealer = connect(zmq.DEALER)
    for i in range(3):
        dealer.send(b'{"request": "status", "id": %d}' % i)
    dealer.send_multipart([b"", b'{"request": "status", "id": 3}'])
    found = []
    for _ in range(4):
        assert dealer.poll(SOON_MS)
        found.append(dealer.recv_multipart())
    assert [json.loads(frames[-1])["id"] for frames in found] == [0, 1, 2, 3]
    assert [len(frames) for frames in found] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"from": 1500, "to": 1503}, [1500, 1501, 1502, 1503]),
        ({"from": 998, "to": 1001}, [1000, 1001]),
        ({"from": 4998}, [4998, 4999]),
        ({"from": 4998, "to": 2**60}, [4998, 4999]),
        ({"last": 2}, [4998, 4999]),
        ({"last": 0}, []),
        ({"from": 5000}, []),
        ({"from": 10, "to": 20}, []),
        ({"from": 20, "to": 10}, []),
        ({"to": 1001}, [1000, 1001]),
        ({}, list(range(1000, 2000))),
        ({"last": 2**60}, list(range(1000, 2000))),
    ],
)
def test_history_is_what_was_asked_for_and_kept(client, fields, expected):
    found, frames = ask(client, "history", **fields)
    bins = [wire.decode(frame).bind(SCHEMA) for frame in frames]
    assert [b.seq for b in bins] == expected
    assert all(b.flags == Flags.BACKFILL for b in bins)
    ends = {"first": expected[0], "last": expected[-1]} if expected else {"first": None, "last": None}
    assert found == {"ok": True, "id": None, "oldest": 1000, "newest": 4999} | ends


@pytest.mark.parametrize("other", [{"from": 0}, {"from": 4990}, {"to": 4999}, {"from": 4990, "to": 4999}])
def test_history_is_asked_for_in_one_way(client, other):
    found, frames = ask(client, "history", last=2, id=1, **other)
    assert not frames
    assert found == {
        "ok": False,
        "id": 1,
        "error": "history has `from` and `to`, or `last` alone: they do not go together",
    }


def test_history_before_the_first_bin(client, daemon):
    daemon.newest = daemon.oldest - 1
    found, frames = ask(client, "history")
    assert (found["oldest"], found["newest"], found["first"], frames) == (None, None, None, [])


def test_a_reply_of_history_is_bounded_in_bytes_too(client, daemon):
    wide = wire.Schema("toy", "00", 0.02, (wire.Array("z", (100_000,)),))
    daemon.encoder = wire.Encoder(wide, 7)
    found, frames = ask(client, "history", **{"from": 1000})
    size = sum(map(len, frames))
    assert module.MAX_BYTES < size < module.MAX_BYTES + module.TAKE * len(frames[0])
    assert [wire.decode(frame).seq for frame in frames] == list(range(1000, found["last"] + 1))


def test_anchor_and_stop_reach_the_daemon_and_its_reasons_come_back(client, daemon):
    assert ask(client, "anchor") == ({"ok": True, "id": None}, [])
    assert ask(client, "anchor", id=1) == ({"ok": False, "id": 1, "error": "not now"}, [])
    assert ask(client, "stop") == ({"ok": True, "id": None}, [])
    assert daemon.asked == ["anchor", "anchor", "stop"]


def test_a_swap_is_waited_for_by_its_client_alone(connect, daemon):
    swapper, other = connect(), connect()
    swapper.send(b'{"request": "swap", "bundle": "b", "session": "day2", "id": 1}')
    assert daemon.swapping.wait(10)
    assert ask(other, "status")[0]["ok"]
    found, _ = ask(other, "swap", bundle="c")
    assert found == {"ok": False, "id": None, "error": "another swap is under way: ask again when it has ended"}
    assert not swapper.poll(0)
    daemon.go_on.set()
    assert reply(swapper)[0] == {"ok": True, "id": 1, "seq": 5000}
    assert daemon.asked == [("b", "day2")]
    assert ask(other, "swap", bundle="c")[0] == {"ok": True, "id": None, "seq": 5000}


@pytest.mark.parametrize(
    ("bundle", "why"), [("bad", "bad: is no bundle"), ("worse", "ZeroDivisionError: division by zero")]
)
def test_a_swap_that_fails_says_why_and_another_may_follow(client, daemon, bundle, why):
    daemon.go_on.set()
    assert ask(client, "swap", bundle=bundle, id="x")[0] == {"ok": False, "id": "x", "error": why}
    assert ask(client, "swap", bundle="good")[0]["ok"]


def test_a_swap_under_way_does_not_keep_the_socket_from_closing(client, daemon, control):
    client.send(b'{"request": "swap", "bundle": "b"}')
    assert daemon.swapping.wait(10)
    control.close()
    assert control._socket.closed


def test_what_stop_was_answered_arrives_though_the_socket_closes(client, daemon, control):
    done = threading.Event()
    daemon.stop = done.set
    client.send(b'{"request": "stop"}')
    assert done.wait(10)
    control.close()
    assert reply(client)[0]["ok"]


WRONG = [
    (b"", "malformed|truncated"),
    (b"status", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b"[]", "object"),
    (b'"status"', "object"),
    (b"{}", "missing required field `request`"),
    (b'{"request": "dance"}', "'dance'.*one of status, schema, history, anchor, swap, stop"),
    (b'{"request": 1}', "request"),
    (b'{"request": ["status"]}', "request"),
    (b'{"request": "status", "verbose": true}', "unknown field `verbose`"),
    (b'{"request": "status"} {"request": "stop"}', "trailing"),
    (b'{"request": "status", "id": true}', r"\$.id"),
    (b'{"request": "status", "id": {}}', r"\$.id"),
    (b'{"request": "status", "id": 1e999}', "id|finite|range"),
    (b'{"request": "status", "id": ' + b"9" * 4000 + b"}", r"\$.id"),
    (b'{"request": "status", "id": "' + b"9" * 4000 + b'"}', r"\$.id"),
    (b'{"request": "status", "id": "\\ud800"}', "request is like"),
    (b'{"request": "history", "from": -1}', r"\$.from"),
    (b'{"request": "history", "from": "1"}', r"\$.from"),
    (b'{"request": "history", "to": 18446744073709551616}', r"\$.to"),
    (b'{"request": "history", "last": 1.5}', r"\$.last"),
    (b'{"request": "history", "last": NaN}', "invalid character"),
    (b'{"request": "swap"}', "`bundle`"),
    (b'{"request": "swap", "bundle": ""}', r"\$.bundle"),
    (b'{"request": "swap", "bundle": 5}', r"\$.bundle"),
    (b'{"request": "swap", "bundle": "a\\u0000b"}', r"\$.bundle"),
    (b'{"request": "swap", "bundle": "a", "session": 5}', r"\$.session"),
    (b"[" * 4000, "object"),
    (b'{"a":' * 700, "truncated|recursion|field"),
    (b'{"request": "status", "x": ' + b"[" * 4000, "field|recursion"),
]


@pytest.mark.parametrize(("text", "why"), WRONG)
def test_what_is_no_request_is_refused_in_a_line(client, daemon, text, why):
    client.send(text)
    found, frames = reply(client)
    assert (found["ok"], frames) == (False, [])
    assert len(found["error"].splitlines()) == 1
    assert re.search(why, found["error"]), found["error"]
    assert daemon.asked == []


@pytest.mark.parametrize(
    "frames", [[b"{}", b"{}"], [b"", b"", b"{}"], [b""], [b"x", b"{}"], [b'{"request": "stop"}'] * 2]
)
def test_one_request_is_one_frame(connect, daemon, frames):
    dealer = connect(zmq.DEALER)
    dealer.send_multipart(frames)
    assert dealer.poll(SOON_MS)
    assert not json.loads(dealer.recv_multipart()[-1])["ok"]
    assert daemon.asked == []


def test_a_refusal_has_the_id_of_the_request_where_it_can_be_read(client):
    assert ask(client, "dance", id=5)[0]["id"] == 5
    assert ask(client, "history", id="a", last=-1)[0]["id"] == "a"
    assert ask(client, "history", id=[], last=-1)[0]["id"] is None


def test_a_message_of_endless_frames_is_refused_and_takes_nobody_with_it(connect, client):
    dealer = connect(zmq.DEALER)
    dealer.send_multipart([b"x"] * 3000)
    assert not reply(dealer)[0]["ok"]
    assert ask(client, "status")[0]["ok"]


def test_a_message_of_endless_frames_does_not_keep_the_socket_from_closing(connect, control, monkeypatch):
    receiving, receive = threading.Event(), Control._receive

    def watched(control):
        receiving.set()
        return receive(control)

    monkeypatch.setattr(Control, "_receive", watched)
    connect(zmq.DEALER).send_multipart([b"x"] * 100_000)
    assert receiving.wait(10)
    closing = threading.Thread(target=control.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert module._identity([]) is None  # of one that was broken off after its address


def test_a_request_that_is_too_long_ends_its_connection_alone(connect, client):
    dealer = connect(zmq.DEALER)
    dealer.send(b'{"request": "stop", "id": "' + b"x" * module.MAX_REQUEST + b'"}')
    assert ask(client, "status")[0]["ok"]
    for _ in range(20):  # what is sent before the old connection is seen to have ended goes with it
        dealer.send(b'{"request": "status"}')
        if dealer.poll(500):
            break
    assert reply(dealer)[0]["ok"]  # it has connected again


def test_who_does_not_read_replies_is_not_waited_for(connect, daemon, client):
    wide = wire.Schema("toy", "00", 0.02, (wire.Array("z", (10_000,)),))
    daemon.encoder = wire.Encoder(wide, 7)
    deaf = connect(zmq.DEALER, RCVHWM=1)
    for i in range(40):
        deaf.send(b'{"request": "history", "last": 150, "id": %d}' % i)  # 6 MB each
        assert ask(client, "status")[0]["ok"]
    waited = [reply(deaf)[0]["id"] for _ in range(module.HIGH_WATER)]
    deaf.send(b'{"request": "status", "id": 99}')
    while waited[-1] != 99:
        waited.append(reply(deaf)[0]["id"])
    assert len(waited) < 2 * module.HIGH_WATER  # the others were dropped, and take no memory


def test_who_goes_before_the_reply_is_forgotten(connect, client):
    for _ in range(20):
        gone = connect(zmq.DEALER)
        gone.send(b'{"request": "history"}')
        gone.close(linger=1000)
    assert ask(client, "status")[0]["ok"]


def test_a_client_in_a_hurry_is_slowed_down_and_others_are_not_starved(connect, client, daemon):
    hurry, served = connect(zmq.DEALER), []
    daemon.anchor = lambda: served.append(time.monotonic())
    for _ in range(200):
        hurry.send(b'{"request": "anchor"}')
    before = len(served)
    for _ in range(5):
        assert ask(client, "status")[0]["ok"]
    assert len(served) - before < 50  # of the others' requests, one comes in between, or two
    for _ in range(200):
        assert reply(hurry)[0]["ok"]
    assert served[-1] - served[0] > 199 * 0.0045  # 200 a second at most: a sleep is never shorter than it says


def test_it_rests_after_each_request_for_longer_where_that_took_long_and_within_endless_frames(
    connect, client, daemon, control, monkeypatch
):
    rests, wait = [], control._closing.wait
    monkeypatch.setattr(control._closing, "wait", lambda seconds: rests.append(seconds) or wait(0))
    daemon.status = lambda: wait(0.02) or {}
    assert ask(client, "status")[0]["ok"]
    assert ask(client, "schema")[0]["ok"]  # after the rest
    assert rests[0] >= module.REST * 0.02
    rests.clear()
    daemon.status = lambda: wait(0.5) or {}  # nobody lets it work: the next one is not to wait for seconds
    assert ask(client, "status")[0]["ok"]
    assert ask(client, "schema")[0]["ok"]
    assert max(rests) == module.LONGEST_REST_S
    rests.clear()
    endless = connect(zmq.DEALER)
    endless.send_multipart([b"x"] * 10 * module.PASSED_OVER)
    assert not reply(endless)[0]["ok"]
    assert rests.count(module.PAUSE_S) >= 9


def test_a_daemon_that_fails_within_is_answered_for(client, daemon):
    def broken():
        raise KeyError("bins")

    daemon.status = broken
    assert ask(client, "status", id=2)[0] == {"ok": False, "id": 2, "error": "KeyError: 'bins'"}
    daemon.status = lambda: {"rate": float("nan")}
    assert not ask(client, "status")[0]["ok"]
    assert ask(client, "schema")[0]["ok"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
REQUEST = st.dictionaries(
    st.sampled_from(["request", "id", "from", "to", "last", "bundle", "session"]),
    st.sampled_from(["status", "schema", "history", "anchor", "swap", "stop", "", "bad"]) | JSON,
)
FRAME = st.binary(max_size=100) | (REQUEST | JSON).map(lambda value: json.dumps(value).encode()[:4000])


class Always(Daemon):
    """A daemon that takes whatever it is asked for, for the fuzz."""

    def anchor(self):
        pass

    def swap(self, bundle, session):
        return {"seq": 0}


@pytest.fixture(scope="module")
def fuzzed():
    endpoints = Endpoints()
    control = Control(f"ipc://@rtdsae-fuzz-{time.monotonic_ns()}", Always(), endpoints)
    context = zmq.Context()
    dealer, honest = context.socket(zmq.DEALER), context.socket(zmq.REQ)
    dealer.connect(control.endpoint)
    honest.connect(control.endpoint)
    yield dealer, honest
    context.destroy(linger=0)
    control.close()
    endpoints.close()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(FRAME, min_size=1, max_size=6))
def test_whatever_is_sent_is_answered_in_json_and_the_next_request_too(fuzzed, frames):
    dealer, honest = fuzzed
    dealer.send_multipart(frames)
    assert dealer.poll(SOON_MS), "no reply"
    received = dealer.recv_multipart()
    n_envelope = 1 if len(frames) > 1 and not frames[0] else 0
    assert received[:n_envelope] == frames[:n_envelope]
    found = json.loads(received[n_envelope])
    assert type(found["ok"]) is bool
    assert found["ok"] or found["error"].isprintable()
    assert ask(honest, "status")[0]["ok"]

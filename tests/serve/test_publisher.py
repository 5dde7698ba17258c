"""The publishing socket, with real subscribers."""

import pytest
import zmq

from rtdsae import wire
from rtdsae.serve import publisher as module
from rtdsae.serve.endpoint import Endpoints
from rtdsae.serve.publisher import MAX_GREETED, Publisher

SCHEMA = wire.Schema("toy", "00", 0.02, (wire.Array("z", (2,)),))


OTHER = wire.Schema("other", "11", 0.02, (wire.Array("z", (5,)),))


@pytest.fixture
def endpoints():
    endpoints = Endpoints()
    yield endpoints
    endpoints.close()


@pytest.fixture
def publisher(endpoints):
    publisher = Publisher("tcp://127.0.0.1:*", SCHEMA, endpoints)
    yield publisher
    publisher.close()


@pytest.fixture
def subscribe():
    context, sockets = zmq.Context(), []

    def connect(endpoint, topic=b"", kind=zmq.SUB, high_water=1000):
        socket = context.socket(kind)
        socket.setsockopt(zmq.RCVHWM, high_water)
        socket.connect(endpoint)
        if kind == zmq.SUB:
            socket.subscribe(topic)
        else:
            socket.send(b"\1" + topic)
        sockets.append(socket)
        return socket

    yield connect
    context.destroy(linger=0)


def greeted(publisher, subscriber):
    """Lets the publisher answer until the subscriber has something."""
    for _ in range(500):
        publisher.greet()
        if subscriber.poll(10):
            return wire.decode(subscriber.recv())
    raise AssertionError("no schema came")


def test_every_new_subscriber_gets_the_schema(publisher, subscribe):
    for _ in range(3):  # the same topic each time: ZeroMQ alone would tell of the first only
        assert greeted(publisher, subscribe(publisher.endpoint, wire.SCHEMA)) == SCHEMA


def test_who_unsubscribes_is_not_greeted(publisher, subscribe):
    subscriber = subscribe(publisher.endpoint, wire.SCHEMA)
    assert greeted(publisher, subscriber) == SCHEMA
    subscriber.subscribe(b"anything")
    assert greeted(publisher, subscriber) == SCHEMA
    subscriber.unsubscribe(b"anything")
    assert publisher._socket.poll(5000)
    publisher.greet()
    publisher.send(wire.SCHEMA + b"the next")
    assert subscriber.poll(5000)
    assert subscriber.recv() == wire.SCHEMA + b"the next"


def test_frames_arrive_as_one_message_each(publisher, subscribe):
    subscriber = subscribe(publisher.endpoint)
    greeted(publisher, subscriber)
    frame = bytearray(b"latents\0 one")
    publisher.send(frame)
    frame[:] = b"latents\0 two"
    publisher.send(frame)
    received = [subscriber.recv() for _ in range(2) if subscriber.poll(5000)]
    assert received == [b"latents\0 one", b"latents\0 two"]
    assert not subscriber.getsockopt(zmq.RCVMORE)


def test_a_rehearsal_goes_the_way_of_a_frame_and_to_nobody(publisher, subscribe):
    class Heard(list):
        def recv(self, flags):
            self.append(sockets.recv(flags))

    subscriber = subscribe(publisher.endpoint)
    assert greeted(publisher, subscriber) == SCHEMA
    sockets = publisher._from_itself
    publisher._from_itself = heard = Heard()
    for _ in range(3000):  # more than wait on a socket
        publisher.rehearse(b"rehearsal")
    publisher.send(b"latents\0 one")
    assert subscriber.poll(5000)
    assert subscriber.recv() == b"latents\0 one"
    publisher._from_itself = sockets
    assert set(heard) == {b"rehearsal"}
    assert len(heard) > 2900


def test_a_new_schema_is_told_at_once_and_to_whoever_comes_later(publisher, subscribe):
    early = subscribe(publisher.endpoint, wire.SCHEMA)
    assert greeted(publisher, early) == SCHEMA
    publisher.announce(OTHER)
    assert early.poll(5000)
    assert wire.decode(early.recv()) == OTHER
    assert greeted(publisher, subscribe(publisher.endpoint, wire.SCHEMA)) == OTHER


def test_who_does_not_read_misses_bins_and_takes_no_memory(endpoints, subscribe, monkeypatch):
    monkeypatch.setattr(module, "HIGH_WATER", 50)
    publisher = Publisher("tcp://127.0.0.1:*", SCHEMA, endpoints)
    slow, received = subscribe(publisher.endpoint, high_water=1), [b""]
    greeted(publisher, slow)
    frames = [i.to_bytes(2) + bytes(100_000) for i in range(1000)]
    for frame in frames:
        publisher.send(frame)
    while received[-1] != b"last":
        publisher.send(b"last")  # the first that has room
        assert slow.poll(5000)
        received.append(slow.recv())
    publisher.close()
    numbers = [int.from_bytes(frame[:2]) for frame in received[1:-1]]
    assert len(numbers) < len(frames) / 2
    assert numbers == sorted(set(numbers))
    assert numbers[:20] == list(range(20))


def test_what_is_queued_at_the_end_is_still_sent_and_nothing_is_left_behind(
    endpoints, subscribe, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "DRAIN_MS", 20_000)
    publisher = Publisher(f"ipc://{tmp_path}/pub", SCHEMA, endpoints)
    slow = subscribe(publisher.endpoint, high_water=1)
    greeted(publisher, slow)
    for i in range(100):
        publisher.send(i.to_bytes(1) + bytes(100_000))
    publisher.close()
    received = []
    while len(received) < 100 and slow.poll(5000):
        received.append(slow.recv()[0])
    assert received == list(range(100))
    assert not list(tmp_path.iterdir())


def test_messages_without_end_do_not_keep_the_next_bin_waiting(publisher, subscribe):
    flood = subscribe(publisher.endpoint, wire.SCHEMA, zmq.XSUB)
    assert greeted(publisher, flood) == SCHEMA
    for _ in range(4 * MAX_GREETED):
        flood.send(b"\2 anything")
    n_calls = 0
    while publisher._socket.poll(1000 if n_calls < 4 else 0):  # all that was sent comes
        publisher.greet()
        n_calls += 1
    assert n_calls >= 4  # each takes a part


def test_what_a_subscriber_may_send_is_bounded(publisher, subscribe):
    flood = subscribe(publisher.endpoint, wire.SCHEMA)
    assert greeted(publisher, flood) == SCHEMA
    flood.subscribe(b"x" * 2000)  # it is disconnected for it, connects again, and is again
    assert greeted(publisher, subscribe(publisher.endpoint, wire.SCHEMA)) == SCHEMA

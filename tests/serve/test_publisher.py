"""The publishing socket, with real subscribers."""

import pytest
import zmq

from rtdsae import wire
from rtdsae.errors import EndpointError
from rtdsae.serve.publisher import Publisher

SCHEMA = wire.Schema("toy", "00", 0.02, (wire.Array("z", (2,)),))


@pytest.fixture
def publisher():
    publisher = Publisher("tcp://127.0.0.1:*", SCHEMA)
    yield publisher
    publisher.close()


@pytest.fixture
def subscribe():
    context, sockets = zmq.Context(), []

    def connect(endpoint, topic=b""):
        socket = context.socket(zmq.SUB)
        socket.subscribe(topic)
        socket.connect(endpoint)
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


def test_a_port_in_use(publisher):
    with pytest.raises(EndpointError, match=rf"cannot publish on {publisher.endpoint}: Address already in use"):
        Publisher(publisher.endpoint, SCHEMA)


def test_an_ipc_path_in_use_and_a_stale_one(tmp_path):
    endpoint = f"ipc://{tmp_path}/pub"
    first = Publisher(endpoint, SCHEMA)
    with pytest.raises(EndpointError, match="another program listens there"):
        Publisher(endpoint, SCHEMA)
    first.close()
    (tmp_path / "pub").touch()  # what a killed daemon leaves
    Publisher(endpoint, SCHEMA).close()


@pytest.mark.parametrize(
    "endpoint", ["tcp://*:5556", "tcp://0.0.0.0:5556", "tcp://192.168.1.7:5556", "tcp://[::]:5556"]
)
def test_other_machines_are_kept_out(endpoint):
    with pytest.raises(EndpointError, match="can be reached from other machines"):
        Publisher(endpoint, SCHEMA)


@pytest.mark.parametrize("endpoint", ["", "5556", "udp://127.0.0.1:5556", "tcp://", "ipc://", "tcp://127.0.0.1:x"])
def test_what_is_not_an_endpoint(endpoint):
    with pytest.raises(EndpointError, match=r"endpoint|cannot publish"):
        Publisher(endpoint, SCHEMA)

"""From real sockets into the ring: every bin, its marks, and what is known when none comes."""

import time

import numpy as np
import pytest
from broadcast import ARRAYS, Broadcast
from station import until

from rtdsae.client import Subscriber
from rtdsae.monitor.feed import Arrivals, Feed
from rtdsae.monitor.health import health, verdict
from rtdsae.monitor.ring import HOLE, RESTART, Ring
from rtdsae.wire import Array, Flags, Schema


@pytest.fixture
def feed_of():
    """A feed from an endpoint, which runs until the test ends."""
    feeds = []

    def start(endpoint):
        feeds.append(Feed(Subscriber(endpoint)))
        feeds[-1].start()
        return feeds[-1]

    yield start
    for feed in feeds:
        feed.close()


def greeted(station, feed):
    """Waits until the feed hears the station."""
    until(lambda: station.publisher.greet() or (feed.schema is not None and feed.schema.id == station.schema.id))


def came(feed, n):
    until(lambda: feed.received >= n, f"bin {n}")


def rows(feed):
    return feed.ring.at(0, feed.ring.end)


def test_every_bin_with_its_flags_and_holes(feed_of):
    with Broadcast() as station:
        feed = feed_of(station.endpoint)
        greeted(station, feed)
        station.publish(3)
        station.publish(1, flags=Flags.GAP | Flags.LATE | 1 << 14)
        station.publish(2, lost=True)
        station.publish(2)
        came(feed, 6)
        slots = rows(feed)
        assert feed.ring.seq[slots].tolist() == [0, 1, 2, 3, 6, 7]
        assert feed.ring.flags[slots].tolist() == [0, 0, 0, Flags.GAP | Flags.LATE, HOLE, 0]
        np.testing.assert_array_equal(feed.ring.values[slots[4], feed.ring.columns("z")], [6, 6.125])
        np.testing.assert_allclose(feed.ring.daemon_s[slots], 2e-4, atol=1e-9)
        assert (np.diff(feed.ring.received[slots]) >= 0).all()
        found = health(feed, feed.ring.received[slots[-1]] + 0.1, 10.0)
        assert found["monitor"]["holes"] == 2
        assert found["bins_per_s"] == 6
        assert sum(found["latency"]["daemon"]["counts"]) == 6
        assert found["latency"]["daemon"]["p50"] == 200.0


def test_arrivals_are_counted_by_second_for_a_minute():
    arrivals = Arrivals()
    assert arrivals.per_second(5.0) == [0] * 60
    for i in range(7000):
        arrivals.add(0.01 * i + 1e-4)  # 100 a second, 70 s long
    assert arrivals.per_second(70.0) == [100] * 60
    assert arrivals.per_second(72.0) == [100] * 58 + [0, 0]
    arrivals.add(72.05)
    assert arrivals.per_second(72.2)[-3:] == [80, 0, 1]
    assert arrivals.per_second(1000.0) == [0] * 60


def test_another_run_goes_on_in_the_same_ring_and_is_marked(feed_of):
    with Broadcast(run=1) as station:
        feed = feed_of(station.endpoint)
        greeted(station, feed)
        station.publish(2)
        came(feed, 2)
        endpoint = station.endpoint
    with Broadcast(run=2, endpoint=endpoint) as station:
        station.seq = 0
        until(lambda: station.publisher.greet() or station.publish() or feed.received > 2, "the other run")
        flags = feed.ring.flags[rows(feed)]
        assert feed.ring.number == 1
        assert feed.subscriber.restarts == 1
        assert flags[2] & RESTART


def test_a_swap_keeps_the_ring_where_the_arrays_are_the_same(feed_of):
    with Broadcast() as station:
        feed = feed_of(station.endpoint)
        greeted(station, feed)
        station.publish(2)
        came(feed, 2)
        station.use(ARRAYS, "tuesday")
        station.publish(1, flags=Flags.SWAPPED)
        came(feed, 3)
        assert (feed.ring.number, feed.ring.end) == (1, 3)
        assert feed.schema.bundle == "tuesday"
        station.use((Array("factors", (9,)),), "wednesday")
        station.publish(1, flags=Flags.SWAPPED)
        came(feed, 4)
        assert (feed.ring.number, feed.ring.end) == (2, 1)
        assert feed.ring.values.shape[1] == 9
        assert sum(health(feed, time.monotonic() + 0.1, 10.0)["per_second"]) == 4


def test_a_clock_that_went_back_begins_another_ring(feed_of):
    with Broadcast() as station:
        feed = feed_of(station.endpoint)
        greeted(station, feed)
        station.publish(2)
        station.t_bin -= 100
        station.publish(1)
        came(feed, 3)
        assert (feed.ring.number, feed.ring.end) == (2, 1)


def test_silence_is_told_plainly(feed_of):
    with Broadcast() as station:
        feed = feed_of(station.endpoint)
        state, say = verdict(feed, 0.0)
        assert state == "gone"
        assert f"No daemon publishes on {station.endpoint}" in say
        assert "rtdsae serve" in say
        greeted(station, feed)
        station.say_status()
        until(lambda: feed.status is not None, "a status")
        state, say = verdict(feed, feed.status[1])
        assert (state, "rig1 is there" in say) == ("silent", True)
        station.publish(2)
        station.connected = False
        station.say_status()
        came(feed, 2)
        until(lambda: feed.status[0]["stream"]["connected"] is False, "the other status")
        now = float(feed.ring.received[1])
        assert verdict(feed, now + 0.5) == ("live", "")
        status, _ = feed.status
        feed.status = status, now + 3.0
        assert verdict(feed, now + 3.2) == ("silent", "The daemon runs, its stream rig1 is silent; no bin for 3.2 s.")
        state, say = verdict(feed, now + 20.0)
        assert state == "gone"
        assert "for 17.0 s" in say
        assert "goes on by itself" in say


def test_the_ring_keeps_the_newest_and_never_gives_what_may_be_written_over():
    schema = Schema("toy", "00", 0.001, (Array("factors", (1 << 18,)),))  # 1 MB a bin: memory is the limit
    ring = Ring(schema, 1)
    assert 200 < ring.slots <= 256
    assert ring.values.nbytes <= 256 << 20
    ring.end = 10_000
    assert ring.end - ring.first < ring.slots
    assert ring.since(60.0) == ring.first
    assert ring.since(0.05) == 9_950
    assert ring.at(9_999, 10_000).tolist() == [9_999 % ring.slots]

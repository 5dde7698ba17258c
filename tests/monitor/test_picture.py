"""The frames of a page: what is new, once, and the same points however often one looks."""

import numpy as np
import pytest
from page_frame import read_frame

from rtdsae.client import Subscriber
from rtdsae.monitor.axes import Axes
from rtdsae.monitor.feed import Feed
from rtdsae.monitor.picture import Picture
from rtdsae.monitor.view import View
from rtdsae.wire import Array, Encoder, Flags, Schema, decode

WIDTH_S = 0.001


class Source:
    """Bins that reach a feed without a socket."""

    def __init__(self, feed, arrays, width_s=WIDTH_S, run=7):
        self.feed, self.width_s, self.n = feed, width_s, 0
        self.schema = Schema("toy", "00", width_s, arrays)
        self.encoder = Encoder(self.schema, run)

    def give(self, n, fill=None, flags=0):
        for _ in range(n):
            self.n += 1
            self.encoder.values[:] = self.n if fill is None else fill(self.n)
            t = self.n * self.width_s
            frame = self.encoder.encode(self.n, self.n, t, t + 1e-4, t + 3e-4, flags)
            self.feed.take(decode(bytes(frame)).bind(self.schema), t + 5e-4)


@pytest.fixture
def feed(tmp_path):
    with Subscriber(f"ipc://{tmp_path}/nobody") as subscriber:
        yield Feed(subscriber)


def picture_of(feed, **view):
    picture = Picture(feed, Axes())
    picture.look(View(**view))
    return picture


def frame(picture, now=1e6):
    found = picture.frame(now)
    return (None, None) if found is None else read_frame(found)


FACTORS = (Array("factors", (4,)),)


def test_before_the_first_bin_there_is_the_daemons_health_alone(feed):
    head, blocks = frame(picture_of(feed))
    assert head["health"]["state"] == "gone"
    assert "layout" not in head
    assert not blocks


def test_every_bin_once_and_exactly_where_there_are_few(feed):
    source = Source(feed, FACTORS, width_s=0.02)
    picture = picture_of(feed)
    source.give(5)
    head, blocks = frame(picture)
    assert head["layout"]["traces"] == {"factors": [0, 1, 2, 3]}
    assert (head["layout"]["bins_a_point"], head["layout"]["points_a_group"]) == (1, 1)
    np.testing.assert_array_equal(blocks["traces.factors"][:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_allclose(blocks["t"], np.arange(1, 6) * 0.02)
    np.testing.assert_array_equal(blocks["now.factors"], [5, 5, 5, 5])
    assert head["newest"]["seq"] == 5
    source.give(2, flags=Flags.GAP)
    head, blocks = frame(picture)
    assert "layout" not in head
    np.testing.assert_array_equal(blocks["traces.factors"][:, 0], [6, 7])
    np.testing.assert_array_equal(blocks["flags"], [1, 1])


def test_looks_in_between_change_no_point(feed):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((30_000, 4)).astype(np.float32)
    source = Source(feed, FACTORS)
    often, parts = picture_of(feed), []
    for n in rng.integers(1, 400, 80):
        source.give(n, lambda i: noise[i])
        parts.append(frame(often)[1])
    _, once = frame(picture_of(feed))
    for name in ("t", "traces.factors", "flags", "heat"):
        pieces = np.concatenate([part[name] for part in parts if name in part])
        np.testing.assert_array_equal(pieces[-len(once[name]) :], once[name])
    assert 900 <= len(once["t"]) <= 1000


def test_an_extreme_of_one_bin_in_a_minute_is_seen(feed):
    source = Source(feed, FACTORS)
    source.give(60_000, lambda i: 1000.0 if i == 31_234 else np.sin(i / 50))
    _, blocks = frame(picture_of(feed, window_s=60.0))
    assert blocks["traces.factors"].max() == 1000.0
    assert len(blocks["t"]) <= 1000


def test_a_page_that_slept_gets_what_is_kept(feed, monkeypatch):
    monkeypatch.setattr("rtdsae.monitor.ring.MAX_BYTES", 1 << 16)
    source = Source(feed, FACTORS, width_s=0.02)
    picture = picture_of(feed)
    source.give(1)
    frame(picture)
    source.give(2000)
    _, blocks = frame(picture)
    assert 500 < len(blocks["t"]) <= feed.ring.slots < 1000
    assert blocks["t"][-1] == pytest.approx(2001 * 0.02)


def test_nothing_new_is_no_frame(feed):
    source = Source(feed, FACTORS)
    source.give(1)
    picture = picture_of(feed)
    assert "health" in frame(picture, 10.0)[0]
    assert frame(picture, 10.01) == (None, None)
    assert frame(picture, 10.3)[0].keys() == {"health", "blocks"}


def test_paused_the_page_gets_health_alone_and_the_window_afterwards(feed):
    source = Source(feed, FACTORS)
    picture = picture_of(feed, paused=True)
    source.give(5)
    assert frame(picture)[0].keys() == {"health", "blocks"}
    picture.look(View(window_s=2.0))
    head, blocks = frame(picture)
    assert head["layout"]["window_s"] == 2.0
    assert "t" in blocks or head["layout"]["bins_a_point"] > 1


def test_other_arrays_begin_another_layout(feed):
    picture = picture_of(feed, traces={"factors": [3], "z": [0]}, heat="z")
    Source(feed, FACTORS, width_s=0.02).give(3)
    assert frame(picture)[0]["layout"]["traces"] == {"factors": [3]}
    Source(feed, (Array("factors", (2,)), Array("z", (2,))), width_s=0.02).give(2)
    head, blocks = frame(picture)
    assert head["layout"]["traces"] == {"factors": [0, 1], "z": [0]}
    assert head["layout"]["heat"] == "z"
    assert blocks["t"].shape == (2,)


def test_the_trajectory_has_the_shape_of_the_state(feed):
    source = Source(feed, (Array("factors", (20,)),), width_s=0.02)
    plane = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 2)))[0]
    source.give(400, lambda i: plane @ [5 * np.cos(i / 20), 3 * np.sin(i / 20)])
    head, blocks = frame(picture_of(feed))
    assert head["layout"]["trajectory"] == "factors"
    x, y, depth = blocks["trajectory"].T
    np.testing.assert_allclose((x / 5) ** 2 + (y / 3) ** 2, 1, atol=0.15)
    assert np.abs(depth).max() < 0.05


def test_a_swap_begins_the_trajectory_anew(feed):
    source = Source(feed, FACTORS, width_s=0.02)
    rng = np.random.default_rng(0)
    picture = picture_of(feed)
    source.give(100, lambda _: rng.standard_normal(4))
    frame(picture)
    source.give(1, lambda _: rng.standard_normal(4), flags=Flags.SWAPPED)
    source.give(11, lambda _: rng.standard_normal(4))
    _, blocks = frame(picture)
    assert blocks["trajectory"].shape == (12, 3)


def test_a_cursor_and_its_target(feed):
    source = Source(feed, (Array("behaviour", (2,), "mm", ("x", "y")), Array("target", (2,), "mm")), width_s=0.02)
    source.give(300, lambda i: [i, -i, 7, 8])
    head, blocks = frame(picture_of(feed))
    assert head["layout"]["trajectory"] is None
    np.testing.assert_array_equal(blocks["cursor"][-1], [300, -300])
    assert 50 <= len(blocks["cursor"]) <= 90
    assert (np.diff(blocks["cursor"][:, 0]) > 0).all()
    np.testing.assert_array_equal(blocks["target"], [7, 8])


def test_values_that_are_no_numbers_reach_the_page_as_such(feed):
    source = Source(feed, FACTORS, width_s=0.02)
    source.give(20)
    source.give(1, lambda _: [np.nan, np.inf, 1, 2])
    head, blocks = frame(picture_of(feed))
    assert head["newest"]["not_finite"] == 2
    assert np.isnan(blocks["traces.factors"][-1, :2]).all()
    np.testing.assert_array_equal(blocks["traces.factors"][-1, 2:], [1, 2])


@pytest.mark.parametrize("width_s", [5e-324, 1e-9, 20.0, 1e300])
def test_any_bin_width_can_be_shown(feed, width_s):
    schema = Schema("toy", "00", width_s, FACTORS)
    encoder = Encoder(schema, 1)
    picture = picture_of(feed)
    for seq in range(100):
        frame_ = encoder.encode(seq, seq, 1.0 + seq, 1.0 + seq, 1.0 + seq)
        feed.take(decode(bytes(frame_)).bind(schema), 1.0 + seq)
    head, _ = frame(picture)
    assert head["layout"]["bin_width_s"] == width_s
    assert feed.ring.values.nbytes + 50 * feed.ring.slots <= 256 << 20


@pytest.mark.parametrize("times", [(np.nan, 0, 0), (0, np.inf, 0), (0, 0, -np.inf), (1e308, 1e308, 1e308)])
def test_bins_with_impossible_times_break_nothing(feed, times):
    source = Source(feed, FACTORS, width_s=0.02)
    source.give(3)
    frame_ = source.encoder.encode(4, 4, *times)
    feed.take(decode(bytes(frame_)).bind(source.schema), 0.1)
    head, _ = frame(picture_of(feed))
    assert feed.refused + feed.ring.end == 4
    assert head["health"]["monitor"]["refused"] == feed.refused


def test_another_computers_clock_gives_no_time_of_arrival(feed):
    source = Source(feed, FACTORS)
    source.give(10)
    arrival = frame(picture_of(feed))[0]["health"]["latency"]["arrival"]
    assert arrival["p50"] == pytest.approx(500, abs=1)
    feed.ring.received[: feed.ring.end] += 1e5
    assert frame(picture_of(feed))[0]["health"]["latency"]["arrival"] is None

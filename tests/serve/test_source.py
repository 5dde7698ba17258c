"""A stream's checks, and pulling from a real one of another process."""

import logging
import signal
import threading
import time

import numpy as np
import pylsl
import pytest
from lsl_source import LslSource
from station import until

from rtdsae.errors import StreamError
from rtdsae.serve.search import find
from rtdsae.serve.source import NO_SAMPLE, Lost, Source, Wanted, within

SAMPLES = np.arange(40, dtype=np.float32).reshape(10, 4)
CHANNELS = ("ch0", "ch1", "ch2", "ch3")
WANTED = Wanted(CHANNELS, 0.02)


def pulled(source, n):
    """So many samples and their stamps."""
    rows, stamps = [], []
    while len(rows) < n:
        source.pull(1, 0.1)
        values, times = source.taken()
        rows += values.tolist()
        stamps += times.tolist()
    return rows, stamps


def test_pulls_every_sample_in_order_on_this_clock():
    with LslSource(SAMPLES, 50.0, pace=500, labels=CHANNELS) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        assert (source.kind, source.samples_per_bin) == ("counts", 1)
        np.testing.assert_array_equal(pulled(source, 10)[0], SAMPLES)
        assert abs(source.clock_offset_s) < 0.01  # the same machine
        assert not source.available()
        assert source.pull(1, 0.01) == 0
        assert len(source.taken()[0]) == 0
        source.close()


def test_stamps_are_the_sources_own_neither_smoothed_nor_re_made():
    offsets = np.arange(1, 41) * 0.02 + np.random.default_rng(0).uniform(-0.008, 0.008, 40)
    offsets[20:] -= 5.0  # a clock that is set back
    with LslSource(np.zeros((40, 4), np.float32), 50.0, pace=500, offsets=offsets) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        np.testing.assert_allclose(np.diff(pulled(source, 40)[1]), np.diff(offsets), atol=1e-4)
        source.close()


@pytest.mark.parametrize("taken", [0, 3, 10])
def test_what_was_not_pulled_before_a_loss_is_counted(taken):
    with LslSource(SAMPLES, 50.0, pace=500) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        stream.wait_pushed()
        until(lambda: source.available() == 10, "all samples")
        for _ in range(taken):
            assert source.pull(1, 1.0) == 1
    until(lambda: source.available() > 10 - taken, "the loss")  # with the entry that ends the queue
    with pytest.raises(Lost):
        source.pull(1, 1.0)
    assert source.unread() == 10 - taken
    source.close()


def test_what_came_while_a_pull_waited_for_more_is_taken_before_the_loss_is_told():
    with LslSource(SAMPLES, 1000.0, pace=1000) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)  # 20 samples a bin
        taken = []
        thread = threading.Thread(target=lambda: taken.append(source.pull(20, 10.0)))
        thread.start()
        stream.wait_pushed()
        until(lambda: np.count_nonzero(source._stamps != NO_SAMPLE) == 10, "all samples")  # else killed with the source
    thread.join(20)
    assert taken == [10]
    np.testing.assert_array_equal(source.taken()[0], SAMPLES)
    with pytest.raises(Lost):
        source.pull(20, 1.0)
    assert source.unread() == 0
    source.close()


@pytest.mark.parametrize("sample_format", ["int16", "double64"])
def test_any_number_format_arrives_as_float32(sample_format):
    with LslSource(SAMPLES.astype(int), 50.0, sample_format=sample_format, pace=500) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        np.testing.assert_array_equal(pulled(source, 1)[0], SAMPLES[:1])
        source.close()


def test_takes_the_samples_of_a_bin_at_once():
    samples = np.arange(400, dtype=np.float32).reshape(100, 4)
    with LslSource(samples, 500.0, labels=CHANNELS) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        assert (source.kind, source.samples_per_bin) == ("samples", 10)
        taken = []
        while len(taken) < 100:
            n = source.pull(10, 5.0)
            assert n == 10
            taken += source.taken()[0].tolist()
        np.testing.assert_array_equal(taken, samples)
        source.close()


def test_channels_in_another_order_are_put_in_the_models(caplog):
    caplog.set_level(logging.INFO)
    with LslSource(SAMPLES, 50.0, pace=500, labels=["ch2", "ch0", "ch3", "ch1"]) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        np.testing.assert_array_equal(pulled(source, 10)[0], SAMPLES[:, [1, 3, 0, 2]])
        source.close()
    assert caplog.text.count("in another order: put in order here") == 1


def test_the_models_channels_are_taken_by_name_out_of_more(caplog):
    caplog.set_level(logging.INFO)
    wanted = Wanted(("ch3", "ch0"), 0.02, match="subset")
    with LslSource(SAMPLES, 50.0, pace=500, labels=CHANNELS) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), wanted)
        np.testing.assert_array_equal(pulled(source, 10)[0], SAMPLES[:, [3, 0]])
        source.close()
    assert "has 4 channels: the model's 2 are taken by name" in caplog.text


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["sync", "a", "b", "c", "d"]])
@pytest.mark.parametrize("match", ["name", "subset"])
def test_names_for_fewer_or_more_channels_than_there_are_name_nothing(labels, match):
    wanted = Wanted(("a", "b", "c", "d"), 0.02, match=match)
    with LslSource(SAMPLES, 50.0, pace=500, labels=labels) as stream:
        found = find(f"source_id={stream.source_id}", 20)
        with pytest.raises(StreamError, match=f"has 4 channels and names {len(labels)}: mend .* say match=count"):
            Source(found, wanted)
        Source(found, Wanted(wanted.channels, 0.02, match="count")).close()


def test_a_subset_needs_each_of_its_channels_once():
    wanted = Wanted(("a", "b"), 0.02, match="subset")
    np.testing.assert_array_equal(wanted.order(["x", "b", "x", "a"], "rig1"), [3, 1])
    np.testing.assert_array_equal(wanted.order(["a", "b"], "rig1"), [0, 1])
    with pytest.raises(StreamError, match="rig1 has no channel b: match=subset needs each of the model's once"):
        wanted.order(["a", "x", "y"], "rig1")
    with pytest.raises(StreamError, match="rig1 has 2 channels of the name a"):
        wanted.order(["a", "a", "b"], "rig1")
    with pytest.raises(StreamError, match="rig1 has no channel a"):
        wanted.order(None, "rig1")


SPIKES = np.array([[0, 3, 1, 2, 1, -1, 0.5, 4, 5, np.nan, 1e9]], np.float32).T  # the last ones are no channel's numbers


@pytest.mark.parametrize(
    ("channels", "match", "expected", "said"),
    [
        (("b", "d", "a", "c"), "name", [2, 1, 0, 3, 0, -1, 0.5, 4, 5, np.nan, 1e9], "in another order: put in order"),
        (("d", "b"), "subset", [2, 0, 1, 2, 1, -1, 0.5, 4, 5, np.nan, 1e9], "the model's 2 are taken by name"),
        (("a", "b", "c", "d"), "name", SPIKES[:, 0], ""),
        (("x", "y", "z", "w"), "count", SPIKES[:, 0], ""),
    ],
)
def test_spikes_have_the_number_that_their_channels_name_has_in_the_model(channels, match, expected, said, caplog):
    """A subset's others have one that is beyond the model's, so that they are counted."""
    caplog.set_level(logging.INFO)
    with LslSource(SPIKES, 0.0, pace=500, labels=["a", "b", "c", "d"]) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), Wanted(channels, 0.02, match=match))
        np.testing.assert_array_equal(np.ravel(pulled(source, len(SPIKES))[0]), np.float32(expected))
        source.close()
    assert said in caplog.text


@pytest.mark.parametrize(
    ("labels", "match", "message"),
    [
        (["a", "b", "c", "d"], "name", "has 4 channels, the model was trained on 2; .* say match=subset"),
        (["a", "b", "c", "d"], "count", "has 4 channels, the model was trained on 2"),
        (["a", "c"], "name", "channel 1 of .* is c, the model's is b"),
        (["a", "c"], "subset", "has no channel b"),
        (None, "subset", "has no channel a"),
    ],
)
def test_spikes_of_other_channels_are_refused(labels, match, message):
    with LslSource(SPIKES, 0.0, labels=labels) as stream:
        found = find(f"source_id={stream.source_id}", 20)
        with pytest.raises(StreamError, match=message):
            Source(found, Wanted(("a", "b"), 0.02, match=match))


@pytest.mark.parametrize("labels", [None, ["a", ""]])
def test_spikes_of_channels_without_names_are_taken_by_number(labels):
    with LslSource(SPIKES, 0.0, pace=500, labels=labels) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), Wanted(("b", "a"), 0.02))
        np.testing.assert_array_equal(pulled(source, len(SPIKES))[0], SPIKES)
        source.close()


def test_a_source_that_dies_is_lost_at_once():
    with LslSource(SAMPLES, 50.0, pace=500) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), WANTED)
        pulled(source, 10)
    with pytest.raises(Lost, match=f"stream {source.source_id} is lost"):
        source.pull(1, 10.0)
    source.close()


def info(n_channels=4, rate=50.0, sample_format="float32"):
    return pylsl.StreamInfo("n", "Spikes", n_channels, rate, sample_format, "rig1")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (info(n_channels=3), "stream rig1 has 3 channels, the model was trained on 4$"),
        (info(n_channels=5), "stream rig1 has 5 channels, the model was trained on 4; .* say match=subset"),
        (info(n_channels=3, rate=1000.0), "stream rig1 has 3 channels, the model was trained on 4"),
        (info(sample_format="string"), "stream rig1 has string samples"),
        (info(rate=60.0), r"stream rig1: .*60.*50"),
        (info(rate=1e6), "stream rig1 makes a bin of 20000 samples, more than 4096"),
        (info(rate=4097 / 0.02), "stream rig1 makes a bin of 4097 samples, more than 4096"),
    ],
)
def test_refuses_what_the_model_cannot_take(stream, message):
    with pytest.raises(StreamError, match=message):
        WANTED.check(stream)


@pytest.mark.parametrize(
    ("rate", "n_channels", "kind"),
    [
        (50.0, 4, ("counts", 1)),
        (1000.0, 4, ("samples", 20)),
        (30000.0, 4, ("samples", 600)),
        (4096 / 0.02, 4, ("samples", 4096)),
        (0.0, 2, ("events", 0)),
    ],
)
def test_tells_the_kind_by_the_rate(rate, n_channels, kind):
    assert WANTED.check(info(n_channels, rate)) == kind


def test_what_is_declared_overrides_the_rate_where_it_can():
    assert Wanted(CHANNELS, 0.02, "counts").check(info(rate=0.0)) == ("counts", 1)
    with pytest.raises(StreamError, match="do not make counts bins"):
        Wanted(CHANNELS, 0.02, "counts").check(info(rate=1000.0))


def test_other_names_are_refused_unless_they_are_made_up(caplog):
    wanted = Wanted(("a", "b"), 0.02)
    with pytest.raises(StreamError, match=r"channel 1 of rig1 is x, the model's is b: 1 of the model's 2 channels are"):
        wanted.order(["a", "x"], "rig1")
    with pytest.raises(StreamError, match=r"1 of the model's 2 channels are there by name; .* say match=count"):
        wanted.order(["a", "a"], "rig1")
    assert Wanted(("a", "b"), 0.02, match="count").order(["x", "y"], "rig1") is None
    assert wanted.order(["a", "b"], "rig1") is None
    assert wanted.order(None, "rig1") is None
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        assert wanted.order(["ch0", "ch1"], "rig1") is None
        assert Wanted(("ch0", "ch1"), 0.02).order(["a", "b"], "rig1") is None
        assert Wanted(("ch0", "ch1"), 0.02).order(["ch1", "ch2"], "rig1") is None
    assert "channel 0 of rig1 is ch0, the model's is a: not names, so taken in the stream's order" in caplog.text
    assert len(caplog.records) == 3
    with pytest.raises(StreamError, match="channel 0 of rig1 is ch0, the model's is ch3: 0 of"):  # some of more
        Wanted(("ch3", "ch7"), 0.02).order(["ch0", "ch1"], "rig1")
    with pytest.raises(StreamError, match="channel 1 of rig1 is ch2"):
        Wanted(("ch0", "ch1"), 0.02).order(["ch0", "ch2"], "rig1")
    with pytest.raises(StreamError, match="channel 0 of rig1 is a"):
        Wanted(("ch3", "ch7"), 0.02).order(["a", "b"], "rig1")


@pytest.mark.parametrize(
    ("before", "offset", "uncertainty", "after"),
    [
        (1e-5, 2e-5, 5e-5, 1e-5),  # nothing new
        (1e-5, -0.0766, 0.1532, 1e-5),  # a probe that was held up for 0.15 s
        (0.0, 0.01, 0.001, 0.009),  # the clocks drift apart
        (-0.08, -2e-5, 6e-5, -8e-5),  # the first was measured wrong
        (0.0, -5.0, 0.001, -4.999),
    ],
)
def test_the_clock_moves_no_further_than_a_measurement_proves(before, offset, uncertainty, after):
    assert within(before, offset, uncertainty) == pytest.approx(after, abs=1e-12)


@pytest.mark.slow
def test_the_offset_stays_while_the_source_is_held_up():
    """Probes that a stopped source answers late are off by up to 80 ms; here every probe of some rounds is one."""
    with LslSource(SAMPLES, 50.0) as stream:
        source = Source(find(f"source_id={stream.source_id}", 10), WANTED)
        try:
            seen = set()
            for _ in range(12):
                stream.process.send_signal(signal.SIGSTOP)
                time.sleep(0.9)
                stream.process.send_signal(signal.SIGCONT)
                seen.add(source.clock_offset_s)
                time.sleep(0.3)
            assert max(map(abs, seen)) < 0.002
        finally:
            source.close()

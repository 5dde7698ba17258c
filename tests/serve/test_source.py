"""The stream's query, its checks, and pulling from a real stream of another process."""

import contextlib
import logging
import socket
import subprocess
import sys

import numpy as np
import pylsl
import pytest
from lsl_source import LslSource

from rtdsae.errors import StreamError
from rtdsae.serve.source import Source, check, check_labels, find, predicate

SAMPLES = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.mark.parametrize(
    ("query", "xpath"),
    [
        ("source_id=rig1", "source_id='rig1'"),
        ("name=Utah array, type=Spikes", "name='Utah array' and type='Spikes'"),
        ("name=Bob's rig", 'name="Bob\'s rig"'),
        ("name='rig'", "name='rig'"),
        ("starts-with(name,'rig') and channel_count=96", "starts-with(name,'rig') and channel_count=96"),
    ],
)
def test_query_becomes_xpath(query, xpath):
    assert predicate(query) == xpath


@pytest.mark.parametrize("query", ["", "  ", "name=both'and\""])
def test_impossible_query(query):
    with pytest.raises(StreamError, match="stream query"):
        predicate(query)


def test_invalid_xpath_is_told_at_once():
    with pytest.raises(StreamError, match=r"neither key=value on name, type.* nor XPath: rig 1"):
        find("rig 1", timeout_s=30, tick=lambda: pytest.fail("it went on searching"))


def test_pulls_every_sample_in_order_on_this_clock():
    with LslSource(SAMPLES, 50.0, pace=500) as stream:
        info = find(f"source_id={stream.source_id}", 20)
        check(info, 4, 0.02)
        source = Source(info, ["ch0", "ch1", "ch2", "ch3"])
        rows, stamps = [], []
        while len(rows) < 10:
            if source.pull():
                rows.append(source.values[0].copy())
                stamps.append(source.stamps[0])
        np.testing.assert_array_equal(rows, SAMPLES)
        np.testing.assert_allclose(np.diff(stamps), 0.02, atol=1e-3)  # raw: neither smoothed nor re-made
        assert abs(source.clock_offset_s) < 0.01  # the same machine
        assert not source.available()
        assert not source.pull()
        source.close()


@pytest.mark.parametrize("sample_format", ["int16", "double64"])
def test_any_number_format_arrives_as_float32(sample_format):
    with LslSource(SAMPLES.astype(int), 50.0, sample_format=sample_format, pace=500) as stream:
        source = Source(find(f"source_id={stream.source_id}", 20), ["a", "b", "c", "d"])
        while not source.pull():
            pass
        np.testing.assert_array_equal(source.values, SAMPLES[:1])
        source.close()


def test_no_such_stream_says_what_is_there():
    with LslSource(SAMPLES, 50.0, name="the-other") as stream:
        find(f"source_id={stream.source_id}", 20)
        with pytest.raises(
            StreamError, match=r"no LSL stream matches name=nobody after 0.2 s; visible are .*the-other.*; LSL may miss"
        ):
            find("name=nobody", timeout_s=0.2)


@contextlib.contextmanager
def lsl_ports_taken():
    """All UDP ports where LSL looks for streams of one machine, as many sources or one busy search take them."""
    with contextlib.ExitStack() as held:
        for port in range(16572, 16572 + 32):
            taken = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with contextlib.suppress(OSError):  # another program has it: as good
                taken.bind(("", port))
        yield


def test_finds_each_of_several_streams_though_lsl_ports_are_taken():
    with lsl_ports_taken(), LslSource(SAMPLES, 50.0) as older, LslSource(SAMPLES, 50.0) as newer:
        for stream in (older, newer):
            assert find(f"source_id={stream.source_id}", 20).source_id() == stream.source_id


def test_finds_a_stream_that_answers_only_a_later_round(tmp_path, monkeypatch):
    """As LSL's own configuration does where no network carries multicast, with ports and a pace of the test's own."""
    slow = "[multicast]\nResolveScope = machine\nInterfaces = {127.0.0.1}\n[tuning]\nMulticastMinRTT = 1.0\n"
    config = tmp_path / "lsl.cfg"
    config.write_text(f"{slow}[ports]\nMulticastPort = 17571\nBasePort = 17572\n[log]\nlevel = -2\n")
    monkeypatch.setenv("LSLAPICFG", str(config))  # for children: this process has read its own
    search = "import sys; from rtdsae.serve.source import find; print(find(sys.argv[1], 20).source_id())"
    with LslSource(SAMPLES, 50.0) as older, LslSource(SAMPLES, 50.0) as newer:
        for stream in (older, newer):
            command = [sys.executable, "-c", search, f"source_id={stream.source_id}"]
            said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert said.stdout == f"{stream.source_id}\n", said.stderr


def test_waits_for_a_stream_that_comes_later():
    stream, turns = LslSource(SAMPLES, 50.0), []

    def tick():
        turns.append(None)
        if len(turns) == 1:
            stream.__enter__()
        return True

    try:
        assert find(f"source_id={stream.source_id}", 20, tick).source_id() == stream.source_id
    finally:
        stream.__exit__()


def test_gives_up_when_told():
    assert find("name=nobody", 60, tick=lambda: False) is None


def test_two_matching_streams_are_listed():
    with LslSource(SAMPLES, 50.0, name="twin") as one, LslSource(SAMPLES, 50.0, name="twin") as two:
        find(f"source_id={one.source_id}", 20)
        find(f"source_id={two.source_id}", 20)
        with pytest.raises(StreamError, match=r"2 LSL streams match name=twin: .*; add source_id=") as error:
            find("name=twin", 20)
        assert one.source_id in str(error.value)
        assert two.source_id in str(error.value)


def info(n_channels=4, rate=50.0, sample_format="float32"):
    return pylsl.StreamInfo("n", "Spikes", n_channels, rate, sample_format, "rig1")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (info(n_channels=3), "stream rig1 has 3 channels, the model was trained on 4"),
        (info(sample_format="string"), "stream rig1 has string samples"),
        (info(rate=60.0), r"stream rig1: .*60.*50"),
        (info(rate=1000.0), r"stream rig1 carries samples \(1000 Hz\), .* binned counts only: .* at 50 Hz"),
        (info(rate=0.0), r"stream rig1 carries events \(0 Hz\), .* binned counts only"),
    ],
)
def test_refuses_what_the_model_cannot_take(stream, message):
    with pytest.raises(StreamError, match=message):
        check(stream, 4, 0.02)


def test_labels_in_another_order_are_refused_and_other_names_told(caplog):
    with pytest.raises(StreamError, match="channel 0 of rig1 is b, the model's is a: the same channels in another"):
        check_labels(["b", "a"], ["a", "b"], "rig1")
    with caplog.at_level(logging.WARNING):
        check_labels(["a", "x"], ["a", "b"], "rig1")
    assert "channel 1 of rig1 is x, the model's is b" in caplog.text
    caplog.clear()
    check_labels(["a", "b"], ["a", "b"], "rig1")
    check_labels(None, ["a", "b"], "rig1")
    assert not caplog.text

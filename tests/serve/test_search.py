"""The stream's query, and looking it up among real streams of other processes."""

import contextlib
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from lsl_source import LslSource
from station import until

from rtdsae.errors import StreamError
from rtdsae.serve.search import Search, find, predicate
from rtdsae.serve.source import Source, Wanted

WANTED = Wanted([f"ch{i}" for i in range(4)], 0.02)
SAMPLES = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.mark.parametrize(
    ("query", "xpath"),
    [
        ("source_id=rig1", "source_id='rig1'"),
        ("name=Utah array, type=Spikes", "name='Utah array' and type='Spikes'"),
        ("name=Bob's rig", 'name="Bob\'s rig"'),
        ("name='rig'", "name='rig'"),
        ("type=Spikes,nominal_srate=50,channel_count=4", "type='Spikes' and nominal_srate=50 and channel_count=4"),
        ("nominal_srate=30000.5", "nominal_srate=30000.5"),
        ("nominal_srate=fast", "nominal_srate='fast'"),
        ("name=50", "name='50'"),
        ("starts-with(name,'rig') and channel_count=96", "starts-with(name,'rig') and channel_count=96"),
    ],
)
def test_query_becomes_xpath(query, xpath):
    assert predicate(query) == xpath


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("name=both'and\"", "both kinds of quotes"),
        ("rig1", "say source_id=rig1 or name=rig1"),
        ("sourceid=rig1", "sourceid is none of name, type, source_id"),
    ],
)
def test_impossible_query(query, problem):
    with pytest.raises(StreamError, match=f"stream query .*{problem}"):
        predicate(query)


def test_invalid_xpath_is_told_at_once():
    with pytest.raises(StreamError, match=r"neither key=value on name, type.* nor XPath: rig 1"):
        find("rig 1", timeout_s=30, tick=lambda: pytest.fail("it went on searching"))


def test_a_stream_by_its_numbers():
    with LslSource(SAMPLES, 50.0) as stream:
        found = find(f"source_id={stream.source_id},nominal_srate=50,channel_count=4", 20)
    assert found.source_id() == stream.source_id


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
    search = "import sys; from rtdsae.serve.search import find; print(find(sys.argv[1], 20).source_id())"
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
        with pytest.raises(StreamError, match=r"2 LSL streams match name=twin: add source_id=.*; ") as error:
            find("name=twin", 20)
        assert one.source_id in str(error.value)
        assert two.source_id in str(error.value)


@contextlib.contextmanager
def ended(search):
    """What a search finds; both are at their end after it."""
    until(lambda: search.found, "a stream")
    yield search.found
    search.stop()
    search.join(20)


def restarted(name, before):
    """What a search finds in place of a source that was restarted."""
    with LslSource(SAMPLES, 50.0, source_id=name) as second:
        search = Search(f"source_id={second.source_id}", WANTED, before, silent=False)
        with ended(search) as found:
            offset = found.clock_offset_s
    return offset


def threads_of(policy):
    """This process's threads that are scheduled so; one that ends meanwhile is none."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            found |= {int(task)} if os.sched_getscheduler(int(task)) == policy else set()
    return found


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="this system does not schedule by policy")
def test_the_threads_of_a_stream_that_is_back_are_scheduled_as_the_decoding_is():
    """By a policy that needs no right; the search itself has the ordinary one."""
    name, ordinary = f"policy-{os.getpid()}", os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        with LslSource(SAMPLES, 50.0, source_id=name):
            decoding = threads_of(os.SCHED_BATCH)
            before = Source(find(f"source_id={name}", 20), WANTED)
            first = threads_of(os.SCHED_BATCH) - decoding
        with LslSource(SAMPLES, 50.0, source_id=name):
            search = Search(f"source_id={name}", WANTED, before, silent=False)
            with ended(search):
                second = threads_of(os.SCHED_BATCH) - decoding - first
    finally:
        os.sched_setscheduler(0, ordinary, os.sched_param(0))
    assert first
    assert second  # one fewer: the clock of this computer is not measured again


def test_whatever_is_wrong_with_a_stream_the_search_goes_on(monkeypatch):
    name, times = f"odd-{os.getpid()}", []

    def check(wanted, info, check=Wanted.check):
        times.append(info)
        if len(times) == 1:
            raise RuntimeError("odd\n" + "x" * 5000)
        return check(wanted, info)

    with LslSource(SAMPLES, 50.0, source_id=name):
        before = Source(find(f"source_id={name}", 20), WANTED)
    monkeypatch.setattr(Wanted, "check", check)
    with LslSource(SAMPLES, 50.0, source_id=name):
        search = Search(f"source_id={name}", WANTED, before, silent=False)
        with ended(search):
            assert search.problem.startswith("odd x")
            assert len(search.problem) < 1000


@pytest.mark.parametrize(("elsewhere", "offset_s"), [(False, 0.05), (False, 1e3), (True, 0.05)])
def test_the_clock_of_another_computer_is_measured_again(monkeypatch, elsewhere, offset_s):
    """It begins anew where that was switched off and on, be its name this one's; this one's cannot have."""
    name = f"switched-{elsewhere}-{offset_s}-{os.getpid()}"
    with LslSource(SAMPLES, 50.0, source_id=name):
        before = Source(find(f"source_id={name}", 20), WANTED)
    before.clock_offset_s = offset_s
    if elsewhere:
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
    after_s = restarted(name, before)
    assert abs(after_s) < 0.5
    assert (after_s == offset_s) == (offset_s < 1 and not elsewhere)  # taken as it was, not measured

"""A connection that is silent, and another to the same stream that speaks: which of them is kept."""

import math
import os
import signal
import threading
import uuid

import pylsl
import pytest
from lsl_source import LslSource
from station import until
from toy_bundle import Toy

from rtdsae.serve import search as module
from rtdsae.serve.link import Link
from rtdsae.serve.search import find
from rtdsae.serve.source import OPEN_S, Lost, Wanted

TOY = Toy()


@pytest.fixture
def link(monkeypatch):
    """One that is told that its stream is silent, and has found another connection to it, which speaks."""
    monkeypatch.setattr(module, "RESUMES_S", 0.0)
    monkeypatch.setattr(module, "HEARD_S", 0.1)
    name = f"link-{uuid.uuid4().hex}"
    with LslSource(TOY.counts(5000), 50.0, source_id=name):
        link = Link(f"source_id={name}", Wanted(TOY.channels, 0.02))
        link.open(20, lambda: True)
        link.watch(0.0)
        link.watch(5.0)
        link.search = link._search
        until(lambda: link.search.found, "another connection")
        yield link
        link.close()


def is_closed(source):
    return source._inlet is None


@pytest.mark.parametrize("how", ["a sample was taken since", "samples are there"])
def test_the_old_one_is_kept_if_it_speaks(link, how):
    """It has what was sent while it was silent, and the other would bring again what it has given."""
    old, found = link.source, link.search.found
    assert old.available()
    if how == "a sample was taken since":
        old.available = lambda: 0
        link.renew(pylsl.local_clock())
    else:
        link.renew(-math.inf)
    assert link.source is old
    assert not link.losses
    link.search.join(20)
    assert is_closed(found)
    assert not is_closed(old)


def test_the_other_is_taken_if_the_old_one_does_not(link):
    old, found = link.source, link.search.found
    old.available = lambda: 0
    link.renew(link.search.since - 1)
    assert link.source is found
    assert link.losses == 1
    link.search.join(20)
    assert not is_closed(found)
    assert found.available()
    until(lambda: is_closed(old), "the end of the old one")


def test_one_that_nobody_takes_is_closed(link):
    found = link.search.found
    link.watch(0.0)  # it speaks again
    link.search.join(20)
    assert not link.search.is_alive()
    assert is_closed(found)


def test_what_was_lost_with_each_connection_adds_up(link):
    for unread in (3, 2):
        link.source.unread = lambda unread=unread: unread
        link.lose(link.source, Lost("the source is gone"))
        until(lambda: link._search.found, "another connection")
        link.renew(-math.inf)
    assert (link.losses, link.unread) == (2, 5)


def test_no_other_is_looked_for_before_the_first_sample():
    """An array that has not begun yet is no source that is gone."""
    with LslSource(TOY.counts(10), 50.0) as source:
        link = Link(f"source_id={source.source_id}", Wanted(TOY.channels, 0.02))
        link.open(20, lambda: True)
        link.watch(5.0)
        assert link._search is None
        link.watch(0.0)
        link.watch(5.0)
        assert link._search is not None
        link.close()


def test_a_stream_of_long_bins_is_not_silent_between_two_of_them():
    with LslSource(TOY.counts(10), 0.5) as source:
        link = Link(f"source_id={source.source_id}", Wanted(TOY.channels, 2.0))
        link.open(20, lambda: True)
        link.watch(3.9)
        assert link.connected
        link.watch(4.1)
        assert not link.connected
        link.close()


def test_a_stream_that_does_not_answer_is_given_up_when_asked(monkeypatch):
    """Found, and then its computer is stuck: LSL waits for ten seconds, in which the daemon lives and can be ended."""
    asked = []
    with LslSource(TOY.counts(10), 50.0) as source:
        info = find(f"source_id={source.source_id}", 20)
        monkeypatch.setattr("rtdsae.serve.link.find", lambda *_: info)
        os.kill(source.process.pid, signal.SIGSTOP)
        link = Link("anything", Wanted(TOY.channels, 0.02))
        began = pylsl.local_clock()
        assert link.open(20, lambda: asked.append(pylsl.local_clock()) or len(asked) < 5) is None
        assert len(asked) == 5
        assert pylsl.local_clock() - began < OPEN_S / 2
        os.kill(source.process.pid, signal.SIGCONT)
        (opening,) = (thread for thread in threading.enumerate() if thread.name == "lsl-open")
        opening.join(20)
        assert not opening.is_alive()

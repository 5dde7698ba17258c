"""Ctrl-C and SIGTERM as a request, by real signals."""

import signal

import pytest

from rtdsae.signals import caught

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def before():
    """What each signal did before: it is noted here."""
    noted = []
    old = [signal.signal(number, lambda received, _: noted.append(received)) for number in NUMBERS]
    yield noted
    for number, handler in zip(NUMBERS, old, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_asks_to_end_within_the_block_and_does_what_it_did_after_it(before, number):
    asked = []
    with caught(asked.append):
        signal.raise_signal(number)
    assert (asked, before) == ([number], [])
    signal.raise_signal(number)
    assert (asked, before) == ([number], [number])


def test_a_block_that_fails_gives_the_signals_back_too(before):
    asked = []
    with pytest.raises(ValueError, match="it"), caught(asked.append):
        raise ValueError("it")
    signal.raise_signal(signal.SIGTERM)
    assert (asked, before) == ([], [signal.SIGTERM])

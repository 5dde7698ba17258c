"""Ctrl-C and SIGTERM as a request, by real signals."""

import contextlib
import signal
import sys
import threading
import time

import pytest

from rtdsae.signals import caught, interruptible

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


class Finalised:
    """Gets a Ctrl-C while it is being finalised, where Python discards what is raised."""

    def __init__(self):
        self.finished = threading.Event()

    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        self.finished.set()


def waits_for_ctrl_c():
    threading.Event().wait(60)  # which Ctrl-C ends
    raise TimeoutError


@contextlib.contextmanager
def soon():
    """A Ctrl-C that comes, and not only when a wait is over."""
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - begun < 30


def test_ctrl_c_in_a_finaliser_is_not_lost():
    one = Finalised()
    finished = one.finished

    def program():
        nonlocal one
        with interruptible(program):
            one = None
            waits_for_ctrl_c()

    with soon():
        program()
    assert finished.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_an_import_comes_when_that_is_over(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def program():
        with interruptible(program):
            import slow_to_import  # noqa: F401

            waits_for_ctrl_c()

    with soon():
        program()
    assert sys.modules.pop("slow_to_import").whole


def test_ctrl_c_in_a_program_that_an_import_runs_comes_at_once(tmp_path, monkeypatch):
    (tmp_path / "a_program.py").write_text(
        "import signal\nfrom rtdsae.signals import interruptible\n"
        "def program():\n    with interruptible(program):\n        signal.raise_signal(signal.SIGINT)\n"
        "        raise ValueError('too late')\nprogram()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import a_program  # noqa: F401


def test_ctrl_c_that_somebody_else_has_stays_theirs(before):
    with interruptible(test_ctrl_c_that_somebody_else_has_stays_theirs):
        signal.raise_signal(signal.SIGINT)
    assert before == [signal.SIGINT]

"""SIGINT and SIGTERM as a request to end, and a Ctrl-C that is never lost."""

import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["caught", "interrupt", "interruptible"]

AGAIN_S = 0.05
IMPORTS = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def caught(end: Callable[[int], object]) -> Iterator[None]:
    """Has Ctrl-C and SIGTERM call `end` with the signal's number; after the block they do what they did before.

    For programs that have something to finish first.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: end(received)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def interrupt(_: int) -> None:
    """For `caught`: SIGTERM ends a program as Ctrl-C does, and its children with it."""
    raise KeyboardInterrupt


def ctrl_c() -> None:
    """SIGINT for the main thread, from another one; also where that waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows: it comes when the wait is over
        _thread.interrupt_main()


@contextlib.contextmanager
def interruptible(program: Callable[..., object]) -> Iterator[None]:
    """Has Ctrl-C raise KeyboardInterrupt in the block, a moment later where Python would discard it.

    It discards what is raised in a finaliser, and in the callbacks by which an import frees its lock: of 650 programs
    that were ended at random one went on for ever.

    Args:
        program: the function that has the block; an import that it is called from does not count.
    """
    at_hand = threading.current_thread() is threading.main_thread()
    if not at_hand or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else has Ctrl-C, or nobody: a shell's background jobs do not hear it
        return

    def at(_: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not getattr(program, "__code__", None):
            if frame.f_code.co_filename == IMPORTS or frame.f_code.co_name == "__del__":
                again = threading.Timer(AGAIN_S, ctrl_c)
                again.daemon = True
                again.start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, at)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

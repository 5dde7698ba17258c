"""SIGINT and SIGTERM as a request to end, for programs that have something to finish first."""

import contextlib
import signal
from collections.abc import Callable, Iterator

__all__ = ["caught"]


@contextlib.contextmanager
def caught(end: Callable[[int], object]) -> Iterator[None]:
    """Has Ctrl-C and SIGTERM call `end` with the signal's number; after the block they do what they did before."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: end(received)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

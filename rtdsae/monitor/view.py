"""What a page asks to see: a small JSON message, checked, and made to fit what is published."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from rtdsae.errors import WireError, one_line
from rtdsae.monitor.ring import KEPT_S
from rtdsae.wire import Array, Schema

__all__ = ["MAX_COLUMNS", "MAX_MESSAGE", "Choice", "View", "choose", "read"]

MAX_MESSAGE = 4096  # bytes
MAX_TRACES = 6  # arrays drawn as lines
MAX_COLUMNS = 8  # of each: as many colours as eyes tell apart
USUAL = ("factors", "z", "behaviour")
Column = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
Columns = Annotated[list[Column], msgspec.Meta(min_length=1, max_length=MAX_COLUMNS)]
Name = Annotated[str, msgspec.Meta(max_length=64)]


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page's wish; what it leaves out is chosen for it."""

    window_s: Annotated[float, msgspec.Meta(ge=1.0, le=KEPT_S)] = 10.0
    """The time window."""
    traces: Annotated[dict[Name, Columns], msgspec.Meta(max_length=MAX_TRACES)] | None = None
    """Arrays drawn as lines, and which of their values."""
    heat: Name | None = None
    """The array drawn as a heat map."""
    paused: bool = False
    """Only how the daemon is; no bins."""


@dataclass(frozen=True)
class Choice:
    """A view of what there is."""

    traces: Mapping[str, list[int]]
    heat: str | None


def read(text: str) -> View:
    """A page's message.

    Raises:
        WireError: it is not one, or asks for too much.
    """
    try:
        return msgspec.json.decode(text, type=View)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"a view was not understood: {one_line(error)}") from None


def choose(view: View, schema: Schema) -> Choice:
    """The view as far as it is published; where it wishes nothing, what most people want to see."""
    arrays = {array.name: array for array in schema.arrays}
    if view.traces is None:
        names = [name for name in USUAL if name in arrays] or list(arrays)[:2]
        traces = {name: _first(arrays[name]) for name in names}
    else:
        wished = {name: columns for name, columns in view.traces.items() if name in arrays}
        traces = {name: _there(columns, arrays[name]) for name, columns in wished.items()}
    return Choice(traces, view.heat if view.heat in arrays else _heat(arrays))


def _first(array: Array) -> list[int]:
    return list(range(min(MAX_COLUMNS, array.size)))


def _there(columns: list[int], array: Array) -> list[int]:
    return [column for column in dict.fromkeys(columns) if column < array.size] or _first(array)


def _heat(arrays: Mapping[str, Array]) -> str | None:
    """The rates, or else the widest, of more than one value."""
    if "rates" in arrays and arrays["rates"].size > 1:
        return "rates"
    widest = max(arrays.values(), key=lambda array: array.size)
    return widest.name if widest.size > 1 else None

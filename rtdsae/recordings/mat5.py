"""MATLAB's file format of levels 5 to 7, as plain values; SciPy's reader crashes on damaged files.

A file is a header of 128 bytes and elements: a type, a length in bytes, and content that fills up to 8 bytes. A matrix
is an element made of elements: flags, dimensions, name, and then what its class wants. Nothing in a file is evaluated;
objects, functions and sparse matrices are passed over.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["variables"]

HEADER = 128
INFLATED = 1100  # times as many bytes: zlib packs no tighter than 1 to 1032
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, CHAR = 1, 2, 4
COMPLEX, LOGICAL = 0x800, 0x200
MAX_DEPTH = 16  # structs in structs


def variables(content: bytes) -> dict[str, Any]:
    """The variables of a file, by name.

    Args:
        content: the whole file.

    Raises:
        ValueError: it is damaged.
        zlib.error: likewise.
    """
    if len(content) < HEADER or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("its header says no order of bytes")
    order = "<" if content[126:128] == b"IM" else ">"
    found = {}
    for kind, data in _elements(memoryview(content)[HEADER:], order):
        if kind == COMPRESSED:
            data = memoryview(zlib.decompressobj().decompress(data, INFLATED * len(data)))
            kind, data = _next(_elements(data, order))
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} where a variable is expected")
        name, value = _matrix(data, order)
        found[name] = value
    return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The elements that fill `data`: type and content of each."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # a small one: length and type in one number, and the content in the other
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if size > (4 if start == at + 4 else len(data) - start):
            raise ValueError(f"an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = at + 8 if start == at + 4 else start + size + (-size % 8 if kind != COMPRESSED else 0)


def _matrix(data: memoryview, order: str, depth: int = 0) -> tuple[str, Any]:
    """A matrix's name and value."""
    if not len(data):
        return "", np.zeros((0, 0))
    parts = _elements(data, order)
    flags = _first(_numbers(*_next(parts), order))
    if flags & 0xFF not in (CELL, STRUCT, CHAR, *CLASSES) or depth > MAX_DEPTH:
        return _name_of(parts), None
    shape = tuple(map(int, _numbers(*_next(parts), order).tolist()))
    name = bytes(_next(parts)[1]).decode("latin-1")
    if min(shape, default=-1) < 0:
        raise ValueError(f"variable {name!r} has dimensions {shape}")
    n = math.prod(shape)
    if flags & 0xFF == CELL:
        return name, _cells(parts, n, len(data), order, depth)
    if flags & 0xFF == STRUCT:
        return name, _structs(parts, n, len(data), order, depth)
    kind, content = _next(parts) if n else (1, memoryview(b""))
    if flags & 0xFF == CHAR:
        return name, _text(kind, content, shape, order)
    values = _numbers(kind, content, order)
    if len(values) != n:
        raise ValueError(f"variable {name!r} has {len(values)} values for dimensions {shape}")
    if flags & COMPLEX:
        return name, None
    return name, values.reshape(shape, order="F").astype(bool if flags & LOGICAL else CLASSES[flags & 0xFF])


def _cells(parts: Iterator[tuple[int, memoryview]], n: int, size: int, order: str, depth: int) -> list[Any]:
    if 8 * n > size:
        raise ValueError(f"{n} cells in {size} bytes")
    return [_matrix(_matrix_of(parts), order, depth + 1)[1] for _ in range(n)]


def _structs(parts: Iterator[tuple[int, memoryview]], n: int, size: int, order: str, depth: int) -> Any:
    """One struct as a dict, several as a list of them."""
    width = _first(_numbers(*_next(parts), order))
    names = bytes(_next(parts)[1])
    if not 0 < width <= 4096 or 8 * n * (len(names) // width) > size:
        raise ValueError(f"{n} structs with names of {width} bytes in {size} bytes")
    fields = [names[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), width)]
    if not fields:
        return {}
    rows = [{f: _matrix(_matrix_of(parts), order, depth + 1)[1] for f in fields} for _ in range(n)]
    return rows[0] if n == 1 else rows


def _text(kind: int, content: memoryview, shape: tuple[int, ...], order: str) -> Any:
    """One row as a str, several as a list of them."""
    encoding = TEXTS.get(kind, "latin-1")
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    text = bytes(content).decode(encoding, "replace")
    rows = shape[0]
    return text if rows <= 1 else [text[row::rows].rstrip() for row in range(min(rows, len(text)))]


def _numbers(kind: int, content: memoryview, order: str) -> np.ndarray:
    if kind not in NUMBERS:
        raise ValueError(f"an element of type {kind} where numbers are expected")
    dtype = np.dtype(f"{order}{NUMBERS[kind]}")
    if len(content) % dtype.itemsize:
        raise ValueError(f"{len(content)} bytes of numbers of {dtype.itemsize}")
    return np.frombuffer(content, dtype)


def _first(numbers: np.ndarray) -> int:
    if not len(numbers) or numbers.dtype.kind == "f":
        raise ValueError("a whole number is missing")
    return int(numbers[0])


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(parts, None)
    if found is None:
        raise ValueError("a matrix ends before its parts do")
    return found


def _matrix_of(parts: Iterator[tuple[int, memoryview]]) -> memoryview:
    kind, data = _next(parts)
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} where a matrix is expected")
    return data


def _name_of(parts: Iterator[tuple[int, memoryview]]) -> str:
    """The name of a matrix that is passed over: its third part, or an object's second."""
    texts = [bytes(data).decode("latin-1") for kind, data in parts if kind == 1]
    return texts[0] if texts else ""

r"""The wire format: what the daemon publishes, one ZeroMQ frame a message, little-endian.

A frame begins with 8 bytes that say its kind, so that a prefix subscription selects one:

    latents\0    one bin: the 64-byte header below, then `count` float32 values
    schema\0\0   JSON: what these values are
    status\0\0   JSON: the daemon's counters, once a second

    offset  type     field         offset  type     field
         0  char[8]  topic             32  f64      t_bin   end of the bin, LSL seconds
         8  u16      version           40  f64      t_in    its last sample had arrived
        10  u16      flags             48  f64      t_out   just before the send
        12  u32      run               56  u32      schema  first 4 bytes of SHA-256 of the schema's JSON
        16  u64      seq               60  u32      count   float32 values that follow
        24  u64      bin               64  f32[]    payload

`docs/wire.md` is the same for readers who write a subscriber in another language.
Any bytes whatever either decode or raise WireError; sizes are bounded before anything is believed.
"""

import enum
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rtdsae.errors import WireError

__all__ = [
    "LATENTS",
    "MAX_FRAME",
    "SCHEMA",
    "STATUS",
    "VERSION",
    "Array",
    "Encoder",
    "Flags",
    "Latents",
    "Schema",
    "Status",
    "decode",
    "encode_status",
]

VERSION = 1
LATENTS, SCHEMA, STATUS = b"latents\0", b"schema\0\0", b"status\0\0"

MAX_JSON = 1 << 20  # bytes; 1024 labelled channels need 20 kB
MAX_COUNT = 1 << 20  # float32 values in a frame
MAX_DEPTH = 16  # of nested JSON

_HEADER = struct.Struct("<8sHHIQQdddII")
MAX_FRAME = max(_HEADER.size + 4 * MAX_COUNT, len(SCHEMA) + MAX_JSON)  # bytes: nobody need receive more
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # a field name in C, MATLAB and Python alike

Buffer: TypeAlias = bytes | bytearray | memoryview
Float32 = NDArray[np.float32]
_FLOAT32 = np.dtype("<f4")


class Flags(enum.IntFlag):
    """What is special about a bin. Bits of later versions are kept as they come."""

    GAP = 1  # was not observed: a forecast
    ANCHORED = 2  # a lane was re-anchored for this bin
    LATE = 4  # published after the next bin's end
    SWAPPED = 8  # first bin of a new model
    BACKFILL = 16  # replayed from history


_FLAGS = tuple(map(Flags, range(32)))  # made once: to ask the enumeration for one costs microseconds


@dataclass(frozen=True, slots=True)
class Array:
    """One array of the payload: `shape` in C order; `labels`, where given, name the entries of its last axis."""

    name: str
    shape: tuple[int, ...]
    unit: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise WireError(f"array name {self.name[:64]!r} is not letters, digits and underscores (64 at most)")
        if not 1 <= len(self.shape) <= 8 or min(self.shape) < 1 or self.size > MAX_COUNT:
            raise WireError(f"array {self.name!r}: its shape must be 1 to 8 positive sizes, {MAX_COUNT} values at most")
        if self.labels and len(self.labels) != self.shape[-1]:
            raise WireError(f"array {self.name!r}: {len(self.labels)} labels for a last axis of {self.shape[-1]}")
        for text in (self.unit, *self.labels):
            _check_printable(f"array {self.name!r}", text)

    @property
    def size(self) -> int:
        """How many float32 values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Schema:
    """What the payload's values are: the arrays, in order, and the bundle and bin width behind them.

    `json` is its text on the wire, made here unless it came from there: the id is a hash of these very bytes.
    """

    bundle: str
    bundle_hash: str
    bin_width_s: float
    arrays: tuple[Array, ...]
    json: bytes = field(default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bin_width_s) and self.bin_width_s > 0):
            raise WireError("schema: bin_width_s must be a positive number of seconds")
        if not self.arrays or len(self.slices) != len(self.arrays) or self.count > MAX_COUNT:
            raise WireError(f"schema: it needs one array or more, of different names, {MAX_COUNT} values at most")
        for text in (self.bundle, self.bundle_hash):
            _check_printable("schema", text)
        if not self.json:
            object.__setattr__(self, "json", self._to_json())
        if len(self.json) > MAX_JSON:
            raise WireError(f"schema: {len(self.json)} bytes of JSON, more than {MAX_JSON}: shorten the labels")

    def _to_json(self) -> bytes:
        arrays = [{"name": a.name, "shape": a.shape, "unit": a.unit, "labels": a.labels} for a in self.arrays]
        head = {"bundle": self.bundle, "bundle_hash": self.bundle_hash, "bin_width_s": self.bin_width_s}
        return _to_json(head | {"arrays": arrays})

    @cached_property
    def slices(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Where each array lies in the payload, and its shape."""
        ends = np.cumsum([a.size for a in self.arrays]).tolist()
        return {a.name: (slice(end - a.size, end), a.shape) for a, end in zip(self.arrays, ends, strict=True)}

    @cached_property
    def count(self) -> int:
        """How many float32 values a payload has."""
        return sum(a.size for a in self.arrays)

    @cached_property
    def id(self) -> int:
        """The number that every latents frame of this schema carries."""
        return int.from_bytes(hashlib.sha256(self.json).digest()[:4], "little")

    def encode(self) -> bytes:
        """The schema as a frame."""
        return SCHEMA + self.json

    @classmethod
    def from_json(cls, text: bytes) -> "Schema":
        """Reads a schema; keys that this version does not know are passed over.

        Raises:
            WireError: it is not a schema.
        """
        found = _from_json(text, "schema")
        arrays = _take(found, "arrays", list)
        return cls(
            bundle=_take(found, "bundle", str),
            bundle_hash=_take(found, "bundle_hash", str),
            bin_width_s=float(_take(found, "bin_width_s", int, float)),
            arrays=tuple(_array(entry) for entry in arrays),
            json=text,
        )


def _array(entry: object) -> Array:
    if not isinstance(entry, dict):
        raise WireError("schema: an entry of 'arrays' is not an object")
    shape, labels = _take(entry, "shape", list), _take(entry, "labels", list)
    if not all(type(n) is int for n in shape) or not all(type(label) is str for label in labels):
        raise WireError("schema: a shape must be whole numbers and labels must be texts")
    return Array(_take(entry, "name", str), tuple(shape), _take(entry, "unit", str), tuple(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """One bin, as published. `message["factors"]` is a view into the received frame, nothing is copied.

    Times are LSL seconds on the daemon's clock; `payload` is `(count,)` float32, read-only where the frame was.
    """

    flags: Flags
    run: int
    seq: int
    bin: int
    t_bin: float
    t_in: float
    t_out: float
    schema_id: int
    payload: Float32
    schema: Schema | None = None

    def bind(self, schema: Schema) -> "Latents":
        """The same bin with names for its values.

        Raises:
            WireError: it was published under another schema.
        """
        if schema is self.schema:
            return self
        if schema.id != self.schema_id or schema.count != self.payload.size:
            raise WireError(
                f"bin {self.bin} has {self.payload.size} values of schema {self.schema_id:08x}, "
                f"not the {schema.count} of schema {schema.id:08x}"
            )
        times = (self.t_bin, self.t_in, self.t_out)
        return Latents(self.flags, self.run, self.seq, self.bin, *times, self.schema_id, self.payload, schema)

    def __getitem__(self, name: str) -> Float32:
        """The named array, in its shape, without a copy.

        Raises:
            WireError: no schema is bound, or it has no such array.
        """
        if self.schema is None:
            raise WireError(f"bin {self.bin} has no schema yet: bind() the one with id {self.schema_id:08x}")
        if name not in self.schema.slices:
            known = ", ".join(self.schema.slices)
            raise WireError(f"no array {name!r} in what is published: found {known}; add it to serve --publish")
        where, shape = self.schema.slices[name]
        return self.payload[where].reshape(shape)

    def __contains__(self, name: object) -> bool:
        """Whether the bin has an array of this name; false while no schema is bound."""
        return self.schema is not None and name in self.schema.slices


class Status(Mapping[str, Any]):
    """The daemon's counters by name, as published: a read-only mapping."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __getitem__(self, key: str) -> Any:
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Status({self._fields!r})"


class Encoder:
    """Makes the latents frames of one run in one buffer, which is reused: send it (by copy) before the next bin.

    Write the values into `payload[name]`, views of the frame in the schema's shapes, then call `encode`.
    """

    def __init__(self, schema: Schema, run: int) -> None:
        self.schema = schema
        self.run = run
        self.frame = bytearray(_HEADER.size + 4 * schema.count)
        self.values: Float32 = np.frombuffer(self.frame, "<f4", offset=_HEADER.size)
        self.payload = {name: self.values[where].reshape(shape) for name, (where, shape) in schema.slices.items()}
        self._schema_id, self._count = schema.id, schema.count

    def encode(self, seq: int, bin: int, t_bin: float, t_in: float, t_out: float, flags: int = 0) -> bytearray:
        """Packs the header before the payload that is there, and returns the frame itself."""
        frame, schema_id = self.frame, self._schema_id
        _HEADER.pack_into(
            frame, 0, LATENTS, VERSION, flags, self.run, seq, bin, t_bin, t_in, t_out, schema_id, self._count
        )
        return frame


def decode(frame: Buffer, schemas: Mapping[int, Schema] | None = None) -> Latents | Schema | Status:
    """Reads a frame of any kind.

    Args:
        frame: as it came.
        schemas: those that are known, by their id. Latents that are of one of them are bound to it; `bind` others.

    Raises:
        WireError: it is not a frame of this version.
    """
    topic = bytes(frame[:8])
    if topic == LATENTS:
        return _decode_latents(frame, schemas)
    if topic not in (SCHEMA, STATUS):
        raise WireError(f"a message begins with {topic!r}, not latents, schema or status: is this an rtdsae endpoint?")
    if len(frame) - len(topic) > MAX_JSON:
        raise WireError(f"a {topic[:6].decode()} message has {len(frame)} bytes, more than {MAX_JSON}")
    text = bytes(frame[8:])
    return Schema.from_json(text) if topic == SCHEMA else Status(_from_json(text, "status"))


def _decode_latents(frame: Buffer, schemas: Mapping[int, Schema] | None) -> Latents:
    if len(frame) < _HEADER.size:
        raise WireError(f"a latents message has {len(frame)} bytes, less than its header of {_HEADER.size}")
    _, version, flags, run, seq, bin_, t_bin, t_in, t_out, schema_id, count = _HEADER.unpack_from(frame)
    if version != VERSION:
        raise WireError(f"a latents message has version {version}, this program reads {VERSION}: upgrade the older one")
    if count > MAX_COUNT or len(frame) != _HEADER.size + 4 * count:
        raise WireError(f"a latents message says {count} values, its {len(frame)} bytes do not hold exactly these")
    payload: Float32 = np.frombuffer(frame, _FLOAT32, count, _HEADER.size)
    schema = schemas.get(schema_id) if schemas else None
    if schema is not None and not (schema.id == schema_id and schema.count == count):
        schema = None
    known = _FLAGS[flags] if flags < len(_FLAGS) else Flags(flags)
    return Latents(known, run, seq, bin_, t_bin, t_in, t_out, schema_id, payload, schema)


def encode_status(fields: Mapping[str, Any]) -> bytes:
    """The daemon's counters as a frame.

    Raises:
        WireError: a value is not JSON, is not finite, or there is too much of it.
    """
    text = _to_json(dict(fields))
    if len(text) > MAX_JSON:
        raise WireError(f"status: {len(text)} bytes of JSON, more than {MAX_JSON}")
    return STATUS + text


def _to_json(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"cannot be written as JSON: {error}") from error


def _from_json(text: bytes, kind: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a {kind} message is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WireError(f"a {kind} message is not a JSON object")
    _check_values(kind, value)
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a number does not fit in 64 bits")
    return int(digits)


def _check_values(kind: str, value: object, depth: int = 0) -> None:
    """Refuses what JSON can spell and a program cannot use: lone surrogates, nesting without end."""
    if depth > MAX_DEPTH:
        raise WireError(f"a {kind} message is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise WireError(f"a {kind} message has a text that is not Unicode")
    children = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else ()
    for child in children:
        _check_values(kind, child, depth + 1)


def _check_printable(where: str, text: str) -> None:
    """Texts of a schema end up on terminals and in file names: no line breaks, escapes or surrogates."""
    if not text.isprintable() or len(text) > 1024:
        raise WireError(f"{where}: the text {text[:64]!a} must be printable, and 1024 characters at most")


def _take(found: dict[str, Any], key: str, *types: type) -> Any:
    value = found.get(key)
    if type(value) not in types:
        raise WireError(f"schema: {key!r} is missing or not {types[-1].__name__}")
    return value

"""The wire format: its layout byte by byte, round trips, and whatever a hostile publisher may send."""

import contextlib
import hashlib
import json
import struct
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdsae import wire
from rtdsae.errors import WireError
from rtdsae.wire import Array, Encoder, Flags, Latents, Schema, Status, decode, encode_status

SCHEMA = Schema(
    bundle="lorenz",
    bundle_hash="ab" * 32,
    bin_width_s=0.02,
    arrays=(
        Array("factors", (3,), "1"),
        Array("z", (2, 2), "σ"),
        Array("behaviour", (2,), "m/s", ("x velocity", "y velocity")),
    ),
)
U16, U32, U64 = (st.integers(0, 2**n - 1) | st.sampled_from([2 ** (n - 1), 2**n - 1]) for n in (16, 32, 64))
FLOATS = st.floats(width=64)
printable = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    labels = tuple(draw(st.lists(printable, min_size=shape[-1], max_size=shape[-1]))) if draw(st.booleans()) else ()
    return Array(draw(names), shape, draw(printable), labels)


schemas = st.builds(
    Schema,
    bundle=printable,
    bundle_hash=printable,
    bin_width_s=st.floats(1e-6, 1e3),
    arrays=st.lists(arrays(), min_size=1, max_size=4, unique_by=lambda a: a.name).map(tuple),
)


def latents_frame(schema=SCHEMA, **header):
    encoder = Encoder(schema, run=header.pop("run", 7))
    for at, view in enumerate(encoder.payload.values()):
        view[:] = at + np.arange(view.size, dtype=np.float32).reshape(view.shape)
    return bytes(encoder.encode(**{"seq": 0, "bin": 0, "t_bin": 0.0, "t_in": 0.0, "t_out": 0.0} | header))


def test_every_field_of_a_frame_is_where_the_table_says():
    times = {"t_bin": 12.5, "t_in": 12.625, "t_out": 12.75}
    flags = Flags.GAP | Flags.SWAPPED
    frame = latents_frame(run=0xA1B2C3D4, seq=2**40 + 1, bin=2**40 + 9, flags=flags, **times)

    def field(fmt, offset):
        return struct.unpack_from("<" + fmt, frame, offset)[0]

    assert frame[0:8] == b"latents\0"
    assert field("H", 8) == 1
    assert field("H", 10) == 0b01001
    assert field("I", 12) == 0xA1B2C3D4
    assert field("Q", 16) == 2**40 + 1
    assert field("Q", 24) == 2**40 + 9
    assert field("d", 32) == 12.5
    assert field("d", 40) == 12.625
    assert field("d", 48) == 12.75
    assert frame[56:60] == hashlib.sha256(SCHEMA.encode()[8:]).digest()[:4]
    assert field("I", 60) == 9
    assert struct.unpack_from("<9f", frame, 64) == (0, 1, 2, 1, 2, 3, 4, 2, 3)
    assert len(frame) == 64 + 4 * 9


def test_schema_frame_is_its_topic_and_plain_json():
    frame = SCHEMA.encode()
    assert frame[:8] == b"schema\0\0"
    assert json.loads(frame[8:]) == {
        "bundle": "lorenz",
        "bundle_hash": "ab" * 32,
        "bin_width_s": 0.02,
        "arrays": [
            {"name": "factors", "shape": [3], "unit": "1", "labels": []},
            {"name": "z", "shape": [2, 2], "unit": "σ", "labels": []},
            {"name": "behaviour", "shape": [2], "unit": "m/s", "labels": ["x velocity", "y velocity"]},
        ],
    }


@given(schemas, st.data(), U32, U64, U64, FLOATS, FLOATS, FLOATS, U16)
def test_any_header_and_payload_round_trips(schema, data, run, seq, bin, t_bin, t_in, t_out, flags):
    values = np.array(data.draw(st.lists(st.floats(width=32), min_size=schema.count, max_size=schema.count)), "<f4")
    encoder = Encoder(schema, run)
    flat = iter(values)
    for view in encoder.payload.values():
        view[...] = np.array([next(flat) for _ in range(view.size)], np.float32).reshape(view.shape)
    frame = bytes(encoder.encode(seq, bin, t_bin, t_in, t_out, flags))

    received = decode(SCHEMA.encode())
    assert received == SCHEMA
    received = decode(frame)
    assert isinstance(received, Latents)
    assert (received.run, received.seq, received.bin, received.flags) == (run, seq, bin, flags)
    assert struct.pack("<3d", received.t_bin, received.t_in, received.t_out) == struct.pack("<3d", t_bin, t_in, t_out)
    assert received.payload.tobytes() == values.tobytes()
    bound = received.bind(schema)
    assert b"".join(bound[a.name].tobytes() for a in schema.arrays) == values.tobytes()
    assert [bound[a.name].shape for a in schema.arrays] == [a.shape for a in schema.arrays]


@given(schemas)
def test_any_schema_round_trips_with_its_id(schema):
    received = decode(schema.encode())
    assert received == schema
    assert (received.id, received.count) == (schema.id, schema.count)


def test_id_is_of_the_bytes_received_whoever_wrote_them():
    text = json.dumps(json.loads(SCHEMA.json) | {"later": [1, {}]}, indent=2).encode()
    received = decode(b"schema\0\0" + text)
    assert received == SCHEMA
    assert received.id == int.from_bytes(hashlib.sha256(text).digest()[:4], "little") != SCHEMA.id
    assert received.encode() == b"schema\0\0" + text


def test_arrays_are_views_of_the_frame():
    frame = latents_frame()
    message = decode(frame).bind(SCHEMA)
    for array in SCHEMA.arrays:
        assert np.shares_memory(message[array.name], np.frombuffer(frame, np.uint8))
        assert not message[array.name].flags.writeable
        assert array.name in message
        assert array.name not in decode(frame)
    assert "nothing" not in message
    encoder = Encoder(SCHEMA, 1)
    encoder.payload["z"][1, 0] = 5
    assert encoder.encode(1, 1, 0.0, 0.0, 0.0) is encoder.frame
    assert decode(encoder.frame).bind(SCHEMA)["z"].tolist() == [[0, 0], [5, 0]]


def test_a_bin_of_a_schema_that_is_known_comes_bound_to_it():
    frame, other = latents_frame(), Schema("other", "", 0.02, (Array("factors", (SCHEMA.count,)),))
    assert decode(frame, {SCHEMA.id: SCHEMA}).schema is SCHEMA
    assert decode(frame, {SCHEMA.id: other}).schema is None
    assert decode(frame, {other.id: other}).schema is None


def test_latents_and_schemas_are_frozen():
    with pytest.raises(FrozenInstanceError):
        decode(latents_frame()).seq = 5
    with pytest.raises(FrozenInstanceError):
        SCHEMA.bundle = "other"


def test_latents_are_never_read_with_another_schema():
    other = Schema("lorenz", "cd" * 32, 0.02, SCHEMA.arrays)
    with pytest.raises(WireError, match="not the 9 of schema"):
        decode(latents_frame()).bind(other)
    with pytest.raises(WireError, match="has no schema yet"):
        decode(latents_frame())["factors"]
    with pytest.raises(WireError, match=r"no array 'rates'.*factors, z, behaviour.*--publish"):
        decode(latents_frame()).bind(SCHEMA)["rates"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | printable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(printable, json_values))
def test_any_status_round_trips(fields):
    frame = encode_status(fields)
    assert frame[:8] == b"status\0\0"
    received = decode(frame)
    assert isinstance(received, Status)
    assert dict(received) == fields
    assert len(received) == len(fields)


@pytest.mark.parametrize(
    "fields",
    [{"late": float("nan")}, {"late": float("inf")}, {"late": np.int64(1)}, {"id": "\ud800"}, {"id": "x" * (1 << 20)}],
)
def test_status_that_cannot_be_json_is_refused(fields):
    with pytest.raises(WireError):
        encode_status(fields)


def decodes_or_refuses(frame):
    refusal = ""
    try:
        message = decode(frame)
        if isinstance(message, Latents):
            message.bind(SCHEMA)
        repr(message).encode()
    except WireError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1
    assert len(refusal) < 400


topics = st.sampled_from([wire.LATENTS, wire.SCHEMA, wire.STATUS, b""])


@given(topics, st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(topic, rest):
    decodes_or_refuses(topic + rest)


@given(topics, json_values | st.dictionaries(st.sampled_from(list(json.loads(SCHEMA.json))), json_values))
def test_any_json_decodes_or_is_refused(topic, value):
    decodes_or_refuses(topic + json.dumps(value).encode())


VALID = [latents_frame(), SCHEMA.encode(), encode_status({"bins": 5, "stream": {"connected": True}})]


@given(st.sampled_from(VALID), st.data())
def test_mutated_valid_frames_decode_or_are_refused(frame, data):
    mutated = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(mutated[: data.draw(st.integers(0, len(frame)))]))
    decodes_or_refuses(bytes(mutated))


def test_every_truncation_and_extension_of_latents_is_refused():
    frame = latents_frame()
    for length in range(len(frame)):
        with pytest.raises(WireError):
            decode(frame[:length])
    with pytest.raises(WireError, match="do not hold exactly"):
        decode(frame + b"\0")


def test_another_version_says_what_to_do():
    frame = bytearray(latents_frame())
    struct.pack_into("<H", frame, 8, 2)
    with pytest.raises(WireError, match=r"version 2, this program reads 1: upgrade"):
        decode(frame)


def schema_json(**changes):
    return json.dumps(json.loads(SCHEMA.json) | changes).encode()


def one_array(**changes):
    return schema_json(arrays=[{"name": "z", "shape": [2], "unit": "1", "labels": []} | changes])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 500_000,
        b'{"a":' * 20 + b"1" + b"}" * 20,
        b'{"a":"' + b"x" * (1 << 20) + b'"}',
        SCHEMA.json.replace(b"0.02", b"NaN"),
        SCHEMA.json.replace(b"0.02", b"1e999"),
        SCHEMA.json.replace(b"0.02", b"1" + b"0" * 400),
        SCHEMA.json.replace(b"0.02", b"0"),
        SCHEMA.json.replace(b"0.02", b"true"),
        SCHEMA.json.replace(b"lorenz", b"\\ud800"),
        SCHEMA.json.replace(b"lorenz", b"\\u001b[2J"),
        schema_json(bundle=None),
        schema_json(bundle_hash="a\nb"),
        schema_json(arrays=[]),
        schema_json(arrays=[5]),
        schema_json(arrays=[{}]),
        schema_json(arrays=json.loads(SCHEMA.json)["arrays"] * 2),
        one_array(name="../z"),
        one_array(name=""),
        one_array(name="z" * 65),
        one_array(shape=[]),
        one_array(shape=[0]),
        one_array(shape=[-1, -1]),
        one_array(shape=[2.0]),
        one_array(shape=[True]),
        one_array(shape=[1] * 9),
        one_array(shape=[1 << 30, 1 << 30]),
        one_array(shape=[10**18] * 8),
        one_array(labels=["only one"]),
        one_array(labels=[1, 2]),
        one_array(labels=["a\nb", "c"]),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_hostile_schemas_are_refused_with_one_line(text):
    with pytest.raises(WireError) as caught:
        decode(b"schema\0\0" + text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [b"NaN", b"[1]", b'{"a":Infinity}', b'{"a":"\\udfff"}', b'{"\\udfff":1}', b"{} {}", b'{"a":1e999}'],
)
def test_hostile_statuses_are_refused(text):
    with pytest.raises(WireError):
        decode(b"status\0\0" + text)


@pytest.mark.parametrize(("unit", "label"), [("x" * 1025, "x"), ("x", "x" * 1025)], ids=["unit", "label"])
def test_texts_are_bounded(unit, label):
    Array("z", (1,), unit[:1024], (label[:1024],))
    with pytest.raises(WireError, match="1024 characters at most"):
        Array("z", (1,), unit, (label,))


@pytest.mark.parametrize("excess", [0, 1])
def test_messages_are_bounded(excess):
    most = 1 << 20
    fields = {"id": "x" * (most + excess - len('{"id":""}'))}
    status = json.dumps(fields, separators=(",", ":")).encode()
    schema = SCHEMA.json[:-1] + b',"later":"%b"}' % (b"x" * (most + excess - len(SCHEMA.json) - len(',"later":""')))
    assert len(status) == len(schema) == most + excess
    calls = [
        lambda: encode_status(fields),
        lambda: decode(wire.STATUS + status),
        lambda: decode(wire.SCHEMA + schema),
        lambda: Schema.from_json(schema),
    ]
    for call in calls:
        with pytest.raises(WireError, match="more than 1048576") if excess else contextlib.nullcontext():
            call()


@pytest.mark.parametrize("excess", [0, 1])
def test_values_are_bounded_in_an_array_in_a_schema_and_in_a_bin(excess):
    most = 1 << 20
    frame = struct.pack("<8sHHIQQdddII", wire.LATENTS, 1, 0, 7, 0, 0, 0.0, 0.0, 0.0, 1, most + excess)
    calls = [
        lambda: Array("z", (most + excess,)),
        lambda: Schema("toy", "00", 0.02, (Array("z", (most // 2,)), Array("f", (most // 2 + excess,)))),
        lambda: decode(frame + bytes(4 * (most + excess))),
    ]
    for call in calls:
        with pytest.raises(WireError, match=r"104857[67] values") if excess else contextlib.nullcontext():
            call()


def test_foreign_messages_are_named():
    with pytest.raises(WireError, match="is this an rtdsae endpoint"):
        decode(b"HTTP/1.1 400 Bad Request")

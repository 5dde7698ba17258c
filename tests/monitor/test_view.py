"""What a page may ask for, and what becomes of it where something else is published."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdsae.errors import WireError
from rtdsae.monitor.view import MAX_COLUMNS, View, choose, read
from rtdsae.wire import Array, Schema


def schema(*arrays):
    return Schema("toy", "00", 0.02, arrays)


USUAL = schema(Array("f", (2,)), Array("factors", (12,)), Array("behaviour", (2,)), Array("rates", (4,)))


def test_what_is_left_out_is_chosen():
    chosen = choose(read("{}"), USUAL)
    assert chosen.traces == {"factors": list(range(8)), "behaviour": [0, 1]}
    assert chosen.heat == "rates"


def test_without_usual_names_there_is_something_to_see():
    chosen = choose(View(), schema(Array("position", (2, 3)), Array("speed", (1,)), Array("third", (1,))))
    assert chosen.traces == {"position": [0, 1, 2, 3, 4, 5], "speed": [0]}
    assert chosen.heat == "position"
    assert choose(View(), schema(Array("speed", (1,)))).heat is None
    assert choose(View(), schema(Array("rates", (1,)), Array("z", (2,)))).heat == "z"


def test_a_wish_is_met_as_far_as_it_is_published():
    view = read(
        json.dumps({"traces": {"factors": [11, 3, 3, 40], "gone": [0], "f": [7]}, "heat": "gone", "window_s": 30})
    )
    chosen = choose(view, USUAL)
    assert chosen.traces == {"factors": [11, 3], "f": [0, 1]}
    assert chosen.heat == "rates"
    assert choose(read('{"traces": {}}'), USUAL).traces == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        '{"window_s": 0.5}',
        '{"window_s": 1e9}',
        '{"window_s": null}',
        '{"windows": 10}',
        '{"heat": "' + 65 * "x" + '"}',
        '{"traces": {"factors": []}}',
        '{"traces": {"factors": [-1]}}',
        '{"traces": {"factors": [0.5]}}',
        json.dumps({"traces": {"factors": list(range(MAX_COLUMNS + 1))}}),
        json.dumps({"traces": {f"a{i}": [0] for i in range(7)}}),
        1000 * "[",
    ],
)
def test_what_is_no_view_is_one_clear_line(text):
    with pytest.raises(WireError, match=r"a view was not understood: \w") as refused:
        read(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_view_or_refused(text):
    with contextlib.suppress(WireError):
        assert 1 <= read(text).window_s <= 60

"""The messages that the pages quote (their `text` blocks) are what the program says: each still stands in the code."""

import ast
import re
from functools import cache

import pytest
from pages import ROOT, find

QUOTING = ("troubleshooting.md", "rig.md")
FEWEST = 12  # characters that are fixed in a message, to tell it by
LONGEST = 26  # characters of a name, a path or a number, in a row
HOLE = "\0"


def quoted():
    for name in QUOTING:
        page = ROOT / "docs" / name
        fences = re.findall(r"^```text\n(.*?)^```", page.read_text(), re.S | re.M)
        yield from (pytest.param(line, id=line[:60]) for fence in fences for line in fence.splitlines())


@cache
def templates():
    """Every text in the code that could be part of a message, with HOLE for what is put in."""
    found = set()
    for file in (ROOT / "rtdsae").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                found.add(re.sub(r"%[-+\d.]*[a-z]", HOLE, node.value))
    return [text for text in found if len(text.replace(HOLE, "")) >= FEWEST]


def unknown(message):
    """The longest stretch of a message that no text in the code accounts for."""
    known = [False] * len(message)
    for template in templates():
        pieces = [piece for piece in template.split(HOLE) if piece]
        if not all(piece in message for piece in pieces):
            continue
        pattern = ".*?".join(f"({re.escape(piece)})" for piece in pieces)
        for match in re.finditer(pattern, message):
            for group in range(1, len(pieces) + 1):
                known[match.start(group) : match.end(group)] = [True] * len(match[group])
    return max("".join(" " if seen else c for c, seen in zip(message, known, strict=True)).split("  "), key=len).strip()


@pytest.mark.parametrize("message", list(quoted()))
def test_a_quoted_message_is_one_that_the_program_prints(message):
    assert len(unknown(message)) <= LONGEST, f"not in the code: {unknown(message)!r}"


@pytest.mark.parametrize(
    "message",
    [
        "no LSL stream fits source_id=rig1 after 10 s; no LSL stream is visible from here at all: "
        "is the source running, and on this network?",
        "stream rig1 has 96 channels, but the model has been trained on 84",
        "models/a/step.onnx: is not what its manifest says (SHA-256 differs): copy or export again",
    ],
)
def test_other_words_would_be_found_out(message):
    assert len(unknown(message)) > LONGEST


def test_messages_are_quoted():
    assert len(list(quoted())) > 40
    assert not list(find(ROOT / "docs" / "none.md", "no block"))

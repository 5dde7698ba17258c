"""What can be run on a page of the docs: its commands, Python and data, in order, as a Markdown parser finds them.

A block is run, and has to end well, unless the page says otherwise in a comment that readers do not see, just above it:

    <!-- test: parse only, needs root -->
    <!-- test: ends with 2, no such stream -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHELLS = {"bash", "sh"}
DATA = {"json", "yaml", "ini"}
SHOWN = {"text"}  # what a program prints
OTHERS = {"c", "matlab"}  # languages whose programs are tested elsewhere, see tests/docs/test_snippets.py
MARK = re.compile(r"<!--\s*test:\s*(parse only|ends with (?P<code>\d+)),\s*(?P<why>[^>]+?)\s*-->")
# In a block of no language, a line that begins so is a command; the others are what it prints, or a picture.
COMMAND = re.compile(r"(rtdsae|pip|python|sudo|curl|export|systemd-analyze|taskset|chrt)\s|rtdsae$|\./tools/")


@dataclass(frozen=True)
class Snippet:
    """Something on a page.

    Attributes:
        page: its file.
        line: where it begins, from 1.
        kind: `command`, `python`, one of DATA, or `shown`.
        text: a command on one line, or the whole block.
        parse_only: why it is not run; "" where it is.
        code: what it exits with.
    """

    page: Path
    line: int
    kind: str
    text: str
    parse_only: str = ""
    code: int = 0

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}: {self.text.splitlines()[0] if self.text else ''}"


class UnknownBlock(AssertionError):
    """A block that is neither run nor accounted for."""


def snippets(page: Path) -> list[Snippet]:
    """All of a page, in order."""
    return list(find(page, page.read_text()))


def find(page: Path, text: str) -> Iterator[Snippet]:
    """All of a text.

    Raises:
        UnknownBlock: a block is of a language that nobody runs, or a mark is none.
    """
    mark: dict[str, Any] = {}
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "html_block":
            mark = _mark(page, token.content)
        elif token.type in ("fence", "code_block"):
            first = token.map[0] + (2 if token.type == "fence" else 1)
            for line, kind, content in _of_block(page, first, token.info.strip(), token.content):
                yield Snippet(page, line, kind, content, **mark)
            mark = {}
        elif mark:
            raise UnknownBlock(f"{page.name}: a test mark ({mark}) is not just above a block")


def _mark(page: Path, comment: str) -> dict[str, Any]:
    if "test:" not in comment:
        return {}
    found = MARK.search(comment)
    if not found:
        raise UnknownBlock(f"{page.name}: {comment.strip()!r}: write <!-- test: parse only, WHY --> or ends with N")
    return {"code": int(found["code"])} if found["code"] else {"parse_only": found["why"]}


def _of_block(page: Path, first: int, language: str, content: str) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each snippet in a block."""
    if language in SHELLS:
        yield from ((line, "command", text) for line, text in _commands(first, content))
    elif not language:
        found = [(line, "command", text) for line, text in _commands(first, content) if COMMAND.match(text)]
        yield from found or [(first, "shown", content)]
    elif language == "python" or language in DATA:
        yield first, language, content
    elif language in SHOWN | OTHERS or language.startswith("{"):  # {eval-rst} is Sphinx's
        yield first, "shown", content
    else:
        raise UnknownBlock(f"{page.name}:{first}: nobody runs {language!r}: name another language, or a test for it")


def _commands(first: int, content: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty or a comment; `\\` at its end joins a line and the next."""
    held, began = "", first
    for i, line in enumerate(content.splitlines()):
        began = began if held else first + i
        if line.endswith("\\"):
            held += line[:-1]
            continue
        text, held = (held + line).strip(), ""
        if text and not text.startswith("#"):
            yield began, text

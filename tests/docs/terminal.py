"""A person with terminals: does what a page says, in a folder, one command after the other.

What runs on and on (a stream, the daemon, a listener) is started in the background and waited for; it is ended by
Ctrl-C (SIGINT) when a page starts another of its kind, or at the page's end, and has to end well.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pages import Snippet

SHOWN = 20  # lines of a log
SOON_S = 60.0  # nothing here needs so long
TAKES_S = 240.0  # nor any command
WELL = (0, 128 + signal.SIGINT, -signal.SIGINT)  # exit codes after Ctrl-C
# verb -> what kind of thing it is (one of a kind runs at a time), and a line by which it is known to run
LIVE = {
    "serve": ("daemon", "publishing"),
    "simulate": ("source", "streaming"),
    "replay": ("source", "streaming"),
    "listen": ("listener", " bin "),
    "monitor": ("monitor", "http://"),
    "record": ("recorder", "recording"),
}
LISTEN = ("listen", "record", "monitor", "control")  # verbs that need a daemon
LIMITS = ("--count", "--seconds", "--help")  # with one of them, a listener or a recorder ends by itself


@dataclass
class Running:
    """A process in the background."""

    kind: str
    snippet: Snippet
    process: "subprocess.Popen[bytes]"
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def last(self) -> str:
        """The end of it, for a failure's message."""
        return "\n".join(self.said().splitlines()[-SHOWN:])


class Terminal:
    """Runs snippets in a folder.

    Args:
        folder: where; files that a page needs are there already.
        rewrite: regular expressions and what takes their place in every command and program: names that have to be
            unique, sizes that have to be small.
        allowed: exit codes beside 0, by the command's beginning.
        names: Python in front of every program: what its reader has.
        source: the source_id of a stream that is there whenever a daemon starts; "" where the page brings one.
        daemon: the command of a daemon that is there for whoever listens, where the page has started none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rewrite: dict[str, str],
        allowed: dict[str, tuple[int, ...]],
        names: str,
        source: str,
        daemon: list[str],
    ) -> None:
        self.folder, self.rewrite, self.allowed, self.names = folder, rewrite, allowed, names
        self.source, self.daemon = source, daemon
        self.running: list[Running] = []
        self.environ = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            while self.running:
                self._end(self.running[-1], check=error is None)
        finally:
            for left in self.running:
                left.process.kill()
                left.process.wait()

    def take(self, snippet: Snippet) -> None:
        """Does what it says; an AssertionError tells what went wrong."""
        text = snippet.text
        for pattern, instead in self.rewrite.items():
            text = re.sub(pattern, instead, text)
        if snippet.kind == "python":
            self._python(snippet, text)
        elif text.startswith("export "):
            self.environ |= dict(part.split("=", 1) for part in shlex.split(text, comments=True)[1:])
        else:
            self._command(snippet, text)

    def _command(self, snippet: Snippet, text: str) -> None:
        words = shlex.split(text, comments=True)
        live = LIVE.get(words[1]) if words[0] == "rtdsae" and len(words) > 1 else None
        if words[0] == "rtdsae" and words[1:2] and words[1] in LISTEN:
            self._have_daemon(snippet)
        if live and live[0] == "daemon":
            self._have_source(snippet)
        self._make_room(words)
        if live and not snippet.code and (live[0] in ("daemon", "source", "monitor") or not set(LIMITS) & set(words)):
            self._start(snippet, words, *live)
            return
        done = self._run(["bash", "-euo", "pipefail", "-c", text])
        codes = next((codes for start, codes in self.allowed.items() if text.startswith(start)), ())
        assert done.returncode in (snippet.code, *codes), (
            f"{snippet}\n{text}\nended with {done.returncode}\n{self._told(done)}"
        )

    def _python(self, snippet: Snippet, text: str) -> None:
        file = self.folder / f"snippet_{snippet.line}.py"
        file.write_text(self.names + text)
        if "Subscriber(" in text or "Control(" in text or "zmq" in text:
            self._have_daemon(snippet)
        if endless(text):
            self._start(snippet, [sys.executable, str(file)], "program", "\n")
            self._end(self.running[-1])
            return
        done = self._run([sys.executable, str(file)])
        assert done.returncode == 0, f"{snippet}\nended with {done.returncode}\n{self._told(done)}"

    def _make_room(self, words: list[str]) -> None:
        """A page shows ways to the same end: what an earlier one made at the same place goes."""
        made = self.folder / words[words.index("--out") + 1] if "--out" in words else self.folder
        if made != self.folder and made.is_dir():
            shutil.rmtree(made)
        if words[:2] == ["rtdsae", "convert"] and len(words) > 3:
            (self.folder / words[3]).unlink(missing_ok=True)

    def _runs(self, kind: str) -> bool:
        return any(r.kind == kind and r.process.poll() is None for r in self.running)

    def _have_source(self, snippet: Snippet) -> None:
        if self.source and not self._runs("source"):
            self._start(snippet, ["rtdsae", "simulate", "--source-id", self.source, "--loop"], *LIVE["simulate"])

    def _have_daemon(self, snippet: Snippet) -> None:
        if not self._runs("daemon"):
            self._have_source(snippet)
            self._start(snippet, self.daemon, *LIVE["serve"])

    def _run(self, command: list[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=TAKES_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def _told(self, done: "subprocess.CompletedProcess[str]") -> str:
        return f"{done.stdout}{done.stderr}{self._logs()}"

    def _start(self, snippet: Snippet, words: list[str], kind: str, line: str) -> None:
        for other in [r for r in self.running if r.kind == kind]:
            self._end(other)
        log = self.folder / f"background_{snippet.line}_{kind}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        started = Running(kind, snippet, process, log)
        self.running.append(started)
        lines = [line]
        lines += ["taking requests"] if "--control" in words and kind == "daemon" else []
        lines += ["serving metrics"] if "--metrics" in words else []
        self._wait(started, lines)
        pair = [next((r for r in self.running if r.kind == kind), None) for kind in ("daemon", "source")]
        if kind in ("daemon", "source") and all(pair):
            self._wait(pair[0], ["decoding stream"])  # else the source might go while the daemon opens it

    def _wait(self, running: Running, lines: list[str]) -> None:
        """Until a process has said something."""
        end = time.monotonic() + SOON_S
        while not all(line in running.said() for line in lines):
            code = running.process.poll()
            assert code is None, f"{running.snippet}\nended with {code}\n{running.last()}"
            assert time.monotonic() < end, f"{running.snippet}\ndid not say {lines}\n{self._logs()}"
            time.sleep(0.02)

    def _logs(self) -> str:
        return "".join(f"\n--- {r.snippet}\n{r.last()}" for r in self.running)

    def _end(self, running: Running, *, check: bool = True) -> None:
        """Ctrl-C, as a person ends it."""
        self.running.remove(running)
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
        try:
            code = running.process.wait(SOON_S)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
            code = "no end"
        assert not check or code in WELL, f"{running.snippet}\nafter Ctrl-C: {code}\n{running.last()}"


def endless(program: str) -> bool:
    """Whether a program loops over what a subscriber receives, and nothing in it ends that."""
    loops = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.For | ast.While)]
    return any(
        "subscriber" in ast.unparse(loop.iter if isinstance(loop, ast.For) else loop.test)
        and not any(isinstance(node, ast.Break) for node in ast.walk(loop))
        for loop in loops
    )

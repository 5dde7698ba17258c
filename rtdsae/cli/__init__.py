"""The command line: one file a verb group, imported when its verb is called.

A verb is a frozen struct whose fields are its flags and whose `run()` does the work.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol

import tyro

from rtdsae.errors import ConfigError, RtdsaeError
from rtdsae.signals import interruptible

__all__ = ["main"]

# verb -> (module, struct, one line)
VERBS = {
    "demo": ("rtdsae.cli.demo", "Demo", "the whole path on generated neurons, live, in some minutes"),
    "train": ("rtdsae.cli.offline", "Train", "train a model on a recording"),
    "runs": ("rtdsae.cli.offline", "Runs", "list runs and compare them"),
    "search": ("rtdsae.cli.search", "Search", "search for settings: population-based, random, TPE"),
    "convert": ("rtdsae.cli.convert", "Convert", "a recording of another format, with a summary and warnings"),
    "evaluate": ("rtdsae.cli.offline", "Evaluate", "score a run by streaming, with figures"),
    "export": ("rtdsae.cli.offline", "Export", "write a run as a bundle"),
    "calibrate": ("rtdsae.cli.offline", "Calibrate", "fit a new session's neurons to a trained model"),
    "inspect": ("rtdsae.cli.offline", "Inspect", "verify a bundle and say what is in it"),
    "serve": ("rtdsae.cli.live", "Serve", "decode an LSL stream and publish latents"),
    "listen": ("rtdsae.cli.live", "Listen", "print what is published"),
    "simulate": ("rtdsae.cli.live", "Simulate", "synthetic neurons as an LSL stream"),
    "replay": ("rtdsae.cli.live", "Replay", "a recording as an LSL stream"),
    "monitor": ("rtdsae.cli.monitor", "Monitor", "a web page of what is published"),
    "record": ("rtdsae.cli.control", "Record", "store what is published, without holes"),
    "control": ("rtdsae.cli.control", "Ask", "ask a daemon: status, schema, anchor, swap, stop"),
    "keys": ("rtdsae.cli.control", "Keys", "make CURVE keys for a daemon and its clients"),
    "doctor": ("rtdsae.cli.rig", "Doctor", "what would stop the daemon here, and how to mend it"),
    "completion": ("rtdsae.cli.completion", "Completion", "a script that lets a shell complete what you type"),
    "bench": ("rtdsae.cli.rig", "Bench", "a bundle's latencies on this computer"),
}

TYRO = (tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)  # how flags are written, in every verb

# which extra brings which modules; whatever is not here is the modeller's
EXTRAS = {
    "serve": {"onnxruntime", "pylsl", "h5py", "prometheus_client"},
    "search": {"ray", "optuna"},
    "monitor": {"starlette", "uvicorn", "websockets"},
    "io": {"pynwb", "hdmf", "pyxdf", "pymatreader", "scipy", "neo", "quantities", "pandas"},
}
WHOLE = {"search": "search", "demo": "train"}  # verbs that need all of an extra, whichever module is missed first


class Verb(Protocol):
    """What a verb's struct can do."""

    def run(self) -> None:
        """Do the work; raise RtdsaeError with one line for what the user can mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 2 for bad usage or bad input, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    prepare_output()
    prog = f"rtdsae {args[0]}" if args and args[0] in VERBS else "rtdsae"
    try:
        with interruptible(main):
            run(args)
            sys.stdout.flush()
    except RtdsaeError as error:
        return fail(prog, str(error))
    except ModuleNotFoundError as error:
        return fail(prog, missing_extra(error, args))
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        give_up_output()
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        give_up_output()
        return fail(prog, f"{error.filename or 'a file, or the output'}: {error.strerror or error}")
    except MemoryError as error:
        return fail(prog, f"out of memory: {str(error) or 'ask for less at once'}")
    except KeyboardInterrupt:
        return 130
    return 0


def run(args: Sequence[str]) -> None:
    """What the arguments ask for: a verb, or what rtdsae itself has to say.

    Raises:
        RtdsaeError: there is no such verb, or what the verb raises.
    """
    for arg in args:
        if arg != arg.encode(errors="replace").decode():
            raise ConfigError(f"{arg} is not UTF-8, as names in runs and bundles are: give the file or folder another")
    match args:
        case [] | ["-h" | "--help", *_]:
            print(overview())
        case ["--version", *_]:
            print(f"rtdsae {importlib.import_module('rtdsae').__version__}")
        case [verb, *flags] if verb in VERBS:
            parse(verb, flags).run()
        case [verb, *_]:
            raise ConfigError(f"there is no verb {verb!r}; the verbs are {', '.join(VERBS)}")


def overview() -> str:
    """The help of `rtdsae` itself: the verbs, a line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}} {line}" for verb, (_, _, line) in VERBS.items()]
    return "\n".join(["usage: rtdsae VERB ...   (rtdsae VERB --help tells more)", "", *lines])


def parse(verb: str, args: Sequence[str]) -> Verb:
    """Read a verb's flags into its struct.

    Raises:
        RtdsaeError: a flag is unknown, missing or of the wrong type; the message is one line.
    """
    module, name, _ = VERBS[verb]
    struct = getattr(importlib.import_module(module), name)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            result: Verb = tyro.cli(
                struct,
                prog=f"rtdsae {verb}",
                args=args,
                config=TYRO,
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            sys.stdout.flush()
            raise
        raise RtdsaeError(f"{unframed(said.getvalue())} (see rtdsae {verb} --help)") from None
    return result


def unframed(box: str) -> str:
    """Tyro's framed message as one line, without its frame and its pointer to the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]
    said = [line for line in lines if line]
    ends = [i for i, line in enumerate(said) if line.startswith("For full helptext")]
    return " ".join(said[: ends[0] if ends else None])


def missing_extra(error: ModuleNotFoundError, args: Sequence[str]) -> str:
    """Which extra brings a module that is not installed."""
    name = (error.name or "a module").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), "train")
    extra = extra if extra == "io" else WHOLE.get(args[0], extra)
    return f"this verb needs {name}, of rtdsae's extra [{extra}]: pip install 'rtdsae[{extra}]'"


def prepare_output() -> None:
    """Makes sure that what is said can be written: where there is no stdout or stderr, or one of few characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def give_up_output() -> None:
    """Drops what stdout does not take, which Python would try to write once more as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(prog: str, message: str) -> int:
    """Say one line on stderr; 2 is the exit code of bad usage and bad input."""
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return 2

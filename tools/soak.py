"""A source, a daemon and subscribers for minutes or hours, with faults at random: what `./tools/soak` runs.

What is checked, all from outside (`soak_checks.py`):

    order       each bin once, in order, and later than the one before but where the clock was set back
    bins        every bin is the sum of the very samples that were pushed for it, or the spikes of its time
    values      and its latents are what the model gives in numpy, and the blend of its lanes, and so are forecasts
    flags       a bin without its samples is flagged a gap, and no other; late where it was; anchored where a lane
                was due, the model is new or it was asked for, and nowhere else; swapped where the model is another
    times       bins follow one another by a bin's width, gaps as well; before a reset of the clock there is one; the
                source's clock is off by no more than it can be measured wrong, and as the statuses say
    samples     every sample that was pushed while the daemon was connected is in a bin, or in the counter that it
                belongs to, one by one; but of a daemon that was ever 8 s behind, whose older samples LSL may have
                dropped without a word: `skipped_checks` of the JSON counts what was left out for that
    answers     what control answers: history is all that was published, garbage is refused, a swap swaps
    status      comes each second, and tells the model, the source, latency, anchors and losses
    others      a subscriber that is stopped at times gets everything; those that come get a schema
    resources   memory and latency stay what they were
    end         SIGTERM, a last status, exit code 0; after kill -9 another daemon goes on, by the same rules

The last line is JSON; the exit code is 1 where one of them does not hold. Ctrl-C and SIGTERM end every process.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ.setdefault("LSLAPICFG", str(ROOT / "configs" / "lsl_loopback.cfg"))  # before anything imports pylsl
sys.path.insert(0, str(ROOT / "tests"))  # for the toy model

import numpy as np
import pylsl
import zmq
from soak_checks import ARRAYS, EventsCheck, Life, RegularCheck, check_listener, read_logs, whole_records
from soak_parts import record_type
from toy_bundle import Toy

from rtdsae import wire
from rtdsae.client import Control
from rtdsae.errors import ControlError, EndpointError
from rtdsae.signals import caught, interrupt
from rtdsae.wire import Flags

PARTS = Path(__file__).parent / "soak_parts.py"
PATIENCE_S = 60.0  # within which everything has to happen that is waited for
MOST_PROBLEMS = 20
PER_BIN = {"counts": 1, "samples": 10, "events": 6}  # samples; of events about so many, one a channel
# How many lanes the two models have. They are anchored as the bundle says, where nothing else is named: in `swapped`
# one of them in lanes and the other once; of two lanes one alone is published where the daemon is told `every`.
LANES = {"once": (1, 1), "every": (2, 1), "lanes": (2, 2), "swapped": (2, 1)}
TOLD = {"every": "every"}
AHEAD = (1, 2, 5)  # bins that a daemon's forecasts look ahead
LATENESS_S = 0.005  # enough for a source on a busy computer: spikes are late only after something was held up
KILL_EVERY = 4  # rounds of all faults: a daemon has to live for some minutes, too


class Part:
    """A program beside the daemon."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PARTS), *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def order(self, what: object) -> str:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Soak:
    """The rig, its faults, and what it has seen."""

    def __init__(self, folder: Path, kind: str, rate: float, seed: int, anchor: str = "lanes") -> None:
        self.folder, self.kind, self.rate, self.rng = folder, kind, rate, random.Random(seed)
        self.name = f"soak-{os.getpid()}"
        self.toys = [Toy(bin_width_s=1 / rate, lanes=n, seed=i, name=f"toy{i}") for i, n in enumerate(LANES[anchor])]
        self.anchor = TOLD.get(anchor)
        self.bundles = [toy.write(folder / f"toy{i}") for i, toy in enumerate(self.toys)]
        self.pub, self.ask = f"ipc://{folder}/pub", f"ipc://{folder}/control"
        self.record = record_type(1 if kind == "events" else self.toys[0].n_channels)
        self.lives: list[Life] = []
        self.schemas: dict[int, wire.Schema] = {}
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.logs: list[Path] = []  # of the sources
        self.model = 0  # which toy runs
        self.worst, self.skipped = 0.0, 0
        self.began = time.monotonic()

    @property
    def life(self) -> Life:
        """The daemon that runs."""
        return self.lives[-1]

    @property
    def frames(self) -> list[wire.Latents]:
        return self.life.frames

    # the rig ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything started, and ended in any case."""
        with contextlib.ExitStack() as stack, zmq.Context() as context:
            self.context = context
            stack.callback(context.destroy, 0)
            self.socket = context.socket(zmq.SUB)
            self.socket.set_hwm(0)
            self.socket.subscribe(b"")
            self.socket.connect(self.pub)
            self.log = stack.enter_context(open(self.folder / "daemon.log", "w"))
            self.heard = stack.enter_context(open(self.folder / "heard.jsonl", "w"))
            stack.callback(lambda: self.daemon.kill())
            self.start_daemon()
            self.listener = self.start(self.heard, "listen", self.pub, "--json", "--timeout", 2 * PATIENCE_S)
            stack.callback(self.listener.kill)
            self.source = self.new_source("a")
            stack.callback(lambda: self.source.kill())
            self.crowd = Part("crowd", self.pub)
            stack.callback(self.crowd.kill)
            self.control = stack.enter_context(Control(self.ask, timeout_s=PATIENCE_S))
            yield

    def start_daemon(self) -> None:
        self.lives.append(Life(self.n_pushed(), anchor=self.anchor, ahead=self.rng.choice(AHEAD)))
        self.model = 0
        serve = [self.bundles[0], "--stream", f"name={self.name}", "--pub", self.pub, "--control", self.ask]
        settings = ["--publish", ",".join(ARRAYS), "--timeout", PATIENCE_S, "--set", f"lateness_s={LATENESS_S}"]
        settings += ["--set", f"model.forecast_bins={self.life.ahead}"]
        settings += ["--anchor", self.anchor] if self.anchor else []
        self.daemon = self.start(self.log, "serve", *serve, *settings)

    def start(self, out: Any, *command: object) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "rtdsae", *map(str, command)]
        return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)

    def new_source(self, source_id: str) -> Part:
        """A source, with a log of its own."""
        self.source_id = f"{self.name}-{source_id}"
        self.logs.append(self.folder / f"source{len(self.logs)}")
        return self.any_source(source_id, self.kind, self.toys[0].n_channels, self.logs[-1])

    def any_source(self, source_id: str, kind: str, n_channels: int, log: Path) -> Part:
        rate, seed = PER_BIN[kind] * self.rate, self.rng.randrange(1 << 30)
        return Part("source", self.name, f"{self.name}-{source_id}", kind, n_channels, rate, log, seed)

    def n_pushed(self) -> int:
        """How many samples were pushed until now."""
        return sum(len(whole_records(log, self.record)) for log in self.logs) // self.record.itemsize

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def problem(self, what: str) -> None:
        """Notes what is not as promised; of very many only the first, which the others mostly follow from."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(f"at {self.seconds():.1f} s: {what}")
            print(f"  {self.problems[-1]}", file=sys.stderr, flush=True)

    def pump(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Receives for so long, or until something is so: whether it is."""
        end = time.monotonic() + seconds
        while not (true := until()) and (left := end - time.monotonic()) > 0:
            if self.socket.poll(min(1e3 * left, 100)):
                self.take(wire.decode(self.socket.recv()))
            if self.daemon.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self.daemon.returncode}")
            self.weigh()
        return true

    def take(self, message: object) -> None:
        match message:
            case wire.Schema():
                self.schemas[message.id] = message
            case wire.Latents():
                self.frames.append(message)
            case wire.Status():
                self.life.tell(dict(message))

    def weigh(self) -> None:
        """The daemon's memory, every two seconds."""
        memory = self.life.memory
        if not memory or self.seconds() - memory[-1][0] > 2:
            pages = int(Path(f"/proc/{self.daemon.pid}/statm").read_text().split()[1])
            memory.append((self.seconds(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

    def wait(self, what: str, until: Callable[[], bool]) -> None:
        """Receives until it is so; a problem where it takes too long."""
        if not self.pump(PATIENCE_S, until):
            self.problem(f"{what} did not happen within {PATIENCE_S:g} s")

    def flows(self, after: float = -np.inf) -> None:
        """Waits until bins that were observed come again, of samples that arrived after a time."""
        n = len(self.frames)
        self.wait(
            "bins",
            lambda: any(
                f.t_in > after and not f.flags & Flags.GAP for f in self.frames[max(n, len(self.frames) - 2) :]
            ),
        )

    # faults -----------------------------------------------------------------------------------------------------------

    def tell(self, what: str) -> None:
        """Has the source do something, and waits until bins of after that have come."""
        self.flows(float(self.source.order(what)))

    def gap(self) -> None:
        self.tell(f"gap {self.rng.choice([1, 2, 5, 30, 150]) * self.rng.choice([1, PER_BIN[self.kind]])}")

    def nan(self) -> None:
        self.tell("nan")

    def huge(self) -> None:
        self.tell("huge")

    def duplicate(self) -> None:
        self.tell("duplicate")

    def backward(self) -> None:
        self.tell(f"backward {self.rng.uniform(0.02, 0.9)}")

    def reset(self) -> None:
        self.tell(f"reset {self.rng.choice([-5.0, -100.0, 100.0])}")

    def stopped(self, process: subprocess.Popen[Any], longest: float) -> None:
        process.send_signal(signal.SIGSTOP)
        self.pump(self.rng.uniform(0.1, longest))
        process.send_signal(signal.SIGCONT)

    def source_stopped(self) -> None:
        self.stopped(self.source.process, 3.0)
        self.flows()

    def daemon_stopped(self) -> None:
        self.stopped(self.daemon, 2.0)
        self.flows()

    def subscriber_stopped(self) -> None:
        self.stopped(self.listener, 3.0)

    def kill_source(self) -> None:
        self.source.kill()
        self.life.losses += bool(
            read_logs(self.logs[-1:], self.record)["heard"].any()
        )  # else there was nothing to lose

    def restart(self) -> None:
        """The source is killed, and another is there some time later, of the same name or another."""
        self.kill_source()
        self.pump(self.rng.choice([0.0, 0.5, 3.0]))
        self.source = self.new_source(self.rng.choice("aaab"))
        self.flows()

    def killed_unheard(self) -> None:
        """The source is killed while the daemon does not look: what it had sent is lost, and has to be counted."""
        self.daemon.send_signal(signal.SIGSTOP)
        self.pump(0.7)
        self.kill_source()
        self.daemon.send_signal(signal.SIGCONT)
        self.source = self.new_source("a")
        self.flows()

    def impostor(self) -> None:
        """In place of the source comes one that does not fit, and has to be refused."""
        self.kill_source()
        kind = "counts" if self.kind == "events" else self.kind
        impostor = self.any_source("a", kind, 3, self.folder / "impostor")
        self.wait("refusal", lambda: "has 3 channels" in self.life.status["stream"]["problem"])
        if self.life.status["stream"]["connected"]:
            self.problem("the status says that a source is connected, when there was none")
        impostor.kill()
        self.source = self.new_source("a")
        self.flows()

    def kill_daemon(self) -> None:
        """Kill -9, and another daemon in its place."""
        self.life.told, self.life.killed = self.n_pushed(), True
        self.daemon.kill()
        self.daemon.wait(PATIENCE_S)
        self.life.until = self.n_pushed()
        while self.socket.poll(500):
            self.take(wire.decode(self.socket.recv()))
        self.start_daemon()
        self.begin()

    def begin(self) -> None:
        """Waits for the first bins of a daemon, and has those from history that came before anybody listened."""
        self.wait("bins", lambda: len(self.frames) > 20 and bool(self.life.status))
        if self.frames and (first := self.frames[0].seq):
            missed = self.control.history(0, first - 1)
            self.frames[:0] = [dataclasses.replace(bin_, flags=bin_.flags & ~Flags.BACKFILL) for bin_ in missed]
        self.ask_anchor()

    def come_and_go(self) -> None:
        ungreeted = self.crowd.order(self.rng.choice([5, 20, 50]))
        if ungreeted != "0":
            self.problem(f"{ungreeted} subscribers that asked for a schema were sent none")

    def ask_status(self) -> None:
        if self.control.status()["run"] != self.frames[-1].run:
            self.problem("control told the status of another run")

    def ask_history(self) -> None:
        """Some of the last ten seconds again, but for the newest: it is published before it is kept."""
        last = self.frames[-1].seq - 1
        first = max(0, last - self.rng.randint(1, round(10 * self.rate)))
        bins = self.control.history(first, last)
        if [bin_.seq for bin_ in bins] != list(range(first, last + 1)):
            self.problem(f"history from {first} to {last} is not whole: it has {_spans(bin_.seq for bin_ in bins)}")
            return
        for bin_, frame in zip(bins, self.frames[first : last + 1], strict=True):
            if bin_.payload.tobytes() != frame.payload.tobytes() or bin_.flags != frame.flags | Flags.BACKFILL:
                self.problem(f"history has another bin {bin_.seq} than was published")

    def ask_anchor(self) -> None:
        n, sent = self.toys[0].n_anchor, pylsl.local_clock()
        self.control.anchor()
        self.life.asked.append((sent, answered := pylsl.local_clock()))
        # S whole bins, and the one that is anchored on them.
        self.wait(
            "anchor",
            lambda: (
                self.frames[-n - 1].t_out > answered and not any(f.flags & Flags.GAP for f in self.frames[-n - 1 : -1])
            ),
        )

    def ask_swap(self) -> None:
        n, self.model = len(self.frames), 1 - self.model
        self.control.swap(self.bundles[self.model])
        # The newest bin alone: thousands may have come where the swap took long.
        self.wait("swap", lambda: len(self.frames) > n and bool(self.frames[-1].flags & Flags.SWAPPED))
        self.ask_history()  # which is of both models now

    def ask_bad_swap(self) -> None:
        with contextlib.suppress(ControlError):
            self.control.swap(self.folder)
            self.problem("a swap to what is no bundle was not refused")

    def send_garbage(self) -> None:
        with self.context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self.ask)
            for _ in range(self.rng.randint(1, 20)):
                socket.send_multipart([self.rng.randbytes(self.rng.choice([0, 9, 900])) for _ in range(3)])
            self.pump(0.1)

    FAULTS = (
        gap, nan, huge, duplicate, backward, reset, source_stopped, daemon_stopped, subscriber_stopped,
        restart, killed_unheard, impostor,
        come_and_go, come_and_go, ask_status, ask_history, ask_anchor, ask_swap, ask_bad_swap, send_garbage,
    )  # fmt: skip

    def run(self, minutes: float) -> None:
        """All faults, in another order each round, until the time is over, and once at least."""
        self.begin()
        end = time.monotonic() + 60 * minutes
        for fault in self.faults():
            if self.problems or (time.monotonic() > end and len(self.done) == len({*self.FAULTS, Soak.kill_daemon})):
                break
            print(f"{self.seconds():8.1f} s  {self.n_bins():8} bins  {fault.__name__}", flush=True)
            try:
                fault(self)
            except (ControlError, EndpointError) as error:
                self.problem(f"{fault.__name__}: {error}")
            self.done[fault.__name__] += 1
            self.pump(self.rng.uniform(0.0, 1.0))

    def faults(self) -> Iterator[Callable[["Soak"], None]]:
        """For ever."""
        for rounds in itertools.count():
            some = [*self.FAULTS, Soak.kill_daemon] if rounds % KILL_EVERY == 0 else self.FAULTS
            yield from self.rng.sample(some, len(some))

    def n_bins(self) -> int:
        return sum(len(life.frames) for life in self.lives)

    def stop(self) -> None:
        """SIGTERM, everything that was published till then, and the exit code."""
        self.pump(0.5)
        self.life.told = self.n_pushed()
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(PATIENCE_S)
        self.life.until = self.n_pushed()
        while self.socket.poll(500):
            self.take(wire.decode(self.socket.recv()))
        self.pump_listener()
        self.listener.send_signal(signal.SIGINT)
        self.listener.wait(PATIENCE_S)
        if code:
            self.problem(f"the daemon exited with {code}")
        stream = self.life.status["stream"]
        if (stream["source_id"], stream["kind"]) != (self.source_id, self.kind):
            self.problem(f"the last status says {stream}, but the source is {self.source_id}")
        said = (self.folder / "daemon.log").read_text()
        if "Traceback" in said or f"published {len(self.frames)} bins" not in said:
            self.problem(f"the daemon said: {said[-1000:]}")

    def pump_listener(self) -> None:
        """Waits until the listener has written its last bin."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            lines = (self.folder / "heard.jsonl").read_bytes().splitlines()
            if lines and f'"seq": {self.frames[-1].seq},'.encode() in lines[-1]:
                return
            time.sleep(0.2)

    # checks -----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything that was seen, against everything that was done."""
        samples = read_logs(self.logs, self.record)
        toys = {schema.id: self.toys[i] for i in (0, 1) for schema in self.schemas.values() if self.of(schema, i)}
        for life in self.lives:
            facts = (life, samples, self.rate, toys, self.problem)
            check = EventsCheck(*facts) if self.kind == "events" else RegularCheck(PER_BIN[self.kind], *facts)
            check.run()
            self.worst, self.skipped = max(self.worst, check.worst), self.skipped + check.skipped
        check_listener(self.lives, self.folder / "heard.jsonl", self.rate, self.problem)

    def of(self, schema: wire.Schema, i: int) -> bool:
        return schema.bundle_hash == json.loads((self.bundles[i] / "manifest.json").read_text())["manifest_sha256"]

    def report(self) -> dict[str, Any]:
        """What is printed as JSON."""
        delays = [life.delays() for life in self.lives if len(life.frames) > 1]
        halves = np.array_split(np.concatenate(delays), 2) if delays else []
        memory = [mb for life in self.lives for _, mb in life.memory]
        return {
            "seconds": round(self.seconds(), 1),
            "bins": self.n_bins(),
            "gaps": sum(int(life.gaps().sum()) for life in self.lives),
            "daemons": len(self.lives),
            "sources": len(self.logs),
            "faults": dict(self.done),
            "worst_difference": self.worst,
            "skipped_checks": self.skipped,
            "memory_mb": {"first": memory[0], "last": memory[-1], "max": max(memory)} if memory else None,
            "latency_us": {
                name: [round(1e6 * float(np.percentile(half, q)), 1) for half in halves]
                for name, q in (("p50", 50), ("p99", 99))
            },
            "problems": self.problems,
        }


def _spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of the parts that are without a hole."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        follows = spans and number == spans[-1][1] + 1
        spans[-1:] = [(spans[-1][0], number)] if follows else [*spans[-1:], (number, number)]
    return spans


def main() -> int:
    """Run it; 0 where all promises were kept."""
    parser = argparse.ArgumentParser(prog="./tools/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their order (default: %(default)s)")
    parser.add_argument("--input", choices=PER_BIN, default="counts", help="kind of stream (default: %(default)s)")
    parser.add_argument("--anchor", choices=LANES, default="lanes", help="of the models (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=100.0, help="bins a second (default: %(default)s)")
    args = parser.parse_args()
    if not (0 < args.minutes < np.inf and 0.1 <= args.rate <= 10_000):
        parser.error("--minutes must be above 0, --rate must be from 0.1 to 10000")
    # A handler also where this was begun in the background: the programs would ignore Ctrl-C as well.
    with caught(interrupt), tempfile.TemporaryDirectory(prefix="rtdsae-soak-") as folder:
        soak = Soak(Path(folder), args.input, args.rate, args.seed, args.anchor)
        try:
            with soak.running():
                soak.run(args.minutes)
                soak.stop()
            soak.check()
        except Exception as error:  # the report is wanted then, too
            soak.problem(f"{type(error).__name__}: {error}")
        if soak.problems:
            print((soak.folder / "daemon.log").read_text(), file=sys.stderr)
    print(json.dumps({**vars(args), **soak.report()}))
    return 1 if soak.problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""A source, a daemon and subscribers for minutes or hours, with faults at random: what `./tools/soak` runs.

What is checked, all from outside:

    order       each bin once, in order, and later than the one before but where the clock was set back
    values      every bin equals what the model gives in numpy for the very samples that were pushed
    flags       a bin without its sample is flagged a gap, and no other; late where it was; anchored and swapped where
                the reference has to be, too
    samples     every sample that was pushed while the daemon was connected is in a bin, or in the counter that it
                belongs to, one by one
    answers     what control answers: history is what was published, garbage is refused, a swap swaps
    others      a subscriber that is stopped at times gets everything
    resources   memory and latency stay what they were
    end         SIGTERM, a last status, exit code 0

The last line is JSON; the exit code is 1 where one of them does not hold.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
os.environ.setdefault("LSLAPICFG", str(ROOT / "configs" / "lsl_loopback.cfg"))  # before anything imports pylsl
sys.path.insert(0, str(ROOT / "tests"))  # for the toy model

import numpy as np
import zmq
from soak_parts import BACKWARD, DUPLICATE, GOOD, HUGE, NAN, record_type
from toy_bundle import Toy

from rtdsae import wire
from rtdsae.client import Control
from rtdsae.errors import ControlError, EndpointError
from rtdsae.wire import Flags

PARTS = Path(__file__).parent / "soak_parts.py"
PATIENCE_S = 30.0  # within which everything has to happen that is waited for
TOLERANCE = 2e-4
NEAR_S = 1e-3  # between a bin's end and its sample's stamp: the correction of the clock
IN_FLIGHT = 20  # samples that a source may take with it when it is killed
GROWTH_MB = 16.0
MOST_PROBLEMS = 20
ARRAYS = ("factors", "z", "behaviour")
RESET_BACK_S, RESET_AHEAD_S = 1.0, 60.0  # a stamp that is further off is a reset clock


class Frame(NamedTuple):
    """A bin as it was received."""

    run: int
    seq: int
    bin: int
    t_bin: float
    t_in: float
    t_out: float
    flags: int
    schema_id: int
    payload: np.ndarray


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

    def __init__(self, folder: Path, rate: float, seed: int) -> None:
        self.folder, self.rate, self.rng = folder, rate, random.Random(seed)
        self.name = f"soak-{os.getpid()}"
        self.toys = [Toy(bin_width_s=1 / rate, seed=toy) for toy in (0, 1)]
        self.bundles = [toy.write(folder / f"toy{i}") for i, toy in enumerate(self.toys)]
        self.pub, self.ask = f"ipc://{folder}/pub", f"ipc://{folder}/control"
        self.frames: list[Frame] = []
        self.schemas: dict[int, wire.Schema] = {}
        self.status: dict[str, Any] = {}
        self.memory: list[tuple[float, float]] = []  # seconds, MB
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.epochs = 0
        self.model = 0  # which toy runs
        self.began = time.monotonic()

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
            serve = [self.bundles[0], "--stream", f"name={self.name}", "--pub", self.pub, "--control", self.ask]
            self.daemon = self.start(stack, self.log, "serve", *serve, "--timeout", PATIENCE_S)
            self.listener = self.start(stack, self.heard, "listen", self.pub, "--json", "--timeout", 2 * PATIENCE_S)
            self.source = self.new_source("a")
            stack.callback(lambda: self.source.kill())
            self.crowd = Part("crowd", self.pub)
            stack.callback(self.crowd.kill)
            self.control = stack.enter_context(Control(self.ask, timeout_s=PATIENCE_S))
            yield

    def start(self, stack: contextlib.ExitStack, out: Any, *command: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "rtdsae", *map(str, command)], stdout=out, stderr=subprocess.STDOUT
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def new_source(self, source_id: str, n_channels: int | None = None) -> Part:
        """A source; its log is an epoch, but where it is one that the daemon has to refuse."""
        log = self.folder / (f"epoch{self.epochs}" if n_channels is None else "impostor")
        self.epochs += n_channels is None
        seed = self.rng.randrange(1 << 30)
        channels = n_channels or self.toys[0].n_channels
        return Part("source", self.name, f"{self.name}-{source_id}", channels, self.rate, log, seed)

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
            case wire.Latents() as m:
                times = (m.t_bin, m.t_in, m.t_out)
                self.frames.append(Frame(m.run, m.seq, m.bin, *times, int(m.flags), m.schema_id, m.payload))
            case wire.Status():
                self.status = dict(message)

    def weigh(self) -> None:
        """The daemon's memory, every two seconds."""
        if not self.memory or self.seconds() - self.memory[-1][0] > 2:
            pages = int(Path(f"/proc/{self.daemon.pid}/statm").read_text().split()[1])
            self.memory.append((self.seconds(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6))

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
        self.tell(f"gap {self.rng.choice([1, 2, 5, 30, 150])}")

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

    def restart(self) -> None:
        """The source is killed, and another is there some time later, of the same name or another."""
        self.source.kill()
        self.pump(self.rng.choice([0.0, 0.5, 3.0]))
        self.source = self.new_source(self.rng.choice("aaab"))
        self.flows()

    def impostor(self) -> None:
        """In place of the source comes one that does not fit, and has to be refused."""
        self.source.kill()
        impostor = self.new_source("a", n_channels=3)
        self.wait("refusal", lambda: "has 3 channels" in self.status["stream"]["problem"])
        impostor.kill()
        self.source = self.new_source("a")
        self.flows()

    def come_and_go(self) -> None:
        self.crowd.order(self.rng.choice([5, 20, 50]))

    def ask_status(self) -> None:
        if self.control.status()["run"] != self.frames[-1].run:
            self.problem("control told the status of another run")

    def ask_history(self) -> None:
        """Some of the last ten seconds again."""
        first = max(0, self.frames[-1].seq - self.rng.randint(1, round(10 * self.rate)))
        bins = self.control.history(first, self.frames[-1].seq)
        self.pump(0.0)
        published = {frame.seq: frame for frame in self.frames[first:]}
        for bin_ in bins:
            frame = published.get(bin_.seq)
            if frame and (bin_.payload.tobytes() != frame.payload.tobytes() or bin_.flags != frame.flags | 16):
                self.problem(f"history has another bin {bin_.seq} than was published")
        if [bin_.seq for bin_ in bins] != list(range(first, self.frames[-1].seq + 1))[: len(bins)] or not bins:
            self.problem(f"history from {first} on is not whole")

    def ask_anchor(self) -> None:
        n = len(self.frames)
        self.control.anchor()
        self.wait("anchor", lambda: any(f.flags & Flags.ANCHORED for f in self.frames[n:]))

    def ask_swap(self) -> None:
        n, self.model = len(self.frames), 1 - self.model
        self.control.swap(self.bundles[self.model])
        self.wait("swap", lambda: any(f.flags & Flags.SWAPPED for f in self.frames[n:]))

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
        restart, impostor,
        come_and_go, come_and_go, ask_status, ask_history, ask_anchor, ask_swap, ask_bad_swap, send_garbage,
    )  # fmt: skip

    def run(self, minutes: float) -> None:
        """All faults, in another order each round, until the time is over."""
        self.wait("bins", lambda: len(self.frames) > 20 and bool(self.status))
        end = time.monotonic() + 60 * minutes
        left: list[Callable[[Soak], None]] = []
        while time.monotonic() < end and not self.problems:
            if not left:
                left = self.rng.sample(self.FAULTS, len(self.FAULTS))
            fault = left.pop()
            print(f"{self.seconds():8.1f} s  {len(self.frames):8} bins  {fault.__name__}", flush=True)
            try:
                fault(self)
            except (ControlError, EndpointError) as error:
                self.problem(f"{fault.__name__}: {error}")
            self.done[fault.__name__] += 1
            self.pump(self.rng.uniform(0.0, 1.0))

    def stop(self) -> None:
        """SIGTERM, everything that was published till then, and the exit code."""
        self.pump(0.5)
        self.pushed = len(self.samples())
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(PATIENCE_S)
        while self.socket.poll(500):
            self.take(wire.decode(self.socket.recv()))
        self.pump_listener()
        self.listener.send_signal(signal.SIGINT)
        self.listener.wait(PATIENCE_S)
        if code:
            self.problem(f"the daemon exited with {code}")
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
        samples = self.samples()
        self.check_order(samples)
        which = self.check_samples(samples)
        self.check_values(samples, which)
        self.check_listener()
        self.check_resources()

    def samples(self) -> np.ndarray:
        """All that was pushed, in order, with the source that pushed it."""
        kind = record_type(self.toys[0].n_channels)
        found = []
        for epoch in range(self.epochs):
            content = (self.folder / f"epoch{epoch}").read_bytes()
            records = np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], kind)
            found.append(np.zeros(len(records), [*((n, *kind.fields[n][:1]) for n in kind.names), ("epoch", "i4")]))
            for name in kind.names:
                found[-1][name] = records[name]
            found[-1]["epoch"] = epoch
        return np.concatenate(found)

    def check_order(self, samples: np.ndarray) -> None:
        frames = self.frames
        for name, values in (("seq", [f.seq for f in frames]), ("bin", [f.bin - frames[0].bin for f in frames])):
            if values != list(range(len(frames))):
                at = next(i for i, value in enumerate(values) if value != i)
                self.problem(f"{name} {values[at]} came {at}th")
        if len({f.run for f in frames}) != 1:
            self.problem("the bins are of several runs")
        width = 1 / self.rate
        for f in frames:
            if bool(f.flags & Flags.LATE) != (f.t_out > f.t_bin + width) or f.t_in > f.t_out:
                self.problem(f"bin {f.bin}: its times are wrong, or its late flag")
        flagged = sum(bool(f.flags & Flags.GAP) for f in frames)
        if self.status["gaps"] != flagged or self.status["bins"] != len(frames):
            self.problem(f"{flagged} gaps in {len(frames)} bins, the status says {self.status}")

    def check_samples(self, samples: np.ndarray) -> np.ndarray:
        """Which sample each bin is of (-1 for a gap); and that each sample that was heard is in a bin or a counter."""
        n_anchor = self.toys[0].n_anchor
        good = np.flatnonzero(samples["kind"] == GOOD)
        which, at = np.full(len(self.frames), -1), 0
        for i, frame in enumerate(self.frames):
            if frame.flags & Flags.GAP:
                continue
            ahead = np.flatnonzero(np.abs(samples["stamp"][good[at : at + 100_000]] - frame.t_bin) < NEAR_S)
            if len(ahead):
                which[i] = good[at + ahead[0]]
                at += int(ahead[0]) + 1
            else:
                self.problem(f"bin {frame.bin} is flagged as observed, but no sample was pushed for its time")
        binned = np.zeros(len(samples), bool)
        binned[which[which >= 0]] = True
        first = int(np.flatnonzero(binned)[0])
        anchor = good[good < first][-n_anchor:]  # these came before the first bin that was published
        binned[anchor] = True
        counted = np.zeros(len(samples), bool)
        for epoch in range(self.epochs):
            self.check_epoch(epoch, samples, binned, counted)
        self.check_counters(samples[counted | binned])
        return which

    def check_epoch(self, epoch: int, samples: np.ndarray, binned: np.ndarray, counted: np.ndarray) -> None:
        """That no sample of a source was lost between the first and the last that arrived."""
        there = np.flatnonzero(samples["epoch"] == epoch)
        arrived = there[binned[there]]
        if not len(arrived):
            return
        whole = there[(there >= arrived[0]) & (there <= arrived[-1])]
        counted[whole] = samples["kind"][whole] != GOOD
        lost = whole[(samples["kind"][whole] == GOOD) & ~binned[whole]]
        early = there[(there < arrived[0]) & samples["heard"][there]]
        after = there[(there > arrived[-1]) & (there < self.pushed)]
        for name, some, allowed in (("amid", lost, 0), ("before", early, 1), ("after", after, IN_FLIGHT)):
            if len(some) > allowed:
                around = samples[["stamp", "kind"]][max(0, some[0] - 3) : some[0] + 4].tolist()
                self.problem(
                    f"{len(some)} samples of source {epoch} are lost {name} those that arrived: {some[:5]} {around}"
                )

    def check_counters(self, arrived: np.ndarray) -> None:
        kinds = {"nan": NAN, "overflow": HUGE, "duplicates": DUPLICATE, "late": BACKWARD}
        expected = {name: int((arrived["kind"] == kind).sum()) for name, kind in kinds.items()}
        steps = np.diff(arrived["stamp"][arrived["kind"] <= HUGE])
        back, ahead = (steps < -RESET_BACK_S).sum(), (steps > RESET_AHEAD_S).sum()
        expected |= {"resets": int(back + ahead), "partial": 0}
        found = {name: self.status[name] for name in expected}
        if found != expected:
            self.problem(f"the counters are {found}, but what was pushed comes to {expected}")
        set_back = int((np.diff([f.t_bin for f in self.frames]) <= 0).sum())
        if set_back != back:
            self.problem(f"time went back {set_back} times in the bins, {back} times in the samples")

    def check_values(self, samples: np.ndarray, which: np.ndarray) -> None:
        """Each bin against the model in numpy."""
        toys = {schema.id: self.toys[i] for i in (0, 1) for schema in self.schemas.values() if self.of(schema, i)}
        n = self.toys[0].n_anchor
        first = int(which[which >= 0][0])
        good = np.flatnonzero(samples["kind"] == GOOD)
        window = [samples["x"][at] for at in good[good < first][-n:]]
        seen, state, worst = [True] * n, None, 0.0
        for frame, at in zip(self.frames, which, strict=True):
            toy = toys[frame.schema_id]
            if frame.flags & (Flags.ANCHORED | Flags.SWAPPED):
                if not all(seen[-n:]):
                    self.problem(f"bin {frame.bin} is anchored on a window with a gap")
                state = toy.anchor(np.stack(window[-n:]))
            x, observed = (samples["x"][at], 1.0) if at >= 0 else (np.zeros(toy.n_channels, np.float32), 0.0)
            state, out = toy.step(state, x, observed)
            expected = np.concatenate([np.ravel(out[name]) for name in ARRAYS])
            worst = max(worst, float(np.abs(frame.payload - expected).max()))
            if not np.allclose(frame.payload, expected, atol=TOLERANCE):
                self.problem(f"bin {frame.bin} (seq {frame.seq}) is not what the model gives: off by {worst:.2g}")
                return
            window, seen = [*window[-n:], x], [*seen[-n:], at >= 0]
        self.worst = worst

    def of(self, schema: wire.Schema, i: int) -> bool:
        return schema.bundle_hash == json.loads((self.bundles[i] / "manifest.json").read_text())["manifest_sha256"]

    def check_listener(self) -> None:
        lines = (self.folder / "heard.jsonl").read_text().splitlines()
        seqs = [json.loads(line)["seq"] for line in lines if line.startswith("{")]
        if not seqs or seqs != list(range(seqs[0], len(self.frames))):
            self.problem(f"the subscriber that was stopped at times has {len(seqs)} of {len(self.frames)} bins")

    def check_resources(self) -> None:
        """The last third against the one before it, where everything had been loaded once."""
        megabytes = np.array([mb for _, mb in self.memory])
        third = max(1, len(megabytes) // 3)
        growth = float(megabytes[-third:].max() - megabytes[-2 * third : -third].max()) if len(megabytes) > 3 else 0.0
        if growth > GROWTH_MB:
            self.problem(f"the daemon's memory grew by {growth:.1f} MB in the last third")
        before, after = (np.percentile(part, 50) for part in np.array_split(self.delays(), 2))
        if after > 3 * before + 1e-3:
            self.problem(f"latency grew from {1e6 * before:.0f} to {1e6 * after:.0f} us")

    def delays(self) -> np.ndarray:
        return np.array([f.t_out - f.t_in for f in self.frames])

    def report(self) -> dict[str, Any]:
        """What is printed as JSON."""
        halves = np.array_split(self.delays(), 2)
        return {
            "seconds": round(self.seconds(), 1),
            "bins": len(self.frames),
            "gaps": self.status.get("gaps"),
            "sources": self.epochs,
            "faults": dict(self.done),
            "worst_difference": getattr(self, "worst", None),
            "memory_mb": {
                "first": self.memory[0][1],
                "last": self.memory[-1][1],
                "max": max(m for _, m in self.memory),
            },
            "latency_us": {
                name: [round(1e6 * float(np.percentile(half, q)), 1) for half in halves]
                for name, q in (("p50", 50), ("p99", 99))
            },
            "problems": self.problems,
        }


def main() -> int:
    """Run it; 0 where all promises were kept."""
    parser = argparse.ArgumentParser(prog="./tools/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their order (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=100.0, help="bins a second (default: %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs begun by one in the background would ignore it
    with tempfile.TemporaryDirectory(prefix="rtdsae-soak-") as folder:
        soak = Soak(Path(folder), args.rate, args.seed)
        try:
            with soak.running():
                soak.run(args.minutes)
                soak.stop()
            soak.check()
        except Exception as error:  # the report is wanted then, too
            soak.problem(f"{type(error).__name__}: {error}")
        if soak.problems:
            print((soak.folder / "daemon.log").read_text(), file=sys.stderr)
    print(json.dumps({"seed": args.seed, "rate": args.rate, **soak.report()}))
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())

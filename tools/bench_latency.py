"""How much slower than the floor is the daemon? The same load through both, in alternating blocks of one run.

    python tools/bench_latency.py [BUNDLE] [--rates 50 100 1000] [--channels 96 1024] [--hidden 128 512]
                                  [--input counts | samples=K | events=HZ] [--daemon OPTIONS ...] [--seconds 10]
                                  [--blocks 3] [--load] [--extras]
    python tools/bench_latency.py --scale MINUTES [--channels 4096] [--hidden 16] [--lanes 8] [--rates 1000]

The floor is `bench_floor.py`: pull, `InferenceSession.run`, send, and nothing else, on the same `step.onnx`. Beside it
runs the daemon, once for each `--daemon`, which has further options of `rtdsae serve` ("" for none). Without BUNDLE the
models are linear ones of so many hidden units (a step's cost is that of two products with `channels` and one with
`hidden`, about a third of a GRU's); with one, its own bins and channels are the load.

`--input` is what the source sends: counts, a sample a bin; samples, K of them a bin; or events, spikes of channels that
fire HZ times a second.

`--load` keeps two other processes busy half of the time. `--extras` adds the daemon as a lab runs it: with requests to
its control socket, some of them for anchors, a log of them in JSON, scrapes of its metrics and 50 subscribers.
`--scale` is one long run of a large model, by minute.

All times are microseconds: `push -> in` from when the bin is complete (its last sample is pushed, or, where spikes make
it, it ends: both programs wait 2 ms more for late ones) to when it is in the program's hands, `in -> out` to just
before its send, `out -> sub` to the subscriber's hands, `push -> sub` all of it. Figures are those of all blocks
together; a ratio to the floor has the range that 90 % of resamplings of the blocks give: the machine's own noise. On a
virtual machine the title says which share of the time its cores were given to others meanwhile (`stolen`): one in a
hundred is all that a p99 is made of. The last line is JSON. Ctrl-C and SIGTERM end every process.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pylsl
import zmq

from rtdsae.cli.processes import end
from rtdsae.signals import caught, interrupt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
COMPARED = ("p50", "p99", "p99.9")
STAGES = ("push -> in", "in -> out", "out -> sub", "push -> sub")
FLOOR, EXTRAS = "floor", "extras"
WARM_UP_S = 1.0
TOY_ANCHOR = 10  # bins
MANIFEST = "manifest.json"
QUIET_MS = 2000  # without a frame, after which a block is over
START_S = 90.0  # for a program to start and publish its first frame
SAID = "stderr.txt"  # what all programs said
SAID_LINES = 5
_TIMES = struct.Struct("<ddd")


@dataclass
class Block:
    """What one program did with one load."""

    stages: np.ndarray  # (bins, STAGES) µs
    lost: int
    cpu: float  # cores


def main() -> None:
    args = arguments()
    with caught(interrupt), tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as others:
        folder = Path(name)
        for _ in range(2 if args.load else 0):
            others.enter_context(running([HERE / "bench_busy.py"], folder))
        result = scale(args, folder) if args.scale else table(args, folder)
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rates", type=int, nargs="+")
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--hidden", type=int, nargs="+")
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--input", default="counts", metavar="KIND")
    parser.add_argument("--daemon", action="append", metavar="OPTIONS")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--extras", action="store_true")
    parser.add_argument("--scale", type=float, metavar="MINUTES")
    args = parser.parse_args()
    sizes = ([1000], [4096], [16], 8) if args.scale else ([50, 100, 1000], [96, 1024], [128, 512], 1)
    for option, default in zip(("rates", "channels", "hidden", "lanes"), sizes, strict=True):
        setattr(args, option, getattr(args, option) or default)
    if args.scale and len(args.daemon or ()) > 1:
        parser.error("--scale is one run: give one --daemon")
    args.daemon = args.daemon or ["", "--wake off", "--wake poll"]
    if args.bundle:
        args.bundle = args.bundle.resolve()  # the programs run in the checkout
        if not (args.bundle / MANIFEST).is_file():
            parser.error(f"{args.bundle}: no bundle is there")
    if not args.seconds > 0 or min(args.blocks, args.lanes, *args.rates, *args.channels, *args.hidden) < 1:
        parser.error("--seconds must be above 0; --blocks, --lanes, --rates, --channels and --hidden 1 or more")
    if not re.fullmatch(r"counts|samples=[1-9]\d*|events=[1-9]\d*", args.input):
        parser.error(f"--input {args.input}: counts, samples=20 (a bin) or events=30 (a channel and second)")
    if args.scale is not None:
        if not args.scale > 0:
            parser.error("--scale must be above 0 minutes")
        if max(len(args.rates), len(args.channels), len(args.hidden)) > 1:
            parser.error("--scale is one run: give one of --rates, --channels and --hidden each")
    rates = [shape(args.bundle)[0]] if args.bundle else args.rates
    n_anchor = manifest_of(args.bundle)["anchor_bins"] if args.bundle else TOY_ANCHOR
    seconds = 60 * args.scale if args.scale else args.seconds
    if seconds * min(rates) <= n_anchor:
        parser.error(f"{seconds:g} s have no bin after the first {n_anchor}, on which the model is anchored")
    return args


def bundles(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The models, with what each is."""
    if args.bundle:
        yield args.bundle.name, args.bundle
        return
    from toy_bundle import Toy

    for rate, n_channels, n_hidden in itertools.product(args.rates, args.channels, args.hidden):
        toy = Toy(n_channels=n_channels, n_hidden=n_hidden, n_anchor=TOY_ANCHOR, bin_width_s=1 / rate, lanes=args.lanes)
        yield f"{n_hidden} hidden units", toy.write(folder / f"toy-{rate}-{n_channels}-{n_hidden}")


# the table ------------------------------------------------------------------------------------------------------------


def table(args: argparse.Namespace, folder: Path) -> dict:
    subjects = [FLOOR, *(f"daemon {options}".strip() for options in args.daemon), *([EXTRAS] if args.extras else [])]
    results = {}
    for model, bundle in bundles(args, folder):
        rate, n_channels = shape(bundle)
        blocks: dict[str, list[Block]] = {name: [] for name in subjects}
        before = stolen_and_all()
        for i in range(args.blocks):
            for name in subjects if i % 2 else reversed(subjects):
                blocks[name].append(measure(name, bundle, args, folder))
        stolen, all_ = stolen_and_all() - before
        title = f"{rate:g} Hz, {n_channels} channels, {model}"
        title += "" if args.input == "counts" else f", {args.input}"
        title += ", loaded" if args.load else ""
        results[title] = report(f"{title} ({100 * stolen / all_:.1f} % stolen)" if stolen else title, blocks)
        results[title]["stolen_percent"] = round(100 * stolen / all_, 2)
    return results


def stolen_and_all() -> np.ndarray:
    """The cores' time that a host gave to others, and all of it, since the machine's start: ticks (Linux, proc(5))."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]
    return np.array([ticks[7], sum(ticks)])


def manifest_of(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / MANIFEST).read_text()))


def shape(bundle: Path) -> tuple[float, int]:
    """Bins a second and channels."""
    manifest = manifest_of(bundle)
    return 1 / manifest["bin_width_s"], len(manifest["channels"])


def measure(name: str, bundle: Path, args: argparse.Namespace, folder: Path) -> Block:
    """One block of one program."""
    rate, _ = shape(bundle)
    with load(bundle, args.seconds, args.input, folder) as (source_id, pushed), contextlib.ExitStack() as open_:
        endpoint = f"ipc://{folder}/{source_id[-8:]}"
        subscriber = open_.enter_context(subscribed(endpoint, name))
        subject = open_.enter_context(running(command(name, bundle, source_id, endpoint), folder))
        if name == EXTRAS:
            others = [HERE / "bench_company.py", *extra_endpoints(endpoint), endpoint]
            company = open_.enter_context(running(others, folder))
        frames = receive(subscriber, name, subject, args.seconds + WARM_UP_S, rate, folder / SAID)
        assert name != EXTRAS or company.stdout.readline() == b"ready\n"
        return Block(*stages(frames, *pushed(), rate), frames.cpu)


def stages(frames: "Frames", stamps: np.ndarray, complete: np.ndarray, rate: float) -> tuple[np.ndarray, int]:
    """How long each of the source's bins took after the warm-up `(bins, STAGES)` µs, and how many were lost."""
    index = np.rint((frames.times[:, 0] - stamps[0]) * rate).astype(int)
    known = index < len(stamps)  # the clock completes bins of spikes when the source is done, too
    index, (_, t_in, t_out, arrived) = index[known], frames.times[known].T
    each = [t_in - complete[index], t_out - t_in, arrived - t_out, arrived - complete[index]]
    lost = len(stamps) - index[0] - len(np.unique(index))
    return 1e6 * np.stack(each, 1)[index >= index[0] + WARM_UP_S * rate], int(lost)


@contextlib.contextmanager
def load(bundle: Path, seconds: float, kind: str, folder: Path) -> Iterator[tuple[str, Callable[[], list[np.ndarray]]]]:
    """A source for the bundle: its source_id, and, for when it is done, its bins' stamps and when each was complete."""
    rate, n_channels = shape(bundle)
    source_id, out = f"bench-{uuid.uuid4().hex}", folder / "pushed.npz"
    n_bins = int((seconds + WARM_UP_S) * rate)
    with running([HERE / "bench_source.py", source_id, n_channels, rate, n_bins, kind, out], folder) as source:
        assert source.stdout.readline() == b"ready\n"

        def pushed() -> list[np.ndarray]:
            assert source.stdout.readline() == b"pushed\n"
            with np.load(out) as saved:
                return [saved["stamps"], saved["complete"]]

        yield source_id, pushed


@contextlib.contextmanager
def running(command: list[object], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program, ended with the block."""
    with (folder / SAID).open("ab") as log:
        arguments = [sys.executable, *(str(part) for part in command)]
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=HERE.parent
        )
    try:
        yield process
    finally:
        process.stdin.close()  # what some wait for
        end(process)
        process.stdout.close()


@contextlib.contextmanager
def subscribed(endpoint: str, name: str) -> Iterator[zmq.Socket]:
    with zmq.Context.instance().socket(zmq.SUB) as subscriber:
        subscriber.setsockopt(zmq.RCVHWM, 0)
        subscriber.setsockopt(zmq.RCVTIMEO, QUIET_MS)
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.subscribe(b"" if name == FLOOR else b"latents\0")
        subscriber.connect(endpoint)
        yield subscriber


def command(name: str, bundle: Path, source_id: str, endpoint: str) -> list[object]:
    if name == FLOOR:
        return [HERE / "bench_floor.py", bundle / "step.onnx", source_id, endpoint, 1 / shape(bundle)[0]]
    serve = ["-m", "rtdsae", "serve", bundle, "--stream", f"source_id={source_id}", "--pub", endpoint]
    serve += ["--publish", "factors"]
    if name == EXTRAS:
        control, metrics = extra_endpoints(endpoint)
        return [*serve, "--control", control, "--metrics", metrics, "--set", "log_json=true"]
    return [*serve, *shlex.split(name.removeprefix("daemon"))]


def extra_endpoints(endpoint: str) -> tuple[str, str]:
    """Where the control socket and the metrics are."""
    return f"{endpoint}-control", "127.0.0.1:9469"


@dataclass
class Frames:
    """What the subscriber got: stamp, t_in, t_out and arrival `(n, 4)`, in LSL seconds, and the cores it took."""

    times: np.ndarray
    cpu: float


def receive(
    subscriber: zmq.Socket,
    name: str,
    subject: subprocess.Popen[bytes],
    seconds: float,
    rate: float,
    said: Path,
    each_minute: Callable[[np.ndarray], None] | None = None,
    weighed: subprocess.Popen[bytes] | None = None,
) -> Frames:
    """All frames of so many seconds, or until none has come for two; `each_minute` gets those of the last minute.

    The cores are those of `weighed`, else of the subject. Where there are no frames, this program ends with the last
    lines of what the others `said`.
    """
    times, n, offset = np.zeros((int(seconds * rate) + 1000, 4)), 0, 0 if name == FLOOR else 32
    pid = (weighed or subject).pid
    used, told, minute, given_up = 0.0, 0, np.inf, time.monotonic() + START_S
    while n < len(times) and times[n - 1, 0] < times[0, 0] + seconds:  # bins of spikes go on when the source is done
        try:
            frame = subscriber.recv()
        except zmq.Again:
            if n or subject.poll() is not None or time.monotonic() > given_up:
                break
            continue
        times[n, 3] = now = pylsl.local_clock()
        times[n, :3] = _TIMES.unpack_from(frame, offset)
        n += 1
        if n == 1:
            used, minute = cpu_seconds(pid), now + 60
        if each_minute and now >= minute:
            each_minute(times[told:n])
            told, minute = n, minute + 60
    if n < 2:
        sys.exit(f"{name} published nothing:\n{last_of(said)}")
    took = times[n - 1, 3] - times[0, 3]
    return Frames(times[:n], (cpu_seconds(pid) - used) / took)


def last_of(said: Path) -> str:
    """The last lines."""
    return "\n".join(said.read_text().splitlines()[-SAID_LINES:])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# what it says ---------------------------------------------------------------------------------------------------------


def report(title: str, blocks: dict[str, list[Block]]) -> dict:
    ratio_heads = "".join(f"{f'{q} / floor':>19}" for q in COMPARED)
    print(f"\n{title}\n{'':35}" + "".join(f"{q:>8}" for q in QUANTILES) + ratio_heads + f"{'CPU %':>8}{'lost':>6}")
    result: dict = {name: {} for name in blocks}
    for i, stage in enumerate(STAGES):
        each = {name: [block.stages[:, i] for block in parts] for name, parts in blocks.items()}
        for name, parts in each.items():
            figures = quantiles(parts)
            result[name][stage] = dict(zip(QUANTILES, figures.round(1).tolist(), strict=True))
            line = f"{stage:13}{name:22}" + "".join(f"{v:8.0f}" for v in figures)
            if name != FLOOR:
                compared = ratios(parts, each[FLOOR])
                result[name][f"{stage} / floor"] = {q: compared[q] for q in COMPARED}
                line += "".join("{:7.2f} ({:.2f}-{:.2f})".format(*compared[q]) for q in COMPARED)
            print(f"{line:114}" + totals(blocks[name], result[name]) if stage == STAGES[-1] else line)
    return result


def totals(parts: list[Block], result: dict) -> str:
    result["lost"] = sum(block.lost for block in parts)
    result["cpu_percent"] = round(100 * float(np.mean([block.cpu for block in parts])), 1)
    return f"{result['cpu_percent']:6.1f}{result['lost']:6}"


def ratios(ours: list[np.ndarray], floor: list[np.ndarray]) -> dict[str, list[float]]:
    """The ratio of each quantile, and the ends of the range that resampled blocks give it."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(200):
        chosen = rng.integers(len(ours), size=len(ours))
        draws.append(quantiles([ours[i] for i in chosen]) / quantiles([floor[i] for i in chosen]))
    all_ = np.stack([quantiles(ours) / quantiles(floor), *np.percentile(draws, [5, 95], axis=0)])
    return dict(zip(QUANTILES, all_.T.round(3).tolist(), strict=True))


def quantiles(blocks: list[np.ndarray]) -> np.ndarray:
    return np.percentile(np.concatenate(blocks), list(QUANTILES.values()))


# scale ----------------------------------------------------------------------------------------------------------------


def scale(args: argparse.Namespace, folder: Path) -> dict:
    """One long run: is the memory flat, and is the latency?"""
    ((model, bundle),) = bundles(args, folder)
    rate, n_channels = shape(bundle)
    lanes = manifest_of(bundle)["lanes"]
    options = args.daemon[0] or ("--anchor lanes" if lanes > 1 else "")
    name, minutes = f"daemon {options}", []
    print(f"{rate:g} Hz, {n_channels} channels, {model}, {lanes} lanes, {name}")
    print("minute   RSS MB  in -> out" + "".join(f"{q:>8}" for q in QUANTILES) + "   out -> sub  p50     p99   bins")
    with load(bundle, 60 * args.scale, args.input, folder) as (source_id, pushed):
        endpoint = f"ipc://{folder}/{source_id[-8:]}"
        with (
            subscribed(endpoint, name) as subscriber,
            running(command(name, bundle, source_id, endpoint), folder) as subject,
        ):

            def tell(times: np.ndarray) -> None:
                inside, after = quantiles([1e6 * (times[:, 2] - times[:, 1])]), 1e6 * (times[:, 3] - times[:, 2])
                figures = [resident_mb(subject.pid), *inside, *np.percentile(after, [50, 99])]
                minutes.append([*np.round(figures, 1).tolist(), len(times)])
                row = "".join(f"{v:8.0f}" for v in inside)
                after_send = f"{figures[-2]:17.0f}{figures[-1]:8.0f}"
                print(f"{len(minutes):6}{figures[0]:9.1f}           {row}{after_send}{len(times):7}", flush=True)

            frames = receive(subscriber, name, subject, 60 * args.scale + WARM_UP_S, rate, folder / SAID, tell)
            took, lost = stages(frames, *pushed(), rate)
    whole = quantiles([took[:, -1]]).round(1).tolist()
    print(f"push -> sub: {dict(zip(QUANTILES, whole, strict=True))}; lost {lost}, CPU {100 * frames.cpu:.0f} %")
    columns = ["rss_mb", *(f"in -> out {q}" for q in QUANTILES), "out -> sub p50", "out -> sub p99", "bins"]
    return {"columns": columns, "minutes": minutes, "push -> sub": whole, "lost": lost, "cpu_percent": 100 * frames.cpu}


def resident_mb(pid: int) -> float:
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

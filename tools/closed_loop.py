"""A simulated user moves a cursor to targets through the daemon, in real time: what `./tools/closed_loop` runs.

    user ── spikes, LSL ──► rtdsae serve ── ZeroMQ ──► control program (rtdsae.Subscriber)
      ▲                                                     │ cursor, targets
      └────────────────────── the screen ◄──────────────────┘

Conditions, one after another, with the same targets:

    intention   no decoder: what the user wants moves the cursor, the upper bound
    filter      Bayes' filter that knows the neurons' tuning, run by the daemon
    rtdsae      LFADS, trained on a calibration block, run by the daemon
    +50ms ...   the same, each bin acted on so much later
    drops       the same, a tenth of the bins not pushed, one at a time
    bursts      the same, a tenth of the bins not pushed, 200 ms at a time
    shuffled    the same, the counts dealt out anew among the neurons in each bin: chance

The last line is JSON. docs/closed_loop.md has what it measures and what came out.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
os.environ.setdefault("LSLAPICFG", str(ROOT / "configs" / "lsl_loopback.cfg"))  # before anything imports pylsl

import numpy as np
from closed_loop_parts import scores
from closed_loop_parts.control import ControlSettings
from closed_loop_parts.game import Trial
from closed_loop_parts.neurons import BIN_WIDTH_S, KINDS, CosineNeurons
from closed_loop_parts.rehearsal import calibration_block
from closed_loop_parts.user import UserSettings

from rtdsae import Subscriber, recordings
from rtdsae.errors import RtdsaeError, TrainingError

CONFIG = ROOT / "configs" / "closed_loop.yaml"
NEURONS = 64
LOST = 0.1  # of the bins
BURST_BINS = 10
STREAM_WAIT_S = 30
END_S = 10  # for a child to end


@dataclass(frozen=True)
class Condition:
    """What is played.

    Attributes:
        decoder: what turns spikes into velocities; `intention` does without spikes.
        latency_s: added to what there is.
        lost: fraction of the bins that are not pushed.
        lost_bins: how many at a time.
        shuffled: whether the spikes say nothing about the direction.
    """

    decoder: Literal["intention", "filter", "rtdsae"] = "rtdsae"
    latency_s: float = 0.0
    lost: float = 0.0
    lost_bins: int = 1
    shuffled: bool = False


REFERENCE = "rtdsae"
CONDITIONS = {
    "intention": Condition("intention"),
    "filter": Condition("filter"),
    REFERENCE: Condition(),
    "+50ms": Condition(latency_s=0.05),
    "+100ms": Condition(latency_s=0.1),
    "+200ms": Condition(latency_s=0.2),
    "drops": Condition(lost=LOST),
    "bursts": Condition(lost=LOST, lost_bins=BURST_BINS),
    "shuffled": Condition(shuffled=True),
}


def main() -> int:
    """Trains where that has not been done, plays, and prints the table."""
    args = arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # begun in the background, it would ignore it
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that children are ended; a terminal that closes tells only us
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        bundles = prepare(args)
        with monitor(args.game) if args.monitor else contextlib.nullcontext():
            return play_all(args, bundles)
    except (RtdsaeError, OSError) as error:
        print(f"closed_loop: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def arguments() -> argparse.Namespace:
    """The flags."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="./tools/closed_loop", description=__doc__, formatter_class=formatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each condition (default: %(default)s)")
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="which, with commas (default: all)")
    parser.add_argument(
        "--neurons", choices=list(KINDS), default="cosine", help="what the intention drives (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of the calibration block (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of neurons, spikes and targets (default: %(default)s)")
    parser.add_argument("--game", default="tcp://127.0.0.1:5566", help="where the game is shown (default: %(default)s)")
    parser.add_argument("--monitor", action="store_true", help="start the page that shows it")
    parser.add_argument("--out", type=Path, default=ROOT / "out/closed_loop", help="where everything goes")
    args = parser.parse_args()
    args.conditions = list(dict.fromkeys(name.strip() for name in args.conditions.split(",") if name.strip()))
    if unknown := [name for name in args.conditions if name not in CONDITIONS]:
        parser.error(f"no condition {unknown[0]!r}: choose of {', '.join(CONDITIONS)}")
    if not (1 <= args.seconds < np.inf and 1 <= args.minutes < np.inf and args.seed >= 0):
        parser.error("--seconds and --minutes must be 1 or more, --seed 0 or more")
    if args.neurons != "cosine" and "filter" in args.conditions:
        print(f"without filter: it knows the tuning of cosine neurons, not of {args.neurons} ones")
        args.conditions.remove("filter")
    if not args.conditions:
        parser.error(f"--conditions names none: choose of {', '.join(CONDITIONS)}")
    return args


# decoders -------------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> dict[str, Path]:
    """The bundles of the decoders that are wanted, by name; the trained one is kept for the next time."""
    decoders = {CONDITIONS[name].decoder for name in args.conditions}
    if decoders == {"intention"}:
        return {}
    neurons = KINDS[args.neurons](NEURONS, args.seed)
    block = calibration_block(neurons, NEURONS, args.minutes, args.seed)
    bundles = {}
    if "filter" in decoders and isinstance(neurons, CosineNeurons):
        from closed_loop_parts.ideal_filter import IdealFilter

        bundles["filter"] = IdealFilter(neurons, np.asarray(block.behaviour)).write(args.out / "filter")
    if "rtdsae" in decoders:
        bundles["rtdsae"] = trained(args.out, block)
    return bundles


def trained(out: Path, block: recordings.Recording) -> Path:
    """The bundle that this configuration makes of this block; trained if it is not there."""
    key = hashlib.sha256(CONFIG.read_bytes() + block.hash.encode()).hexdigest()[:12]
    bundle, work = out / f"bundle-{key}", out / f"training-{key}"
    if bundle.exists():
        print(f"decoder: {bundle}, trained before")
        return bundle
    shutil.rmtree(work, ignore_errors=True)  # of one that was interrupted
    work.mkdir(parents=True)
    recordings.save(block, work / "block.h5")
    print(f"calibration block: {block.n_bins} bins of {block.n_channels} neurons; training on it, once")
    rtdsae("train", CONFIG, "--data", work / "block.h5", "--out", work / "run")
    rtdsae("export", work / "run", "--out", bundle)
    return bundle


def rtdsae(*args: object) -> None:
    """Runs one verb to its end."""
    print("$ rtdsae", *args, flush=True)
    with child("-m", "rtdsae", *args) as process:
        if process.wait():
            raise TrainingError(f"rtdsae {args[0]} ended with {process.returncode}: see above")


# the loop -------------------------------------------------------------------------------------------------------------


def play_all(args: argparse.Namespace, bundles: dict[str, Path]) -> int:
    """Plays every condition; prints the table and the JSON."""
    played: dict[str, list[Trial]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in args.conditions:
        condition = CONDITIONS[name]
        print(f"\n{name}: {args.seconds:g} s", flush=True)
        played[name], results[name] = play(condition, bundles.get(condition.decoder), args, args.out / f"{name}.log")
    for name, trials in played.items():
        if REFERENCE in played:
            results[name] |= scores.cost(trials, played[REFERENCE])
    print("\n" + table(results))
    print(json.dumps({"seconds": args.seconds, "seed": args.seed, "neurons": args.neurons, "conditions": results}))
    return 0


def play(
    condition: Condition, bundle: Path | None, args: argparse.Namespace, log: Path
) -> tuple[list[Trial], dict[str, Any]]:
    """Plays one condition, with user, daemon and control program as processes.

    Args:
        condition: what is played.
        bundle: of the decoder; None where there is none.
        args: `seconds`, `seed`, `neurons` and `game`, as given on the command line.
        log: where to write what the daemon says.

    Returns:
        The trials that ended, and their scores with what came in at the control program and `r2`, of the decoded
        velocities x and y to the intended ones.

    Raises:
        RtdsaeError: one of the processes failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rtdsae-loop-"))
        intention, decoded = f"ipc://{folder}/intention", f"ipc://{folder}/decoded"
        source_id = f"closed-loop-{os.getpid()}"
        lost = {"lost": condition.lost, "lost_bins": condition.lost_bins, "shuffled": condition.shuffled}
        user = UserSettings(source_id, args.game, intention, args.neurons, NEURONS, args.seed, **lost)
        processes = {"user": stack.enter_context(part("user", user))}
        if bundle:
            daemon = ("serve", bundle, "--stream", f"source_id={source_id}", "--pub", decoded, "--publish", "behaviour")
            output = stack.enter_context(log.open("w"))
            command = child("-m", "rtdsae", *daemon, "--timeout", STREAM_WAIT_S, stdout=output, stderr=output)
            processes["daemon"] = stack.enter_context(command)
        both = (intention, decoded if bundle else intention)
        heard = [Heard(stack.enter_context(Subscriber(endpoint))) for endpoint in both]
        control = ControlSettings(
            decoded if bundle else intention, args.game, args.seconds, condition.latency_s, args.seed
        )
        processes["control"] = stack.enter_context(part("control", control, stdout=subprocess.PIPE))
        trials, came = watch(processes, heard, log)
        return trials, scores.scores(trials) | came | {"r2": agreement(*heard)}


class Heard:
    """The velocities that somebody publishes, kept as they come."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._rows: list[tuple[float, float, float]] = []

    def drain(self) -> None:
        """Takes all that is waiting; ZeroMQ keeps some minutes of it."""
        while (message := self._subscriber.receive(0.0)) is not None:
            self._rows.append((message.t_bin, *message["behaviour"].tolist()))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Times of the bins' ends `(n,)`, and velocities `(n, 2)`."""
        self.drain()
        rows = np.array(self._rows).reshape(-1, 3)
        return rows[:, 0], rows[:, 1:]


def watch(
    processes: dict[str, subprocess.Popen[str]], heard: list[Heard], log: Path
) -> tuple[list[Trial], dict[str, Any]]:
    """Reads the control program's lines to the end, and shows each target's; the trials, and what came in."""
    trials, came = [], None
    assert processes["control"].stdout
    for line in processes["control"].stdout:
        told = json.loads(line)
        if "acquired" in told:
            trials.append(Trial(**told))
            said = f"{told['time_s']:5.2f} s" if told["acquired"] else " missed"
            print(f"  target {len(trials):3}  {said}", flush=True)
        else:
            came = told
        for velocities in heard:
            velocities.drain()
    processes["control"].wait(END_S)
    for name, process in processes.items():
        if process.poll():
            raise RtdsaeError(f"the {name} ended with {process.returncode}: see above, and {log} for the daemon")
    if came is None:
        raise RtdsaeError(f"the control program said nothing: see above, and {log} for the daemon")
    return trials, came


def agreement(intended: Heard, decoded: Heard) -> list[float]:
    """R² x and y of the decoded to the intended velocities, bin by bin."""
    from rtdsae.evaluate.metrics import r2

    (t_intended, wanted), (t_decoded, given) = intended.arrays(), decoded.arrays()
    at = np.clip(np.searchsorted(t_intended, t_decoded - BIN_WIDTH_S / 2), 0, len(t_intended) - 1)
    same = np.abs(t_intended[at] - t_decoded) < BIN_WIDTH_S / 2
    return [round(float(value), 3) for value in r2(wanted[at[same]], given[same])]


# processes ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def child(*args: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own group, so that Ctrl-C reaches this program alone, which then ends it."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *map(str, args)]
    process = subprocess.Popen(command, text=True, env=environment, process_group=0, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def part(name: str, settings: Any, **options: Any) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """The user or the control program."""
    return child("-m", f"closed_loop_parts.{name}", json.dumps(dataclasses.asdict(settings)), **options)


@contextlib.contextmanager
def monitor(game: str) -> Iterator[None]:
    """The page, as a process; it prints its address."""
    print(f"$ rtdsae monitor --sub {game} &", flush=True)
    with child("-m", "rtdsae", "monitor", "--sub", game):
        yield


# the table ------------------------------------------------------------------------------------------------------------


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row a condition."""
    head = (
        "condition",
        "targets/min",
        "time to target, s",
        "efficiency",
        "dial-in, s",
        "missed",
        "cost, s/target",
        "R2 x / y",
        "delay, ms",
    )
    rows = [head, *(row(name, result) for name, result in results.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    """One condition's cells: figures with where 90 % of resamplings lie, or with quartiles in brackets."""

    def ranged(value: float | None, interval: list[float] | None) -> str:
        return (
            "-"
            if value is None
            else f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
        )

    def quartiles(values: list[float] | None) -> str:
        return "-" if values is None else f"{values[0]:.2f} [{values[1]:.2f}-{values[2]:.2f}]"

    return (
        name,
        ranged(result["targets_per_minute"], result["targets_per_minute_interval"]),
        quartiles(result["time_to_target_s"]),
        quartiles(result["path_efficiency"]),
        quartiles(result["dial_in_s"]),
        f"{result['missed']} of {result['targets']}",
        ranged(result.get("cost_s"), result.get("cost_interval")),
        " / ".join(f"{value:.2f}" for value in result["r2"]),
        f"{result['delay_ms']['p50']:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())

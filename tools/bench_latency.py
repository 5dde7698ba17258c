"""How much slower than the floor is the daemon? The same load through both, in alternating blocks of one run.

    python tools/bench_latency.py [BUNDLE] [--seconds 10] [--blocks 3] [--channels 96]

The floor is `bench_floor.py`: pull, `InferenceSession.run`, send, and nothing else, on the same `step.onnx`. Without
BUNDLE a linear model of 128 hidden units is made, at 50 Hz and at 1 kHz; with one, its own bin width is the rate.
The daemon runs as it comes, and a second time without its anticipation of the next sample (`--wake off`).
All times are microseconds. `push -> sub` is from the source's push to the subscriber's hands, `in -> out` from the
sample in the program's hands to just before its send. Figures are those of all blocks together; a ratio's range is what
90 % of resamplings of the blocks give: the machine's own noise. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pylsl
import zmq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

QUANTILES = {"p50": 50, "p99": 99, "p99.9": 99.9, "max": 100}
WARM_UP_S = 1.0
SUBJECTS = ("floor", "daemon", "no-wake")


@dataclass
class Block:
    """What one program did with one load: latencies in µs, a value a bin."""

    total: np.ndarray
    inside: np.ndarray
    lost: int
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--channels", type=int, default=96)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for bundle in [args.bundle] if args.bundle else toys(Path(folder), args.channels):
            manifest = json.loads((bundle / "manifest.json").read_text())
            rate, n_channels = round(1 / manifest["bin_width_s"]), len(manifest["channels"])
            blocks = {name: [] for name in SUBJECTS}
            for i in range(args.blocks):
                for name in SUBJECTS if i % 2 else reversed(SUBJECTS):
                    blocks[name].append(measure(name, bundle, rate, n_channels, args.seconds, Path(folder)))
            results[f"{rate} Hz"] = report(f"{rate} Hz, {n_channels} channels", blocks)
    print(json.dumps(results))


def toys(folder: Path, n_channels: int) -> list[Path]:
    from toy_bundle import Toy

    return [
        Toy(n_channels=n_channels, n_hidden=128, n_anchor=10, bin_width_s=1 / rate).write(folder / f"toy{rate}")
        for rate in (50, 1000)
    ]


def measure(name: str, bundle: Path, rate: int, n_channels: int, seconds: float, folder: Path) -> Block:
    source_id, out = f"bench-{uuid.uuid4().hex}", folder / "pushed.npz"
    endpoint = f"ipc://{folder}/{source_id[-8:]}"
    subscriber = zmq.Context.instance().socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVHWM, 0)
    subscriber.subscribe(b"" if name == "floor" else b"latents\0")
    subscriber.connect(endpoint)
    n_samples = str(int((seconds + WARM_UP_S) * rate))
    source = start([sys.executable, HERE / "bench_source.py", source_id, n_channels, rate, n_samples, out], folder)
    assert source.stdout.readline() == b"ready\n"
    subject = start(command(name, bundle, source_id, endpoint), folder)
    try:
        frames, cpu = receive(subscriber, subject, folder)
        assert source.stdout.readline() == b"pushed\n"
    finally:
        for process in (subject, source):
            process.terminate()
            process.wait(10)
        subscriber.close(linger=0)
    return block(frames, out, name, rate, cpu)


def command(name: str, bundle: Path, source_id: str, endpoint: str) -> list[object]:
    if name == "floor":
        return [sys.executable, HERE / "bench_floor.py", bundle / "step.onnx", source_id, endpoint]
    serve = [sys.executable, "-m", "rtdsae", "serve", bundle, "--stream", f"source_id={source_id}"]
    return [*serve, "--pub", endpoint, "--publish", "factors", *(["--wake", "off"] if name == "no-wake" else [])]


def start(command: list[object], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "stderr.txt").open("ab") as log:
        arguments = [str(part) for part in command]
        return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=HERE.parent)


def receive(subscriber: zmq.Socket, subject: subprocess.Popen[bytes], folder: Path) -> tuple[list, float]:
    """All frames with their time of arrival, until there have been none for two seconds."""
    frames, begun, used = [], 0.0, 0.0
    while subscriber.poll(2000) or not (frames or subject.poll()):
        if not subscriber.poll(0):
            continue
        frame = subscriber.recv()
        frames.append((pylsl.local_clock(), frame))
        if len(frames) == 1:
            begun, used = pylsl.local_clock(), cpu_seconds(subject.pid)
    if not frames:
        sys.exit(f"nothing was published:\n{(folder / 'stderr.txt').read_text()}")
    return frames, (cpu_seconds(subject.pid) - used) / (frames[-1][0] - begun)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def block(frames: list, out: Path, name: str, rate: int, cpu: float) -> Block:
    offset = 0 if name == "floor" else 32
    arrived = np.array([t for t, _ in frames])
    stamp, t_in, t_out = np.array([np.frombuffer(f, "<f8", 3, offset) for _, f in frames]).T
    with np.load(out) as source:
        stamps, pushed = source["stamps"], source["pushed"]
    index = np.rint((stamp - stamps[0]) * rate).astype(int)
    measured = index >= index[0] + WARM_UP_S * rate
    lost = index[-1] - index[0] + 1 - len(np.unique(index)) + (len(stamps) - 1 - index[-1])
    total = 1e6 * (arrived - pushed[index])
    return Block(total[measured], 1e6 * (t_out - t_in)[measured], int(lost), cpu)


def report(title: str, blocks: dict[str, list[Block]]) -> dict:
    print(f"\n{title:30}" + "".join(f"{q:>17}" for q in QUANTILES) + f"{'lost':>8}{'CPU %':>8}")
    result: dict = {name: summary(parts) for name, parts in blocks.items()}
    for field, label in (("total", "push -> sub"), ("inside", "in -> out")):
        each = {name: [getattr(b, field) for b in parts] for name, parts in blocks.items()}
        for name, parts in each.items():
            figures = quantiles(parts)
            result[name][label] = named(figures)
            tail = f"{result[name]['lost']:8}{result[name]['cpu_percent']:8.1f}"
            print(f"{label:12} {name:17}" + "".join(f"{v:17.0f}" for v in figures) + tail)
        for name in SUBJECTS[1:]:
            ratio, low, high = ratios(each[name], each["floor"])
            result[name][f"{label} / floor"] = named(ratio)
            ranges = zip(ratio, low, high, strict=True)
            print(f"{label:12} {name + ' / floor':17}" + "".join(f"{r:6.2f} ({a:.2f}-{b:.2f})" for r, a, b in ranges))
    return result


def summary(parts: list[Block]) -> dict:
    return {"lost": sum(b.lost for b in parts), "cpu_percent": round(100 * float(np.mean([b.cpu for b in parts])), 1)}


def named(figures: np.ndarray) -> dict[str, float]:
    return dict(zip(QUANTILES, figures.round(3).tolist(), strict=True))


def ratios(ours: list[np.ndarray], floor: list[np.ndarray]) -> np.ndarray:
    """The ratio of the quantiles, and the ends of the range that resampled blocks give it."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(200):
        chosen = rng.integers(len(ours), size=len(ours))
        draws.append(quantiles([ours[i] for i in chosen]) / quantiles([floor[i] for i in chosen]))
    return np.stack([quantiles(ours) / quantiles(floor), *np.percentile(draws, [5, 95], axis=0)])


def quantiles(blocks: list[np.ndarray]) -> np.ndarray:
    return np.percentile(np.concatenate(blocks), list(QUANTILES.values()))


if __name__ == "__main__":
    main()

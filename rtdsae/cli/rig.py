"""The verbs that look at a computer: doctor, bench."""

import dataclasses
import json
import socket
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from rtdsae.cli.arguments import unset
from rtdsae.cli.lsl import load_lsl
from rtdsae.cli.processes import running
from rtdsae.errors import ConfigError, EndpointError
from rtdsae.signals import caught, interrupt

if TYPE_CHECKING:
    from rtdsae.bundle import Bundle

__all__ = ["Bench", "Doctor"]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
FEWEST = 1000  # bins that have a p99.9
STAGES = ("push -> in", "in -> out", "out -> subscriber", "push -> subscriber")
SETTLE_S = 1.0  # at the beginning, that is not counted
START_S = 60.0  # for the daemon to load, find the stream and be anchored
STEPS = 2000


class Doctor(msgspec.Struct, frozen=True, kw_only=True):
    """Say what would stop the daemon on this computer, or slow it, and how to mend it."""

    json: bool = False
    """End with one JSON array of all that was found."""

    def run(self) -> None:
        """Checks, a line each; the exit code is 1 where something fails."""
        from rtdsae.cli.checks import CHECKS

        found = []
        for check in CHECKS:
            for result in check():
                print(result, flush=True)
                found.append(result)
        if self.json:
            print(json.dumps([dataclasses.asdict(result) for result in found]))
        if any(result.mark == "FAIL" for result in found):
            raise SystemExit(1)


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Measure a bundle on this computer: a source, the daemon and a subscriber, each in a process of its own.

    The source pushes each bin's sample when the bin ends; what it is late itself counts as push -> in.
    """

    bundle: Positional[Path]
    """Folder of the bundle, or the name of a shipped one."""
    seconds: float = 20.0
    """How long to measure; for p99.9 some 1000 bins at least."""
    session: Annotated[str | None, unset("NAME")] = None
    """Which session's neurons, where the bundle has several."""
    provider: str = "cpu"
    """Of ONNX Runtime: cpu, cuda, ...; auto for the quickest here."""
    set: Annotated[list[str], unset("KEY=VALUE")] = msgspec.field(default_factory=list)
    """A setting of the daemon, as for rtdsae serve: priority=50, cpus=[1], wake=poll."""

    def run(self) -> None:
        """Prints the table and ends with JSON; the exit code is 1 where the bin width is not held at p99.9.

        Raises:
            RtdsaeError: the bundle is not one, a setting is wrong, or the daemon did not start.
        """
        from rtdsae import bundle as bundles
        from rtdsae import shipped
        from rtdsae.serve.provider import AUTO, quickest

        if not 0 < self.seconds < 1e6:
            raise ConfigError(f"--seconds {self.seconds:g}: must be above 0")
        load_lsl()
        bundle = bundles.load(shipped.model(self.bundle)).session(self.session)
        manifest = bundle.manifest
        provider = quickest(bundle) if self.provider == AUTO else self.provider
        step_us = time_steps(bundle, provider)
        with caught(interrupt), tempfile.TemporaryDirectory(prefix="rtdsae-bench-") as folder:
            times, lost = self._measure(bundle, provider, Path(folder))
        found = {stage: quantiles(us) for stage, us in stages(times).items()}
        width_us = 1e6 * manifest.bin_width_s
        holds = bool(lost == 0 and found[STAGES[-1]]["p99.9"] < width_us)
        print(f"{manifest.name}: {len(manifest.channels)} channels, {1 / manifest.bin_width_s:g} Hz, {provider}")
        print(table({**found, "step alone, warm": quantiles(step_us)}), end="")
        verdict = "holds" if holds else "does NOT hold"
        few = "" if len(times) >= FEWEST else f" (of so few bins that is the slowest one: {FEWEST} tell more)"
        print(f"{len(times)} bins, {lost} lost: {verdict} the bin width of {width_us:g} µs at p99.9{few}")
        result = {
            "bundle": manifest.name,
            "channels": len(manifest.channels),
            "bin_width_s": manifest.bin_width_s,
            "provider": provider,
            "set": self.set,
            "bins": len(times),
            "lost": lost,
            "us": found,
            "step_us": quantiles(step_us),
            "holds": holds,
        }
        print(json.dumps(result))
        if not holds:
            raise SystemExit(1)

    def _measure(self, bundle: "Bundle", provider: str, folder: Path) -> tuple[NDArray[np.float64], int]:
        """Times `(n, 4)` of each bin, push, in, out and subscriber, in LSL seconds; and how many bins were lost."""
        import pylsl

        from rtdsae.client import Subscriber

        source_id, endpoint = f"rtdsae-bench-{uuid.uuid4().hex}", f"tcp://127.0.0.1:{free_port()}"
        write_recording(bundle, folder / "golden.npz")
        replay = ["replay", str(folder / "golden.npz"), "--channels", "all", "--source-id", source_id, "--loop"]
        serve = ["serve", str(self.bundle), "--stream", f"source_id={source_id}", "--pub", endpoint]
        serve += ["--provider", provider, "--timeout", f"{START_S:g}"]
        serve += ["--session", self.session] if self.session else []
        serve += [part for setting in self.set for part in ("--set", setting)]
        with (
            Subscriber(endpoint) as subscriber,
            running([*replay, "--wait", f"{START_S:g}"], folder / "replay.log"),
            running(serve, folder / "serve.log") as daemon,
        ):
            times: list[tuple[float, float, float, float]] = []
            deadline, until = time.monotonic() + START_S, np.inf
            while time.monotonic() < min(deadline, until):
                message = subscriber.receive(0.5)
                if message is not None:
                    times.append((message.t_bin, message.t_in, message.t_out, pylsl.local_clock()))
                    if until == np.inf:
                        deadline, until = np.inf, time.monotonic() + SETTLE_S + self.seconds
                elif daemon.poll() is not None:
                    break
            status = subscriber.status
            lost = subscriber.holes + int(status.get("gaps", 0) if status else 0)
        kept = np.array([t for t in times if t[3] > times[0][3] + SETTLE_S])
        if not len(kept):
            raise EndpointError(f"the daemon published nothing: {last_line(folder / 'serve.log')}")
        return kept, lost


def time_steps(bundle: "Bundle", provider: str) -> NDArray[np.float64]:
    """Microseconds of each of some steps, one after another: the model alone, warm."""
    from rtdsae.serve.engine import Engine

    engine = Engine(bundle, provider)
    counts, took = bundle.golden()["x"][0], np.zeros(STEPS)
    for i in range(STEPS):
        began = time.perf_counter()
        engine.step(counts, True)
        took[i] = time.perf_counter() - began
    return 1e6 * took[STEPS // 10 :]


def stages(times: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Microseconds that each stage took, by its name."""
    push, taken, out, subscriber = 1e6 * times.T
    return dict(zip(STAGES, (taken - push, out - taken, subscriber - out, subscriber - push), strict=True))


def quantiles(us: NDArray[np.float64]) -> dict[str, float]:
    """The QUANTILES of some times, rounded."""
    return {name: round(float(np.quantile(us, q, method="higher")), 1) for name, q in QUANTILES.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """A line a stage, microseconds."""
    lines = [f"{'µs':20}" + "".join(f"{name:>9}" for name in QUANTILES)]
    lines += [f"{stage:20}" + "".join(f"{value:9.0f}" for value in row.values()) for stage, row in rows.items()]
    return "\n".join([*lines, ""])


def write_recording(bundle: "Bundle", file: Path) -> None:
    """The golden run's counts, for `rtdsae replay`."""
    from rtdsae import recordings

    manifest = bundle.manifest
    counts = np.maximum(bundle.golden()["x"], 0.0)
    recordings.save(recordings.Recording(counts, manifest.bin_width_s, channels=tuple(manifest.channels)), file)


def last_line(file: Path) -> str:
    """The last that a process said, without its own name."""
    lines = file.read_text(errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return said.removeprefix("rtdsae serve: ")


def free_port() -> int:
    """A TCP port of this computer's that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

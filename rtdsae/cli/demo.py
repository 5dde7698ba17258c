"""The verb demo: the whole path, live, on generated neurons or on your recording.

Every step is a verb of the command line, started as you would start it; only the subscriber runs in here.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from rtdsae import shipped
from rtdsae.cli.arguments import unset
from rtdsae.cli.lsl import load_lsl
from rtdsae.cli.processes import running
from rtdsae.errors import ConfigError
from rtdsae.signals import caught, interrupt

if TYPE_CHECKING:
    from rtdsae.recordings import Recording

__all__ = ["Demo"]

LIVE_WAIT_S = 30.0
SOURCE_ID = f"rtdsae-demo-{os.getpid()}"


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """The whole path, live: generate or read, train, export, simulate + serve + subscribe; a table and a picture."""

    data: Annotated[Path | None, unset("RECORDING", "generated neurons")] = None
    """Your recording, any file that `rtdsae train` reads."""
    config: Annotated[Path | None, unset("YAML", "lorenz.yaml; lfads.yaml with --data")] = None
    """YAML config."""
    seconds: float = 60.0
    """How much to stream live."""
    epochs: Annotated[int | None, unset("N", "as the config says")] = None
    """Fewer epochs, for a quicker look."""
    out: Path = Path("out/demo")
    """Where everything goes."""

    def run(self) -> None:
        """Runs the demo.

        Raises:
            StreamError: a bin is missing, or differs from the offline answer.
        """
        if not 0 < self.seconds < np.inf:
            raise ConfigError(f"--seconds {self.seconds:g}: it must be above 0")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"--epochs {self.epochs}: at least 1")
        os.environ.setdefault("LSLAPICFG", str(shipped.config("lsl_loopback.cfg")))  # before anything imports pylsl
        load_lsl()
        from rtdsae.train.config import load_config

        config = self.config or shipped.config("lfads.yaml" if self.data else "lorenz.yaml")
        needed = load_config(config, data=(str(self.data or "generated"),)).window.anchor_bins
        self.out.mkdir(parents=True, exist_ok=True)
        recording, live = recordings(self)
        run, bundle = self.out / "run", self.out / "bundle"
        check_long_enough(live, needed)
        step(2, f"train {config} on {recording} (the progress bar tells how long; Ctrl-C keeps what was reached)")
        epochs = ["--set", f"fit.epochs={self.epochs}"] if self.epochs is not None else []
        rtdsae("train", config, "--data", recording, "--out", fresh(run), *epochs)
        step(3, "score it on the part that it was not trained on, by streaming")
        rtdsae("evaluate", run)
        step(4, "export it, checked against torch bin by bin")
        rtdsae("export", run, "--out", bundle, "--overwrite")
        step(5, f"live: an LSL stream, the daemon and a subscriber, {live['seconds']:.0f} s in real time")
        heard = stream_live(bundle, live["command"], live["bins"])
        step(6, "what came out")
        from rtdsae.cli.demo_summary import summary

        summary(self.out, run, live["recording"], heard)


def recordings(demo: Demo) -> tuple[Path, dict[str, Any]]:
    """The recording to train on, and what is to be streamed live: its command, its bins and its recording."""
    from rtdsae.recordings import load, save, synthetic

    path = demo.out / "recording.h5"
    if demo.data:
        step(1, f"read {demo.data}")
        whole = load(demo.data).split()
        if whole.external is not None:
            raise ConfigError(f"{demo.data} has external inputs, which no live stream brings yet: leave them out")
        live = kept_back(whole, demo.seconds)
        save(live, demo.out / "live.h5")
        command = ["replay", demo.out / "live.h5", "--source-id", SOURCE_ID, "--wait", LIVE_WAIT_S]
    else:
        step(1, "generate neurons that a Lorenz system drives")
        whole = synthetic.lorenz()
        live = synthetic.lorenz(seconds=demo.seconds, take=1)
        command = ["simulate", "--seconds", demo.seconds, "--take", 1, "--source-id", SOURCE_ID, "--wait", LIVE_WAIT_S]
    save(whole, path)
    print(f"{whole.n_bins} bins of {1000 * whole.bin_width_s:g} ms, {whole.n_channels} neurons: {path}")
    seconds = live.n_bins * live.bin_width_s
    return path, {"command": command, "bins": live.n_bins, "recording": live, "seconds": seconds}


def kept_back(whole: "Recording", seconds: float) -> "Recording":
    """What the model was not trained on, as one stream of so many seconds at most."""
    from rtdsae.recordings import Recording

    splits = np.asarray(whole.splits)
    test = whole.select(splits == ("test" if "test" in splits else "valid"))
    bins = min(test.n_bins, round(seconds / test.bin_width_s))
    parts: dict[str, Any] = {"session": test.session, "channels": test.channels, "heldout": test.heldout}
    for name in ("behaviour", "true_rates"):
        series = getattr(test, name)
        parts[name] = None if series is None else series[:bins]
    return Recording(test.counts[:bins], test.bin_width_s, behaviour_labels=test.behaviour_labels, **parts)


def check_long_enough(live: dict[str, Any], needed: int) -> None:
    """Refuse to stream no more bins than the model needs to begin.

    Raises:
        ConfigError: with how much that is.
    """
    if live["bins"] <= needed:
        width = live["recording"].bin_width_s
        raise ConfigError(
            f"{live['seconds']:g} s would be streamed, and the first {needed * width:g} s are what the model begins "
            "with: give more --seconds, or a longer recording"
        )


def step(number: int, what: str) -> None:
    """Say what comes."""
    print(f"\n[{number}/6] {what}", flush=True)


def fresh(run: Path) -> Path:
    """Put an earlier demo's run aside, so that this one can take its place."""
    if run.exists():
        aside = run.with_name(f"{run.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(run.stat().st_mtime))}")
        run.rename(aside)
        print(f"the earlier run is now {aside}")
    return run


def rtdsae(*args: object) -> None:
    """Run one verb, as a user would; its failure ends the demo with its own message."""
    command = [sys.executable, "-m", "rtdsae", *map(str, args)]
    print("$ rtdsae", *args, flush=True)
    with subprocess.Popen(command) as process:

        def pass_on(number: int) -> None:
            if number == signal.SIGTERM:  # Ctrl-C reaches the verb too, which ends in good order
                process.terminate()

        with caught(pass_on):
            process.wait()
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)


def in_background(*args: object) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A verb in the background, as long as the block lasts; it is printed, as a user would type it."""
    print("$ rtdsae", *args, "&", flush=True)
    return running(args)


def stream_live(bundle: Path, source: list[object], bins: int) -> dict[str, Any]:
    """Stream, decode and subscribe: by name, one row for each message that arrived."""
    import pylsl

    from rtdsae import Subscriber

    last_bin = bins - 1
    rows: list[tuple[Any, ...]] = []
    arrays: dict[str, list[Any]] = {}
    publish = ",".join(name for name in ("factors", "rates", "behaviour") if name in outputs_of(bundle))
    serve = ["serve", bundle, "--stream", f"source_id={SOURCE_ID}", "--publish", publish]
    with (
        caught(interrupt),
        tempfile.TemporaryDirectory(prefix="rtdsae-demo-") as folder,
        Subscriber(endpoint := f"ipc://{folder}/latents", timeout_s=LIVE_WAIT_S) as subscriber,
        in_background(*source),
        in_background(*serve, "--pub", endpoint),
    ):
        for message in subscriber:
            now = pylsl.local_clock()
            rows.append((message.seq, message.bin, message.t_bin, message.t_in, message.t_out, now))
            for name in publish.split(","):
                arrays.setdefault(name, []).append(message[name].copy())
            if message.bin >= last_bin:
                break
        holes = subscriber.holes
    table = np.array(rows)
    names = ("seq", "bin", "t_bin", "t_in", "t_out", "t_heard")
    return {
        **{name: table[:, i] for i, name in enumerate(names)},
        **{name: np.stack(values) for name, values in arrays.items()},
        "holes": holes,
    }


def outputs_of(bundle: Path) -> list[str]:
    """The arrays that a bundle can publish."""
    return [output["name"] for output in json.loads((bundle / "manifest.json").read_text())["outputs"]]

"""The whole path, live, on generated neurons or on your recording: what `./tools/demo` runs.

Every step is a verb of the command line, started as you would start it; only the subscriber runs in here.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LSL_CONFIG = ROOT / "configs" / "lsl_loopback.cfg"
LIVE_WAIT_S = 30.0


def main() -> int:
    """Run the demo; 0 when every bin arrived and equals the offline answer."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LSLAPICFG", str(LSL_CONFIG))  # before anything imports pylsl, here or in a child
    from rtdsae.errors import RtdsaeError

    try:
        recording, live = recordings(args)
        run, bundle = args.out / "run", args.out / "bundle"
        step(2, f"train {args.config} on {recording} (the progress bar tells how long; Ctrl-C keeps what was reached)")
        rtdsae("train", args.config, "--data", recording, "--out", fresh(run), *overrides(args))
        step(3, "score it on the part that it was not trained on, by streaming")
        rtdsae("evaluate", run)
        step(4, "export it, checked against torch bin by bin")
        rtdsae("export", run, "--out", bundle, "--overwrite")
        step(5, f"live: an LSL stream, the daemon and a subscriber, {live['seconds']:.0f} s in real time")
        heard = stream_live(bundle, live["command"], live["bins"])
        step(6, "what came out")
        return summary(args.out, run, live["recording"], heard)
    except RtdsaeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="./tools/demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="your recording (HDF5 or npz), instead of generated neurons")
    parser.add_argument("--config", type=Path, help="YAML config (default: configs/lorenz.yaml, or configs/lfads.yaml)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how much to stream live (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="fewer epochs than the config says, for a quicker look")
    parser.add_argument("--out", type=Path, default=ROOT / "out/demo", help="where everything goes (default: out/demo)")
    args = parser.parse_args()
    args.config = args.config or ROOT / ("configs/lfads.yaml" if args.data else "configs/lorenz.yaml")
    return args


def recordings(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The recording to train on, and what is to be streamed live: its command, its bins and its recording."""
    from rtdsae.errors import ConfigError
    from rtdsae.recordings import load, save, synthetic

    path = args.out / "recording.h5"
    if args.data:
        step(1, f"read {args.data}")
        whole = load(args.data).split()
        if whole.external is not None:
            raise ConfigError(f"{args.data} has external inputs, which no live stream brings yet: leave them out")
        test = whole.select(whole.splits == "test") if "test" in whole.splits else whole.select(whole.splits == "valid")
        bins = min(test.n_bins, round(args.seconds / test.bin_width_s))
        live = dataclasses.replace(
            test,
            **{
                name: None if getattr(test, name) is None else getattr(test, name)[:bins]
                for name in ("counts", "behaviour", "external", "true_rates")
            },
            segments=[[0, bins]],
            conditions=None,
            splits=None,
        )
        save(live, args.out / "live.h5")
        command = ["replay", args.out / "live.h5", "--source-id", SOURCE_ID, "--wait", LIVE_WAIT_S]
    else:
        step(1, "generate neurons that a Lorenz system drives")
        whole = synthetic.lorenz()
        live = synthetic.lorenz(seconds=args.seconds, take=1)
        command = ["simulate", "--seconds", args.seconds, "--take", 1, "--source-id", SOURCE_ID, "--wait", LIVE_WAIT_S]
    save(whole, path)
    print(f"{whole.n_bins} bins of {1000 * whole.bin_width_s:g} ms, {whole.n_channels} neurons: {path}")
    seconds = live.n_bins * live.bin_width_s
    return path, {"command": command, "bins": live.n_bins, "recording": live, "seconds": seconds}


def overrides(args: argparse.Namespace) -> list[object]:
    """What the flags change of the config."""
    return ["--set", f"fit.epochs={args.epochs}"] if args.epochs else []


SOURCE_ID = f"rtdsae-demo-{os.getpid()}"


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
    print("$ rtdsae", *args[:1], *map(str, args[1:]), flush=True)
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the verb too, which ends in good order
                process.wait()
    if process.returncode:
        sys.exit(process.returncode)


@contextlib.contextmanager
def running(*args: object) -> Iterator[subprocess.Popen[bytes]]:
    """A verb in the background, ended by SIGINT."""
    print("$ rtdsae", *args[:1], *map(str, args[1:]), "&", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "rtdsae", *map(str, args)])
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def stream_live(bundle: Path, source: list[object], bins: int) -> dict[str, Any]:
    """Stream, decode and subscribe: by name, one row for each message that arrived."""
    import numpy as np
    import pylsl

    from rtdsae import Subscriber

    last_bin = bins - 1
    rows: list[tuple[Any, ...]] = []
    arrays: dict[str, list[Any]] = {}
    publish = ",".join(name for name in ("factors", "rates", "behaviour") if name in outputs_of(bundle))
    with (
        tempfile.TemporaryDirectory(prefix="rtdsae-demo-") as folder,
        Subscriber(endpoint := f"ipc://{folder}/latents", timeout_s=LIVE_WAIT_S) as subscriber,
        running(*source),
        running("serve", bundle, "--stream", f"source_id={SOURCE_ID}", "--pub", endpoint, "--publish", publish),
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


def summary(out: Path, run_path: Path, live: Any, heard: dict[str, Any]) -> int:
    """Compare what was heard with the offline answer and with the truth; print the table, draw the picture."""
    import numpy as np

    from rtdsae.evaluate.metrics import r2
    from rtdsae.train.latents import segment_outputs
    from rtdsae.train.run import Run
    from rtdsae.train.windows import Tensors

    family = Run.open(run_path).model()
    s = family.dims.anchor_bins
    offline = segment_outputs(family, Tensors(live), np.array([[0, live.n_bins]]))
    at = heard["bin"].astype(int)
    names = [name for name in ("factors", "rates", "behaviour") if name in heard]
    difference = max(relative_difference(heard[name], offline[name][at - s]) for name in names)
    lost = live.n_bins - s - len(at)
    rows: list[tuple[str, str]] = []
    latents = None
    if live.true_rates is not None:
        rows.append(
            ("R2 of the streamed rates to the true rates", f"{r2(live.true_rates[at], heard['rates']).mean():.3f}")
        )
        latents = latents_against_truth(np.log(np.maximum(live.true_rates[at], 1e-3)), heard["factors"])
        rows.append(("R2 of the true latents, linear in the streamed factors", f"{latents['r2']:.3f}"))
    if "behaviour" in heard and live.behaviour is not None:
        scores = r2(live.behaviour[at], heard["behaviour"])
        said = ", ".join(f"{name} {v:.3f}" for name, v in zip(live.behaviour_labels, scores, strict=True))
        rows.append(("R2 of the streamed behaviour", said))
    rows += [
        ("streamed vs offline, largest difference", f"{difference:.1e}"),
        ("in the daemon (sample in hand -> sent)", percentiles(heard["t_out"] - heard["t_in"])),
        ("bin's end -> subscriber", percentiles(heard["t_heard"] - heard["t_bin"])),
        ("bins published / lost / holes in seq", f"{len(at)} / {lost} / {heard['holes']}"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"  {name:{width}}  {value}" for name, value in rows))
    picture = draw(out / "demo.png", live, at, heard, latents)
    print(f"\nfigure: {picture}\nrun: {run_path}\nbundle: {out / 'bundle'}   (rtdsae inspect {out / 'bundle'})")
    if lost or heard["holes"] or difference > 1e-4:
        print("demo: bins are missing, or the stream differs from the offline answer", file=sys.stderr)
        return 1
    return 0


def relative_difference(a: Any, b: Any) -> float:
    """The largest difference, relative where a value is above 1."""
    import numpy as np

    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))


def percentiles(seconds: Any) -> str:
    """p50, p99 and the largest, in milliseconds."""
    import numpy as np

    p50, p99, largest = (1000 * np.percentile(seconds, q) for q in (50, 99, 100))
    return f"p50 {p50:.2f}  p99 {p99:.2f}  max {largest:.2f} ms"


def latents_against_truth(log_rates: Any, factors: Any) -> dict[str, Any]:
    """True latents (the three principal components of the true log rates) by a linear map from the factors.

    The map is fitted on the first half of the stream and scored on the second.
    """
    import numpy as np
    from sklearn.linear_model import Ridge

    from rtdsae.evaluate.metrics import r2

    centred = log_rates - log_rates.mean(0)
    true = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    half = len(true) // 2
    mapped = Ridge(1.0).fit(factors[:half], true[:half]).predict(factors)
    return {"true": true, "mapped": mapped, "r2": float(r2(true[half:], mapped[half:]).mean())}


def draw(path: Path, live: Any, at: Any, heard: dict[str, Any], latents: dict[str, Any] | None) -> Path:
    """One picture of the last seconds: a rate, the latents or the behaviour, and the latency."""
    import numpy as np
    from matplotlib.figure import Figure

    shown = slice(-round(6 / live.bin_width_s), None)
    t = at[shown] * live.bin_width_s
    figure = Figure(figsize=(10, 8), layout="constrained")
    rate, latent, delay = figure.subplots(3, 1)
    neuron = int(heard["rates"].var(0).argmax())
    if live.true_rates is not None:
        rate.plot(t, live.true_rates[at][shown, neuron], "k", lw=1.5, label="true rate")
    else:
        rate.plot(t, live.counts[at][shown, neuron] / live.bin_width_s, "0.7", lw=1, label="spikes in the bin")
    rate.plot(t, heard["rates"][shown, neuron], "C1", lw=1.5, label="streamed")
    rate.set(xlabel="time (s)", ylabel="spikes/s", title=f"neuron {live.channels[neuron]}")
    rate.legend(loc="upper right")
    if latents is not None:
        pairs, title = (
            [(latents["true"], latents["mapped"])],
            "true latents (black) and the streamed factors' linear map",
        )
    elif "behaviour" in heard:
        pairs, title = [(live.behaviour[at], heard["behaviour"])], "behaviour (black) and its streamed decoding"
    else:
        pairs, title = [(heard["factors"][:, :3], heard["factors"][:, :3])], "three streamed factors"
    for true, ours in pairs:
        offset = np.arange(true.shape[1]) * 4 * true.std(0).max()
        latent.plot(t, (true + offset)[shown], "k", lw=1.5)
        latent.plot(t, (ours + offset)[shown], lw=1.5)
    latent.set(xlabel="time (s)", yticks=[], title=title)
    for values, label in (
        (heard["t_out"] - heard["t_in"], "in the daemon"),
        (heard["t_heard"] - heard["t_bin"], "bin's end to subscriber"),
    ):
        delay.hist(
            1000 * np.maximum(values, 1e-5), bins=np.geomspace(0.01, 100, 80), histtype="step", lw=1.5, label=label
        )
    delay.axvline(1000 * live.bin_width_s, color="r", ls="--", label="bin width")
    delay.set(xscale="log", xlabel="latency (ms)", ylabel="bins", title="latency")
    delay.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    sys.exit(main())

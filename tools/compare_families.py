"""The five families on the same data at the same budget of training time: the tables of docs/families.md.

    ./tools/compare_families [--budget 1] [--sets lorenz ...] [--families lfads ...] [--kl 0.005 ...] [--jobs 2]

Every family gets the same sizes, window and objective on a set (the set's config) and the same CPU time on one core,
on generated sets twice, with KL weights of 0.3 and of 0.005 (--kl: with those given, on every set); the one with the
better validation score is reported. That score, of entries hidden from the encoders or of held-out neurons, selects the
epoch too; no test figure is looked at. Sets of real recordings are left out where they are not at hand
(tools/real_recordings.py). Finished runs under --out (out/families) are kept, each budget's apart, so that the program
can be stopped and called again. The last line is JSON.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import real_recordings

from rtdsae import bundle
from rtdsae.errors import RecordingError
from rtdsae.evaluate.score import evaluate
from rtdsae.recordings import Recording, load, save, synthetic
from rtdsae.recordings.reaching import reaching
from rtdsae.serve.engine import Engine
from rtdsae.signals import caught, interrupt
from rtdsae.train.config import TrainConfig, load_config
from rtdsae.train.export import export
from rtdsae.train.fit import train
from rtdsae.train.sessions import prepare

ROOT = Path(__file__).parent.parent
FAMILIES = ("lfads", "dsae_full", "dsae_factorized", "fhvae", "fdmm")
TIMED_BLOCKS, TIMED_STEPS = 20, 200

Cell = tuple[str, str, float, float, Path]  # set, family, KL weight, budget, and where everything goes


@dataclass(frozen=True)
class Set:
    """A recording, how it is made, and the config of every family on it."""

    make: Callable[[], Recording]
    config: str
    overrides: tuple[str, ...] = ()
    minutes: float = 1.0
    kl: tuple[float, ...] = (0.3, 0.005)


SETS = {
    "lorenz": Set(synthetic.lorenz, "lorenz.yaml", minutes=1.5),
    "chaotic_rnn": Set(synthetic.chaotic_rnn, "chaotic_rnn.yaml", minutes=4.0),
    "reaching": Set(reaching, "reaching.yaml"),
    "center_out": Set(real_recordings.center_out_stream, "lfads.yaml", ("data.heldout_every=4",), kl=(0.005,)),
    "pursuit": Set(real_recordings.pursuit, "lfads.yaml", ("data.heldout_every=4",), kl=(0.005,)),
}


def main() -> None:
    """Train what is not there yet, then print."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = [name for name in args.sets if make_data(name, args.out)]
    cells = {
        (name, family): [(name, family, kl, args.budget, args.out) for kl in dict.fromkeys(args.kl or SETS[name].kl)]
        for name in sets
        for family in args.families
    }
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are begun from here
    run_all([cell for each in cells.values() for cell in each], args.jobs)
    best = {name: {family: best_of(cells[name, family]) for family in args.families} for name in sets}
    times = step_times(best, args.families, args.budget, args.out) if sets else {}
    print("\n".join(tables(best, times)))
    print(json.dumps({"budget": args.budget, "scores": best, "step_us": times}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./tools/compare_families", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--budget", type=float, default=1.0, help="times the minutes that a set's runs are given")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--kl", nargs="+", type=float, help="KL weights; the set's own where left out")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; no more than there are cores")
    parser.add_argument("--out", type=Path, default=Path("out/families"))
    args = parser.parse_args()
    if not 0 < args.budget < math.inf or args.jobs < 1:
        parser.error("--budget must be above 0, --jobs 1 or more")
    if not all(0 <= kl < math.inf for kl in args.kl or ()):
        parser.error("--kl must be 0 or more")
    return args


def make_data(name: str, out: Path) -> bool:
    """The set's recording as a file; False where it is not at hand."""
    path = out / f"{name}.h5"
    try:
        if not path.exists():
            save(SETS[name].make(), path)
    except RecordingError as error:
        print(f"{name}: left out: {error}", flush=True)
        return False
    return True


def run_all(cells: list[Cell], jobs: int) -> None:
    """Every run, so many at a time. Ctrl-C and SIGTERM end them all."""
    with caught(interrupt), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        handler = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # in the processes, whose `train` would end in good order
        runs = [pool.submit(run_cell, cell) for cell in cells]  # `map` would cancel them, at which a broken pool trips
        signal.signal(signal.SIGINT, handler)
        try:
            for cell, run in zip(cells, runs, strict=True):
                validation = run.result()["validation"]
                print(f"{cell[0]:12} {cell[1]:16} KL {cell[2]:<6} {validation:.4f} nats", flush=True)
        except KeyboardInterrupt:
            for worker in active_children():  # else the pool waits for the runs, and for those that it had begun next
                worker.terminate()
            raise


def folder(name: str, family: str, kl: float, budget: float, out: Path) -> Path:
    """Where a run is."""
    return out / f"{name}-{family}-{kl}-{budget:g}"


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, score and export one run, unless its result is there."""
    name, family, kl, budget, out = cell
    where = folder(*cell)
    if (where / "result.json").exists():
        return dict(json.loads((where / "result.json").read_text()))
    shutil.rmtree(where, ignore_errors=True)
    path = out / f"{name}.h5"
    recording, chosen = load(path), SETS[name]
    overrides = (
        f"model.family={family}",
        f"objective.kl_f_scale={kl}",
        f"objective.kl_z_scale={kl}",
        *chosen.overrides,
    )

    def config(*more: str) -> TrainConfig:
        return load_config(ROOT / "configs" / chosen.config, (*overrides, "fit.accelerator=cpu", *more), (str(path),))

    once = config("fit.epochs=2", "fit.patience=2")
    ended: list[float] = []
    train(where / "timing", once, [prepare(recording, once)], lambda _: ended.append(time.process_time()))
    epochs = max(4, int(60 * chosen.minutes * budget / (ended[1] - ended[0])))
    whole = config(f"fit.epochs={epochs}", f"fit.patience={epochs}", f"objective.ramp_epochs={min(10, epochs // 4)}")
    run = train(where / "run", whole, [prepare(recording, whole)], lambda _: None)
    (report,) = evaluate(run)
    export(run, where / "bundle")
    result = {"epochs": epochs, "best_epoch": run.info["best_epoch"], "validation": run.info["best_score"], "kl": kl}
    result |= {"scores": report.scores}
    (where / "result.json").write_text(json.dumps(result))
    return result


def best_of(cells: list[Cell]) -> dict[str, Any]:
    """The result with the better validation score."""
    return min(map(run_cell, cells), key=lambda result: result["validation"])


def step_times(best: dict[str, Any], families: list[str], budget: float, out: Path) -> dict[str, dict[str, float]]:
    """Microseconds of one step in ONNX Runtime, the families in turn, on the first set's sizes."""
    name = next(iter(best))
    loaded = {f: bundle.load(folder(name, f, best[name][f]["kl"], budget, out) / "bundle") for f in families}
    engines = {f: Engine(b) for f, b in loaded.items()}
    counts = {f: b.golden()["x"] for f, b in loaded.items()}
    taken: dict[str, list[float]] = {f: [] for f in families}
    for _ in range(TIMED_BLOCKS):
        for f, engine in engines.items():
            for i in range(TIMED_STEPS):
                begun = time.perf_counter()
                engine.step(counts[f][i % len(counts[f])], True)
                taken[f].append(1e6 * (time.perf_counter() - begun))
    return {
        f: {"p50": float(np.median(t)), "p99": float(np.percentile(t, 99)), "state": loaded[f].manifest.state_size}
        for f, t in taken.items()
    }


def tables(best: dict[str, Any], times: dict[str, dict[str, float]]) -> list[str]:
    """The tables, in Markdown."""
    lines: list[str] = []
    for name, results in best.items():
        rows = {family: row(name, result) for family, result in results.items()}
        heads = list(next(iter(rows.values())))
        lines += ["", f"**{name}**", "", f"| | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
        lines += [f"| {family} | {' | '.join(values.values())} |" for family, values in rows.items()]
    lines += ["", "| one step, µs | p50 | p99 | state |", "|---|--:|--:|--:|"]
    lines += [f"| {f} | {t['p50']:.0f} | {t['p99']:.0f} | {t['state']} |" for f, t in times.items()]
    return lines


def row(name: str, result: dict[str, Any]) -> dict[str, str]:
    """One family's cells on a set."""
    s, latents = result["scores"], result["scores"]["latents"]
    said = {"KL weights": f"{result['kl']:g}", "epochs": str(result["epochs"])}
    if s["r2_true_rates"] is not None:
        said["R² to true rates"] = f"{s['r2_true_rates']:.3f}"
    if s["co_bps"] is not None:
        said |= {"co-bps": f"{s['co_bps']:.4f}", "held-out neurons, nats": f"{result['validation']:.4f}"}
    else:
        said["hidden entries, nats"] = f"{result['validation']:.4f}"
    if s["r2_behaviour"]:
        said |= {f"R² {label}": f"{v:.3f}" for label, v in s["r2_behaviour"].items() if label != "mean"}
    if name == "reaching":
        swap, dci = latents["swap"], latents["dci"]
        said |= {"MIG": f"{latents['mig']:.3f}", "DCI (D)": f"{dci['disentanglement']:.3f}"}
        said["swap: label follows f / z"] = follows(swap, "f") + " / " + follows(swap, "z")
    return said


def follows(swap: dict[str, Any], latent: str) -> str:
    """Mean over the static labels of the share of swapped trials with the label of this latent's trial."""
    return f"{np.mean([swap[label][latent] for label in ('direction', 'speed', 'gain')]):.2f}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

"""Quality per minute beside lfads-torch: scores against CPU time of training, of the same data and the same bins.

    python tools/bench_quality.py [--sets lorenz chaotic_rnn center_out pursuit] [--minutes 4] [--lfads-torch DIR]
        [--models rtdsae rtdsae-taught lfads-torch lfads-torch-causal] [--figure FILE] [--out DIR]

DIR is a checkout of lfads-torch (github.com/arsedler9/lfads-torch); pytorch_lightning and torchmetrics have to be
importable for it. Without it rtdsae is measured alone. The models, each in a process of its own, on one thread:

    rtdsae              causal, with the set's config in configs/, epochs as many as the budget holds; streamed
    rtdsae-taught       the same after an acausal teacher of the same sizes, whose training is part of the budget
    lfads-torch         as it comes: encoders in both directions, so that it sees the whole window
    lfads-torch-causal  made strictly causal, as in bench_training.py

lfads-torch has the settings of its configs/model/nlb_mc_maze.yaml but for the sizes (bench_training.py), and batches
of 64. It is given windows of S + R bins, one every S bins to train on and one every R to score. Of these only the bins
after a window's first S count, which are the bins that rtdsae gives when it streams. Every 4th neuron is held out of
all encoders. Generated sets have a test part, half of the validation trials: no bin that is scored has selected or
fitted anything.

Time is the process's CPU time in training with each tool's own validation, without scoring. At points a factor of √2
apart two models are scored by posterior means, the current one and the best so far by the tool's own rule (rtdsae: the
likelihood of held-out neurons; lfads-torch: its smoothed reconstruction loss, of all neurons). The last best one of
lfads-torch is scored by the mean of 50 samples too, as it does it after training. Behaviour is a ridge from the
factors, of all models by the same function. Tables and figure are of the best so far. Finished models are kept under
--out, so that the program can be stopped and called again. The last line is JSON.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_training
import numpy as np
import torch
from compare_families import ROOT, SETS
from msgspec import structs

from rtdsae.errors import RecordingError, RtdsaeError
from rtdsae.evaluate import canvas
from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.evaluate.oracle import oracle_rates
from rtdsae.recordings import Recording
from rtdsae.train.behaviour import split_segments
from rtdsae.train.choose import TAUGHT
from rtdsae.train.config import TrainConfig, load_config
from rtdsae.train.fit import Progress, train
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.ridge import ridge
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare
from rtdsae.train.windows import Tensors, Windows

MODELS = ("rtdsae", "rtdsae-taught", "lfads-torch", "lfads-torch-causal")
OURS = MODELS[:2]
TAUGHT_CONFIGS = {"lorenz": "lorenz_taught.yaml"}  # that are not the set's own
SIZES = ["model.gen_dim=200", "model.ci_enc_dim=128", "model.con_dim=128"]  # of teacher and student
TEACHERS_SHARE = 0.45  # of the budget
SCORES = {"co_bps": "co-bps", "r2_true_rates": "R² to true rates", "r2_behaviour": "R² of behaviour"}
POINTS = [2 ** (-i / 2) for i in range(8, -1, -1)]  # of the budget
TOLD = (0.25, 0.5, 1.0)  # of the budget, in the tables
TIMED_SEGMENTS = 400  # on which rtdsae's epochs are timed, to know how many the budget holds
SAMPLES = 50  # lfads-torch's num_samples

Outputs = Callable[[str], dict[str, np.ndarray]]  # of a split's bins after each segment's first S: rates and factors
Scores = dict[str, float]


def main() -> None:
    """Train what is not there yet, then print; or, as the process of one model, train it."""
    args = arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.subject:
        run_subject(args)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    models = [name for name in args.models if args.lfads_torch or name in OURS]
    found: dict[str, dict[str, Any]] = {}
    for name in args.sets:
        try:
            data, _ = data_of(name, args.set)
        except RecordingError as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        subjects = [*models, "oracle"] if data.generator else models
        found[name] = {subject: cell(args, name, subject) for subject in subjects}
        print("\n".join(table(name, found[name], args.minutes)), flush=True)
    if args.figure and found:
        canvas.save_png(figure(found, 60 * args.minutes), args.figure)
    print(json.dumps({"minutes": args.minutes, "sets": found}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["lorenz", "chaotic_rnn", "center_out", "pursuit"]
    parser.add_argument("--sets", nargs="+", choices=names, default=names)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU time of each model")
    parser.add_argument("--lfads-torch", type=Path, metavar="DIR")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of rtdsae's config; windows, data and seed are those of all models",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    parser.add_argument("--subject", nargs=2, metavar=("SET", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 0 < args.minutes < math.inf:
        parser.error("--minutes must be above 0")
    bench_training.check_checkout(parser, args.lfads_torch)
    return args


def cell(args: argparse.Namespace, name: str, model: str) -> dict[str, Any]:
    """What one model's process found on a set, which is kept in a file."""
    budget = "" if model == "oracle" else f"-{args.minutes:g}"
    changed = "".join(f"-{one.replace('/', '_')}" for one in args.set if model in OURS or is_of_data(one))
    path = args.out / f"{name}-{model}{budget}{changed}.json"
    if not path.exists():
        command = [sys.executable, *sys.argv, "--subject", name, model]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{model} on {name} has ended: see above")
        path.write_text(done.stdout.splitlines()[-1])
    return dict(json.loads(path.read_text()))


def is_of_data(change: str) -> bool:
    """Whether it says which bins are trained on and scored, and so is one of lfads-torch and the oracle as well."""
    return change.startswith(("data.", "window.", "fit.seed="))


def run_subject(args: argparse.Namespace) -> None:
    """Train one model and print its curve as JSON; or the oracle's scores."""
    name, model = args.subject
    begun, load = time.monotonic(), os.getloadavg()[0]
    data, config = data_of(name, args.set)
    if model == "oracle":
        print(json.dumps(scores(data, config, lambda split: oracle_outputs(data, config, split))))
        return
    if model == "rtdsae":
        result = train_rtdsae(data, config, 60 * args.minutes)
    elif model == "rtdsae-taught":
        _, teacher = data_of(name, [*SIZES, "model.causal=false", *args.set])
        _, student = data_of(name, [*lessons(), *SIZES, "data.teacher=''", *args.set], TAUGHT_CONFIGS.get(name, ""))
        result = train_rtdsae(data, student, 60 * args.minutes, teacher)
    else:
        sys.path.insert(0, str(args.lfads_torch))
        result = LfadsTorch(data, config, strict=model == "lfads-torch-causal").train(60 * args.minutes)
    print(json.dumps({**result, "wall_s": round(time.monotonic() - begun), "load": [load, os.getloadavg()[0]]}))


# data and scores ------------------------------------------------------------------------------------------------------


def data_of(name: str, changes: list[str] | None = None, config_name: str = "") -> tuple[Recording, TrainConfig]:
    """A set's recording, split and with its held-out neurons flagged, and rtdsae's configuration (else the set's own).

    Raises:
        RecordingError: it is not at hand.
    """
    chosen = SETS[name]
    overrides = (*chosen.overrides, "data.heldout_every=4", "fit.accelerator=cpu", *(changes or []))
    config = load_config(ROOT / "configs" / (config_name or chosen.config), overrides, (f"{name}.h5",))
    data = prepare(chosen.make(), config)
    splits = np.array(data.splits)
    if "test" not in splits:
        splits[np.flatnonzero(splits == "valid")[::2]] = "test"
    return dataclasses.replace(data, splits=splits), config


def scores(data: Recording, config: TrainConfig, outputs: Outputs) -> Scores:
    """Every score of the test part that the recording allows."""
    s, r = config.window.anchor_bins, config.window.horizon_bins
    bins = {split: modelled_bins(split_segments(data, split, s + r), s) for split in ("train", "valid", "test")}
    test, heldout = outputs("test"), data.heldout
    counts, expected = data.counts[bins["test"]], test["rates"] * data.bin_width_s
    found = {
        "bps": bits_per_spike(expected[:, ~heldout], counts[:, ~heldout]),  # type: ignore[index,operator]
        "co_bps": bits_per_spike(expected[:, heldout], counts[:, heldout]),
    }
    if data.true_rates is not None:
        found["r2_true_rates"] = float(np.nanmean(r2(data.true_rates[bins["test"]], test["rates"])))
    if data.behaviour is not None:
        y = {split: data.behaviour[some].astype(float) for split, some in bins.items()}
        train, valid = ((outputs(split)["factors"], y[split]) for split in ("train", "valid"))
        decode = ridge([train], [valid]).predict
        found["r2_behaviour"] = float(np.mean(r2(y["test"], decode(test["factors"]))))
    return found


def oracle_outputs(data: Recording, config: TrainConfig, split: str) -> dict[str, np.ndarray]:
    """The ideal observer's rates."""
    s, r = config.window.anchor_bins, config.window.horizon_bins
    return {"rates": oracle_rates(data, split_segments(data, split, s + r), s)}


class Curve:
    """Scores along the CPU time of training; the time that scoring takes is left out.

    Args:
        budget: seconds; training begins now.
    """

    def __init__(self, budget: float) -> None:
        self.budget, self.due = budget, [budget * point for point in POINTS]
        self.begun, self.apart, self.before = time.process_time(), 0.0, 0.0
        self.points: list[dict[str, Any]] = []

    @property
    def taken(self) -> float:
        """Seconds of training so far."""
        return time.process_time() - self.begun - self.apart

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return self.taken >= self.budget

    def epoch(self, number: int, current: Callable[[], Scores], best: Callable[[], Scores] | None, last: bool) -> None:
        """Score after an epoch, if a point is nearer to it than to the next one.

        Args:
            number: the epoch, from 0.
            current: scores the model as it is.
            best: scores the best one so far; None where that is the current one.
            last: whether it is the last epoch, which is scored in any case.
        """
        taken = self.taken
        reached, self.before = taken + (taken - self.before) / 2, taken
        if not last and reached < min(self.due, default=math.inf):
            return
        self.due = [point for point in self.due if point > reached]
        begun = time.process_time()
        now = current()
        self.points.append({"seconds": taken, "epoch": number, "current": now, "best": best() if best else now})
        self.apart += time.process_time() - begun
        print(f"{taken:7.1f} s, epoch {number}: {self.points[-1]['best']}", file=sys.stderr, flush=True)


# rtdsae ---------------------------------------------------------------------------------------------------------------


def train_rtdsae(
    data: Recording, config: TrainConfig, budget: float, teacher: TrainConfig | None = None
) -> dict[str, Any]:
    """A run of as many epochs as the budget holds, so that its learning rate has fallen by then; a teacher's before."""
    tensors, least = Tensors(data), config.window.anchor_bins + config.window.horizon_bins
    with tempfile.TemporaryDirectory() as folder:
        if teacher:
            teacher = with_epochs(teacher, epochs_within(TEACHERS_SHARE * budget, teacher, data))
        epochs = epochs_within((1 - TEACHERS_SHARE if teacher else 1) * budget, config, data)
        config = with_epochs(config, epochs)
        path, curve = Path(folder) / "run", Curve(budget)
        if teacher:
            train(Path(folder) / "teacher", teacher, [data], lambda _: None)
            config = structs.replace(config, data=structs.replace(config.data, teacher=f"{folder}/teacher"))

        def score(checkpoint: str) -> Scores:
            run = Run.open(path)
            family = run.restore(run.load_checkpoint(checkpoint)["model"]).use(0)
            segments = {split: split_segments(data, split, least) for split in ("train", "valid", "test")}
            return scores(data, config, lambda split: segment_outputs(family, tensors, segments[split]))

        def report(p: Progress) -> None:
            last = curve.over or p.epoch == epochs - 1
            best = None if p.best_epoch == p.epoch else lambda: score("best.pt")
            curve.epoch(p.epoch, lambda: score("last.pt"), best, last)
            if last:
                raise KeyboardInterrupt  # how a run is ended before its time

        run = train(path, config, [data], report)
        size = sum(weight.numel() for weight in run.build().parameters())
    return {"points": curve.points, "epochs": epochs, "best_epoch": run.info["best_epoch"], "parameters": size}


def epochs_within(budget: float, config: TrainConfig, data: Recording) -> int:
    """How many epochs of the recording so many seconds hold, by three of some of it."""
    every = max(1, data.n_segments // TIMED_SEGMENTS)
    some = data.select(np.sort(np.random.default_rng(0).permutation(data.n_segments)[: data.n_segments // every]))
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "run", with_epochs(config, 3), [some], lambda _: ended.append(time.process_time()))
    return max(4, round(budget / (every * float(np.diff(ended).min()))))


def lessons() -> list[str]:
    """What a student is trained with: little else that holds over-fitting down."""
    return [f"{choice.key}={choice.value}" for choice in TAUGHT]


def with_epochs(config: TrainConfig, epochs: int) -> TrainConfig:
    """The same for so many epochs, its ramps no more than a quarter of them."""
    ramp = min(config.objective.ramp_epochs, epochs // 4)
    return structs.replace(
        config,
        fit=structs.replace(config.fit, epochs=epochs, patience=epochs),
        objective=structs.replace(config.objective, ramp_epochs=ramp),
    )


# lfads-torch ----------------------------------------------------------------------------------------------------------


class LfadsTorch:
    """lfads-torch's model, optimiser and validation in a bare loop.

    Args:
        data: the recording.
        config: rtdsae's, of which the window is taken.
        strict: made causal.
    """

    def __init__(self, data: Recording, config: TrainConfig, *, strict: bool) -> None:
        assert data.heldout is not None
        self.data, self.s, self.r, self.strict = data, config.window.anchor_bins, config.window.horizon_bins, strict
        self.order = torch.from_numpy(np.argsort(data.heldout, kind="stable"))  # it wants the held-out neurons last
        self.seen, self.tensors, self.config = int((~data.heldout).sum()), Tensors(data), config
        bench_training.BINS, bench_training.ANCHOR, bench_training.SEEN = self.s + self.r, self.s, self.seen
        torch.manual_seed(config.fit.seed)
        self.model = bench_training.lfads_torch_model(data.n_channels, strict=strict)

    def train(self, budget: float) -> dict[str, Any]:
        """Train until the budget is used up."""
        model, firsts, valid = self.model, self.windows("train", self.s), self.windows("valid", self.r)
        optimizer, least, best = model.configure_optimizers(), math.inf, -1
        weights: dict[str, torch.Tensor] = {}
        curve = Curve(budget)
        for epoch in itertools.count():
            type(model).current_epoch = epoch  # there is no Trainer that counts
            model.train()
            for some in firsts[torch.randperm(len(firsts))].split(64):
                optimizer.zero_grad()
                model.training_step({0: (self.batch(some), ())}, 0).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 200.0)
                optimizer.step()
                if curve.over:
                    break
            loss = self.validate(valid)
            if loss < least:
                least, best, weights = loss, epoch, copy.deepcopy(model.state_dict())
            last = curve.over
            curve.epoch(epoch, self.score, None if best == epoch else lambda w=weights: self.score(w), last)
            if last:
                break
        size = sum(weight.numel() for weight in model.parameters())
        averaged = self.score(weights, SAMPLES)
        return {"points": curve.points, "best_epoch": best, "parameters": size, "averaged": averaged}

    def windows(self, split: str, every: int) -> torch.Tensor:
        """First bins of a split's windows, one every so many bins."""
        return Windows(self.data, split, self.s + self.r, every).tiles()

    def batch(self, firsts: torch.Tensor) -> Any:
        """The windows that begin there."""
        from lfads_torch.tuples import SessionBatch

        x = self.tensors.windows_at(firsts, self.s + self.r).counts[..., self.order]
        told = x[:, self.s :] if self.strict else x
        nothing = told[..., :0]
        return SessionBatch(x[..., : self.seen], told, nothing, nothing, torch.ones_like(x[..., : self.seen]))

    @torch.no_grad()
    def validate(self, firsts: torch.Tensor) -> float:
        """Its smoothed reconstruction loss, by which it selects."""
        self.model.eval()
        for some in firsts.split(64):
            self.model.validation_step({0: (self.batch(some), ())}, 0)
        smoothed = float(self.model.valid_recon_smth.compute())
        self.model.valid_recon_smth.reset()
        return smoothed

    def score(self, weights: dict[str, torch.Tensor] | None = None, samples: int = 0) -> Scores:
        """Scores of the model as it is, or with these weights; by posterior means, or the mean of so many samples."""
        current = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(weights or current)
        self.model.eval()
        found = scores(self.data, self.config, lambda split: self.outputs(split, samples))
        self.model.load_state_dict(current)
        return found

    @torch.no_grad()
    def outputs(self, split: str, samples: int) -> dict[str, np.ndarray]:
        """Rates and factors of a split's windows, each window's after its first S bins."""
        whole: dict[str, np.ndarray] = {}
        for some in self.windows(split, self.r).split(256):
            made = [self.rates_and_factors(some, samples > 0) for _ in range(max(1, samples))]
            rates, factors = (torch.stack(each).mean(0) for each in zip(*made, strict=True))
            where = (some[:, None] + torch.arange(self.s, self.s + self.r)).numpy()
            for name, value in {"rates": rates, "factors": factors}.items():
                there = whole.setdefault(name, np.empty((self.data.n_bins, value.shape[-1]), np.float32))
                there[where] = value.numpy()
        bins = modelled_bins(split_segments(self.data, split, self.s + self.r), self.s)
        return {name: value[bins] for name, value in whole.items()}

    def rates_and_factors(self, firsts: torch.Tensor, sampled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Of windows' bins after their first S, the rates in spikes/s and in the recording's order."""
        made = self.model({0: self.batch(firsts)}, sample_posteriors=sampled)[0]
        rates = made.output_params[:, -self.r :, torch.argsort(self.order)] / self.data.bin_width_s
        return rates, made.factors[:, -self.r :]


# figures --------------------------------------------------------------------------------------------------------------


def table(name: str, found: dict[str, Any], minutes: float) -> list[str]:
    """A set's scores in Markdown."""
    told = " | ".join(f"{100 * part:.0f} %" for part in TOLD)
    lines = ["", f"**{name}**, {minutes:g} CPU minutes", ""]
    lines += [f"| score | model | {told} | 50 samples | of the oracle | of lfads-torch |", "|---|---|" + "--:|" * 6]
    models = {model: of for model, of in found.items() if model != "oracle"}
    for key, called in SCORES.items():
        oracle, reference = found.get("oracle", {}).get(key), found.get("lfads-torch")
        for model, of in models.items():
            if key not in of["points"][-1]["best"]:
                continue
            values = [near(of, part * 60 * minutes)["best"][key] for part in TOLD]
            cells = [f"{value:.4f}" for value in values]
            cells.append(f"{of['averaged'][key]:.4f}" if "averaged" in of else "")
            cells.append(f"{values[-1] / oracle:.3f}" if oracle else "")
            cells.append(f"{values[-1] / reference['points'][-1]['best'][key]:.3f}" if reference else "")
            lines.append(f"| {called} | {model} | {' | '.join(cells)} |")
        if oracle:
            lines.append(f"| {called} | oracle | | | {oracle:.4f} | | | |")
    lines.append("")
    for model, of in models.items():
        last = of["points"][-1]
        lines.append(
            f"- {model}: {of['parameters']} parameters, {last['epoch'] + 1} epochs, best {of['best_epoch'] + 1}, "
            f"{last['seconds']:.0f} s of CPU; {of['wall_s']} s by the clock with scoring, load {of['load'][0]:.1f} to "
            f"{of['load'][1]:.1f}"
        )
    return lines


def near(of: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The point that was scored nearest to this time."""
    return dict(min(of["points"], key=lambda point: abs(point["seconds"] - seconds)))


@canvas.style()
def figure(found: dict[str, Any], budget: float) -> Any:
    """Curves of the best so far, a row a set; the budget is in seconds."""
    drawn, axes = canvas.rows(len(found), 2.2, (1, 1))
    looks = dict(zip(MODELS, (canvas.MODEL, canvas.MODEL, canvas.INK, canvas.ACCENT), strict=True))
    for row, (name, models) in zip(axes, found.items(), strict=True):
        keys = [key for key in SCORES if key in next(iter(models.values()))["points"][0]["best"]]
        for axis, key in zip(row, keys, strict=True):
            for model, of in models.items():
                if model == "oracle":
                    axis.axhline(of[key], color=canvas.SOFT, ls="--", lw=1, label="oracle")
                    continue
                seconds = [point["seconds"] for point in of["points"]]
                values = [point["best"][key] for point in of["points"]]
                line = "--" if model == "rtdsae-taught" else "-"
                axis.plot(seconds, values, line, color=looks[model], marker=".", label=model)
            axis.set(title=f"{name}: {SCORES[key]}", xscale="log", xlabel="CPU seconds of training")
            axis.set_xticks([budget * point for point in POINTS[::2]], [f"{budget * point:g}" for point in POINTS[::2]])
            axis.minorticks_off()
            axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))
    return canvas.finish(drawn, axes[0, 0])


if __name__ == "__main__":
    try:
        main()
    except RtdsaeError as error:
        sys.exit(str(error))

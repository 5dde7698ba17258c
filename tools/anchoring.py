"""How long a model may run on from one anchor, what re-anchoring gives and costs, and how far ahead it sees.

    python tools/anchoring.py [--out out/anchoring] [--epochs 100] [--only NAME ...] [--figure docs/anchoring.png]

Trains small models (CPU, a minute or two each, one after another), exports them with two lanes, and drives the
daemon's own `Engine` and `Decoder` bin by bin, so that what is measured is what runs. The sets:

    pursuit   macaque M1, 13 minutes without a break (tools/real_recordings.py); left out where it is not at hand.
              Scored is the last 20 %, by co-bps of every 4th unit, which no model sees, and R² of hand velocity
    lorenz    generated, 65 or 8 initial states; scored on fresh streams of the same neurons, by R² to the true rates

What has been trained under --out is kept, for each --epochs apart, so that the program can be stopped and called again.
Prints the tables of docs/anchoring.md; the last line is JSON.
"""

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import real_recordings
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rtdsae import bundle
from rtdsae.errors import RecordingError
from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.recordings import Recording, load, save
from rtdsae.recordings.synthetic import lorenz
from rtdsae.serve.decoder import Anchoring, Decoder
from rtdsae.serve.engine import Engine
from rtdsae.train.config import TrainConfig, load_config
from rtdsae.train.export import export
from rtdsae.train.fit import train
from rtdsae.train.ridge import ridge
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare
from rtdsae.wire import Flags

ROOT = Path(__file__).parent.parent
Array = NDArray[Any]
WAYS: tuple[Anchoring, ...] = ("once", "every", "lanes")
SKIPPED = 20  # first bins of the scored part, which the longest anchor needs: all models are scored on the same bins
AGES = (0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)  # bins since the only anchor, edges of blocks
SINCE_START = (0, 40, 90, 190, 490, 990)  # bins of a Lorenz stream, edges of blocks
LORENZ_STREAMS = 60
QUARTERS = 4  # of the time between two anchors
AHEAD = (1, 2, 5, 10)
RESAMPLED, BLOCK = 1000, 100  # bootstrap over blocks of so many bins
TIMED_BLOCKS, TIMED_STEPS = 40, 250
BIN_S = real_recordings.BIN_WIDTH_S
SCORES = {"co_bps": "co-bps", "r2": "R² of velocity, mean of x and y"}
TAKEN = ("rates", "behaviour", "factors")
FAMILIES = ("lfads", "fhvae", "dsae_full", "dsae_factorized", "fdmm")


@dataclass(frozen=True)
class Model:
    """One model to train.

    Attributes:
        data: which set.
        family: of the five.
        s: anchor bins.
        r: horizon bins.
        more: overrides of its own.
        longer: times the epochs of the others, for one that is quick but slow to learn.
    """

    data: str
    family: str = "lfads"
    s: int = 10
    r: int = 40
    more: tuple[str, ...] = ()
    longer: int = 1

    @property
    def name(self) -> str:
        """Also its folder's, but for the epochs."""
        more = "".join("-" + item.partition(".")[2].replace("=", "") for item in self.more)
        return f"{self.data}-{self.family}-{self.s}-{self.r}{more}"

    def config(self, path: Path, epochs: int) -> TrainConfig:
        """How it is trained on the recording at `path`."""
        base, own = BASES[self.data]
        sizes = (
            f"model.family={self.family}",
            f"window.anchor_bins={self.s}",
            f"window.horizon_bins={self.r}",
            "window.lanes=1",
        )
        length = (f"fit.epochs={epochs}", f"fit.patience={epochs}", "fit.accelerator=cpu")
        return load_config(ROOT / "configs" / base, (*sizes, *own, *length, *self.more), (str(path),))


BASES = {
    "pursuit": ("lfads.yaml", ("data.heldout_every=4",)),
    "lorenz65": ("lorenz.yaml", ()),
    "lorenz8": ("lorenz.yaml", ()),
}
MAKE: dict[str, Callable[[], Recording]] = {
    "pursuit": real_recordings.pursuit,
    "lorenz65": lorenz,
    "lorenz8": lambda: lorenz(n_conditions=8, n_trials=160),
}
NO_GAPS, LONGER_GAPS = ("objective.gap_rate=0",), ("objective.gap_bins=15",)
LONG_GAPS = ("objective.gap_rate=0.5", *LONGER_GAPS)
MODELS = (
    *(Model("pursuit", family, longer=2 if family == "dsae_factorized" else 1) for family in FAMILIES),
    *(Model("pursuit", more=more) for more in (NO_GAPS, LONGER_GAPS, LONG_GAPS)),
    *(Model("lorenz65", family) for family in ("lfads", "dsae_full")),
    Model("lorenz8"),
    *(Model("pursuit", "lfads", s, r) for s in (5, 10, 20) for r in (15, 30, 60)),
    *(Model("pursuit", more=("fit.seed=1", *more)) for more in ((), LONGER_GAPS, LONG_GAPS)),
)


def folder(model: Model, epochs: int, out: Path) -> Path:
    """Where a model is; `epochs` are those of the command line."""
    return out / f"{model.name}-{epochs}"


def trained(model: Model, epochs: int, out: Path) -> bundle.Bundle:
    """The model's bundle of two lanes, trained unless it is there."""
    where, path = folder(model, epochs, out), recording_at(model.data, out)
    if not (where / "bundle").exists():
        epochs = model.longer * epochs if model.data == "pursuit" else epochs * 36 // 100  # about the same time
        config = model.config(path, epochs)
        shutil.rmtree(where, ignore_errors=True)  # of one that was interrupted
        run = train(where / "run", config, [prepare(load(path), config)], lambda _: None)
        if run.info["state"] != "finished":
            raise KeyboardInterrupt  # `train` has taken it for its own
        print(f"{model.name}: best epoch {run.info['best_epoch'] + 1} of {epochs}", flush=True)
        export(run, where / "bundle", lanes=2)
    return bundle.load(where / "bundle")


def recording_at(data: str, out: Path) -> Path:
    """The set as a file."""
    path = out / f"{data}.h5"
    if not path.exists():
        save(MAKE[data](), path)
    return path


# streams --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Streamed:
    """What came out for bins S, S + 1, ... of a stream, and for `k` bins ahead of each of them.

    Attributes:
        rates: expected spikes a bin, (bins, C).
        behaviour: as the bundle decodes it, (bins, K), or None.
        factors: (bins, F).
        anchored: (bins,) bool, the first bin after each anchor.
        ahead: by k, the rates and the behaviour forecast at a bin for the one k later.
    """

    rates: Array
    behaviour: Array | None
    factors: Array
    anchored: NDArray[np.bool_]
    ahead: dict[int, tuple[Array, Array | None]]

    def cut(self, first: int, stop: int) -> "Streamed":
        """Some of the bins."""
        behaviour = None if self.behaviour is None else self.behaviour[first:stop]
        return Streamed(self.rates[first:stop], behaviour, self.factors[first:stop], self.anchored[first:stop], {})


class Driver:
    """A bundle, driven as the daemon drives it: decode, publish, idle."""

    def __init__(self, loaded: bundle.Bundle) -> None:
        m = loaded.manifest
        self.s, self.r, self.width, self.n_channels = m.anchor_bins, m.horizon_bins, m.bin_width_s, len(m.channels)
        self.engine = Engine(loaded)

    def stream(self, x: Array, way: Anchoring, ahead: Sequence[int] = ()) -> Streamed:
        """Counts (T, C), T > S, as one piece."""
        decoder = Decoder(self.engine, self.s, self.r, self.n_channels, way)
        rows: list[dict[str, Array]] = []
        flags: list[int] = []
        forecasts: dict[int, list[dict[str, Array]]] = {k: [] for k in ahead}
        for counts in x:
            flag = decoder.decode(counts, True)
            if flag is not None:
                flags.append(flag)
                rows.append(taken(decoder))
                for k in ahead:
                    decoder.look_ahead(k)
                    forecasts[k].append(taken(decoder))
            decoder.anchor_if_due()
        now = self.stacked(rows)
        anchored = np.array([bool(flag & Flags.ANCHORED) for flag in flags])
        further = {k: self.stacked(rows)[:2] for k, rows in forecasts.items()}
        return Streamed(*now, anchored, further)

    def stacked(self, rows: list[dict[str, Array]]) -> tuple[Array, Array | None, Array]:
        """Rates, behaviour and factors of all bins."""
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return table["rates"] * self.width, table.get("behaviour"), table["factors"]


def taken(decoder: Decoder) -> dict[str, Array]:
    """A copy of what the decoder has to say."""
    return {name: decoder.outputs[name].copy() for name in TAKEN if name in decoder.outputs}


# pursuit --------------------------------------------------------------------------------------------------------------


class Pursuit:
    """The scored part of the pursuit recording, and scores on its bins but for the first SKIPPED."""

    def __init__(self, recording: Recording) -> None:
        splits = np.asarray(recording.splits)
        self.parts = {name: recording.segments[splits == name][0].tolist() for name in ("train", "valid", "test")}
        self.heldout = np.asarray(recording.heldout)
        self.x = recording.counts[:, ~self.heldout].astype(np.float32)
        self.counts = recording.counts[:, self.heldout]
        self.velocity = np.asarray(recording.behaviour)
        self.first, self.stop = self.parts["test"][0] + SKIPPED, self.parts["test"][1]
        self.scored = np.arange(self.first, self.stop)

    def score(self, s: Streamed, bins: Array | None = None) -> dict[str, float]:
        """co-bps and mean R² of velocity of these bins; all scored ones where None."""
        bins = self.scored if bins is None else bins
        assert s.behaviour is not None
        return self.score_of(s.rates, s.behaviour, bins)

    def score_of(self, rates: Array, velocity: Array, bins: Array) -> dict[str, float]:
        """The same of rates of all units, and of decoded velocity."""
        co_bps = bits_per_spike(rates[:, self.heldout], self.counts[bins])
        return {"co_bps": co_bps, "r2": float(r2(self.velocity[bins], velocity).mean())}

    def test_part(self, driver: Driver, way: Anchoring) -> Streamed:
        """The test part as one piece, anchored at its beginning; the scored bins of it."""
        begin = self.parts["test"][0]
        return driver.stream(self.x[begin : self.stop], way).cut(SKIPPED - driver.s, self.stop - begin - driver.s)

    def at_age(self, driver: Driver, low: int, high: int) -> Streamed:
        """All scored bins, each `low` to `high` bins after the only anchor of its stream.

        Many streams share them out; the first ones are anchored before the test part, on input that training had too.
        """
        parts = []
        for begin in range(self.first, self.stop, high - low):
            anchor = begin - low - driver.s
            n = min(high - low, self.stop - begin)
            parts.append(driver.stream(self.x[anchor : begin + n], "once").cut(low, low + n))
        return joined(parts)

    def refitted(self, driver: Driver, way: Anchoring, streams: dict[Anchoring, Streamed]) -> dict[str, float]:
        """R² of velocity of each stream, by a ridge read-out that is fitted on the training part streamed this way."""
        train, valid = (self.factors(driver, way, part) for part in ("train", "valid"))
        line = ridge([train], [valid])
        decoded = {served: line.predict(s.factors) for served, s in streams.items()}
        return {served: float(r2(self.velocity[self.scored], values).mean()) for served, values in decoded.items()}

    def factors(self, driver: Driver, way: Anchoring, part: str) -> tuple[Array, Array]:
        """Factors and velocity of a part, streamed as one piece."""
        a, b = self.parts[part]
        return driver.stream(self.x[a:b], way).factors.astype(float), self.velocity[a + driver.s : b]

    def gain(self, one: Streamed, other: Streamed) -> tuple[float, float, float]:
        """How much better `one` is in co-bps: the difference, and 90 % of its resamplings by blocks of bins."""
        counts, spikes = self.counts[self.scored], self.counts[self.scored].sum()
        each = (log_likelihood(one, counts, self.heldout) - log_likelihood(other, counts, self.heldout)).sum(1)
        blocks = np.add.reduceat(each, np.arange(0, len(each), BLOCK)) / (spikes * np.log(2))
        drawn = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLED, len(blocks)))
        return (float(blocks.sum()), *np.percentile(blocks[drawn].sum(1), (5, 95)).tolist())


def log_likelihood(s: Streamed, counts: Array, heldout: NDArray[np.bool_]) -> Array:
    """Of each bin and held-out unit, but for the counts' own term."""
    rates = np.maximum(s.rates[:, heldout], 1e-9).astype(float)
    return np.asarray(counts * np.log(rates) - rates)


def joined(parts: list[Streamed]) -> Streamed:
    """Streams one after another."""
    columns = ([getattr(part, name) for part in parts] for name in ("rates", "behaviour", "factors", "anchored"))
    return Streamed(*(None if c[0] is None else np.concatenate(c) for c in columns), {})  # type: ignore[arg-type,call-arg]


def jump(s: Streamed, at: NDArray[np.bool_]) -> float:
    """Mean size of the factors' steps into the bins `at`, over that of all other steps."""
    steps = np.linalg.norm(np.diff(s.factors, axis=0), axis=1)
    return float(steps[at[1:]].mean() / steps[~at[1:]].mean())


def pursuit_scores(driver: Driver, data: Pursuit, deep: bool) -> dict[str, Any]:
    """Everything that is measured of one model on pursuit; `deep` adds what takes longer."""
    streams = {way: data.test_part(driver, way) for way in WAYS}
    result: dict[str, Any] = {"ways": {way: data.score(s) for way, s in streams.items()}}
    for way, s in streams.items():
        if way != "once":
            result["ways"][way]["gain"] = data.gain(s, streams["once"])
            result["ways"][way]["jump"] = jump(s, s.anchored)
            result["ways"][way]["jump_of_once"] = jump(streams["once"], s.anchored)
    if deep:
        result["refitted"] = {way: data.refitted(driver, way, streams) for way in WAYS}
        result["age"] = {low: data.score(data.at_age(driver, low, high)) for low, high in blocks(AGES)}
        result["phase"] = phases(driver, data, streams)
        result["start"] = {way: thirds(data, s) for way, s in streams.items()}
    result["ahead"] = ahead(driver, data, "once")
    if deep:
        result["ahead_lanes"] = ahead(driver, data, "lanes")
    return result


def phases(
    driver: Driver, data: Pursuit, streams: dict[Anchoring, Streamed]
) -> list[dict[Anchoring, dict[str, float]]]:
    """Scores by the bins since the last anchor of `every`, in quarters of R; the other ways on the same bins.

    `lanes` is scored by the age of lane 0, which is anchored with `every`; lane 1 is R/2 older or younger.
    """
    since = np.arange(SKIPPED - driver.s, SKIPPED - driver.s + len(data.scored)) % driver.r
    quarters = []
    for i in range(QUARTERS):
        chosen = since * QUARTERS // driver.r == i
        scores = {}
        for way, s in streams.items():
            assert s.behaviour is not None
            scores[way] = data.score_of(s.rates[chosen], s.behaviour[chosen], data.scored[chosen])
        quarters.append(scores)
    return quarters


def thirds(data: Pursuit, s: Streamed) -> list[dict[str, float]]:
    """Scores of the first, second and last third of the stream."""
    parts = np.array_split(np.arange(len(data.scored)), 3)
    return [data.score(s.cut(part[0], part[-1] + 1), data.scored[part]) for part in parts]


def ahead(driver: Driver, data: Pursuit, way: Anchoring) -> dict[int, dict[str, dict[str, float]]]:
    """Forecasts of what comes k bins after the last one that was seen, on the same bins for every k.

    `held` is the present's answer taken for the future, `seen` the answer once the bin has come.
    """
    begin, s, latest = data.parts["test"][0], driver.s, max(AHEAD)
    streamed = driver.stream(data.x[begin : data.stop], way, AHEAD)
    bins = np.arange(data.first + latest, data.stop)
    at = bins - begin - s
    assert streamed.behaviour is not None
    seen = data.score_of(streamed.rates[at], streamed.behaviour[at], bins)
    table = {}
    for k in AHEAD:
        rates, velocity = streamed.ahead[k]
        assert velocity is not None
        table[k] = {
            "forecast": data.score_of(rates[at - k], velocity[at - k], bins),
            "held": data.score_of(streamed.rates[at - k], streamed.behaviour[at - k], bins),
            "seen": seen,
        }
    return table


# Lorenz ---------------------------------------------------------------------------------------------------------------


def lorenz_scores(driver: Driver) -> dict[Anchoring, list[float]]:
    """R² to the true rates by bins since the stream's start, of fresh streams, for each way."""
    bins = driver.s + SINCE_START[-1]
    fresh = lorenz(n_conditions=LORENZ_STREAMS, n_trials=1, n_bins=bins, valid=0.0, take=1)
    assert fresh.true_rates is not None
    counts = fresh.counts.reshape(LORENZ_STREAMS, bins, -1).astype(np.float32)
    truth = fresh.true_rates.reshape(LORENZ_STREAMS, bins, -1)[:, driver.s :] * fresh.bin_width_s
    scores = {}
    for way in WAYS:
        rates = np.stack([driver.stream(x, way).rates for x in counts])
        scores[way] = [float(np.nanmean(r2(flat(truth, a, b), flat(rates, a, b)))) for a, b in blocks(SINCE_START)]
    return scores


def flat(values: Array, low: int, high: int) -> Array:
    """Bins `low` to `high` of all streams, (streams · bins, C)."""
    return values[:, low:high].reshape(-1, values.shape[-1])


def blocks(edges: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring edges in pairs."""
    return list(itertools.pairwise(edges))


# time -----------------------------------------------------------------------------------------------------------------


def step_times(epochs: int, out: Path) -> dict[str, dict[str, float]]:
    """Microseconds of a step and of an anchor of each family with one, two and four lanes, in turn."""
    engines, n_channels = {}, 0
    for family in FAMILIES:
        for lanes in (1, 2, 4):
            path = folder(Model("pursuit", family), epochs, out)
            made = path / ("bundle" if lanes == 2 else f"bundle{lanes}")
            loaded = bundle.load(made) if made.exists() else export(Run.open(path / "run"), made, lanes)
            engines[family, lanes], n_channels = Engine(loaded), len(loaded.manifest.channels)
    x = np.random.default_rng(0).poisson(0.3, (TIMED_STEPS, n_channels)).astype(np.float32)
    taken_by: dict[tuple[str, int], list[float]] = {key: [] for key in engines}
    anchor_by: dict[tuple[str, int], list[float]] = {key: [] for key in engines}
    for _ in range(TIMED_BLOCKS):
        for key, engine in engines.items():
            begun = time.perf_counter()
            engine.anchor(x[:10])
            anchor_by[key].append(1e6 * (time.perf_counter() - begun))
            for counts in x:
                begun = time.perf_counter()
                engine.step(counts, True)
                taken_by[key].append(1e6 * (time.perf_counter() - begun))
    return {
        f"{family}, {lanes}": {
            "p50": float(np.median(taken_by[family, lanes])),
            "p99": float(np.percentile(taken_by[family, lanes], 99)),
            "anchor_p50": float(np.median(anchor_by[family, lanes])),
        }
        for family, lanes in engines
    }


# tables and figure ----------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any], times: dict[str, dict[str, float]]) -> list[str]:
    """Everything, in Markdown."""
    pursuit = {name: result for name, result in results.items() if name.startswith("pursuit")}
    deep = {name: result for name, result in pursuit.items() if "age" in result}
    lines = table("ways, co-bps (gain over once, 90 %) and R²", pursuit, ways_row)
    lines += table("jumps at anchors, of every and lanes (of once there)", pursuit, jumps_row)
    lines += table("R² of velocity, read-out fitted / served", deep, refitted_row)
    lines += table("age of the only anchor, same bins: co-bps / R²", deep, lambda result: pairs(result["age"]))
    lines += table("thirds of the stream: co-bps / R²", deep, thirds_row)
    lines += table("quarters of R since the last anchor: co-bps / R²", deep, phases_row)
    lines += table("forecast | held | seen: co-bps / R²", pursuit, lambda result: ahead_row(result["ahead"]))
    lines += table("the same with lanes", deep, lambda result: ahead_row(result["ahead_lanes"]))
    series = {
        f"{name}, {way}": scores
        for name, result in results.items()
        if name not in pursuit
        for way, scores in result.items()
    }
    heads = [f"{low}-{high}" for low, high in blocks(SINCE_START)]
    lines += table(
        "Lorenz, R² by bins since the start", series, lambda r: dict(zip(heads, map(digits, r), strict=True))
    )
    lines += table("µs", times, lambda row: {name: f"{value:.0f}" for name, value in row.items()})
    return lines


def table(title: str, rows: dict[str, Any], cells: Callable[[Any], dict[str, str]]) -> list[str]:
    """One table; its heads are the first row's."""
    made = {name: cells(row) for name, row in rows.items()}
    if not made:
        return []
    heads = list(next(iter(made.values())))
    lines = ["", f"**{title}**", "", f"| | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    return lines + [f"| {name} | {' | '.join(row.values())} |" for name, row in made.items()]


def digits(value: float) -> str:
    """Three decimals, without the zero before them."""
    return f"{value:.3f}".replace("0.", ".", 1)


def both(score: dict[str, float]) -> str:
    """Co-bps and R²."""
    return f"{score['co_bps']:.4f}".replace("0.", ".", 1) + " / " + digits(score["r2"])


def pairs(scores: dict[int, dict[str, float]]) -> dict[str, str]:
    """One column for each block."""
    return {f"{key}-": both(score) for key, score in scores.items()}


def ways_row(result: dict[str, Any]) -> dict[str, str]:
    cells = {}
    for way, score in result["ways"].items():
        cells[way] = both(score)
        if "gain" in score:
            cells[way] += " [" + ", ".join(f"{value:+.4f}" for value in score["gain"]) + "]"
    return cells


def refitted_row(result: dict[str, Any]) -> dict[str, str]:
    return {f"{fitted} / {way}": digits(v) for fitted, row in result["refitted"].items() for way, v in row.items()}


def jumps_row(result: dict[str, Any]) -> dict[str, str]:
    ways = result["ways"]
    return {way: f"{ways[way]['jump']:.2f} ({ways[way]['jump_of_once']:.2f})" for way in ("every", "lanes")}


def thirds_row(result: dict[str, Any]) -> dict[str, str]:
    return {f"{way} {i + 1}": both(score) for way in WAYS for i, score in enumerate(result["start"][way])}


def phases_row(result: dict[str, Any]) -> dict[str, str]:
    return {f"{way} {i + 1}": both(quarter[way]) for way in WAYS for i, quarter in enumerate(result["phase"])}


def ahead_row(scores: dict[int, dict[str, dict[str, float]]]) -> dict[str, str]:
    cells = {f"k={k}": f"{both(score['forecast'])} | {both(score['held'])}" for k, score in scores.items()}
    return cells | {"seen": both(scores[AHEAD[0]]["seen"])}


def draw(results: dict[str, Any], path: Path) -> None:
    """Score against age for each family, and for LFADS what happens between anchors and how far ahead it sees."""
    shown = {family: results[name] for family in FAMILIES if (name := Model("pursuit", family).name) in results}
    figure = Figure((9.0, 6.4), layout="constrained")
    axes: list[Axes] = figure.subplots(2, 2).ravel().tolist()
    for axis, score in zip(axes, SCORES, strict=False):
        draw_ages(axis, shown, score)
    axes[0].legend(frameon=False, fontsize=7, loc=(0.02, 0.42))
    if first := shown.get(FAMILIES[0]):
        draw_phases(axes[2], first["phase"])
        draw_ahead(axes[3], first["ahead"])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=90)


def draw_ages(axis: Axes, shown: dict[str, dict[str, Any]], score: str) -> None:
    """A line for each family; what `lanes` has on the same bins at its right end."""
    middle = BIN_S * np.sqrt([max(low, 1) * high for low, high in blocks(AGES)])
    for i, (family, result) in enumerate(shown.items()):
        axis.plot(middle, [s[score] for s in result["age"].values()], "o-", ms=3, color=f"C{i}", label=family)
        axis.plot(1.6 * middle[-1], result["ways"]["lanes"][score], "D", ms=5, color=f"C{i}")
    axis.set(xscale="log", xlabel="seconds since the only anchor (◆: lanes)", ylabel=SCORES[score])
    axis.set_title("pursuit, the same bins at every age", fontsize=9)


def draw_phases(axis: Axes, phase: list[dict[Anchoring, dict[str, float]]]) -> None:
    """The three ways by quarters of the time between two anchors."""
    for i, way in enumerate(WAYS):
        axis.plot(
            range(1, QUARTERS + 1), [quarter[way]["r2"] for quarter in phase], "o-", ms=3, color=f"C{i}", label=way
        )
    axis.set(xlabel="quarter of R since an anchor of `every`", ylabel=SCORES["r2"], xticks=range(1, QUARTERS + 1))
    axis.set_title("lfads: anchoring anew costs velocity", fontsize=9)
    axis.legend(frameon=False, fontsize=7)


def draw_ahead(axis: Axes, table: dict[int, dict[str, dict[str, float]]]) -> None:
    """Forecast, present held, and bin seen, by how far ahead."""
    for i, what in enumerate(("forecast", "held", "seen")):
        axis.plot(
            BIN_S * np.array(AHEAD),
            [row[what]["co_bps"] for row in table.values()],
            "o-",
            ms=3,
            color=f"C{i}",
            label=what,
        )
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(xlabel="seconds ahead", ylabel=SCORES["co_bps"])
    axis.set_title("lfads: k bins ahead", fontsize=9)
    axis.legend(frameon=False, fontsize=7)


def main() -> None:
    """Train what is not there yet, measure, print and draw."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    data: Pursuit | None = None
    for model in MODELS:
        if args.only and model.name not in args.only:
            continue
        try:
            driver = Driver(trained(model, args.epochs, args.out))
        except RecordingError as error:
            print(f"{model.name}: left out: {error}", flush=True)
            continue
        if model.data != "pursuit":
            results[model.name] = lorenz_scores(driver)
        else:
            config = model.config(recording_at("pursuit", args.out), args.epochs)
            data = data or Pursuit(prepare(load(recording_at("pursuit", args.out)), config))
            results[model.name] = pursuit_scores(driver, data, deep=(model.s, model.r, model.more) == (10, 40, ()))
        print(f"{model.name} is measured", flush=True)
    times = step_times(args.epochs, args.out) if data is not None and not args.only else {}
    print("\n".join(tables(results, times)))
    if args.figure:
        draw(results, args.figure)
    print(json.dumps({"epochs": args.epochs, "results": results, "step_us": times}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/anchoring"))
    parser.add_argument("--epochs", type=int, default=100, help="of the models on pursuit")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[model.name for model in MODELS])
    parser.add_argument("--figure", type=Path, help="the PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

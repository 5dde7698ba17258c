"""Quality against time since the anchor: how well a model does so many bins after it was anchored.

Where the scored segments are long, the *same* bins are asked for at every age: for each block of ages, streams are
anchored so that they share the bins out among them, and nothing but the age differs. Where they are trials that are
about as long as a window, each is streamed from its own beginning, and age is time in the trial as well.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.model.family import Family
from rtdsae.recordings import Recording
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.latents import Stretch, modelled_bins, streamed
from rtdsae.train.windows import Tensors

__all__ = ["SinceAnchor", "since_anchor", "streams_at_age"]

EDGES = (0, 5, 10, 20, 40, 80, 160, 320, 640)  # bins since the anchor, of blocks
MOST_BINS = 2500  # that are asked for at every age
SHARE = 2 / 3  # of a segment, at most, goes to its oldest anchor
LONG = 1.5  # horizons: from here on windows are drawn from within a segment


class Stream(NamedTuple):
    """One stream: anchored on the bins from `anchor` on, it answers for `bins` bins from `begin` on."""

    anchor: int
    begin: int
    bins: int


@dataclass(frozen=True)
class SinceAnchor:
    """Scores by bins since the anchor.

    Attributes:
        blocks: (n, 2) first and one-past-last bins since the anchor.
        scores: by the score's name, (n,).
        usual: what the model scores on the same bins as it is run; empty where these differ from age to age.
        bins: how many bins each block is scored on, (n,).
        same: whether these are the same at every age.
    """

    blocks: np.ndarray
    scores: dict[str, np.ndarray]
    usual: dict[str, float]
    bins: np.ndarray
    same: bool


def since_anchor(
    family: Family, tensors: Tensors, segments: np.ndarray, outputs: dict[str, np.ndarray], decodes: bool
) -> SinceAnchor:
    """Score a causal model by the bins since its only anchor.

    Args:
        family: the model, its session in use.
        tensors: the recording.
        segments: the scored ones, (n, 2).
        outputs: what the model gives for them as it is run.
        decodes: whether its behaviour is the recording's.

    Raises:
        ValueError: the model has no anchor, or there is too little to say anything.
    """
    if not family.causal:
        raise ValueError("an acausal reference is not anchored: it sees whole windows")
    s, horizon = family.dims.anchor_bins, family.dims.horizon_bins
    lengths = lengths_of(segments) - s
    if np.median(lengths) >= LONG * horizon:
        asked, blocks = asked_bins(segments, s)
        answers = [at_age(family, tensors, asked, block, s) for block in blocks]
    else:
        blocks = blocks_up_to(int(np.median(lengths)))
        asked, answers = np.empty(0, int), from_beginnings(family, tensors, segments, blocks)
    if len(blocks) < 2:
        raise ValueError("the scored segments are too short: there are no two ages to compare")
    measures = measures_of(tensors.recording, decodes)
    table = [[measure(bins, out) for bins, out in answers] for measure in measures.values()]
    usual = {}
    if len(asked):
        at = np.flatnonzero(np.isin(modelled_bins(segments, s), asked))
        usual = {name: measure(asked, {k: v[at] for k, v in outputs.items()}) for name, measure in measures.items()}
    scores = {name: np.array(row) for name, row in zip(measures, table, strict=True)}
    return SinceAnchor(np.array(blocks), scores, usual, np.array([len(bins) for bins, _ in answers]), bool(len(asked)))


def blocks_up_to(age: int) -> list[tuple[int, int]]:
    """Blocks of ages that end at `age` or before."""
    return [block for block in itertools.pairwise(EDGES) if block[1] <= age]


def asked_bins(segments: np.ndarray, s: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The bins that are asked for at every age, and the blocks of ages that leave most of them."""
    lengths = lengths_of(segments) - s
    blocks = blocks_up_to(int(SHARE * np.median(lengths)))
    oldest = blocks[-1][1] if blocks else 0
    bins = [np.arange(a + s + oldest, b) for a, b in segments.tolist() if b - a > s + oldest]
    return np.concatenate(bins)[-MOST_BINS:], blocks


def streams_at_age(bins: np.ndarray, low: int, high: int, s: int) -> list[Stream]:
    """Streams that share out `bins`, each of them answered `low` to `high` bins after its stream's anchor.

    Args:
        bins: in order; neighbours that are not next to one another are never of one stream.
        low: bins since the anchor, at least.
        high: bins since the anchor, below.
        s: bins of an anchor.
    """
    runs = np.split(bins, np.flatnonzero(np.diff(bins) > 1) + 1)
    return [
        Stream(begin - low - s, begin, min(high - low, int(run[-1]) + 1 - begin))
        for run in runs
        for begin in range(int(run[0]), int(run[-1]) + 1, high - low)
    ]


Answer = tuple[np.ndarray, dict[str, np.ndarray]]  # bins, and the outputs for them


def at_age(family: Family, tensors: Tensors, bins: np.ndarray, block: tuple[int, int], s: int) -> Answer:
    """The outputs for `bins` at one age."""
    low, high = block
    streams = streams_at_age(bins, low, high, s)
    rows = low + np.cumsum([0, *(one.bins for one in streams)])
    weights = [np.r_[np.zeros(low, np.float32), np.ones(one.bins, np.float32)] for one in streams]
    parts = [Stretch(one.anchor, row - low, w) for one, row, w in zip(streams, rows.tolist(), weights, strict=False)]
    return bins, {name: values[low:] for name, values in streamed(family, tensors, parts).items()}


def from_beginnings(
    family: Family, tensors: Tensors, segments: np.ndarray, blocks: list[tuple[int, int]]
) -> list[Answer]:
    """The outputs of segments that are each streamed from one anchor, by age."""
    s = family.dims.anchor_bins
    lengths = (lengths_of(segments) - s).tolist()
    firsts = np.cumsum([0, *lengths])[:-1].tolist()
    runs = [
        Stretch(int(a), row, np.ones(n, np.float32)) for a, row, n in zip(segments[:, 0], firsts, lengths, strict=True)
    ]
    outputs, bins = streamed(family, tensors, runs), modelled_bins(segments, s)
    ages = np.concatenate([np.arange(n) for n in lengths])
    chosen = [(ages >= low) & (ages < high) for low, high in blocks]
    return [(bins[some], {name: values[some] for name, values in outputs.items()}) for some in chosen]


def measures_of(recording: Recording, decodes: bool) -> dict[str, Callable[[np.ndarray, dict[str, np.ndarray]], float]]:
    """What can be scored of bins and the outputs for them: unseen things where there are any."""
    heldout, truth, behaviour = recording.heldout, recording.true_rates, recording.behaviour
    measures: dict[str, Callable[[np.ndarray, dict[str, np.ndarray]], float]] = {}

    def spikes(neurons: np.ndarray) -> Callable[[np.ndarray, dict[str, np.ndarray]], float]:
        width = recording.bin_width_s
        return lambda bins, out: bits_per_spike(out["rates"][:, neurons] * width, recording.counts[bins][:, neurons])

    if truth is not None:
        measures["r2_true_rates"] = lambda bins, out: float(np.nanmean(r2(truth[bins], out["rates"])))
    if heldout is not None and heldout.any():
        measures["co_bps"] = spikes(heldout)
    if behaviour is not None and decodes:
        measures["r2_behaviour"] = lambda bins, out: float(np.nanmean(r2(behaviour[bins], out["behaviour"])))
    return measures or {"bps": spikes(np.ones(recording.n_channels, bool))}

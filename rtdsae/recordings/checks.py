"""What a careful colleague would warn of before a model is trained on a recording.

Each check gives lines: what, where, and what to do about it. Only bins inside segments count.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from rtdsae.recordings import mapped
from rtdsae.recordings.recording import Recording
from rtdsae.recordings.segments import lengths_of, runs

__all__ = ["CHECKS", "Look", "listed", "tally"]

NAMED = 8  # labels in a line; more are counted
MOST_BINS, MOST_ENTRIES = 200_000, 20_000_000  # that correlations are taken over
SAME_CORRELATION = 0.9  # of two channels that carry the same spikes
ENOUGH_SPIKES = 50  # in a third of the recording, for a rate of it
REFRACTORY_S = 1e-3
FEWEST_BINS, FEWEST_S, FEWEST_TRIALS = 10, 60.0, 5  # of a segment, of all, of a condition
FAR = 5  # times a behaviour's usual span
MOST_SHIFT_S, UNLIKELY_S = 1.0, 0.3  # of behaviour against the spikes: looked at; no reaction is so slow
SHIFTS = 20  # looked at, to each side
MOST_FITTED = 20_000  # bins, for that
RIDGE = 10.0


class Look:
    """A recording's bins inside segments, and what several checks look at, each made once."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        index = np.concatenate([np.arange(start, stop) for start, stop in recording.segments])
        whole = len(index) == recording.n_bins  # then no copy: it may be hours of a thousand channels
        self.counts = recording.counts if whole else recording.counts[index]
        self.behaviour = None if recording.behaviour is None else recording.behaviour[index].astype(np.float64)
        self.lengths = lengths_of(recording.segments)
        self.first_bins = np.cumsum(self.lengths) - self.lengths

    @cached_property
    def means(self) -> np.ndarray:
        """Spikes a bin, (C,)."""
        return self.counts.mean(axis=0, dtype=np.float64)

    @cached_property
    def rates(self) -> np.ndarray:
        """Spikes a second, (C,)."""
        return self.means / self.recording.bin_width_s

    @cached_property
    def active(self) -> np.ndarray:
        """How many channels have a spike in each bin, (T,)."""
        return np.concatenate([(self.counts[rows] > 0).sum(axis=1) for rows in mapped.blocks(self.counts)])

    @property
    def few(self) -> np.ndarray:
        """The first bins, as many as are enough for correlations and fit in memory."""
        return self.counts[: min(MOST_BINS, MOST_ENTRIES // self.counts.shape[1])]

    @cached_property
    def whole(self) -> bool:
        """Whether all counts are whole numbers."""
        return mapped.whole(self.counts)

    @cached_property
    def correlations(self) -> tuple[np.ndarray, np.ndarray]:
        """Correlations of channels' counts in the same bin, and the mean of those one bin apart, (C, C) each."""
        counts = self.few.astype(np.float32)
        scale = counts.std(axis=0)
        z = (counts - counts.mean(axis=0)) / np.where(scale > 0, scale, 1)
        apart = z[1:].T @ z[:-1] / max(len(z) - 1, 1)
        return z.T @ z / len(z), (apart + apart.T) / 2

    @cached_property
    def duplicated(self) -> list[list[int]]:
        """Groups of channels that carry the same spikes."""
        same = self.correlations[0] > SAME_CORRELATION
        groups: list[list[int]] = []
        for i in np.flatnonzero(self.means > 0).tolist():
            home = next((group for group in groups if same[i, group[0]]), None)
            if home is None:
                groups.append([i])
            else:
                home.append(i)
        return [group for group in groups if len(group) > 1]

    @cached_property
    def early_and_late(self) -> tuple[np.ndarray, np.ndarray]:
        """Spikes a bin in the first and in the last third, (C,) each; of each condition's trials where these are known.

        Trials of one condition are compared with one another, since a recording may have one condition after the other.
        """
        known = self.recording.conditions
        if known is None or max(tally(known).values()) < 3:
            third = max(1, len(self.counts) // 3)
            parts = self.counts[:third], self.counts[-third:]
        else:
            trials = [np.flatnonzero(known == condition) for condition in np.unique(known)]
            first = np.concatenate([t[: len(t) // 3] for t in trials])
            last = np.concatenate([t[len(t) - len(t) // 3 :] for t in trials])
            parts = self.counts[self._bins_of(first)], self.counts[self._bins_of(last)]
        early, late = (part.mean(axis=0, dtype=np.float64) for part in parts)
        return early, late

    def _bins_of(self, segments: np.ndarray) -> np.ndarray:
        return np.concatenate([self.first_bins[s] + np.arange(self.lengths[s]) for s in segments])

    def named(self, chosen: np.ndarray) -> str:
        """The same labels in a line, of many a few."""
        return listed(self.labels(chosen))

    def labels(self, chosen: np.ndarray) -> tuple[str, ...]:
        """Labels of channels, by a mask or by numbers, one by one."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return tuple(self.recording.channels[i] for i in index)

    def where(self, bins: np.ndarray) -> str:
        """Where some bins are, numbered as in the recording."""
        segment = np.searchsorted(self.first_bins, bins, side="right") - 1
        numbers = self.recording.segments[segment, 0] + bins - self.first_bins[segment]
        return f"bin {listed([str(n) for n in numbers.tolist()], few=4)}"


def _sides(look: Look) -> Iterator[str]:
    """Time along the wrong side."""
    n, c = len(look.counts), look.recording.n_channels
    if n < c:
        yield f"{_n(n, 'bin')} of {c} channels: is time the other side? counts are (bins, channels)"


def _values(look: Look) -> Iterator[str]:
    """Counts that are none, or are no longer what was counted."""
    if look.whole:
        yield from _impossible(look)
        yield from _marks(look) if look.counts.max() == 1 else _clipped(look)
        return
    counts = look.few.astype(np.float64)
    counts -= counts.mean(axis=0)
    slow = (counts[1:] * counts[:-1]).sum(axis=0) / np.maximum((counts**2).sum(axis=0), 1e-12)
    why = "smoothed" if np.median(slow) > 0.5 else "scaled, rates, or a raw signal"
    yield f"counts are not whole numbers, maybe {why}: a model of spikes needs the raw counts"


def _impossible(look: Look) -> Iterator[str]:
    fast = look.counts.max(axis=0) > look.recording.bin_width_s / REFRACTORY_S + 1
    if fast.any():
        limit = f"{1 / REFRACTORY_S:g} spikes/s"
        yield (
            f"{_n(fast, 'channel')} above {limit} within a bin: {look.named(fast)}; no neuron fires so fast: merged "
            "units, noise, or a wrong bin width?"
        )


def _marks(look: Look) -> Iterator[str]:
    """Ones and zeros, where some bins would have several spikes by chance; told by the sum over all channels."""
    if look.recording.bin_width_s <= 2 * REFRACTORY_S:
        return
    several = len(look.counts) * float(_poisson_beyond(np.ones_like(look.means), look.means).sum())
    if several > 100:
        yield (
            f"no bin has more than one spike of a channel, where {several:.3g} would by chance: are the bins narrower "
            f"than {1e3 * look.recording.bin_width_s:g} ms, or do they only say whether there was a spike?"
        )


def _clipped(look: Look) -> Iterator[str]:
    """Channels that pile up at their highest count, where their rate would often go beyond it."""
    if look.recording.bin_width_s <= 2 * REFRACTORY_S:
        return  # a neuron does not fire twice in so narrow a bin
    most, mean, n = look.counts.max(axis=0), look.means, len(look.counts)
    least = most - np.minimum(most, 1)
    at_most, below = (
        sum((look.counts[rows] == m).sum(axis=0) for rows in mapped.blocks(look.counts)) for m in (most, least)
    )
    piled = at_most > 1.2 * below * mean / np.maximum(most, 1)
    clipped = (most > 0) & piled & (n * _poisson_beyond(most, mean) > 100)
    if clipped.any():
        limits = listed(sorted({f"{m:g}" for m in most[clipped]}))
        yield (
            f"{_n(clipped, 'channel')} never above {limits} a bin, though often at it: {look.named(clipped)}; clipped, "
            "or only whether there was a spike? Count all of them"
        )


def _silent(look: Look) -> Iterator[str]:
    silent = look.rates == 0
    if silent.any():
        yield f"{_n(silent, 'channel')} without a spike: {look.named(silent)}; leave them out"
    rare = ~silent & (look.rates < 0.1)
    if rare.any():
        yield f"{_n(rare, 'channel')} with less than a spike in 10 s: {look.named(rare)}; they say little"


def _duplicated(look: Look) -> Iterator[str]:
    for group in look.duplicated:
        yield (
            f"the same spikes in {look.named(np.array(group))} (correlation above {SAME_CORRELATION:g}): one electrode "
            "twice? Keep one of them"
        )


def _crosstalk(look: Look) -> Iterator[str]:
    """Pairs that fire together in the very bin, far more than one bin apart, and far more than other pairs do."""
    together, apart = look.correlations
    if len(together) < 3 or not look.whole:
        return
    excess = together - np.maximum(apart, 0)
    first, second = np.triu_indices(len(together), 1)
    enough = look.means * len(look.few) > 2 * ENOUGH_SPIKES
    least = max(0.2, 15 * float(np.median(np.abs(excess[first, second]))))
    odd = (excess[first, second] > least) & enough[first] & enough[second]
    odd &= together[first, second] <= SAME_CORRELATION
    if odd.any():
        pairs = [(excess[i, j], look.labels(np.array([i, j]))) for i, j in zip(first[odd], second[odd], strict=True)]
        said = listed([f"{' + '.join(labels)} ({r:.2f})" for r, labels in sorted(pairs, reverse=True)], few=4)
        yield f"{_n(odd, 'pair')} of channels fire in the same bins far more than others do: {said}; cross-talk?"


def _artefacts(look: Look) -> Iterator[str]:
    """Single bins in which more than half of all channels fire, and far more than in the bins around."""
    c, active = look.recording.n_channels, look.active
    if c < 8 or len(active) < 100:
        return
    deviation = max(1.4826 * float(np.median(np.abs(active - np.median(active)))), 1.0)
    around = np.maximum(np.r_[active[1:], 0], np.r_[0, active[:-1]])
    odd = (active > 0.5 * c) & (active > np.median(active) + 8 * deviation) & (active > 1.5 * around)
    if odd.any():
        yield (
            f"{_n(odd, 'bin')} in which most channels fire at once: {look.where(np.flatnonzero(odd))}; an artefact "
            "(touch, stimulation)? Cut the segments there"
        )


def _drop_outs(look: Look) -> Iterator[str]:
    """Stretches without any spike that are too long to be chance, even at a quarter of the usual rate."""
    least = max(3, int(np.ceil(120 / max(look.means.sum(), 1e-9))))
    empty = runs(look.active == 0)
    long = empty[np.diff(empty)[:, 0] >= least]
    if len(long):
        seconds = int(np.diff(long).sum()) * look.recording.bin_width_s
        yield (
            f"no channel fires in {_n(len(long), 'stretch', 'stretches')}, {seconds:.3g} s in all, from "
            f"{look.where(long[:, 0])} on; did the recording drop out? Cut the segments there"
        )


def _drift(look: Look) -> Iterator[str]:
    """Rates of the beginning against the end."""
    third = len(look.counts) // 3
    if third * look.recording.bin_width_s < FEWEST_S / 2:
        return
    early, late = look.early_and_late
    enough = np.maximum(early, late) * third > ENOUGH_SPIKES
    lost = enough & (np.minimum(early, late) < 0.02 * np.maximum(early, late))
    if lost.any():
        yield f"{_n(lost, 'channel')} silent in the first or in the last third: {look.named(lost)}; leave them out"
    if look.means.any() and not 3 * early.sum() < 4 * late.sum() < 16 / 3 * early.sum():
        first, last = (part.mean() / look.recording.bin_width_s for part in (early, late))
        yield (
            f"the mean rate goes from {first:.3g} to {last:.3g} spikes/s from the first third to the last: what is "
            "learnt on the one may not hold on the other; calibrate for each day"
        )
    drifting = enough & ~lost & ((late > 2 * early) | (early > 2 * late))
    if drifting.sum() > 0.1 * len(early):
        yield (
            f"{_n(drifting, 'channel')} of {len(early)} change their rate twofold or more from the first third to the "
            f"last: {look.named(drifting)}; units drift: calibrate for each day"
        )


def _segments(look: Look) -> Iterator[str]:
    short = look.lengths < FEWEST_BINS
    if short.any():
        yield (
            f"{_n(short, 'segment')} of {len(short)} shorter than {FEWEST_BINS} bins: too short for a window; narrower "
            "bins or longer trials are needed"
        )
    if (seconds := len(look.counts) * look.recording.bin_width_s) < FEWEST_S:
        yield f"{seconds:.3g} s in all: little to train on; some minutes are needed"
    trials = tally(look.recording.conditions)
    rare = [name for name, n in trials.items() if n < FEWEST_TRIALS]
    if rare:
        yield (
            f"{_n(len(rare), 'condition')} of {len(trials)} with fewer than {FEWEST_TRIALS} trials: {listed(rare)}; "
            "averages over them say little"
        )


def _behaviour(look: Look) -> Iterator[str]:
    if look.behaviour is None:
        return
    labels, values = np.array(look.recording.behaviour_labels), look.behaviour
    constant = np.ptp(values, axis=0) <= 1e-9 * np.abs(values).max(axis=0)
    if constant.any():
        yield f"behaviour {listed(labels[constant].tolist())} never changes; leave it out"
    span = np.subtract(*np.percentile(values, [99, 1], axis=0))
    far = np.abs(values - np.median(values, axis=0)) > FAR * span
    for column in np.flatnonzero(far.any(axis=0) & ~constant & (span > 0)):
        bins = np.flatnonzero(far[:, column])
        yield (
            f"behaviour {labels[column]} is more than {FAR} times its usual span away in {_n(len(bins), 'bin')}: "
            f"{look.where(bins)}; was the tracking lost? Mend it, or cut the segments there"
        )
    if not constant.all():
        yield from _shifted(look, values[:, ~constant])


def _shifted(look: Look, behaviour: np.ndarray) -> Iterator[str]:
    """Behaviour that fits the spikes of another time better than those around it."""
    width, n = look.recording.bin_width_s, min(len(look.counts), MOST_FITTED)
    most = round(MOST_SHIFT_S / width)
    if most < 4 or n < 2000 or n < 20 * look.recording.n_channels:
        return
    shifts = np.unique(np.linspace(-most, most, 2 * min(most, SHIFTS) + 1).round().astype(int))
    scores = _explained(look.counts[:n], behaviour[:n], shifts, window=max(1, round(0.1 / width)))
    best, usual = int(scores.argmax()), float(scores[shifts == 0][0])
    lag = shifts[best] * width
    if abs(lag) > UNLIKELY_S and scores[best] > 0.05 and scores[best] > 1.25 * max(usual, 0.0) + 0.02:
        order = "before" if lag < 0 else "after"
        yield (
            f"behaviour fits the spikes best {abs(lag):.2g} s {order} them (R2 {scores[best]:.2f}; {usual:.2f} at the "
            "same time): are its stamps of the same clock?"
        )


def _explained(counts: np.ndarray, behaviour: np.ndarray, shifts: np.ndarray, window: int) -> np.ndarray:
    """R2 of read-outs of the last `window` bins' spikes, one for each shift, on the half they were not fitted on."""
    sums = np.cumsum(np.r_[np.zeros((window, counts.shape[1])), counts], axis=0)
    most = int(np.abs(shifts).max())
    x = (sums[window:] - sums[:-window])[most:-most]
    y = np.concatenate([behaviour[most + s : len(behaviour) - most + s] for s in shifts], axis=1)
    half = len(x) // 2
    mean_x, mean_y = x[:half].mean(axis=0), y[:half].mean(axis=0)
    fitted = x[:half] - mean_x
    weights = np.linalg.solve(fitted.T @ fitted + RIDGE * np.eye(x.shape[1]), fitted.T @ (y[:half] - mean_y))
    error = ((y[half:] - mean_y - (x[half:] - mean_x) @ weights) ** 2).sum(axis=0)
    total = ((y[half:] - y[half:].mean(axis=0)) ** 2).sum(axis=0)
    return (1 - error / np.maximum(total, 1e-12)).reshape(len(shifts), -1).mean(axis=1)


CHECKS: Sequence[Callable[[Look], Iterator[str]]] = (
    _sides,
    _values,
    _silent,
    _duplicated,
    _crosstalk,
    _artefacts,
    _drop_outs,
    _drift,
    _segments,
    _behaviour,
)


def _poisson_beyond(most: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The chance of a Poisson count above `most`, each with its mean."""
    term = np.exp(-mean)
    below = term.copy()
    for k in range(1, min(int(most.max(initial=0)), 1000) + 1):
        term = term * mean / k
        below += np.where(k <= most, term, 0)
    return np.clip(1 - below, 0, 1)


def _n(found: "np.ndarray | int", one: str, many: str = "") -> str:
    n = int(np.sum(found))
    return f"{n} {one}" if n == 1 else f"{n} {many or one + 's'}"


def tally(values: np.ndarray | None) -> dict[str, int]:
    """How often each value comes; empty where there are none."""
    if values is None:
        return {}
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(map(str, names.tolist()), counts.tolist(), strict=True))


def listed(names: Sequence[str], few: int = NAMED) -> str:
    """Names with commas; of many, a few and how many more."""
    more = f" and {len(names) - few} more" if len(names) > few else ""
    return ", ".join(names[:few]) + more if names else "none"

"""What of the scored part is shown: a stretch of time from its beginning, or trials of one length by condition."""

from dataclasses import dataclass

import numpy as np

from rtdsae.evaluate.score import Scored
from rtdsae.evaluate.trials import SHORT_TRIALS, conditions_of

__all__ = [
    "SHORT_TRIALS",
    "Aligned",
    "aligned",
    "has_conditions",
    "starts_in",
    "stretch",
    "stretch_in_words",
    "windows",
]

SHOWN_S, SHOWN_TRIALS = 12.0, 8  # of the scored part, in a figure over time
CONDITIONS = 8  # at most, in a figure
LEAST_BINS = 4  # of a mean over trials


@dataclass(frozen=True)
class Aligned:
    """Trials of one length, by condition.

    Attributes:
        rows: of the outputs, (n, T).
        conditions: of the trials, (n,).
        left_out: how many shorter trials are not among them.
        bin_width_s: width of a bin.
        begin_s: time in the trial of the first bin.
    """

    rows: np.ndarray
    conditions: np.ndarray
    left_out: int
    bin_width_s: float
    begin_s: float

    @property
    def time(self) -> np.ndarray:
        """When each bin begins, in seconds since the trial's beginning, (T,)."""
        time: np.ndarray = self.begin_s + np.arange(self.rows.shape[1]) * self.bin_width_s
        return time

    @property
    def in_words(self) -> str:
        """How many trials, of what."""
        n = len(np.unique(self.conditions))
        shown = "" if n <= CONDITIONS else f", {CONDITIONS} of which, evenly spaced, are shown"
        rest = f"; {self.left_out} shorter trials are left out" if self.left_out else ""
        return f" ({len(self.rows)} trials of {n} conditions{shown}{rest})"

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of each condition's trials, (conditions, T, k), of (n, T, k)."""
        return np.stack([values[self.conditions == name].mean(0) for name in np.unique(self.conditions)])

    def few(self) -> tuple[np.ndarray, list[str]]:
        """Which conditions are shown, and their names."""
        names = np.unique(self.conditions)
        chosen = np.unique(np.linspace(0, len(names) - 1, min(CONDITIONS, len(names))).round().astype(int))
        return chosen, [str(name) for name in names[chosen]]


def has_conditions(scored: Scored) -> bool:
    """Whether the scored segments are trials of several conditions, some of them long enough for a mean over time."""
    recording = scored.recording
    if recording.conditions is None or len(scored.segments) < 2:
        return False
    several = len(np.unique(conditions_of(recording, scored.segments))) > 1
    return bool(several and np.percentile(scored.lengths, SHORT_TRIALS) >= LEAST_BINS)


def aligned(scored: Scored) -> Aligned:
    """The scored trials, cut to one length from their beginnings."""
    length = int(np.percentile(scored.lengths, SHORT_TRIALS))
    kept = scored.lengths >= length
    conditions, width = conditions_of(scored.recording, scored.segments), scored.recording.bin_width_s
    rows = scored.starts[kept][:, None] + np.arange(length)
    return Aligned(rows, conditions[kept], int((~kept).sum()), width, scored.run.dims.anchor_bins * width)


def stretch(scored: Scored) -> slice:
    """The part of the outputs that is shown over time: some seconds, or some trials."""
    bins, ends = round(SHOWN_S / scored.recording.bin_width_s), np.cumsum(scored.lengths)
    return slice(0, int(min(max(bins, 2), ends[min(SHOWN_TRIALS, len(ends)) - 1])))


def stretch_in_words(scored: Scored) -> str:
    """What is shown, as the beginning of a sentence."""
    shown, anchor = stretch(scored), scored.run.dims.anchor_bins
    first = f"The first {shown.stop * scored.recording.bin_width_s:.3g} s of the scored part"
    n = 1 + len(starts_in(scored, shown))
    return (
        first
        if n == 1
        else f"{first}: {n} trials one after another, a rule between them, each without its first S = {anchor} bins"
    )


def starts_in(scored: Scored, shown: slice) -> list[int]:
    """Where in a stretch trials begin."""
    return [start for start in scored.starts.tolist() if 0 < start < shown.stop]


def windows(scored: Scored) -> np.ndarray:
    """Rows of the outputs that begin at an anchor, or every R bins of a stream: (n, bins)."""
    horizon, lengths = scored.run.dims.horizon_bins, scored.lengths.tolist()
    bins = int(min(horizon, np.percentile(lengths, SHORT_TRIALS)))
    firsts = [
        start + k
        for start, n in zip(scored.starts.tolist(), lengths, strict=True)
        for k in range(0, n - bins + 1, horizon)
    ]
    return np.array(firsts)[:, None] + np.arange(bins)

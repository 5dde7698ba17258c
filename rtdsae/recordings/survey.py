"""A recording at a glance: how much there is of what, and the warnings of `checks`; only bins inside segments count."""

from dataclasses import dataclass

import numpy as np

from rtdsae.recordings.checks import CHECKS, Look, listed, tally
from rtdsae.recordings.recording import Recording

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """What a recording holds.

    Attributes:
        channels: how many; `heldout` of them must be predicted unseen.
        bins: in segments; `seconds` long in all, each `bin_width_s`.
        segments: how many; `shortest`, `median` and `longest` in bins.
        splits: segments of each part, where the recording names them.
        conditions: segments of the rarest and the commonest condition, and how many conditions there are.
        rates_hz: spikes a second of a channel: least, quartiles, most.
        silent: labels of channels without a spike.
        duplicated: groups of labels that carry the same spikes.
        behaviour: of each label, mean, standard deviation, least and most.
        warnings: lines.
    """

    session: str
    channels: int
    heldout: int
    bins: int
    bin_width_s: float
    seconds: float
    segments: int
    shortest: int
    median: int
    longest: int
    splits: dict[str, int]
    conditions: dict[str, int]
    rates_hz: tuple[float, ...]
    silent: tuple[str, ...]
    duplicated: tuple[tuple[str, ...], ...]
    behaviour: dict[str, dict[str, float]]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people; the warnings are not among them."""
        held = f", {self.heldout} of them held out" if self.heldout else ""
        lengths = f"{self.shortest} / {self.median} / {self.longest}"
        lines = [
            f"channels    {self.channels}{held}",
            f"bins        {self.bins} of {1000 * self.bin_width_s:g} ms: {_time(self.seconds)}",
            f"segments    {self.segments}, of {lengths} bins (shortest / median / longest)",
        ]
        if self.splits:
            lines.append(f"splits      {', '.join(f'{name} {n}' for name, n in self.splits.items())}")
        if self.conditions:
            lines.append("conditions  {conditions}, each {fewest} to {most} times".format(**self.conditions))
        quartiles = " / ".join(f"{rate:.3g}" for rate in self.rates_hz)
        lines.append(f"rates       {quartiles} spikes/s (least / quartiles / most)")
        lines.append(f"silent      {listed(self.silent)}")
        lines.append(f"duplicated  {listed([' = '.join(group) for group in self.duplicated])}")
        for label, found in self.behaviour.items():
            lines.append("behaviour   {}: {mean:.3g} ± {std:.3g}, {least:.3g} to {most:.3g}".format(label, **found))
        return lines if self.behaviour else [*lines, "behaviour   none"]


def survey(recording: Recording) -> Survey:
    """Looks a recording over."""
    look = Look(recording)
    lengths = look.lengths
    return Survey(
        session=recording.session,
        channels=recording.n_channels,
        heldout=int((~recording.heldin).sum()),
        bins=len(look.counts),
        bin_width_s=recording.bin_width_s,
        seconds=len(look.counts) * recording.bin_width_s,
        segments=recording.n_segments,
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        longest=int(lengths.max()),
        splits=tally(recording.splits),
        conditions=_condition_counts(recording),
        rates_hz=tuple(np.percentile(look.rates, [0, 25, 50, 75, 100]).round(4).tolist()),
        silent=look.labels(look.rates == 0),
        duplicated=tuple(tuple(recording.channels[i] for i in group) for group in look.duplicated),
        behaviour=_behaviour(look),
        warnings=tuple(line for check in CHECKS for line in check(look)),
    )


def _behaviour(look: Look) -> dict[str, dict[str, float]]:
    if look.behaviour is None:
        return {}
    return {
        label: {"mean": float(v.mean()), "std": float(v.std()), "least": float(v.min()), "most": float(v.max())}
        for label, v in zip(look.recording.behaviour_labels, look.behaviour.T, strict=True)
    }


def _condition_counts(recording: Recording) -> dict[str, int]:
    trials = tally(recording.conditions)
    return {"conditions": len(trials), "fewest": min(trials.values()), "most": max(trials.values())} if trials else {}


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"

"""The scores of a run: a causal model by streaming it (`anchor` + `step`), bin by bin, as the daemon will.

The acausal reference is scored over the same bins from overlapping windows, so that the two can be held side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtdsae.errors import RecordingError, TrainingError
from rtdsae.evaluate import figures
from rtdsae.evaluate.metrics import bits_per_spike, poisson_nll, r2
from rtdsae.recordings import Recording, load
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.run import Run, prepare
from rtdsae.train.windows import Tensors

__all__ = ["Report", "evaluate"]

SHOWN_S = 20.0  # of the scored part, in a figure over time
NULL_MODELS = {
    "bps": "each held-in neuron's mean rate over the scored bins",
    "co_bps": "each held-out neuron's mean rate over the scored bins",
    "r2_behaviour": "each behaviour column's mean over the scored bins",
    "r2_true_rates": "each neuron's mean true rate over the scored bins",
}


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    Attributes:
        scores: what `--json` prints; null where something could not be scored, with the reason under `reasons`.
        figures: the PNGs that were drawn.
    """

    scores: dict[str, Any]
    figures: list[Path]

    def table(self) -> str:
        """The scores for people."""
        s = self.scores
        lines = [f"{s['bins']} bins of the {s['part']} part, {s['method']}"]
        for name, null in NULL_MODELS.items():
            lines.append(f"  {name:14} {said(s[name], s['reasons'].get(name)):32} null: {null}")
        lines.append(f"  {'nll':14} {s['nll']:.5f} nats per bin and neuron, held-in")
        return "\n".join([*lines, *(f"  figure         {path}" for path in self.figures)])


def said(value: Any, reason: str | None) -> str:
    """One score in a table."""
    if value is None:
        return f"- ({reason})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {v:.3f}" for name, v in value.items())
    return f"{value:.4f}"


def evaluate(run: Run, data: Path | None = None) -> Report:
    """Score a run's best model, draw its figures into `RUN/figures`, and keep the scores in run.json.

    Args:
        run: a run with a finished epoch.
        data: another recording of the same neurons, scored whole; else the run's own test part, or its validation part
            where it has no test part.

    Raises:
        RecordingError: the recording is missing, or is not of the model's neurons.
        TrainingError: the run has no model, or no segment is long enough.
    """
    recording, part = recording_of(run, data)
    family, tensors = run.model(), Tensors(recording)
    d = family.dims
    least = d.anchor_bins + (1 if family.causal else d.horizon_bins)
    segments = recording.segments if data else recording.segments[recording.splits == part]
    segments = segments[segments[:, 1] - segments[:, 0] >= least]
    if len(segments) == 0:
        raise TrainingError(f"no {part} segment of {recording.session or 'the recording'} has {least} bins or more")
    outputs = segment_outputs(family, tensors, segments)
    bins = modelled_bins(segments, d.anchor_bins)
    scores = {
        "part": part,
        "method": "streamed with anchor + step" if family.causal else "acausal windows (offline reference)",
        "bins": len(bins),
        **score(recording, bins, outputs),
        "null_models": NULL_MODELS,
    }
    drawn = draw(run.path / "figures", recording, segments, outputs, d.anchor_bins)
    if data is None:
        run.info["scores"] = flat(scores)
        run.save_info()
    return Report(scores, drawn)


def recording_of(run: Run, data: Path | None) -> tuple[Recording, str]:
    """The recording to score, prepared as the run's was, and the name of its part."""
    path = data or Path(run.config.data.path)
    recording = prepare(load(path, run.config.data.bin_width_s), run.config)
    if list(recording.channels) != run.info["neurons"]:
        raise RecordingError(
            f"{path} has {recording.n_channels} neurons ({recording.channels[0]}, ...), not those that {run.path} was "
            f"trained on ({len(run.info['neurons'])}: {run.info['neurons'][0]}, ...): choose a recording of the same"
        )
    if not np.isclose(recording.bin_width_s, run.dims.bin_width_s):
        raise RecordingError(
            f"{path} has bins of {recording.bin_width_s:g} s, {run.path} was trained on {run.dims.bin_width_s:g} s: "
            "bin the recording anew"
        )
    assert recording.splits is not None
    if data:
        return recording, "whole"
    return recording, "test" if "test" in recording.splits else "valid"


def score(recording: Recording, bins: np.ndarray, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every score that the recording allows, over these bins."""
    counts, expected = recording.counts[bins], outputs["rates"] * recording.bin_width_s
    heldout = np.zeros(recording.n_channels, bool) if recording.heldout is None else recording.heldout
    reasons: dict[str, str] = {}

    def attempt(name: str, possible: bool, why_not: str, compute: Callable[[], Any]) -> Any:
        if possible:
            return compute()
        reasons[name] = why_not
        return None

    behaviour, truth = recording.behaviour, recording.true_rates
    return {
        "nll": float(poisson_nll(expected[:, ~heldout], counts[:, ~heldout])),
        "bps": bits_per_spike(expected[:, ~heldout], counts[:, ~heldout]),
        "co_bps": attempt(
            "co_bps",
            bool(heldout.any()),
            "no neuron is held out: train with data.heldout_every",
            lambda: bits_per_spike(expected[:, heldout], counts[:, heldout]),
        ),
        "r2_behaviour": attempt(
            "r2_behaviour",
            behaviour is not None and "behaviour" in outputs,
            "the recording has no behaviour",
            lambda: by_label(recording.behaviour_labels, r2(behaviour[bins], outputs["behaviour"])),  # type: ignore[index]
        ),
        "r2_true_rates": attempt(
            "r2_true_rates",
            truth is not None,
            "the recording has no true rates",
            lambda: float(np.nanmean(r2(truth[bins], outputs["rates"]))),  # type: ignore[index]
        ),
        "reasons": reasons,
    }


def by_label(labels: tuple[str, ...], values: np.ndarray) -> dict[str, float]:
    """One score a column, and their mean."""
    return {"mean": float(np.nanmean(values)), **{name: float(v) for name, v in zip(labels, values, strict=True)}}


def flat(scores: dict[str, Any]) -> dict[str, float]:
    """The plain numbers among the scores, for a bundle's manifest and card."""
    numbers: dict[str, float] = {}
    for name in ("nll", *NULL_MODELS):
        value = scores[name]
        if isinstance(value, dict):
            numbers |= {f"{name}.{label}": v for label, v in value.items()}
        elif value is not None:
            numbers[name] = value
    return numbers


def draw(
    folder: Path, recording: Recording, segments: np.ndarray, outputs: dict[str, np.ndarray], anchor_bins: int
) -> list[Path]:
    """The figures of the first scored stretch, and of conditions where trials have them."""
    shown = slice(0, round(SHOWN_S / recording.bin_width_s))
    width = recording.bin_width_s
    modelled = segments[:, 1] - segments[:, 0] - anchor_bins
    starts = [int(start) for start in np.cumsum(modelled)[:-1] if start < shown.stop]
    at = modelled_bins(segments, anchor_bins)[shown]
    truth, behaviour = recording.true_rates, recording.behaviour
    drawn = [folder / "rates.png", folder / "factors.png"]
    figures.rates(
        drawn[0],
        outputs["rates"][shown],
        recording.counts[at],
        bin_width_s=width,
        channels=recording.channels,
        true_rates=None if truth is None else truth[at],
        heldout=recording.heldout,
        starts=starts,
    )
    figures.factors(drawn[1], outputs["factors"][shown], bin_width_s=width, starts=starts)
    if behaviour is not None and "behaviour" in outputs:
        drawn.append(folder / "behaviour.png")
        decoded = outputs["behaviour"][shown]
        labels = recording.behaviour_labels
        figures.behaviour(drawn[-1], behaviour[at], decoded, labels, bin_width_s=width, starts=starts)
    if recording.conditions is not None:
        drawn.append(folder / "conditions.png")
        shortest = int(modelled.min())
        firsts = np.cumsum(modelled) - modelled
        trials = np.stack([outputs["factors"][first : first + shortest] for first in firsts])
        begun = np.searchsorted(recording.segments[:, 0], segments[:, 0])
        shown_as = recording.conditions[begun]
        figures.conditions(drawn[-1], trials, shown_as, bin_width_s=width, start_s=anchor_bins * width)
    return drawn

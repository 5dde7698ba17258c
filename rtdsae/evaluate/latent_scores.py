"""What the latents of trials know: of the trials' labels, of the behaviour, and apart from one another.

Codes are a trial's f, as the stream has it at the trial's end, and the mean of its z. Labels are the recording's, or
its conditions where it has none. What cannot be scored is None, with the reason.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtdsae.evaluate.disentanglement import beta_vae_score, dci, factor_vae_score, mcc, mig, sap
from rtdsae.evaluate.probes import label_probe, series_probe
from rtdsae.evaluate.swap import swap_test
from rtdsae.evaluate.tangling import tangling_score
from rtdsae.evaluate.trials import SHORT_TRIALS, Trials, trials_of
from rtdsae.model.family import Family
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.windows import Tensors

__all__ = ["latent_scores"]

log = logging.getLogger(__name__)

CIRCULAR = ("direction",)  # labels in degrees: two codes, not one, stand for them


@dataclass
class Scores:
    """Scores as they come, and why some did not."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, compute: Callable[[], Any]) -> None:
        """Keep a score, or the reason why it cannot be."""
        try:
            self.values[name] = compute()
        except ValueError as error:
            self.values[name], self.reasons[name] = None, str(error)


def latent_scores(family: Family, tensors: Tensors, segments: np.ndarray, reference: np.ndarray) -> Scores:
    """Score the latents of some segments.

    Args:
        family: the model, its session in use.
        tensors: the recording.
        segments: the scored ones, (n, 2), each longer than S.
        reference: others (the training part), which the swap test's probes are fitted on.
    """
    scores = Scores()
    # Trials are cut to one length; one that was broken off must not set it.
    shortest = min(int(np.percentile(lengths_of(part), SHORT_TRIALS)) for part in (segments, reference))
    parts = [part[lengths_of(part) >= shortest] for part in (segments, reference)]
    if left_out := sum(map(len, (segments, reference))) - sum(map(len, parts)):
        log.info("latents are scored on trials cut to %d bins: %d shorter ones are left out", shortest, left_out)
    modelled = shortest - family.dims.anchor_bins
    trials, others = (trials_of(family, tensors, part, modelled) for part in parts)
    score_labels(scores, trials)
    scores.attempt("probe_f", lambda: probes(trials.f, trials.labels))
    scores.attempt("probe_z", lambda: probes(trials.z_mean, trials.labels))
    scores.attempt("probe_f_series", lambda: series_scores(trials, "f"))
    scores.attempt("probe_z_series", lambda: series_scores(trials, "z"))
    scores.attempt("tangling", lambda: tangling_score(condition_means(trials), family.dims.bin_width_s))
    scores.attempt("swap", lambda: swap_test(family, trials, others))
    return scores


def score_labels(scores: Scores, trials: Trials) -> None:
    """How far single dimensions of f stand for single labels, where the recording has labels of its own."""
    labels, f = trials.labels, trials.f
    known = {name: values for name, values in labels.items() if values.dtype.kind == "f"}
    straight = [values for name, values in known.items() if name not in CIRCULAR]

    def of(columns: list[np.ndarray], measure: Callable[[np.ndarray, np.ndarray], Any]) -> Any:
        if not columns:
            raise ValueError("the recording has no `labels` of its trials")
        return measure(f, np.stack(columns, 1))

    every = list(known.values())
    scores.attempt("mig", lambda: of(straight, mig))
    scores.attempt("sap", lambda: of(straight, sap))
    scores.attempt("dci", lambda: of(every, dci)._asdict())
    scores.attempt("beta_vae", lambda: of(every, beta_vae_score))
    scores.attempt("factor_vae", lambda: of(every, factor_vae_score))
    scores.attempt("mcc", lambda: of([c for name, v in known.items() for c in as_sources(name, v)], mcc))


def as_sources(name: str, values: np.ndarray) -> list[np.ndarray]:
    """A label as sources on a line: of a direction, cosine and sine."""
    if name not in CIRCULAR:
        return [values]
    return [np.cos(np.radians(values)), np.sin(np.radians(values))]


def probes(codes: np.ndarray, labels: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Every label's linear probe: its score, and chance."""
    if not labels:
        raise ValueError("the recording has neither `labels` nor `conditions`")
    found = {name: label_probe(codes, values) for name, values in labels.items()}
    return {name: {probe.measure: probe.score, "chance": probe.chance} for name, probe in found.items()}


def series_scores(trials: Trials, latent: str) -> dict[str, float]:
    """R² of each behaviour column, bin by bin, from one latent."""
    if not trials.behaviour:
        raise ValueError("the recording has no behaviour")
    found = series_probe(trials.outputs[latent], np.stack(list(trials.behaviour.values()), 2))
    return {name: float(value) for name, value in zip(trials.behaviour, found, strict=True) if np.isfinite(value)}


def condition_means(trials: Trials) -> np.ndarray:
    """The factors' mean over each label combination, (conditions, T, n_factors)."""
    if not trials.labels:
        raise ValueError("the recording has neither `labels` nor `conditions` to average trials by")
    keys = np.array([" ".join(map(str, key)) for key in zip(*trials.labels.values(), strict=True)])
    return np.stack([trials.outputs["factors"][keys == key].mean(0) for key in np.unique(keys)])

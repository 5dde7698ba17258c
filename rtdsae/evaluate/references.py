"""What simpler things score on the bins that a model is scored on: null models, and what people would use instead.

They are fitted on the training part, and what has to be chosen for them is chosen on the validation part, or on the
last fifth of the training part where the validation part is the scored one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtdsae.evaluate import baselines
from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.evaluate.trials import conditions_of
from rtdsae.model.family import Family
from rtdsae.recordings import Recording, mapped
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.ridge import ridge
from rtdsae.train.windows import Tensors

__all__ = ["Reference", "references", "shortest"]

MOST_BINS = 20_000  # that something is fitted on
NULL_BINS = 5_000  # that the model is streamed over for the null model of behaviour
PIECE_BINS = 400  # a long segment is streamed for the null model in pieces, side by side
HISTORY = 10  # bins of spikes, as people decode from
MOST_COLUMNS = 2000  # of a regression
GLM_TAUS = (2.0, 5.0, 12.0)  # bins
SMOOTHING = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # bins
PSTH_SDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # bins
SHIFTS = 200


class Reference(NamedTuple):
    """What something simpler scores.

    Attributes:
        key: its name for programs.
        name: for people.
        value: on the scored bins, or None.
        what: what it is, or why it has no value.
    """

    key: str
    name: str
    value: float | None
    what: str


@dataclass(frozen=True)
class Parts:
    """Segments of a recording by what they are for, (n, 2) each."""

    fit: np.ndarray
    choose: np.ndarray
    scored: np.ndarray


def references(
    family: Family, tensors: Tensors, segments: np.ndarray, part: str, factors: np.ndarray
) -> dict[str, list[Reference]]:
    """The references of each score that the recording allows.

    Args:
        family: the model, its session in use.
        tensors: the recording.
        segments: the scored ones, (n, 2).
        part: whose these are: `test`, `valid`, or `whole` for a recording that the model was not trained on.
        factors: the model's, of the scored bins.

    Returns:
        By the score's name (`co_bps`, `r2_behaviour`, `r2_true_rates`); what cannot be had has the reason in its place.
    """
    recording, skip = tensors.recording, family.dims.anchor_bins
    wanted = wanted_of(recording)
    try:
        parts = parts_of(recording, segments, part, shortest(family))
    except ValueError as error:
        return {score: [Reference(key, name, None, str(error)) for key, name in some] for score, some in wanted.items()}
    compute: dict[str, Callable[[], tuple[float, str]]] = {
        "glm": lambda: glm_reference(recording, parts, skip),
        "ridge": lambda: ridge_reference(recording, parts, skip),
        "shifted": lambda: shifted_reference(family, tensors, parts, factors),
        "smoothed": lambda: smoothed_reference(recording, parts, skip),
        "psth": lambda: psth_reference(recording, parts, skip),
    }
    found: dict[str, list[Reference]] = {}
    for score, some in wanted.items():
        for key, name in some:
            try:
                value, what = compute[key]()
                known = float(value) if np.isfinite(value) else None
                found.setdefault(score, []).append(Reference(key, name, known, what))
            except ValueError as error:
                found.setdefault(score, []).append(Reference(key, name, None, str(error)))
    return found


def wanted_of(recording: Recording) -> dict[str, list[tuple[str, str]]]:
    """Which references belong to which score, by what the recording holds."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    if recording.heldout is not None and recording.heldout.any():
        wanted["co_bps"] = [("glm", "Poisson regression")]
    if recording.behaviour is not None:
        wanted["r2_behaviour"] = [("shifted", "shifted behaviour"), ("ridge", "ridge on spikes")]
    if recording.true_rates is not None:
        wanted["r2_true_rates"] = [("smoothed", "smoothed spikes")]
        if recording.conditions is not None:
            wanted["r2_true_rates"].append(("psth", "PSTH"))
    return wanted


def shortest(family: Family) -> int:
    """How many bins a segment has at least that the model gives outputs for."""
    return family.dims.anchor_bins + (1 if family.causal else family.dims.horizon_bins)


def parts_of(recording: Recording, segments: np.ndarray, part: str, least: int) -> Parts:
    """What to fit on and to choose on.

    Raises:
        ValueError: there is nothing to fit on.
    """
    if part == "whole":
        raise ValueError("the recording was scored whole: nothing of it is left to fit on")
    long_enough = lengths_of(recording.segments) >= least
    fit, choose = (recording.segments[long_enough & recording.in_split(name)] for name in ("train", "valid"))
    if part == "valid" or len(choose) == 0:
        fit, choose = last_fifth(fit, least)
    if len(fit) == 0 or len(choose) == 0:
        raise ValueError("the training part is too short to fit on")
    return Parts(limited(fit), limited(choose), segments)


def last_fifth(segments: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments without their last fifth, and that: of segments, or of one's time."""
    if len(segments) >= 5:
        n = len(segments) // 5
        return segments[:-n], segments[-n:]
    cut = segments[:, 1] - lengths_of(segments) // 5
    parts = (np.stack([segments[:, 0], cut], 1), np.stack([cut, segments[:, 1]], 1))
    first, last = (part[lengths_of(part) >= least] for part in parts)
    return first, last


def limited(segments: np.ndarray, most: int = MOST_BINS) -> np.ndarray:
    """Evenly spaced segments of about `most` bins together at most; of a longer one, its end."""
    total = int(lengths_of(segments).sum())
    n = min(len(segments), max(1, len(segments) * most // total))
    kept = segments[np.arange(n) * len(segments) // n]
    kept[:, 0] = np.maximum(kept[:, 0], kept[:, 1] - most)
    return kept


def glm_reference(recording: Recording, parts: Parts, skip: int) -> tuple[float, str]:
    """Held-out neurons from the recent spikes of the held-in ones."""
    assert recording.heldout is not None
    seen = recording.counts[:, recording.heldin]
    if seen.shape[1] > MOST_COLUMNS:
        raise ValueError(f"not fitted to more than {MOST_COLUMNS} channels")
    fit, choose, scored = (
        recording.counts[np.ix_(modelled_bins(part, skip), recording.heldout)]
        for part in (parts.fit, parts.choose, parts.scored)
    )
    tried = []
    for tau in GLM_TAUS:
        x_fit, x_choose = (np.concatenate([*baselines.traces(seen, p, tau, skip)]) for p in (parts.fit, parts.choose))
        tried.append(baselines.glm((x_fit, fit), (x_choose, choose)))
    best = baselines.best_of([score for _, score in tried])
    predict, tau = tried[best][0], GLM_TAUS[best]
    rates, at = mapped.zeros(scored.shape, np.float32, "what a Poisson regression says"), 0
    for some in baselines.traces(seen, parts.scored, tau, skip):
        rates[at : at + len(some)] = predict(some)
        at += len(some)
    faded = f"{1000 * tau * recording.bin_width_s:g} ms"
    return bits_per_spike(rates, scored), f"of the held-in spikes up to the bin, fading over {faded}"


def ridge_reference(recording: Recording, parts: Parts, skip: int) -> tuple[float, str]:
    """Behaviour from the last bins of the held-in spikes."""
    assert recording.behaviour is not None
    seen = recording.counts if recording.heldout is None else recording.counts[:, recording.heldin]  # no needless copy
    lags = min(HISTORY, MOST_COLUMNS // seen.shape[1])
    if not lags:
        raise ValueError(f"not fitted to more than {MOST_COLUMNS} channels")
    fit, choose = (
        (baselines.lagged(seen, part, lags, skip), recording.behaviour[modelled_bins(part, skip)].astype(float))
        for part in (parts.fit, parts.choose)
    )
    line, scored = ridge([fit], [choose]), modelled_bins(parts.scored, skip)
    some = [
        line.predict(baselines.lagged(seen, part, lags, before)) for part, before in a_few(parts.scored, lags, skip)
    ]
    score = float(np.nanmean(r2(recording.behaviour[scored].astype(float), np.concatenate(some))))
    return score, f"from the spikes of the last {lags} bins, a straight line"


def a_few(segments: np.ndarray, lags: int, skip: int) -> Iterator[tuple[np.ndarray, int]]:
    """Segments in pieces with what comes before each, (1, 2), and how much of a piece that is: its bins are lagged."""
    for a, b in segments.tolist():
        for at in range(a + skip, b, NULL_BINS):
            begin = max(a, at - lags + 1)
            yield np.array([[begin, min(at + NULL_BINS, b)]]), at - begin


def shifted_reference(family: Family, tensors: Tensors, parts: Parts, factors: np.ndarray) -> tuple[float, str]:
    """A read-out of the same factors, fitted to behaviour that was shifted in time."""
    behaviour, skip = tensors.recording.behaviour, family.dims.anchor_bins
    assert behaviour is not None
    fit = pieces(limited(parts.fit, NULL_BINS), shortest(family))
    streamed = segment_outputs(family, tensors, fit, ["factors"])["factors"]
    y_fit, y = (behaviour[modelled_bins(part, skip)].astype(float) for part in (fit, parts.scored))
    scores = baselines.shifted_scores((streamed, y_fit), factors, y, shifts=SHIFTS)
    most = float(np.percentile(scores, 95))
    return float(
        scores.mean()
    ), f"a read-out fitted to behaviour of another time; {SHIFTS} shifts, 95 % below {most:.3f}"


def pieces(segments: np.ndarray, least: int) -> np.ndarray:
    """Long segments cut up, each piece of `least` bins or more."""
    size = max(PIECE_BINS, 2 * least)
    cut = [(begin, min(begin + size, b)) for a, b in segments.tolist() for begin in range(a, b, size)]
    return np.array([piece for piece in cut if piece[1] - piece[0] >= least])


def smoothed_reference(recording: Recording, parts: Parts, skip: int) -> tuple[float, str]:
    """Every neuron's own past, smoothed and scaled as suits the true rates of other bins best."""
    assert recording.true_rates is not None
    truth = recording.true_rates
    mean = recording.counts[modelled_bins(parts.fit, 0)].mean(0)

    def of(segments: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
        rates = baselines.smoothed(recording.counts, segments, tau, skip, mean) / recording.bin_width_s
        return truth[modelled_bins(segments, skip)], rates

    tried = []
    for tau in SMOOTHING:
        actual, rates = of(parts.choose, tau)
        line = baselines.best_line(rates, actual)
        tried.append((float(np.nanmean(r2(actual, line.slope * rates + line.offset))), tau, line))
    _, tau, line = max(tried, key=lambda one: one[0])
    actual, rates = of(parts.scored, tau)
    whose = "each neuron's own spikes" + (", held-out ones' too" if recording.heldout is not None else "")
    what = f"{whose}, fading over {1000 * tau * recording.bin_width_s:g} ms, scaled to suit the true rates"
    return float(np.nanmean(r2(actual, line.slope * rates + line.offset))), what


def psth_reference(recording: Recording, parts: Parts, skip: int) -> tuple[float, str]:
    """The mean of the training trials of the same condition, smoothed as suits the true rates of these trials best."""
    assert recording.true_rates is not None
    assert recording.conditions is not None
    truth, width = recording.true_rates, recording.bin_width_s
    training = recording.segments[recording.in_split("train")]
    known, asked = (conditions_of(recording, part) for part in (training, parts.scored))

    def score(segments: np.ndarray, conditions: np.ndarray, sd: float) -> float:
        rates = baselines.psth(recording.counts, (training, known), segments, conditions, skip, sd) / width
        return float(np.nanmean(r2(truth[modelled_bins(segments, skip)], rates)))

    best = max(PSTH_SDS, key=lambda sd: score(training, known, sd))
    what = f"is told the condition: the mean of its training trials, smoothed by {1000 * best * width:g} ms"
    return score(parts.scored, asked, best), what

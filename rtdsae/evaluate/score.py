"""The scores of a run: a causal model by streaming it (`anchor` + `step`), bin by bin, as the daemon will.

The acausal reference is scored over the same bins from overlapping windows, so that the two can be held side by side;
only segments shorter than S + R bins are the causal model's alone. Generated neurons have a ceiling besides: what an
ideal observer, who knows their system, makes of the same spikes (`oracle`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rtdsae.errors import RecordingError, TrainingError
from rtdsae.evaluate.latent_scores import latent_scores
from rtdsae.evaluate.metrics import bits_per_spike, poisson_nll, r2
from rtdsae.evaluate.oracle import oracle_rates
from rtdsae.evaluate.references import Reference, references, shortest
from rtdsae.model.family import Family
from rtdsae.recordings import Recording, load
from rtdsae.recordings.segments import lengths_of
from rtdsae.train.latents import modelled_bins, segment_outputs
from rtdsae.train.run import Run
from rtdsae.train.sessions import prepare
from rtdsae.train.windows import Tensors

__all__ = ["Scored", "Streamed", "evaluate", "flat", "score", "stream_session"]

NULL_MODELS = {
    "bps": "each held-in neuron's mean rate over the scored bins; the model saw these very spikes",
    "co_bps": "each held-out neuron's mean rate over the scored bins",
    "r2_behaviour": "each behaviour column's mean over the scored bins",
    "r2_true_rates": "each neuron's mean true rate over the scored bins",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """What `evaluate` found of one session, and what it was found from.

    Attributes:
        scores: what `--json` prints; null where something could not be scored, with the reason under `reasons`.
        references: what simpler things score on the same bins, by the score's name.
        run: whose model it is.
        family: the model, of all sessions; `model` is the same with this session in use.
        session: which of the run's sessions.
        recording: with its splits and held-out neurons.
        segments: the scored ones, (n, 2).
        outputs: by name, (bins, size), of the segments' bins after their first S.
    """

    scores: dict[str, Any]
    references: dict[str, list[Reference]]
    run: Run
    family: Family
    session: int
    recording: Recording
    segments: np.ndarray
    outputs: dict[str, np.ndarray]

    @property
    def model(self) -> Family:
        """The model, with this session in use."""
        return self.family.use(self.session)

    @cached_property
    def bins(self) -> np.ndarray:
        """The scored bins, in the order of `outputs`."""
        return modelled_bins(self.segments, self.run.dims.anchor_bins)

    @property
    def name(self) -> str:
        """The session's name."""
        return str(self.scores["session"])

    @property
    def lengths(self) -> np.ndarray:
        """How many bins of each segment are scored, (n,)."""
        return lengths_of(self.segments) - self.run.dims.anchor_bins

    @property
    def starts(self) -> np.ndarray:
        """Where in `bins` each segment begins, (n,)."""
        return np.cumsum(self.lengths) - self.lengths

    def table(self) -> str:
        """The scores for people."""
        s = self.scores
        lines = [f"{s['session']}: {s['bins']} bins of the {s['part']} part, {s['method']}"]
        for name, null in NULL_MODELS.items():
            lines.append(f"  {name:14} {said(s[name], s['reasons'].get(name)):32} null: {null}")
        lines.append(f"  {'nll':14} {said(s['nll'], s['reasons'].get('nll')):32} nats per bin and held-in neuron, seen")
        for name, what in (
            ("oracle", "an ideal observer, who knows the system"),
            ("fraction_of_oracle", "the model's"),
        ):
            lines.append(f"  {name:14} {said(s[name], s['reasons'].get(name)):32} {what}")
        for name, value in s["latents"].items():
            if value is not None:
                lines.append(f"  {name:14} {said(value, None)}")
        return "\n".join(lines)


def said(value: Any, reason: str | None) -> str:
    """One score in a table."""
    if value is None:
        return f"- ({reason})"
    if isinstance(value, dict):
        return ", ".join(
            f"{name} ({said(v, None)})" if isinstance(v, dict) else f"{name} {v:.3f}" for name, v in value.items()
        )
    return f"{value:.4f}"


def evaluate(run: Run, data: str | Path | None = None, session: str | None = None) -> list[Scored]:
    """Score a run's best model, and keep the scores in run.json.

    Args:
        run: a run with a finished epoch.
        data: another recording of the neurons of one of its sessions, scored whole; else each session's own test part,
            or its validation part where it has no test part.
        session: score this one alone.

    Returns:
        What was found of each session.

    Raises:
        ConfigError: there is no such session.
        RecordingError: a recording is missing, or is not of the model's neurons.
        TrainingError: the run has no model, or no segment is long enough.
    """
    chosen = range(len(run.info["sessions"])) if session is None else [run.session_index(session)]
    if data is not None:
        data = Path(data)
        recording = load(data, run.config.data.bin_width_s)
        chosen = [matching(run, recording, data, chosen)]
    family = run.model()
    scored = [evaluate_session(run, family.use(i), i, data) for i in chosen]
    if data is None and session is None:
        run.info |= {"scores": mean_over_sessions(scored), "scored_part": scored[0].scores["part"]}
        run.save_info()
    return scored


class Streamed(NamedTuple):
    """What a model gave for the scored part of a session.

    Attributes:
        recording: with its splits and held-out neurons.
        part: the scored one: `test`, `valid`, or `whole` for another recording.
        segments: the scored ones, (n, 2).
        others: those of the other parts that are long enough.
        outputs: by name, (bins, size), of the segments' bins after their first S.
    """

    recording: Recording
    part: str
    segments: np.ndarray
    others: np.ndarray
    outputs: dict[str, np.ndarray]


def stream_session(run: Run, family: Family, session: int, data: Path | None) -> Streamed:
    """Stream the part of a session that is scored; the model has the session in use.

    Raises:
        RecordingError: the recording is missing, or is not of the model's neurons.
        TrainingError: no segment is long enough.
    """
    recording, part = recording_of(run, session, data)
    least = shortest(family)
    parts = np.full(recording.n_segments, part) if data else np.asarray(recording.splits)
    long_enough = lengths_of(recording.segments) >= least
    segments, others = (recording.segments[long_enough & chosen] for chosen in (parts == part, parts != part))
    if len(segments) == 0:
        raise TrainingError(f"no {part} segment of {recording.session or 'the recording'} has {least} bins or more")
    return Streamed(recording, part, segments, others, segment_outputs(family, Tensors(recording), segments))


def evaluate_session(run: Run, family: Family, session: int, data: Path | None) -> Scored:
    """Score one session, which the model has in use."""
    recording, part, segments, others, outputs = stream_session(run, family, session, data)
    tensors, d = Tensors(recording), family.dims
    bins = modelled_bins(segments, d.anchor_bins)
    scored = score(run, recording, bins, outputs)
    add_oracle(scored, run, recording, segments, d.anchor_bins)
    latents = latent_scores(family, tensors, segments, others if len(others) else segments)
    simpler = references(family, tensors, segments, part, outputs["factors"])
    scores = {
        "session": run.info["sessions"][session]["name"],
        "part": part,
        "method": f"streamed with anchor + step, lanes: {d.lanes}"
        if family.causal
        else "acausal windows (offline reference)",
        "bins": len(bins),
        **scored,
        "null_models": NULL_MODELS,
        "references": {name: {r.key: r.value for r in some} for name, some in simpler.items()},
        "latents": latents.values,
    }
    scores["reasons"] |= {f"latents.{key}": reason for key, reason in latents.reasons.items()}
    return Scored(scores, simpler, run, family, session, recording, segments, outputs)


def mean_over_sessions(sessions: list[Scored]) -> dict[str, float]:
    """The plain numbers of all sessions, each the mean over the sessions that have it."""
    numbers = [flat(scored.scores) for scored in sessions]
    names = {name: None for each in numbers for name in each}
    return {name: float(np.mean([each[name] for each in numbers if name in each])) for name in names}


def matching(run: Run, recording: Recording, path: Path, chosen: Sequence[int]) -> int:
    """Which session has this recording's neurons; with one candidate, that one, to be checked and refused later."""
    same = [i for i in chosen if list(recording.channels) == run.info["sessions"][i]["neurons"]]
    if not same and len(chosen) > 1:
        raise RecordingError(f"{path} has the neurons of no session of {run.path}: fit it first with rtdsae calibrate")
    return same[0] if same else chosen[0]


def recording_of(run: Run, session: int, data: Path | None) -> tuple[Recording, str]:
    """The recording to score, with the neurons held out that the run held out, and the name of its part."""
    path, info = data or Path(run.config.data.paths[session]), run.info["sessions"][session]
    if data is None and not path.exists():
        raise RecordingError(
            f"{path}: no such file; {run.path} was trained on it, seen from the folder where that was begun: go there, "
            f"or mend data.path in {run.path / 'config.yaml'}"
        )
    recording = load(path, run.config.data.bin_width_s)
    check_same(run, info["neurons"], recording, path)
    if data is not None:
        heldout = [channel not in info["channels"] for channel in recording.channels]
        return dataclasses.replace(recording, heldout=np.array(heldout) if any(heldout) else None), "whole"
    recording = prepare(recording, run.config)
    if recording.hash != info["data_hash"]:
        raise RecordingError(
            f"{path} is not what {run.path} was trained on any more: put it back, or score it as another with --data"
        )
    return recording, "test" if "test" in np.asarray(recording.splits) else "valid"


def check_same(run: Run, neurons: list[str], recording: Recording, path: Path) -> None:
    """Refuse a recording of other neurons, bins or external inputs than the run's."""
    if list(recording.channels) != neurons:
        raise RecordingError(
            f"{path} has {recording.n_channels} neurons ({recording.channels[0]}, ...), not those that {run.path} was "
            f"trained on ({len(neurons)}: {neurons[0]}, ...): choose a recording of the same"
        )
    if not np.isclose(recording.bin_width_s, run.dims.bin_width_s):
        raise RecordingError(
            f"{path} has bins of {recording.bin_width_s:g} s, {run.path} was trained on {run.dims.bin_width_s:g} s: "
            "bin the recording anew"
        )
    if list(recording.external_labels) != run.info["external_labels"]:
        raise RecordingError(
            f"{path} has the external inputs {list(recording.external_labels)}, {run.path} was trained with "
            f"{run.info['external_labels']}: choose a recording of the same"
        )


def score(run: Run, recording: Recording, bins: np.ndarray, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every score that the recording allows, over these bins."""
    counts, expected = recording.counts[bins], outputs["rates"] * recording.bin_width_s
    heldin, heldout = recording.heldin, ~recording.heldin
    behaviour, truth, labels = recording.behaviour, recording.true_rates, recording.behaviour_labels
    reasons: dict[str, str] = {}

    def attempt(name: str, why_not: str, compute: Callable[[], Any]) -> Any:
        if not why_not:
            value = compute()
            if np.all(np.isfinite(list(value.values()) if isinstance(value, dict) else value)):
                return value
        reasons[name] = why_not or "the scored bins hold no spike, or what is scored does not vary"
        return None

    no_behaviour = ""
    if behaviour is None:
        no_behaviour = "the recording has no behaviour"
    elif list(labels) != run.info["behaviour_labels"]:
        no_behaviour = f"the model decodes {', '.join(run.info['behaviour_labels']) or 'none'}, not {', '.join(labels)}"
    scores = {
        "nll": attempt("nll", "", lambda: poisson_nll(expected[:, heldin], counts[:, heldin])),
        "bps": attempt("bps", "", lambda: bits_per_spike(expected[:, heldin], counts[:, heldin])),
        "co_bps": attempt(
            "co_bps",
            "" if heldout.any() else "no neuron is held out: train with data.heldout_every",
            lambda: bits_per_spike(expected[:, heldout], counts[:, heldout]),
        ),
        "r2_behaviour": attempt(
            "r2_behaviour",
            no_behaviour,
            lambda: by_label(labels, r2(behaviour[bins], outputs["behaviour"])),  # type: ignore[index]
        ),
        "r2_true_rates": attempt(
            "r2_true_rates",
            "the recording has no true rates" if truth is None else "",
            lambda: float(np.nanmean(r2(truth[bins], outputs["rates"]))),  # type: ignore[index]
        ),
    }
    if decoded := scores["r2_behaviour"]:
        still = [label for label in labels if label not in decoded]
        reasons |= {f"r2_behaviour.{label}": "it does not vary in the scored bins" for label in still}
    return {**scores, "reasons": reasons}


def add_oracle(scores: dict[str, Any], run: Run, recording: Recording, segments: np.ndarray, anchor_bins: int) -> None:
    """Add an ideal observer's scores over the same bins, and what part of them the model reaches."""
    scores["oracle"] = scores["fraction_of_oracle"] = None
    try:
        rates = oracle_rates(recording, segments, anchor_bins)
    except ValueError as error:
        scores["reasons"] |= dict.fromkeys(("oracle", "fraction_of_oracle"), str(error))
        return
    alone = dataclasses.replace(recording, behaviour=None, behaviour_labels=())
    found = score(run, alone, modelled_bins(segments, anchor_bins), {"rates": rates})
    scores["oracle"] = {name: found[name] for name in ("r2_true_rates", "co_bps", "bps") if found[name] is not None}
    scores["fraction_of_oracle"] = {
        name: scores[name] / ceiling
        for name, ceiling in scores["oracle"].items()
        if name != "bps" and scores[name] is not None and ceiling > 0  # bps is of spikes that both have seen
    }


def by_label(labels: tuple[str, ...], values: np.ndarray) -> dict[str, float]:
    """One score a column that varies, and their mean, which no column of that name takes the place of."""
    found = {name: float(v) for name, v in zip(labels, values, strict=True) if np.isfinite(v)}
    mean = float(np.mean(list(found.values()))) if found else np.nan
    return {"mean": mean, **{"mean (column)" if name == "mean" else name: v for name, v in found.items()}}


def flat(scores: dict[str, Any]) -> dict[str, float]:
    """The plain numbers among the scores, for a bundle's manifest and card."""
    numbers: dict[str, float] = {}
    for name in ("nll", *NULL_MODELS, "fraction_of_oracle"):
        value = scores[name]
        if isinstance(value, dict):
            numbers |= {f"{name}.{label}": v for label, v in value.items()}
        elif value is not None:
            numbers[name] = value
    return numbers

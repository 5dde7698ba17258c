"""The report's words: what a model is and how good it is in a sentence or two, and each score beside its null model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rtdsae.evaluate.references import MOST_BINS
from rtdsae.evaluate.score import NULL_MODELS, Scored
from rtdsae.evaluate.versus import Compared

__all__ = [
    "NAMES",
    "Row",
    "compared_rows",
    "facts",
    "known_rows",
    "score_rows",
    "simpler_in_words",
    "summary",
    "unknown",
    "whole_rows",
]

FAMILIES = {
    "lfads": "an LFADS model",
    "dsae_full": "a full DSAE",
    "dsae_factorized": "a factorized DSAE",
    "fhvae": "an FHVAE",
    "fdmm": "an FDMM",
}
NAMES = {
    "co_bps": "co-bps",
    "bps": "bits per spike",
    "r2_behaviour": "R² of behaviour",
    "r2_true_rates": "R² to the true rates",
}
MEANINGS = {
    "co_bps": "How much better than their mean rates the model predicts neurons that it does not see, in bits a spike.",
    "bps": "The same of neurons that it does see, the very spikes that it is asked for included: high is easy, compare "
    "models by co-bps.",
    "r2_behaviour": "The part of the behaviour's variance that a straight line reads out of the factors, bin by bin.",
    "r2_true_rates": "The part of the variance of the rates that the spikes were drawn from, the mean over neurons.",
}
AS_GOOD = 0.02  # of the larger: two scores so near are as good as one another
PARTS = {
    "test": "test part",
    "valid": "validation part, which also selected the epoch",
    "whole": "all of another recording than it was trained on",
}
WHOLE = {  # scores of f, or of the factors, as a whole: name, what it is, and chance where it is known
    "mig": ("MIG", "each label in one dimension of f alone, by mutual information; 1 is perfect", "0"),
    "sap": ("SAP", "the same, by how well a dimension predicts", "0"),
    "dci.disentanglement": ("DCI, disentanglement", "each dimension of f serves one label only; 1 is perfect", ""),
    "dci.completeness": ("DCI, completeness", "each label is served by one dimension only; 1 is perfect", ""),
    "dci.informativeness": ("DCI, informativeness", "how well all of f tells the labels; 1 is perfect", ""),
    "beta_vae": ("BetaVAE score", "which label two trials share is told from their difference in f", "1 / labels"),
    "factor_vae": ("FactorVAE score", "the same, from the one dimension that varies least", "1 / labels"),
    "mcc": ("MCC", "correlation of each label with a dimension of f of its own; 1 is perfect", ""),
    "tangling": ("tangling of the factors", "in 1/s²; low is smooth: like states go on alike", ""),
}
PROBES = {
    "probe_f": "labels from f",
    "probe_z": "labels from z",
    "probe_f_series": "behaviour from f",
    "probe_z_series": "behaviour from z",
    "swap": "swapped latents",
}
MEASURES = {"accuracy": "accuracy", "r2": "R²"}


@dataclass(frozen=True)
class Row:
    """A row of a table of scores.

    Attributes:
        name: of the score.
        value: the model's, as text.
        beside: what it is held against, each with what that is.
        meaning: in a line.
    """

    name: str
    value: str
    beside: tuple[tuple[str, str, str], ...] = ()
    meaning: str = ""


def number(value: float | None) -> str:
    """Three decimals, or a dash; a true minus; no decimals of what is large."""
    if value is None:
        return "–"
    return (f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}").replace("-", "−")


def score_rows(scored: Scored) -> list[Row]:
    """Each score beside its null model and what simpler things have."""
    s, rows = scored.scores, []
    for name, title in NAMES.items():
        beside = [("mean", "0", f"by definition: {NULL_MODELS[name]}")]
        beside += [(r.name, number(r.value), r.what) for r in scored.references.get(name, [])]
        if s["oracle"] and name in s["oracle"] and name != "bps":
            beside.append(
                ("ideal observer", number(s["oracle"][name]), "knows the system that made the spikes: the ceiling")
            )
        found = s[name]
        if found is None:
            rows.append(Row(title, "–", (), f"Not scored: {s['reasons'][name]}."))
        elif isinstance(found, dict):
            columns = {label: value for label, value in found.items() if label != "mean"}
            each = ", ".join(f"{label} {number(value)}" for label, value in columns.items())
            rows.append(Row(title, number(found["mean"]), tuple(beside), f"{MEANINGS[name]} By column: {each}."))
        else:
            rows.append(Row(title, number(found), tuple(beside), MEANINGS[name]))
    for name, fraction in (s["fraction_of_oracle"] or {}).items():
        what = f"{NAMES[name]}, part of the ideal observer's"
        rows.append(Row(what, number(fraction), (), "1 is all that the spikes hold, for whoever knows the system."))
    return rows


def simpler_in_words(scored: Scored) -> str:
    """What the simpler things were fitted on."""
    if not any(r.value is not None for some in scored.references.values() for r in some):
        return ""
    chosen = "its last fifth" if scored.scores["part"] == "valid" else "the validation part"
    return (
        f"Simpler ones are fitted on the training part ({MOST_BINS:,} bins of it at most); what has to be chosen for "
        f"them, on {chosen}; and all are causal, but for the PSTH."
    )


def whole_rows(scored: Scored) -> list[Row]:
    """What f, or the factors, score as a whole, beside chance."""
    rows, labels = [], len(scored.recording.label_names)
    for path, (name, meaning, chance) in WHOLE.items():
        score, _, part = path.partition(".")
        value = scored.scores["latents"][score]
        if value is not None:
            beside = number(1 / labels) if chance == "1 / labels" else chance
            meaning += f"; chance is {beside}" if beside else ""
            rows.append(Row(name, number(value[part] if part else value), (), meaning))
    return rows


def known_rows(scored: Scored) -> list[dict[str, str]]:
    """What f and z know of each label and each behaviour column, beside chance, and whose it is after a swap."""
    found = {name: value or {} for name, value in scored.scores["latents"].items()}
    rows = []
    for label in found["probe_f"] | found["probe_z"]:
        f, z = (found[probe].get(label, {}) for probe in ("probe_f", "probe_z"))
        measure = next(key for key in f | z if key != "chance")
        chance = (f | z)["chance"]
        rows.append((label, MEASURES[measure], f.get(measure), z.get(measure), chance))
    for label in found["probe_f_series"] | found["probe_z_series"]:
        f, z = (found[probe].get(label) for probe in ("probe_f_series", "probe_z_series"))
        rows.append((label, "R², bin by bin", f, z, 0.0))
    return [
        {
            "label": label,
            "measure": measure,
            "f": number(f),
            "z": number(z),
            "chance": number(chance) if chance else "0",
            "swap_f": number(found["swap"].get(label, {}).get("f")),
            "swap_z": number(found["swap"].get(label, {}).get("z")),
        }
        for label, measure, f, z, chance in rows
    ]


def unknown(scored: Scored) -> list[str]:
    """What of the latents was not scored, and why: a line for each reason."""
    names = {score.partition(".")[0]: name.partition(",")[0] for score, (name, _, _) in WHOLE.items()} | PROBES
    lines: dict[str, list[str]] = {}
    for key, reason in scored.scores["reasons"].items():
        part, _, score = key.partition(".")
        if part == "latents":
            lines.setdefault(reason, []).append(names.get(score, score))
    return [f"{', '.join(some)}: {reason}." for reason, some in lines.items()]


def compared_rows(rows: list[Compared]) -> list[dict[str, str]]:
    """The two runs' scores as text."""
    return [
        {
            "name": ", ".join(filter(None, (NAMES[row.name.partition(".")[0]], row.name.partition(".")[2]))),
            "this": number(row.this),
            "other": number(row.other),
            "ratio": number(row.ratio),
        }
        for row in rows
    ]


def facts(scored: Scored) -> list[tuple[str, str]]:
    """What the model and its data are, name by name."""
    run, d, recording = scored.run, scored.run.dims, scored.recording
    session = run.info["sessions"][scored.session]
    heldout = int((~recording.heldin).sum())
    neurons = f"{recording.n_channels}" + (f", {heldout} of them held out" if heldout else "")
    s = scored.scores
    width = 1000 * recording.bin_width_s
    return [
        ("family", run.config.model.family + ("" if run.config.model.causal else ", acausal reference")),
        ("session", scored.name),
        ("trained on", f"{session['source']} (hash {session['data_hash'][:12]})"),
        ("neurons", neurons),
        ("bins", f"{recording.n_bins:,} of {width:g} ms; {s['bins']:,} scored, {PARTS[s['part']]}"),
        ("window", f"anchored on S = {d.anchor_bins} bins, trained for R = {d.horizon_bins}"),
        ("method", s["method"]),
    ]


def summary(scored: Scored) -> str:
    """What this model is and how good it is, in plain words."""
    recording, s = scored.recording, scored.scores
    family = FAMILIES.get(scored.run.config.model.family, "a model")
    how = "It needs no future: every figure is of what it says at a bin from the spikes up to it."
    if not scored.run.config.model.causal:
        how = "It sees the future within a window: an offline reference, which cannot be streamed."
    sentences = [
        f"This is {family} of {recording.n_channels} neurons in bins of {1000 * recording.bin_width_s:g} ms. {how}",
        *verdicts(scored),
    ]
    if len(sentences) == 1:
        sentences.append("Nothing of it could be scored.")
    if s["part"] == "valid":
        sentences.append("There is no test part: the scored part also selected the epoch, which flatters it a little.")
    return " ".join(sentences)


def verdicts(scored: Scored) -> Iterator[str]:
    """A sentence for each score that says how good the model is."""
    s, simpler = scored.scores, {r.key: r for some in scored.references.values() for r in some}
    if s["r2_behaviour"] is not None:
        mean, labels = s["r2_behaviour"]["mean"], ", ".join(scored.recording.behaviour_labels)
        beside = against(mean, simpler, "ridge", "a ridge regression on the spikes")
        yield f"It decodes {labels} at a mean R² of {number(mean)}{beside}."
    if s["co_bps"] is not None:
        beside = against(s["co_bps"], simpler, "glm", "a Poisson regression")
        yield f"Neurons that it does not see, it predicts {beside_means(s['co_bps'])}{beside}."
    if s["r2_true_rates"] is not None:
        beside = against(s["r2_true_rates"], simpler, "smoothed", "smoothing the spikes")
        ceiling = f", where an ideal observer has {number(s['oracle']['r2_true_rates'])}" if s["oracle"] else ""
        yield f"It recovers the true rates at an R² of {number(s['r2_true_rates'])}{beside}{ceiling}."
    if s["bps"] is not None and s["co_bps"] is None and s["r2_true_rates"] is None:
        yield (
            f"It describes the spikes that it sees by {beside_means(s['bps'])}; "
            "how it does on unseen neurons is not known, since none was held out (data.heldout_every)."
        )


def beside_means(bits: float) -> str:
    """Bits per spike, in words."""
    return f"{number(abs(bits))} bits per spike {'better' if bits >= 0 else 'worse'} than their mean rates"


def against(value: float, simpler: dict[str, Any], key: str, name: str) -> str:
    """How a score stands beside a reference's."""
    reference = simpler.get(key)
    if reference is None or reference.value is None:
        return ""
    gain = value - reference.value
    alike = abs(gain) <= AS_GOOD * max(abs(value), abs(reference.value))
    word = "as good as" if alike else "better than" if gain > 0 else "worse than"
    return f", {word} {name} ({number(reference.value)})"

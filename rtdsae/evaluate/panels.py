"""The panels of the report: each a figure with how to read it, or the reason why there is none."""

import csv
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from rtdsae.evaluate import curves, figures
from rtdsae.evaluate.canvas import decimals, plain
from rtdsae.evaluate.excerpts import aligned, has_conditions, starts_in, stretch, stretch_in_words, windows
from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.evaluate.score import Scored
from rtdsae.evaluate.since_anchor import since_anchor
from rtdsae.evaluate.traversals import traverse, z_prior
from rtdsae.train.run import Run
from rtdsae.train.windows import Tensors

__all__ = ["Panel", "session_panels", "training_panel"]

NEURONS, PSTH_NEURONS = 5, 4
LEAST_SPIKES = 20  # of a neuron that is ranked by its spikes
PSTH_SD_S = 0.1
DIMENSIONS = 4  # of a latent


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        key: its name in addresses and files.
        title: for people.
        reading: how it is read.
        figure: what is shown, or None.
        reason: why there is no figure.
    """

    key: str
    title: str
    reading: str = ""
    figure: Figure | None = None
    reason: str = ""


def session_panels(scored: Scored) -> list[Panel]:
    """All panels of one session, in order."""
    made: list[tuple[str, str, Callable[[Scored], tuple[str, Figure]]]] = [
        rates_panel(scored),
        ("factors", "Factors by condition" if has_conditions(scored) else "Factors", factors_panel),
        ("behaviour", "Behaviour, decoded and real", behaviour_panel),
        ("inputs", "Inferred inputs", inputs_panel),
        ("traversals", "Latent traversals", traversals_panel),
        ("since_anchor", "Quality against time since the anchor", since_anchor_panel),
    ]
    panels = []
    for key, title, make in made:
        try:
            reading, figure = make(scored)
            panels.append(Panel(key, title, reading, figure))
        except ValueError as error:
            panels.append(Panel(key, title, reason=str(error)))
    return panels


# rates ----------------------------------------------------------------------------------------------------------------


def rates_panel(scored: Scored) -> tuple[str, str, Callable[[Scored], tuple[str, Figure]]]:
    """Which of the three ways to show rates the recording allows: truth, PSTHs, spikes."""
    if scored.recording.true_rates is not None:
        return "rates", "Rates against the truth", truth_panel
    if has_conditions(scored):
        return "rates", "Rates against PSTHs, by condition", psth_panel
    return "rates", "Rates and spikes", spikes_panel


def truth_panel(scored: Scored) -> tuple[str, Figure]:
    """Inferred against true rates, of neurons from the best to the worst."""
    truth = scored.recording.true_rates
    assert truth is not None
    scores = r2(truth[scored.bins], scored.outputs["rates"])
    reading = (
        f"{stretch_in_words(scored)}. The neurons are not picked: they are those at even "
        "steps from the best to the worst R² to the true rate, all of which are on the right."
    )
    return reading, rates_over_time(scored, scores, "R²")


def spikes_panel(scored: Scored) -> tuple[str, Figure]:
    """Inferred rates over the spikes, of neurons from the best to the worst."""
    scores = bits_of_each(scored)
    unseen = not scored.recording.heldin.all()
    whose = "held-out neurons, whose spikes the model has not seen" if unseen else "neurons, whose spikes the model saw"
    reading = (
        f"{stretch_in_words(scored)}. A grey tick is a bin with a spike, a longer one with two, or with three or more. "
        "The neurons are not picked: they are those at even steps from the best to the worst, by bits per spike, of "
        f"the {whose}; all with {LEAST_SPIKES} spikes or more are on the right."
    )
    return reading, rates_over_time(scored, scores, "bits/spike")


def rates_over_time(scored: Scored, scores: np.ndarray, measure: str) -> Figure:
    """Some neurons' rates over the stretch that is shown."""
    recording, shown = scored.recording, stretch(scored)
    some = figures.ranked(scores, NEURONS)
    if not some:
        raise ValueError("no neuron has a score: the scored bins hold too few spikes, or nothing varies")
    at, truth = scored.bins[shown], recording.true_rates
    return figures.rates(
        scored.outputs["rates"][shown],
        recording.counts[at],
        scores,
        some,
        measure=measure,
        bin_width_s=recording.bin_width_s,
        channels=recording.channels,
        true_rates=None if truth is None else truth[at],
        heldout=recording.heldout,
        starts=starts_in(scored, shown),
    )


def psth_panel(scored: Scored) -> tuple[str, Figure]:
    """Means over trials of spikes and of inferred rates, by condition."""
    recording, width = scored.recording, scored.recording.bin_width_s
    trials = aligned(scored)
    counts = gaussian_filter1d(
        recording.counts[scored.bins[trials.rows]].astype(float) / width, PSTH_SD_S / width, axis=1
    )
    recorded, inferred = trials.means(counts), trials.means(scored.outputs["rates"][trials.rows])
    flat = recorded.reshape(-1, recorded.shape[2]), inferred.reshape(-1, recorded.shape[2])
    scores = r2(*flat)
    unseen = not recording.heldin.all()
    if unseen:
        scores = np.where(recording.heldin, np.nan, scores)
    some = figures.ranked(scores, PSTH_NEURONS)
    if not some:
        raise ValueError("no neuron's PSTH varies")
    whose = "held-out neurons, whose spikes the model has not seen" if unseen else "neurons"
    picked, names = trials.few()
    reading = (
        f"Means over trials{trials.in_words}; the recorded spikes are smoothed by {1000 * PSTH_SD_S:g} ms. The neurons "
        f"are not picked: they are those at even steps from the best to the worst R² of the two PSTHs, of the {whose}."
    )
    channels, neurons = recording.channels, np.array([neuron for neuron, _ in some])
    titles = [f"{plain(channels[n])}\nrank {rank}, R² {decimals(scores[n], 2)}" for n, rank in some]
    shown = np.ix_(picked, np.arange(recorded.shape[1]), neurons)
    return reading, figures.psths(recorded[shown], inferred[shown], names, titles, trials.time)


def bits_of_each(scored: Scored) -> np.ndarray:
    """Bits per spike of every neuron, of the held-out ones alone where there are some; NaN elsewhere."""
    recording = scored.recording
    counts, expected = recording.counts[scored.bins], scored.outputs["rates"] * recording.bin_width_s
    asked = recording.heldin if recording.heldin.all() else ~recording.heldin
    known = asked & (counts.sum(0) >= LEAST_SPIKES)
    scores = [bits_per_spike(expected[:, [i]], counts[:, [i]]) if known[i] else np.nan for i in range(len(known))]
    return np.array(scores)


# latents --------------------------------------------------------------------------------------------------------------


def factors_panel(scored: Scored) -> tuple[str, Figure]:
    """Factors on their principal components, by condition where trials have them."""
    width = scored.recording.bin_width_s
    if has_conditions(scored):
        trials = aligned(scored)
        means = trials.means(scored.outputs["factors"][trials.rows])
        scores, explained = principal(means, means)
        picked, names = trials.few()
        reading = (
            f"The mean over trials{trials.in_words}, on the principal components of all conditions' means; a dot marks "
            "the beginning."
        )
        return reading, figures.trajectories(scores[picked], explained, names, trials.time, what="time in trial (s)")
    shown = stretch(scored)
    values, explained = principal(scored.outputs["factors"][shown], scored.outputs["factors"])
    reading = (
        f"{stretch_in_words(scored)}. The axes are the principal components of all of it; the colour goes from blue to "
        "red with time. The recording has no trials of several conditions to average."
    )
    return reading, figures.factors(values, explained, bin_width_s=width, starts=starts_in(scored, shown))


def behaviour_panel(scored: Scored) -> tuple[str, Figure]:
    """Behaviour over time, and against what was decoded."""
    found, recording = scored.scores["r2_behaviour"], scored.recording
    if found is None:
        raise ValueError(scored.scores["reasons"]["r2_behaviour"])
    assert recording.behaviour is not None
    labels, shown = recording.behaviour_labels, stretch(scored)
    figure = figures.behaviour(
        recording.behaviour[scored.bins],
        scored.outputs["behaviour"],
        labels,
        [found.get(label, np.nan) for label in labels],
        shown,
        bin_width_s=recording.bin_width_s,
        starts=starts_in(scored, shown),
    )
    some = f"The first {figures.MAX_ROWS} of {len(labels)} columns. " if len(labels) > figures.MAX_ROWS else ""
    reading = (
        f"{some}Decoded by a linear read-out of the factors, bin by bin. {stretch_in_words(scored)}. On the right bins "
        "from all of it, evenly spaced, and the line on which decoded is real."
    )
    return reading, figure


def inputs_panel(scored: Scored) -> tuple[str, Figure]:
    """The dynamic latent on its prior, by condition where trials have them."""
    z, (mean, sd) = scored.outputs["z"], z_prior(scored.model)
    used = z.std(0) / np.maximum(sd, 1e-9)
    chosen = np.sort(np.argsort(-used, kind="stable")[:DIMENSIONS])
    titles = [f"z {i}" for i in chosen.tolist()]
    prior, width = (mean[chosen], sd[chosen]), scored.recording.bin_width_s
    what = "z, the inferred input" if scored.run.config.model.family == "lfads" else "z, the dynamic latent"
    rule = (
        f"the {len(chosen)} of {z.shape[1]} dimensions that vary most beside their prior; the grey band is that "
        "prior: its mean, and 2 standard deviations to either side"
    )
    if has_conditions(scored):
        trials = aligned(scored)
        picked, names = trials.few()
        values = trials.means(z[trials.rows][..., chosen])[picked]
        reading = f"Means over trials{trials.in_words}. Shown are, of {what}, {rule}."
        return reading, figures.inputs(values, prior, titles, names, trials.time, width, what="time in trial (s)")
    shown = stretch(scored)
    values, starts = z[shown][None, :, chosen], starts_in(scored, shown)
    reading = f"{stretch_in_words(scored)}. Shown are, of {what}, {rule}."
    time = np.arange(shown.stop) * width
    return reading, figures.inputs(values, prior, titles, (), time, width, what="time (s)", starts=starts)


@torch.no_grad()
def traversals_panel(scored: Scored) -> tuple[str, Figure]:
    """What the generator makes of f moved along single dimensions."""
    model, width, factors = scored.model, scored.recording.bin_width_s, scored.outputs["factors"]
    rows = windows(scored)
    external = scored.recording.external
    u = None if external is None else external[scored.bins[rows]].mean(0)
    moved = traverse(model, scored.outputs["f"], scored.outputs["z"][rows].mean(0), u)
    effect = moved.effect
    shown = np.argsort(-effect, kind="stable")[:DIMENSIONS].tolist()
    change = np.square(moved.rates[shown[0], -1] - moved.rates[shown[0], 0]).mean(0)
    neuron = int(change.argmax())
    components, _ = principal(moved.factors[shown], factors, 2)
    titles = [f"factors, PC {i + 1}" for i in range(components.shape[-1])]
    titles.append(f"{plain(scored.recording.channels[neuron])}, spikes/s")
    columns = [components, moved.rates[shown][..., [neuron]]]
    if scored.scores["r2_behaviour"] is not None and model.behaviour is not None:
        decoded = model.behaviour(torch.from_numpy(moved.factors[shown])).numpy()
        columns.append(decoded[..., :1])
        titles.append(plain(scored.recording.behaviour_labels[0]))
    time = np.arange(rows.shape[1]) * width
    reading = (
        "One dimension of f, the static latent, is moved by up to 2 standard deviations of its prior from the mean of "
        "all posterior means; z follows its mean course, and the generator runs from there. On the left how much each "
        f"dimension moves the rates; shown are the {len(shown)} that move them most, and the neuron that the first of "
        "them moves most."
    )
    return reading, figures.traversals(np.concatenate(columns, -1), effect, shown, moved.steps, titles, time)


def principal(values: np.ndarray, of: np.ndarray, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Values (..., F) on the principal components of others, and the share of the variance of each component."""
    flat = of.reshape(-1, of.shape[-1]).astype(float)
    mean = flat.mean(0)
    _, s, axes = np.linalg.svd(flat - mean, full_matrices=False)
    n = min(most, len(s))
    if n < 2:
        raise ValueError("the factors have one dimension: there is no plane to show them in")
    share = np.square(s) / max(np.square(s).sum(), 1e-300)
    return (values - mean) @ axes[:n].T, share


# quality --------------------------------------------------------------------------------------------------------------


def since_anchor_panel(scored: Scored) -> tuple[str, Figure]:
    """Scores by the bins since the only anchor."""
    decodes = scored.scores["r2_behaviour"] is not None
    found = since_anchor(scored.model, Tensors(scored.recording), scored.segments, scored.outputs, decodes)
    d = scored.run.dims
    figure = curves.since_anchor(
        found.blocks, found.scores, found.usual, bin_width_s=d.bin_width_s, horizon=d.horizon_bins
    )
    if found.same:
        how = (
            f"The same {int(found.bins[0])} bins at every age: each is asked of streams that were anchored so long "
            f"before. Dashed: the model as it is run ({d.lanes} lane{'s' if d.lanes > 1 else ''}), on these bins."
        )
    else:
        how = (
            f"Each trial is anchored once, at its beginning, so that age is time in the trial as well: between "
            f"{int(found.bins.min())} and {int(found.bins.max())} bins a point."
        )
    return f"{how} Training unrolls R = {d.horizon_bins} bins after an anchor of S = {d.anchor_bins}.", figure


def training_panel(run: Run) -> Panel:
    """The training curves of a run."""
    key, title = "training", "Training curves"
    try:
        with (run.path / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in table]) for name in table[0]}
        epochs = len(columns["epoch"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return Panel(key, title, reason=f"{run.path / 'metrics.csv'} cannot be read ({error or 'it is empty'})")
    best, score = run.info["best_epoch"], run.info["best_score"]
    what = "held-out neurons" if "valid/nll_heldout" in columns else "entries hidden from the encoders"
    reading = (
        f"{epochs} epochs in {run.info['seconds'] / 60:.1f} minutes; epoch {best + 1} is the one that is used: on the "
        f"validation part it has the lowest negative log-likelihood of {what}, {score:.4f}. Of the first tenth of "
        "the epochs the curves may leave the axis."
    )
    if run.info.get("teacher"):
        del columns["train/nll"]
        reading += " Training is by a teacher's rates, whose likelihood does not compare with that of spikes."
    return Panel(key, title, reading, curves.training(columns, best))

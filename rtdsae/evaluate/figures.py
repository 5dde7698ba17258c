"""Figures of what a model inferred: rates, PSTHs, factors, behaviour, inputs, traversals.

Each function takes plain arrays and gives a laid-out figure. Where the time that is shown is several trials one after
another, `starts` are the bins at which they begin: lines are not drawn across, and a thin rule marks each.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rtdsae.evaluate.canvas import (
    ACCENT,
    FAINT,
    INK,
    MODEL,
    SOFT,
    colours,
    decimals,
    finish,
    line,
    plain,
    rows,
    style,
    trial_rules,
)

__all__ = ["behaviour", "factors", "inputs", "psths", "ranked", "rates", "trajectories", "traversals"]

MAX_ROWS = 6
SPIKES_UP, MOST_SPIKES = 0.3, 3  # of an axis's height, that spikes have; of spikes in a bin, that a tick tells
POINTS = 800  # of a scatter
SPREAD = 2.0  # standard deviations of a band


def ranked(scores: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Neurons from the best to the worst score in even steps: (neuron, rank from 1) of `n` of them, or of all.

    Neurons without a score (no spike, no variation) are left out.

    >>> ranked(np.array([0.1, 0.9, np.nan, 0.5]), 2)
    [(1, 1), (0, 3)]
    """
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    ranks = {round(rank) for rank in np.linspace(0, len(order) - 1, min(n, len(order))).tolist()}
    return [(int(order[rank]), rank + 1) for rank in sorted(ranks)]


@style()
def rates(
    inferred: np.ndarray,
    counts: np.ndarray,
    scores: np.ndarray,
    shown: Sequence[tuple[int, int]],
    *,
    measure: str,
    bin_width_s: float,
    channels: Sequence[str],
    true_rates: np.ndarray | None = None,
    heldout: np.ndarray | None = None,
    starts: Sequence[int] = (),
) -> Figure:
    """Inferred rates of some neurons over time, beside the true ones or the spikes; and every neuron's score.

    Args:
        inferred: `(T, C)` in spikes/s.
        counts: spikes a bin, `(T, C)`.
        scores: of each neuron, `(C,)`; NaN where it has none.
        shown: neurons and their ranks, from `ranked`.
        measure: what the scores are.
        bin_width_s: width of a bin in seconds.
        channels: C labels.
        true_rates: `(T, C)` in spikes/s.
        heldout: true for neurons that the model did not see, `(C,)`.
        starts: bins at which trials begin.
    """
    figure, axes = rows(len(shown), 1.2, (4, 1))
    time = np.arange(len(counts)) * bin_width_s
    for axis, (neuron, rank) in zip(axes[:, 0], shown, strict=True):
        if true_rates is None:
            spike_ticks(axis, time, counts[:, neuron])
        else:
            line(axis, time, true_rates[:, neuron], starts, color=INK, label="true rate")
        line(axis, time, inferred[:, neuron], starts, color=MODEL, label="inferred rate")
        axis.set_ylabel(f"{plain(channels[neuron])}\nspikes/s")
        top = np.max(inferred[:, neuron], initial=0 if true_rates is None else true_rates[:, neuron].max()) or 1
        axis.set_ylim(0, 1.05 * top if true_rates is not None else top / (1 - SPIKES_UP - 0.05))
        unseen = "held out, " if heldout is not None and heldout[neuron] else ""
        axis.set_title(f"{unseen}rank {rank}: {measure} {decimals(scores[neuron], 2)}", loc="right", fontsize=9, pad=2)
    over_time(axes[:, 0], starts, bin_width_s)
    beside(figure, axes[:, 1], scores, shown, measure)
    return finish(figure, axes[0, 0])


def spike_ticks(axis: Axes, time: np.ndarray, counts: np.ndarray) -> None:
    """A tick at the top of the axis for every bin with spikes, the longer the more of them, up to MOST_SPIKES."""
    some = counts > 0
    length = SPIKES_UP * np.minimum(counts[some], MOST_SPIKES) / MOST_SPIKES
    axis.vlines(time[some], 1 - length, 1, color=SOFT, lw=0.8, transform=axis.get_xaxis_transform(), label="spikes")


def beside(
    figure: Figure, axes: np.ndarray, scores: np.ndarray, shown: Sequence[tuple[int, int]], measure: str
) -> None:
    """Every neuron's score in order in place of a column of axes; those that are shown are marked."""
    grid = axes[0].get_gridspec()
    for axis in axes:
        axis.remove()
    axis = figure.add_subplot(grid[:, 1])
    known = np.sort(scores[np.isfinite(scores)])[::-1]
    axis.plot(np.arange(1, len(known) + 1), known, ".", color=MODEL, ms=4)
    axis.plot([rank for _, rank in shown], [known[rank - 1] for _, rank in shown], "o", mfc="none", color=ACCENT, ms=8)
    if known[-1] < 0:
        axis.axhline(0, color=FAINT, lw=0.8, zorder=0)
    axis.set(xlabel="neurons by rank\n(circles: shown)", ylabel=measure)


@style()
def psths(
    recorded: np.ndarray,
    inferred: np.ndarray,
    conditions: Sequence[str],
    titles: Sequence[str],
    time: np.ndarray,
) -> Figure:
    """Rates by condition: the mean over trials of the spikes, above, and of the inferred rates, below.

    Args:
        recorded: `(conditions, T, k)` in spikes/s, of k neurons.
        inferred: the same.
        conditions: their labels.
        titles: of the k neurons.
        time: `(T,)` in seconds since the trial's beginning.
    """
    k = len(titles)
    figure, axes = rows(2, 2.3, (1,) * k)
    palette = colours(len(conditions))
    for row, (values, what) in enumerate(((recorded, "recorded"), (inferred, "inferred"))):
        for column in range(k):
            axis = axes[row, column]
            for name, colour, series in zip(conditions, palette, values[:, :, column], strict=True):
                axis.plot(time, series, color=colour, lw=1.3, label=plain(name))
            top = 1.05 * max(recorded[:, :, column].max(), inferred[:, :, column].max(), 1e-9)
            axis.set_ylim(0, top)
            if row == 0:
                axis.set_title(titles[column], fontsize=9)
            else:
                axis.set_xlabel("time in trial (s)")
        axes[row, 0].set_ylabel(f"{what}\nspikes/s")
    return finish(figure, axes[0, 0])


@style()
def trajectories(
    scores: np.ndarray, explained: np.ndarray, labels: Sequence[str], time: np.ndarray, *, what: str
) -> Figure:
    """Trajectories on principal components: two planes, and each component over time.

    Args:
        scores: `(n, T, 2 or 3)`, a trajectory for each condition, or for each stretch.
        explained: share of the variance of each component.
        labels: of the trajectories.
        time: `(T,)` in seconds.
        what: what time is since.
    """
    n = scores.shape[2]
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    grid = figure.add_gridspec(n, 3, width_ratios=(1.25, 1.25, 1.2))
    planes = [figure.add_subplot(grid[:, i]) for i in range(2)] if n > 2 else [figure.add_subplot(grid[:, :2])]
    names = [f"PC {i + 1} ({100 * explained[i]:.0f} %)" for i in range(n)]
    palette = colours(len(labels))
    for plane, (i, j) in zip(planes, ((0, 1), (0, 2)), strict=False):
        for label, colour, path in zip(labels, palette, scores, strict=True):
            plane.plot(path[:, i], path[:, j], color=colour, lw=1.4, label=plain(label))
            plane.plot(path[0, i], path[0, j], "o", color=colour, ms=4)
        plane.set(xlabel=names[i], ylabel=names[j])
        plane.set_box_aspect(1)
    for i in range(n):
        axis = figure.add_subplot(grid[i, 2])
        for colour, path in zip(palette, scores, strict=True):
            axis.plot(time, path[:, i], color=colour, lw=1.1)
        axis.set_ylabel(f"PC {i + 1}")
        if i == n - 1:
            axis.set_xlabel(what)
        else:
            axis.tick_params(labelbottom=False)
    return finish(figure, planes[0])


@style()
def factors(values: np.ndarray, explained: np.ndarray, *, bin_width_s: float, starts: Sequence[int] = ()) -> Figure:
    """Factors of a stream on their principal components: a plane, coloured by time, and each component over time.

    Args:
        values: `(T, 2 or 3)`.
        explained: share of the variance of each component.
        bin_width_s: width of a bin in seconds.
        starts: bins at which trials begin.
    """
    n, time = values.shape[1], np.arange(len(values)) * bin_width_s
    figure = Figure(figsize=(10.0, 3.9), layout="constrained")
    grid = figure.add_gridspec(n, 2, width_ratios=(1, 1.9))
    plane = figure.add_subplot(grid[:, 0])
    pieces = 40
    edges = np.linspace(0, len(values) - 1, min(pieces, len(values) - 1) + 1).astype(int)
    for colour, a, b in zip(colours(len(edges) - 1), edges[:-1], edges[1:], strict=True):
        inner = [start - a for start in starts]
        line(plane, values[a : b + 1, 0], values[a : b + 1, 1], inner, color=colour, lw=1.2)
    plane.set(xlabel=f"PC 1 ({100 * explained[0]:.0f} %)", ylabel=f"PC 2 ({100 * explained[1]:.0f} %)")
    plane.set_box_aspect(1)
    axes = [figure.add_subplot(grid[i, 1]) for i in range(n)]
    for i, axis in enumerate(axes):
        line(axis, time, values[:, i], starts, color=MODEL)
        axis.set_ylabel(f"PC {i + 1}")
    over_time(axes, starts, bin_width_s)
    return finish(figure)


@style()
def behaviour(
    actual: np.ndarray,
    decoded: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float],
    shown: slice,
    *,
    bin_width_s: float,
    starts: Sequence[int] = (),
) -> Figure:
    """Behaviour as it was, and as it was decoded: over time, and against one another.

    Args:
        actual: all scored bins, `(T, K)` in the labels' units.
        decoded: `(T, K)`.
        labels: K labels.
        scores: R2 of each.
        shown: the stretch that is drawn over time.
        bin_width_s: width of a bin in seconds.
        starts: bins of the stretch at which trials begin.
    """
    k = min(len(labels), MAX_ROWS)
    figure, axes = rows(k, 1.9, (4, 1.15))
    some = np.unique(np.linspace(0, len(actual) - 1, min(POINTS, len(actual))).astype(int))
    for i in range(k):
        over, against = axes[i]
        time = np.arange(len(actual[shown])) * bin_width_s
        line(over, time, actual[shown, i], starts, color=INK, label="real")
        line(over, time, decoded[shown, i], starts, color=MODEL, label="decoded")
        over.set_ylabel(plain(labels[i]))
        against.plot(actual[some, i], decoded[some, i], ".", color=MODEL, ms=2.5, alpha=0.6)
        ends = [float(np.min(actual[:, i])), float(np.max(actual[:, i]))]
        against.plot(ends, ends, color=SOFT, lw=1)
        said = f"R² {decimals(scores[i], 3)}" if np.isfinite(scores[i]) else "does not vary here"
        against.set_title(said, fontsize=9)
        against.set_ylabel("decoded")
    axes[k - 1, 1].set_xlabel("real")
    over_time(axes[:, 0], starts, bin_width_s)
    return finish(figure, axes[0, 0])


@style()
def inputs(
    values: np.ndarray,
    prior: tuple[np.ndarray, np.ndarray],
    titles: Sequence[str],
    labels: Sequence[str],
    time: np.ndarray,
    bin_width_s: float,
    *,
    what: str,
    starts: Sequence[int] = (),
) -> Figure:
    """The dynamic latent over time, a row for each dimension, on a band of two standard deviations of its prior.

    Args:
        values: `(n, T, k)`: a line for each condition, or one.
        prior: mean and standard deviation of each of the k dimensions.
        titles: of the k dimensions.
        labels: of the lines; empty where there is one.
        time: `(T,)` in seconds.
        bin_width_s: width of a bin in seconds.
        what: what time is since.
        starts: bins at which trials begin, where there is one line.
    """
    k = len(titles)
    figure, axes = rows(k, 1.25)
    palette = colours(len(labels)) if labels else [MODEL]
    names: Sequence[str | None] = [plain(label) for label in labels] or [None]
    for i, axis in enumerate(axes[:, 0]):
        mean, sd = prior[0][i], prior[1][i]
        for colour, series, label in zip(palette, values[:, :, i], names, strict=True):
            line(axis, time, series, starts, color=colour, lw=1.2, label=label)
        low, high = axis.get_ylim()
        axis.axhspan(mean - SPREAD * sd, mean + SPREAD * sd, color=FAINT, alpha=0.35, lw=0, zorder=0)
        room = 0.15 * (high - low)
        axis.set_ylim(min(low, max(mean - SPREAD * sd, low - room)), max(high, min(mean + SPREAD * sd, high + room)))
        axis.set_ylabel(titles[i])
    over_time(axes[:, 0], starts, bin_width_s)
    axes[-1, 0].set_xlabel(what)
    return finish(figure, axes[0, 0])


@style()
def traversals(
    courses: np.ndarray,
    effect: np.ndarray,
    shown: Sequence[int],
    steps: np.ndarray,
    titles: Sequence[str],
    time: np.ndarray,
) -> Figure:
    """What moving single dimensions of f does: how much each moves the rates, and what the strongest do over time.

    Args:
        courses: `(k, n_steps, T, m)` of the k shown dimensions, and m quantities.
        effect: of every dimension, `(f_dim,)` in spikes/s.
        shown: which dimensions the k are.
        steps: `(n_steps,)` in standard deviations of the prior.
        titles: of the m quantities.
        time: `(T,)` in seconds since the anchor.
    """
    m = len(titles)
    figure, axes = rows(len(shown), 1.45, (1.2, *(1,) * m))
    palette = [colour if step else INK for colour, step in zip(colours(len(steps)), steps, strict=True)]
    for row, dimension in enumerate(shown):
        for column in range(m):
            axis = axes[row, 1 + column]
            for step, colour, course in zip(steps, palette, courses[row, :, :, column], strict=True):
                axis.plot(
                    time, course, color=colour, lw=1.3, label=f"{step:+g} sd".replace("-", "−") if step else "mean"
                )
            if row == 0:
                axis.set_title(titles[column], fontsize=9)
            if row == len(shown) - 1:
                axis.set_xlabel("since the anchor (s)")
            else:
                axis.tick_params(labelbottom=False)
            axis.sharey(axes[0, 1 + column]) if row else None
        axes[row, 1].set_ylabel(f"f {dimension}")
    grid = axes[0, 0].get_gridspec()
    for axis in axes[:, 0]:
        axis.remove()
    bars = figure.add_subplot(grid[:, 0])
    order = np.argsort(-effect, kind="stable")
    bars.bar(np.arange(len(order)), effect[order], color=[ACCENT if i in shown else MODEL for i in order.tolist()])
    bars.set(xlabel="dimensions of f\n(orange: shown)", ylabel="change of the rates, −2 to +2 sd (spikes/s)")
    bars.set_xticks([])
    return finish(figure, axes[0, 1])


def over_time(axes: Sequence[Axes] | np.ndarray, starts: Sequence[int], bin_width_s: float) -> None:
    """What axes over the same time have in common."""
    for axis in axes:
        axis.margins(x=0.01)
        trial_rules(axis, starts, bin_width_s)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set_xlabel("time (s)")
    if len(axes):
        axes[0].figure.align_ylabels(list(axes))

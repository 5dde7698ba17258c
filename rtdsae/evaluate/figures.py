"""Figures of what a model inferred, as PNG files.

Each function takes plain arrays of one stretch of time and writes one file. Where the stretch is several trials one
after another, `starts` are the bins at which they begin: lines are not drawn across, and a thin rule marks each.
Drawn on matplotlib's own objects, without pyplot, so that nothing global changes and no display is needed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["behaviour", "conditions", "factors", "rates"]

MODEL, REAL, SPIKES = "#0072b2", "#222222", "#c8c8c8"
WIDTH, ROW = 9.0, 1.5  # inches
MAX_ROWS = 6


def rates(
    path: Path,
    inferred: np.ndarray,
    counts: np.ndarray,
    *,
    bin_width_s: float,
    channels: Sequence[str],
    true_rates: np.ndarray | None = None,
    heldout: np.ndarray | None = None,
    starts: Sequence[int] = (),
) -> None:
    """Inferred rates of some neurons over time, with the true rates where they are known, else with the spikes.

    Args:
        path: the PNG to write.
        inferred: `(T, C)` in spikes/s.
        counts: spikes a bin, `(T, C)`.
        bin_width_s: width of a bin in seconds.
        channels: C labels.
        true_rates: `(T, C)` in spikes/s.
        heldout: true for neurons that the model did not see, `(C,)`; some of them are shown too.
        starts: bins at which trials begin.
    """
    shown = _neurons(counts, heldout)
    figure, axes = _rows(
        len(shown), "true and inferred rates" if true_rates is not None else "spikes and inferred rates"
    )
    time = np.arange(len(counts)) * bin_width_s
    for axis, neuron in zip(axes, shown, strict=True):
        if true_rates is None:
            axis.step(
                time, counts[:, neuron] / bin_width_s, where="mid", color=SPIKES, lw=0.8, label="spikes / bin width"
            )
        else:
            _line(axis, time, true_rates[:, neuron], starts, color=REAL, label="true rate")
        _line(axis, time, inferred[:, neuron], starts, color=MODEL, label="inferred rate")
        seen = "" if heldout is None or not heldout[neuron] else "\nheld out"
        axis.set_ylabel(f"{channels[neuron]}{seen}\nspikes/s")
        axis.set_ylim(bottom=0)
    _finish(figure, axes, path, starts, bin_width_s)


def factors(path: Path, values: np.ndarray, *, bin_width_s: float, starts: Sequence[int] = ()) -> None:
    """Factors over time: those that vary most, a row each.

    Args:
        path: the PNG to write.
        values: `(T, F)`, without unit.
        bin_width_s: width of a bin in seconds.
        starts: bins at which trials begin.
    """
    shown = np.argsort(-values.std(0), kind="stable")[:MAX_ROWS]
    figure, axes = _rows(len(shown), f"factors: the {len(shown)} of {values.shape[1]} that vary most")
    time = np.arange(len(values)) * bin_width_s
    for axis, factor in zip(axes, shown, strict=True):
        _line(axis, time, values[:, factor], starts, color=MODEL, label=None)
        axis.set_ylabel(f"factor {factor}\n(a.u.)")
    _finish(figure, axes, path, starts, bin_width_s)


def conditions(path: Path, values: np.ndarray, labels: np.ndarray, *, bin_width_s: float, start_s: float = 0.0) -> None:
    """Factors by condition: the trial average of each condition, on the three directions of most variance.

    Args:
        path: the PNG to write.
        values: factors of trials of one length, `(n, T, F)`.
        labels: which condition each trial is of, `(n,)`.
        bin_width_s: width of a bin in seconds.
        start_s: time of the first bin.
    """
    names = np.unique(labels)
    means = np.stack([values[labels == name].mean(0) for name in names])
    scores, explained = _principal(means)
    figure, axes = _rows(scores.shape[2], f"factors by condition: mean of each of {len(names)}, principal components")
    time = start_s + np.arange(values.shape[1]) * bin_width_s
    colours = _colours(len(names))
    for row, axis in enumerate(axes):
        for name, colour, score in zip(names, colours, scores[:, :, row], strict=True):
            axis.plot(time, score, color=colour, lw=1.2, label=str(name))
        axis.set_ylabel(f"PC {row + 1} ({100 * explained[row]:.0f} %)\n(a.u.)")
    _finish(figure, axes, path, (), bin_width_s, legend=len(names) <= 10)


def behaviour(
    path: Path,
    actual: np.ndarray,
    decoded: np.ndarray,
    labels: Sequence[str],
    *,
    bin_width_s: float,
    starts: Sequence[int] = (),
) -> None:
    """Behaviour as it was, and as it was decoded, over time.

    Args:
        path: the PNG to write.
        actual: `(T, K)` in the labels' units.
        decoded: `(T, K)`.
        labels: K labels.
        bin_width_s: width of a bin in seconds.
        starts: bins at which trials begin.
    """
    rows = min(len(labels), MAX_ROWS)
    figure, axes = _rows(rows, "behaviour: real and decoded")
    time = np.arange(len(actual)) * bin_width_s
    for k, axis in enumerate(axes):
        _line(axis, time, actual[:, k], starts, color=REAL, label="real")
        _line(axis, time, decoded[:, k], starts, color=MODEL, label="decoded")
        axis.set_ylabel(f"{labels[k]}\n(recorded unit)")
    _finish(figure, axes, path, starts, bin_width_s)


def _neurons(counts: np.ndarray, heldout: np.ndarray | None) -> np.ndarray:
    """The most active neurons; where some are held out, half of the rows are theirs."""
    order = np.argsort(-counts.sum(0, dtype=float), kind="stable")
    if heldout is None or not heldout.any():
        return order[:MAX_ROWS]
    return np.concatenate([order[~heldout[order]][: MAX_ROWS // 2], order[heldout[order]][: MAX_ROWS // 2]])


def _principal(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to three principal components of `(conditions, T, F)`, and the share of variance of each."""
    flat = means.reshape(-1, means.shape[2])
    flat = flat - flat.mean(0)
    _, s, axes = np.linalg.svd(flat, full_matrices=False)
    n = min(3, len(s))
    return (flat @ axes[:n].T).reshape(*means.shape[:2], n), np.square(s) / max(np.square(s).sum(), 1e-300)


def _colours(n: int) -> list[tuple[float, ...]]:
    from matplotlib import colormaps

    return [tuple(colour) for colour in colormaps["turbo"](np.linspace(0.05, 0.95, n))]


def _rows(n: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 0.8 + ROW * n), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=11)
    return figure, list(figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0])


def _line(
    axis: Axes, time: np.ndarray, values: np.ndarray, starts: Sequence[int], *, color: str, label: str | None
) -> None:
    inner = [start for start in starts if 0 < start < len(time)]
    pieces = zip(np.split(time, inner), np.split(values, inner), strict=True)
    for i, (t, v) in enumerate(pieces):
        axis.plot(t, v, color=color, lw=1.2, label=label if i == 0 else None)


def _finish(
    figure: Figure, axes: list[Axes], path: Path, starts: Sequence[int], bin_width_s: float, legend: bool = True
) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
        for start in starts:
            axis.axvline((start - 0.5) * bin_width_s, color="#aaaaaa", lw=0.6, zorder=0)
    figure.align_ylabels(axes)
    axes[-1].set_xlabel("time (s)")
    handles, names = axes[0].get_legend_handles_labels()
    if legend and names:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")

"""Figures of how good a model is: while it was trained, and as it runs on from its anchor."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from rtdsae.evaluate.canvas import ACCENT, INK, MODEL, SOFT, finish, rows, style
from rtdsae.train.objective import selecting

__all__ = ["since_anchor", "training"]

SETTLED = 0.1  # the first part of the epochs, whose heights do not set the axis
NAMES = {
    "co_bps": "co-bps (held-out neurons)",
    "bps": "bits per spike (seen)",
    "r2_behaviour": "R² of behaviour",
    "r2_true_rates": "R² to the true rates",
}


@style()
def training(columns: Mapping[str, np.ndarray], best_epoch: int) -> Figure:
    """Training curves: the likelihood, on the left, and the KL terms, on the right.

    Args:
        columns: of metrics.csv, by name.
        best_epoch: the chosen one, from 0.
    """
    figure, axes = rows(1, 3.0, (1.6, 1))
    likelihood, information = axes[0]
    epochs = columns["epoch"] + 1
    drawn = [
        ("train/nll", SOFT, "training, hidden entries"),
        ("valid/nll", INK, "validation, all seen"),
        (selecting(columns, "valid/"), MODEL, "validation, selects the epoch"),
    ]
    heights = []
    for name, colour, label in drawn:
        if name in columns:
            likelihood.plot(epochs, columns[name], color=colour, label=label, marker="." if len(epochs) < 3 else "")
            heights.append(columns[name][int(SETTLED * len(epochs)) :])
    likelihood.axvline(best_epoch + 1, color=ACCENT, lw=1, label=f"chosen: epoch {best_epoch + 1}")
    if heights:
        low, high = min(h.min() for h in heights), max(h.max() for h in heights)
        room = 0.06 * (high - low) or 0.01
        likelihood.set_ylim(low - room, high + room)
    likelihood.set(xlabel="epoch", ylabel="negative log-likelihood\n(nats per bin and neuron)")
    for name, colour, label in (("train/kl_f", ACCENT, "KL of f"), ("train/kl_z", MODEL, "KL of z")):
        if name in columns:
            information.plot(epochs, columns[name], color=colour, label=label, marker="." if len(epochs) < 3 else "")
    information.set(xlabel="epoch", ylabel="nats per bin and neuron")
    for axis in (likelihood, information):
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
    return finish(figure)


@style()
def since_anchor(
    blocks: np.ndarray,
    scores: Mapping[str, np.ndarray],
    usual: Mapping[str, float],
    *,
    bin_width_s: float,
    horizon: int,
) -> Figure:
    """Scores by time since the anchor, an axis for each; beside them, what the model has as it is run.

    Args:
        blocks: `(n, 2)` bins since the anchor.
        scores: by name, `(n,)`.
        usual: by name.
        bin_width_s: width of a bin in seconds.
        horizon: R, the bins that training unrolls.
    """
    figure, axes = rows(1, 2.9, (1,) * len(scores))
    middle = bin_width_s * np.sqrt(np.maximum(blocks[:, 0], 0.5) * blocks[:, 1])
    for axis, (name, values) in zip(axes[0], scores.items(), strict=True):
        axis.plot(middle, values, "o-", color=MODEL, ms=4, label="one anchor")
        if name in usual:
            axis.axhline(usual[name], color=INK, lw=1, ls="--", label="as it is run")
        axis.axvline(bin_width_s * horizon, color=ACCENT, lw=1, label="R, as trained")
        axis.set(xscale="log", xlabel="seconds since the anchor", ylabel=NAMES.get(name, name))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    return finish(figure, axes[0, 0])

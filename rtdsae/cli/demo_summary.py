"""What came out of the demo: the stream against the offline answer and the truth, as a table and a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge

from rtdsae.errors import StreamError
from rtdsae.evaluate.metrics import r2
from rtdsae.train.latents import segment_outputs
from rtdsae.train.run import Run
from rtdsae.train.windows import Tensors

__all__ = ["summary"]


def summary(out: Path, run_path: Path, live: Any, heard: dict[str, Any]) -> None:
    """Compares what was heard with the offline answer and with the truth; prints the table, draws the picture.

    Raises:
        StreamError: a bin is missing, or differs from the offline answer.
    """
    family = Run.open(run_path).model()
    s = family.dims.anchor_bins
    offline = segment_outputs(family, Tensors(live), np.array([[0, live.n_bins]]))
    at = heard["bin"].astype(int)
    names = [name for name in ("factors", "rates", "behaviour") if name in heard]
    difference = max(relative_difference(heard[name], offline[name][at - s]) for name in names)
    lost = live.n_bins - s - len(at)
    rows: list[tuple[str, str]] = []
    latents = None
    if live.true_rates is not None:
        rows.append(
            ("R2 of the streamed rates to the true rates", f"{r2(live.true_rates[at], heard['rates']).mean():.3f}")
        )
        latents = latents_against_truth(np.log(np.maximum(live.true_rates[at], 1e-3)), heard["factors"])
        rows.append(("R2 of the true latents, linear in the streamed factors", f"{latents['r2']:.3f}"))
    if "behaviour" in heard and live.behaviour is not None:
        scores = r2(live.behaviour[at], heard["behaviour"])
        said = ", ".join(f"{name} {v:.3f}" for name, v in zip(live.behaviour_labels, scores, strict=True))
        rows.append(("R2 of the streamed behaviour", said))
    rows += [
        ("streamed vs offline, largest difference", f"{difference:.1e}"),
        ("in the daemon (sample in hand -> sent)", percentiles(heard["t_out"] - heard["t_in"])),
        ("bin's end -> subscriber", percentiles(heard["t_heard"] - heard["t_bin"])),
        ("bins published / lost / holes in seq", f"{len(at)} / {lost} / {heard['holes']}"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"  {name:{width}}  {value}" for name, value in rows))
    picture = draw(out / "demo.png", live, at, heard, latents)
    print(f"\nfigure: {picture}\nrun: {run_path}\nbundle: {out / 'bundle'}   (rtdsae inspect {out / 'bundle'})")
    if lost or heard["holes"] or difference > 1e-4:
        raise StreamError(
            f"{lost} bins are missing, {heard['holes']} holes were heard, and the stream differs from the offline "
            f"answer by {difference:.1e}, where 1e-4 is allowed"
        )


def relative_difference(a: Any, b: Any) -> float:
    """The largest difference, relative where a value is above 1."""
    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))


def percentiles(seconds: Any) -> str:
    """p50, p99 and the largest, in milliseconds."""
    p50, p99, largest = (1000 * np.percentile(seconds, q) for q in (50, 99, 100))
    return f"p50 {p50:.2f}  p99 {p99:.2f}  max {largest:.2f} ms"


def latents_against_truth(log_rates: Any, factors: Any) -> dict[str, Any]:
    """True latents (the three principal components of the true log rates) by a linear map from the factors.

    The map is fitted on the first half of the stream and scored on the second.
    """
    centred = log_rates - log_rates.mean(0)
    true = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    half = len(true) // 2
    mapped = Ridge(1.0).fit(factors[:half], true[:half]).predict(factors)
    return {"true": true, "mapped": mapped, "r2": float(r2(true[half:], mapped[half:]).mean())}


def draw(path: Path, live: Any, at: Any, heard: dict[str, Any], latents: dict[str, Any] | None) -> Path:
    """One picture of the last seconds: a rate, the latents or the behaviour, and the latency."""
    shown = slice(-round(6 / live.bin_width_s), None)
    t = at[shown] * live.bin_width_s
    figure = Figure(figsize=(10, 8), layout="constrained")
    rate, latent, delay = figure.subplots(3, 1)
    neuron = int(heard["rates"].var(0).argmax())
    if live.true_rates is not None:
        rate.plot(t, live.true_rates[at][shown, neuron], "k", lw=1.5, label="true rate")
    else:
        rate.plot(t, live.counts[at][shown, neuron] / live.bin_width_s, "0.7", lw=1, label="spikes in the bin")
    rate.plot(t, heard["rates"][shown, neuron], "C1", lw=1.5, label="streamed")
    rate.set(xlabel="time (s)", ylabel="spikes/s", title=f"neuron {live.channels[neuron]}")
    rate.legend(loc="upper right")
    if latents is not None:
        pairs, title = (
            [(latents["true"], latents["mapped"])],
            "true latents (black) and the streamed factors' linear map",
        )
    elif "behaviour" in heard:
        pairs, title = [(live.behaviour[at], heard["behaviour"])], "behaviour (black) and its streamed decoding"
    else:
        pairs, title = [(heard["factors"][:, :3], heard["factors"][:, :3])], "three streamed factors"
    for true, ours in pairs:
        offset = np.arange(true.shape[1]) * 4 * true.std(0).max()
        latent.plot(t, (true + offset)[shown], "k", lw=1.5)
        latent.plot(t, (ours + offset)[shown], lw=1.5)
    latent.set(xlabel="time (s)", yticks=[], title=title)
    for values, label in (
        (heard["t_out"] - heard["t_in"], "in the daemon"),
        (heard["t_heard"] - heard["t_bin"], "bin's end to subscriber"),
    ):
        delay.hist(
            1000 * np.maximum(values, 1e-5), bins=np.geomspace(0.01, 100, 80), histtype="step", lw=1.5, label=label
        )
    delay.axvline(1000 * live.bin_width_s, color="r", ls="--", label="bin width")
    delay.set(xscale="log", xlabel="latency (ms)", ylabel="bins", title="latency")
    delay.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    return path

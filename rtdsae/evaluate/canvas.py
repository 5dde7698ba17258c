"""What the figures share: a style, rows of axes, lines that stop where a trial ends, and the files a figure becomes.

A figure is drawn once, in light colours, on matplotlib's own objects without pyplot, so that nothing global changes and
no display is needed. As SVG its named colours become CSS variables, which a page sets for light and for dark.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "FAINT",
    "INK",
    "MODEL",
    "SOFT",
    "WIDTH",
    "colours",
    "decimals",
    "finish",
    "line",
    "plain",
    "rows",
    "save_png",
    "style",
    "svg",
    "trial_rules",
]

INK, SOFT, FAINT = "#222222", "#767676", "#c4c4c4"  # what was real, and writing; the second rank; what lies behind
MODEL, ACCENT = "#0072b2", "#d55e00"  # what the model says; what is marked
CSS = {INK: "--ink", SOFT: "--soft", FAINT: "--faint", MODEL: "--model", ACCENT: "--accent"}
WIDTH = 10.0  # inches
LONGEST_LABEL = 24  # characters
LEGEND = 10  # names in a legend, at most
GAMMA = 2.2
LUMINANCE = (0.12, 0.34)  # of a colour that is read on white and on black, as WCAG defines it

PARAMS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "rtdsae",
    "path.simplify_threshold": 0.3,
}


def style() -> Any:
    """The style of all figures, around whatever draws one; also as a decorator, `@style()`."""
    return rc_context(PARAMS)


def rows(n: int, height: float = 1.35, columns: Sequence[float] = (1,)) -> tuple[Figure, np.ndarray]:
    """A figure of n rows and some columns of these relative widths, and its axes, `(n, columns)`."""
    figure = Figure(figsize=(WIDTH, 0.7 + height * n), layout="constrained")
    return figure, figure.subplots(n, len(columns), squeeze=False, gridspec_kw={"width_ratios": list(columns)})


def line(axis: Axes, time: np.ndarray, values: np.ndarray, starts: Sequence[int] = (), **look: object) -> None:
    """A line over time that is not drawn across the bins `starts`, at which trials begin."""
    inner = [start for start in starts if 0 < start < len(time)]
    pieces = zip(np.split(time, inner), np.split(values, inner), strict=True)
    for i, (t, v) in enumerate(pieces):
        axis.plot(t, v, **look)  # type: ignore[arg-type]
        if i == 0:
            look = look | {"label": None}


def trial_rules(axis: Axes, starts: Sequence[int], bin_width_s: float) -> None:
    """A thin rule where each trial but the first begins."""
    for start in starts:
        if start:
            axis.axvline((start - 0.5) * bin_width_s, color=FAINT, lw=0.8, zorder=0)


def colours(n: int) -> list[tuple[float, ...]]:
    """So many colours, in an order from blue to red, that are told apart and read on white and on black."""
    light = colormaps["turbo"](np.linspace(0.08, 0.92, n))[:, :3] ** GAMMA  # in proportion to what the screen emits
    luminance = light @ (0.2126, 0.7152, 0.0722)
    wanted = np.clip(luminance, *LUMINANCE)
    paler = np.maximum(wanted - luminance, 0) / (1 - luminance)  # the part of white
    light = light * np.minimum(wanted / luminance, 1)[:, None]
    light += paler[:, None] * (1 - light)
    return [tuple(colour) for colour in (light ** (1 / GAMMA)).tolist()]


def decimals(value: float, n: int) -> str:
    """A number with n decimals and a true minus."""
    return f"{value:.{n}f}".replace("-", "−")


def plain(label: object) -> str:
    """A name from a recording as a label: short, and never read as mathematics."""
    text = " ".join(str(label).split())
    text = (text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…").replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text  # matplotlib keeps such names out of legends


def finish(figure: Figure, legend_of: Axes | None = None) -> Figure:
    """Lay the figure out once and for all, with the legend of one of its axes below, unless that is long."""
    if legend_of is not None:
        handles, names = legend_of.get_legend_handles_labels()
        if 0 < len(names) <= LEGEND:
            figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a PNG, in light colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, format="png", dpi=120)


def svg(figure: Figure, name: str) -> str:
    """An `<svg>` element for a page: no address in it, colours by CSS variables, the same for the same figure.

    Args:
        figure: what is shown.
        name: no other figure's on the page: ids begin with it.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+">', "<g>", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", text, count=1)
    for i, hashed in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', text))):
        text = text.replace(f'id="{hashed}"', f'id="{name}-{i}"').replace(f"#{hashed}", f"#{name}-{i}")
    for colour, variable in CSS.items():
        text = text.replace(colour, f"var({variable})")
    return text

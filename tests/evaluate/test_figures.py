"""The figures: each shows what it was given, by a stated choice, as a PNG and as an SVG that a page can hold."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from rtdsae.evaluate import canvas, curves, figures

RNG = np.random.RandomState(0)
RATES = RNG.gamma(2.0, 5.0, (40, 9))
COUNTS = RNG.poisson(RATES * 0.02)
NAMES = [f"n{i}" for i in range(9)]
TRIALS = (0, 20)
SCORES = np.linspace(-0.1, 0.8, 9)


def pixels(figure, path) -> np.ndarray:
    from matplotlib.image import imread

    canvas.save_png(figure, path)
    return imread(path, format="png")


def draw_rates(channels=NAMES, **parts):
    shown = figures.ranked(SCORES, 3)
    parts = {"measure": "R²", "bin_width_s": 0.02, "channels": channels} | parts
    return figures.rates(RATES, COUNTS, SCORES, shown, **parts)


def test_rates_show_truth_where_it_is_known_and_spikes_where_not(tmp_path):
    drawn = [draw_rates(true_rates=RATES * k) for k in (1, 2)] + [draw_rates()]
    assert len({pixels(figure, tmp_path / "a.png").tobytes() for figure in drawn}) == 3


def test_neurons_are_ranked_from_the_best_to_the_worst_in_even_steps():
    scores = np.array([0.3, np.nan, 0.9, 0.1, 0.5, -0.2])
    assert figures.ranked(scores, 3) == [(2, 1), (0, 3), (5, 5)]
    assert figures.ranked(scores, 10) == [(2, 1), (4, 2), (0, 3), (3, 4), (5, 5)]
    assert figures.ranked(np.full(3, np.nan), 2) == []


def test_lines_stop_where_a_trial_ends(tmp_path):
    values = np.repeat([[0.0, 0.0], [1.0, 1.0]], 20, axis=0)
    one, two = (
        figures.factors(values, np.array([1.0, 0.0]), bin_width_s=0.02, starts=starts) for starts in ((), TRIALS)
    )
    blue = [
        (image[..., 2] - image[..., 0] > 0.3).sum() for image in (pixels(f, tmp_path / "a.png") for f in (one, two))
    ]
    assert blue[1] < blue[0] - 50  # the step between the trials is not drawn


def test_behaviour_shows_the_decoded_beside_the_real(tmp_path):
    real = RATES[:, :2]
    drawn = [
        figures.behaviour(real, real * size, ("x", "y"), (1.0, 1.0), slice(0, 30), bin_width_s=0.02)
        for size in (1, 0.5)
    ]
    folder = tmp_path / "new" / "folder"
    assert not np.array_equal(pixels(drawn[0], folder / "a.png"), pixels(drawn[1], folder / "b.png"))


EVIL = ["<b>$x$</b>", "a & b", "$\\frac", "--><script>", "ünï", "n" * 80, " two\nlines ", '"', "ch8"]
TIME = np.arange(40) * 0.02
PATHS = RNG.randn(4, 40, 3)
SHARE = np.array([0.6, 0.3, 0.1])
PSTHS = RATES[None, :, :3].repeat(4, 0)
PRIOR = (np.zeros(3), np.ones(3))
HISTORY = {"epoch": np.arange(3.0), "train/nll": np.ones(3), "valid/nll_masked": np.ones(3), "train/kl_z": np.ones(3)}
BLOCKS = np.array([[0, 2], [2, 5]])
# names that a page must not read as markup, nor matplotlib as mathematics
DRAWN = {
    "rates": lambda: draw_rates(EVIL),
    "psths": lambda: figures.psths(PSTHS, PSTHS, EVIL[:4], [canvas.plain(name) for name in EVIL[:3]], TIME),
    "trajectories": lambda: figures.trajectories(PATHS, SHARE, EVIL[:4], TIME, what="time (s)"),
    "two components": lambda: figures.trajectories(PATHS[..., :2], SHARE[:2], EVIL[:4], TIME, what="time (s)"),
    "factors": lambda: figures.factors(PATHS[0], SHARE, bin_width_s=0.02, starts=TRIALS),
    "behaviour": lambda: figures.behaviour(
        RATES[:, :2], RATES[:, :2], EVIL[:2], (0.5, 0.4), slice(0, 40), bin_width_s=0.02
    ),
    "inputs": lambda: figures.inputs(PATHS, PRIOR, ("z 0", "z 1", "z 2"), EVIL[:4], TIME, 0.02, what="time (s)"),
    "one input": lambda: figures.inputs(PATHS[:1], PRIOR, ("z 0", "z 1", "z 2"), (), TIME, 0.02, what="time (s)"),
    "one bin": lambda: figures.inputs(PATHS[:1, :1], PRIOR, ("a", "b", "c"), (), TIME[:1], 0.02, what="time (s)"),
    "traversals": lambda: figures.traversals(
        RNG.randn(2, 5, 40, 3), np.ones(6), [1, 3], np.arange(-2.0, 3), ("PC 1", "PC 2", "n"), TIME
    ),
    "training": lambda: curves.training(HISTORY, 1),
    "one epoch": lambda: curves.training({name: values[:1] for name, values in HISTORY.items()}, 0),
    "since_anchor": lambda: curves.since_anchor(
        BLOCKS, {"co_bps": np.array([0.1, 0.2])}, {"co_bps": 0.3}, bin_width_s=0.02, horizon=40
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_an_svg_is_one_sound_element_without_an_address(name, tmp_path):
    figure = DRAWN[name]()
    text = canvas.svg(figure, "panel")
    root = ET.fromstring(text)  # escaped as it must be
    assert root.tag == "svg"
    assert root.get("viewBox")
    assert "http" not in text
    assert "<script" not in text
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    used = [element.get("href", "#")[1:] for element in root.iter("use")]
    clips = re.findall(r"url\(#(.*?)\)", text)
    assert set(used) | set(clips) <= set(ids)
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"panel-\d+", one) for one in ids)
    assert canvas.INK not in text
    assert canvas.svg(figure, "panel") == text
    assert pixels(figure, tmp_path / "a.png").std() > 0


def test_names_are_shown_as_they_are():
    text = canvas.svg(draw_rates([f"{name}$a$ & <b>" for name in NAMES]), "panel")
    (best, _), *_ = figures.ranked(SCORES, 3)
    assert f"n{best}$a$ & <b>" in "".join(ET.fromstring(text).itertext())
    assert canvas.plain("n" * 80) == "n" * 23 + "…"


def test_a_legend_has_names_that_begin_with_an_underscore():
    figure = figures.trajectories(PATHS[:2], SHARE, ["_left", "right"], TIME, what="time (s)")
    said = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert [name.lstrip("\u200b") for name in said] == ["_left", "right"]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_colours_are_read_on_white_and_on_black(n):
    drawn = np.array(canvas.colours(n))
    emitted = np.where(drawn <= 0.04045, drawn / 12.92, ((drawn + 0.055) / 1.055) ** 2.4)  # sRGB
    luminance = emitted @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05)).min() > 2.6  # WCAG's contrast to white, and to the dark page
    assert ((luminance + 0.05) / (0.009 + 0.05)).min() > 2.6
    apart = np.abs(drawn[:, None] - drawn[None]).max(-1)[~np.eye(n, dtype=bool)]
    assert (apart > 0.1).all()


def test_numbers_have_a_true_minus():
    assert canvas.decimals(-0.0123, 3) == "−0.012"


def test_ages_are_told_at_few_round_times():
    blocks = np.array([(0, 5), (5, 10), (10, 20), (20, 40)])
    figure = curves.since_anchor(blocks, {"bps": np.arange(4.0)}, {}, bin_width_s=0.02, horizon=40)
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    shown = [t.get_text() for t, at in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True) if low <= at <= high]
    assert shown == ["0.05", "0.1", "0.2", "0.5"]
    assert not axis.get_xticklabels(minor=True)


def test_nothing_global_is_touched():
    code = (
        "import sys, matplotlib\n"
        "seen = lambda: [matplotlib.rcParams[k] for k in canvas.PARAMS]\n"
        "from rtdsae.evaluate import canvas, curves, figures\n"
        "import numpy as np\n"
        "before = seen()\n"
        "figures.factors(np.eye(9)[:, :2], np.ones(2), bin_width_s=0.1)\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or seen() != before)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

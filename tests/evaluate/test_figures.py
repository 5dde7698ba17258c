"""The figures: each is a PNG that shows what it was given."""

import subprocess
import sys

import numpy as np
import pytest

from rtdsae.evaluate import figures

RNG = np.random.RandomState(0)
RATES = RNG.gamma(2.0, 5.0, (40, 9))
COUNTS = RNG.poisson(RATES * 0.02)
NAMES = [f"n{i}" for i in range(9)]
TRIALS = (0, 20)


def pixels(path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path, format="png")


def draw_rates(path, **parts):
    figures.rates(path, RATES, COUNTS, bin_width_s=0.02, channels=NAMES, **parts)
    return pixels(path)


def test_rates_show_truth_where_it_is_known_and_spikes_where_not(tmp_path):
    images = [draw_rates(tmp_path / "a.png", true_rates=RATES * k) for k in (1, 2)]
    images.append(draw_rates(tmp_path / "a.png"))
    assert len({image.tobytes() for image in images}) == 3


def test_held_out_neurons_are_shown_beside_the_others():
    heldout = np.arange(9) >= 7
    shown = figures._neurons(COUNTS, heldout)
    assert sorted(shown[-2:]) == [7, 8]
    assert len(shown) == 5
    assert shown[0] == COUNTS[:, :7].sum(0).argmax()
    assert figures._neurons(COUNTS, None)[0] == COUNTS.sum(0).argmax()


def test_lines_stop_where_a_trial_ends(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    values = np.repeat([[0.0], [1.0]], 20, axis=0)
    figures.factors(one, values, bin_width_s=0.02)
    figures.factors(two, values, bin_width_s=0.02, starts=TRIALS)
    blue = [(image[..., 2] - image[..., 0] > 0.3).sum() for image in (pixels(one), pixels(two))]
    assert blue[1] < blue[0] - 50  # the step between the trials is not drawn


@pytest.mark.parametrize("labels", [np.arange(12) % 3, np.array(["left", "right"] * 6), np.arange(12)])
def test_conditions_are_drawn_by_number_or_name(tmp_path, labels):
    figures.conditions(tmp_path / "c.png", RNG.randn(12, 20, 5), labels, bin_width_s=0.02, start_s=-0.2)
    assert pixels(tmp_path / "c.png").std() > 0


def test_principal_components_keep_the_variance():
    values = RNG.randn(4, 25, 2) @ RNG.randn(2, 6)
    scores, explained = figures._principal(values)
    assert explained[:2].sum() == pytest.approx(1)
    centred = values - values.mean((0, 1))
    assert np.square(scores).sum() == pytest.approx(np.square(centred).sum())


def test_behaviour_shows_the_decoded_beside_the_real(tmp_path):
    folder = tmp_path / "new" / "folder"
    for name, size in (("a", 1.0), ("b", 0.5)):
        figures.behaviour(folder / f"{name}.png", RATES[:, :2], RATES[:, :2] * size, ("x", "y"), bin_width_s=0.02)
    assert not np.array_equal(pixels(folder / "a.png"), pixels(folder / "b.png"))


def test_nothing_global_is_touched():
    code = "import sys, rtdsae.evaluate.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

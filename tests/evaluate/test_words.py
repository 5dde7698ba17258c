"""The report's sentences, where the figures are not good ones."""

from types import SimpleNamespace

import pytest

from rtdsae.evaluate import words
from rtdsae.evaluate.score import by_label


@pytest.mark.parametrize(
    ("value", "reference", "said"),
    [
        (0.62, 0.625, "as good as"),
        (0.023, 0.014, "better than"),
        (0.009, 0.0, "better than"),
        (-0.016, -0.002, "worse than"),
        (0.8, 0.9, "worse than"),
        (0.0, 0.0, "as good as"),
    ],
)
def test_as_good_is_measured_by_the_scores_themselves(value, reference, said):
    simpler = {"glm": SimpleNamespace(value=reference)}
    assert words.against(value, simpler, "glm", "it").startswith(f", {said} it")


def test_what_is_worse_than_a_mean_is_not_called_better():
    assert words.beside_means(0.25) == "0.250 bits per spike better than their mean rates"
    assert words.beside_means(-0.016) == "0.016 bits per spike worse than their mean rates"


def test_what_of_the_latents_is_not_known_is_said_with_the_reason():
    reasons = {
        "co_bps": "none",
        "latents.mig": "few trials",
        "latents.sap": "few trials",
        "latents.probe_f": "no labels",
    }
    scored = SimpleNamespace(scores={"reasons": reasons})
    assert words.unknown(scored) == ["MIG, SAP: few trials.", "labels from f: no labels."]


def test_a_column_called_mean_is_not_taken_for_the_mean():
    found = by_label(("mean", "y", "still"), [0.5, 0.7, float("nan")])
    assert found == {"mean": pytest.approx(0.6), "mean (column)": 0.5, "y": 0.7}

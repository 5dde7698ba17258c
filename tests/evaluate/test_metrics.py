"""The metrics against hand-computed cases, scipy, and each other."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import poisson
from sklearn.metrics import r2_score

from rtdsae.evaluate import metrics
from rtdsae.evaluate.metrics import bits_per_spike, poisson_nll, r2

SHAPE = (6, 3)
RATES = hnp.arrays(float, SHAPE, elements=st.floats(1e-6, 5000))
COUNTS = hnp.arrays(int, SHAPE, elements=st.integers(0, 5000))


def test_the_examples():
    assert doctest.testmod(metrics).attempted > 0
    assert doctest.testmod(metrics).failed == 0


@given(rates=RATES, counts=COUNTS)
def test_nll_is_scipys(rates, counts):
    assert poisson_nll(rates, counts) == pytest.approx(-poisson.logpmf(counts, rates).mean(), rel=1e-9)


def test_nll_by_hand():
    rates, counts = np.array([[0.5], [2.0], [1.0]]), np.array([[0], [3], [1]])
    by_hand = (0.5 + (2 - 3 * math.log(2) + math.log(6)) + 1) / 3
    assert poisson_nll(rates, counts) == pytest.approx(by_hand)


def test_a_rate_of_zero_is_floored():
    nothing = np.zeros((1, 1))
    assert poisson_nll(nothing, np.array([[1]])) == pytest.approx(-math.log(1e-9))
    assert poisson_nll(nothing, np.array([[0]])) == pytest.approx(1e-9)


@given(counts=COUNTS.filter(np.any))
def test_the_null_model_scores_zero(counts):
    null = np.broadcast_to(counts.mean(0), counts.shape)
    assert bits_per_spike(null, counts) == pytest.approx(0, abs=1e-9)


def test_bits_per_spike_by_hand():
    # Neuron 0: rates .5 .5 2 for 0 1 2; mean 1. Neuron 1: its own mean, 2/3, which adds spikes and no gain.
    counts = np.array([[0, 1], [1, 0], [2, 1]])
    rates = np.array([[0.5, 2 / 3], [0.5, 2 / 3], [2.0, 2 / 3]])
    model = -0.5 + (math.log(0.5) - 0.5) + (2 * math.log(2) - 2)
    gain = model - (-3)
    assert bits_per_spike(rates, counts) == pytest.approx(gain / (5 * math.log(2)))


@given(rates=RATES, counts=COUNTS.filter(np.any))
def test_bits_per_spike_is_the_difference_of_two_likelihoods(rates, counts):
    null = np.maximum(np.broadcast_to(counts.mean(0), counts.shape), 1e-9)
    gain = poisson.logpmf(counts, rates).sum() - poisson.logpmf(counts, null).sum()
    assert bits_per_spike(rates, counts) == pytest.approx(gain / counts.sum() / math.log(2), rel=1e-7, abs=1e-9)


def test_without_spikes_there_is_no_score():
    assert math.isnan(bits_per_spike(np.ones((3, 2)), np.zeros((3, 2))))


def test_counts_of_small_types_do_not_overflow():
    counts = np.full((300, 2), 200, np.uint8)
    assert poisson_nll(np.full((300, 2), 200.0), counts) == pytest.approx(-poisson.logpmf(200, 200))
    counts[0] = 0
    assert bits_per_spike(np.full((300, 2), counts.mean()), counts) == pytest.approx(0, abs=1e-12)


def test_more_spikes_than_half_precision_counts_have_a_score():
    counts = np.tile([[0], [2]], (40_000, 1)).astype(np.float16)  # of 80,000 spikes
    assert bits_per_spike(np.maximum(counts, 1e-9), counts) == pytest.approx(1)


def test_float32_rates_are_scored_in_double():
    rates = np.full((1000, 7), 0.1, np.float32)
    assert poisson_nll(rates, np.zeros((1000, 7))) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@given(
    actual=hnp.arrays(float, SHAPE, elements=st.floats(-100, 100)).filter(lambda a: (a.std(0) > 1e-3).all()),
    predicted=hnp.arrays(float, SHAPE, elements=st.floats(-100, 100)),
)
def test_r2_is_scikit_learns(actual, predicted):
    assert r2(actual, predicted) == pytest.approx(r2_score(actual, predicted, multioutput="raw_values"))


def test_r2_is_one_column_at_a_time():
    actual = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 5.0]])
    predicted = np.array([[0.0, 2.0, 5.0], [2.0, 2.0, 5.0]])
    scores = r2(actual, predicted)
    assert scores[:2].tolist() == [1.0, 0.0]
    assert math.isnan(scores[2])  # nothing varies: there is nothing to explain


@pytest.mark.parametrize("value", [0.1, 0.3, 1.7, 2.2])
def test_a_column_that_does_not_vary_has_no_r2_whatever_its_mean_rounds_to(value):
    assert math.isnan(r2(np.full((1000, 1), value), np.full((1000, 1), value + 1))[0])


def test_likelihoods_are_added_up_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    rates, counts = rng.uniform(0, 3, (50, 7)), rng.poisson(1.0, (50, 7))
    whole = poisson_nll(rates, counts), bits_per_spike(rates, counts)
    monkeypatch.setattr(metrics, "BLOCK", 3 * 7)
    assert (poisson_nll(rates, counts), bits_per_spike(rates, counts)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("score", [poisson_nll, bits_per_spike, r2])
@pytest.mark.parametrize(
    "pair", [((3, 2), (2, 3)), ((3, 2), (3, 1)), ((3,), (3,)), ((0, 2), (0, 2)), ((1, 3, 2), (1, 3, 2))]
)
def test_shapes_must_agree(score, pair):
    with pytest.raises(ValueError, match="both must be"):
        score(np.ones(pair[0]), np.ones(pair[1]))


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="negative"):
        poisson_nll(np.ones((1, 1)), np.array([[-1]]))


def test_averaged_counts_have_a_likelihood_too():
    assert poisson_nll(np.ones((1, 1)), np.array([[0.5]])) == pytest.approx(1 + math.lgamma(1.5))

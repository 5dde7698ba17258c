"""The simple models that a latent model is held against: what they find, and that in noise they find nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from rtdsae.evaluate import baselines
from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.train.ridge import ridge

SEGMENTS = np.array([[0, 40], [40, 100]])
COUNTS = np.random.default_rng(0).poisson(0.7, (100, 3))


def slow(rng, bins, columns, tau=15.0):
    """Noise that changes slowly, as behaviour and factors do."""
    return lfilter([1], [1, -np.exp(-1 / tau)], rng.normal(size=(bins, columns)), axis=0)


def test_lagged_bins_lie_side_by_side_and_stay_within_their_segment():
    rows = baselines.lagged(COUNTS, SEGMENTS, 3, 2)
    assert rows.shape == (38 + 58, 9)
    np.testing.assert_array_equal(rows[0], np.concatenate([COUNTS[2], COUNTS[1], COUNTS[0]]))
    np.testing.assert_array_equal(rows[38], np.concatenate([COUNTS[42], COUNTS[41], COUNTS[40]]))
    before = baselines.lagged(COUNTS, SEGMENTS, 3, 0)[40]
    np.testing.assert_array_equal(before, np.concatenate([COUNTS[40], np.zeros(6)]))


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_shifted_behaviour_scores_nothing_and_the_real_one_beats_every_shift(seed):
    rng = np.random.default_rng(seed)
    y = slow(rng, 3000, 2)
    x = y @ rng.normal(size=(2, 6)) + 0.3 * slow(rng, 3000, 6)
    fit, scored = (x[:2000], y[:2000]), (x[2000:], y[2000:])
    null = baselines.shifted_scores(fit, *scored, shifts=40)
    real = r2(scored[1], ridge([fit], [fit]).predict(scored[0])).mean()
    assert null.mean() < 0.02
    assert real > null.max()


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_behaviour_that_is_unrelated_is_within_its_shifts(seed):
    rng = np.random.default_rng(seed)
    x, y = slow(rng, 3000, 6), slow(rng, 3000, 2)
    null = baselines.shifted_scores((x[:2000], y[:2000]), x[2000:], y[2000:], shifts=60)
    fit = (x[:2000], y[:2000])
    real = r2(y[2000:], ridge([fit], [fit]).predict(x[2000:])).mean()
    assert null.mean() < 0.02
    assert real < null.mean() + 6 * null.std()


def test_shifts_are_long_enough_to_leave_no_relation():
    y = slow(np.random.default_rng(4), 2000, 1, tau=3.0)
    assert baselines.shifted_scores((y, y), y, y, shifts=3000).max() < 0.5  # after a shift of 1 it would be 0.9


def test_shifts_are_the_same_each_time():
    rng = np.random.default_rng(2)
    x, y = slow(rng, 400, 3), slow(rng, 400, 1)
    first, again = (baselines.shifted_scores((x, y), x, y, shifts=10) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_where_behaviour_has_its_zero_changes_nothing():
    rng = np.random.default_rng(5)
    x, y = slow(rng, 600, 3), slow(rng, 600, 2)
    scores = [baselines.shifted_scores((x[:400], y[:400] + c), x[400:], y[400:] + c, shifts=10) for c in (0, 50)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


def test_the_weights_of_a_poisson_regression_are_the_penalised_optimum():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(1000, 5)).astype(np.float32)
    counts = rng.poisson(np.exp(0.15 * z @ rng.normal(size=(5, 3)))).astype(np.float32)
    penalty = 0.01
    w = baselines.poisson_weights(z, counts, np.ones(5), penalty)
    off = (np.exp(z @ w[:-1] + w[-1]) - counts) / len(z)
    assert np.abs(z.T @ off + penalty * w[:-1]).max() < 1e-4
    assert np.abs(off.sum(0)).max() < 1e-4


def test_a_score_that_is_no_number_is_never_the_best():
    assert baselines.best_of([np.nan, 0.1, 0.3, -1.0]) == 2
    assert baselines.best_of([np.nan, np.nan]) == 0


def test_poisson_regression_finds_log_linear_rates_and_nothing_in_noise():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 6))
    rates = np.exp(x @ (0.4 * rng.normal(size=(6, 4))) - 1)
    counts = rng.poisson(rates)
    parts = [(x[a:b], counts[a:b]) for a, b in ((0, 2000), (2000, 3000), (3000, 4000))]
    predict, _ = baselines.glm(parts[0], parts[1])
    predicted = predict(parts[2][0])
    found, possible = (bits_per_spike(p, parts[2][1]) for p in (predicted, rates[3000:]))
    assert 0.95 * possible < found < 1.01 * possible
    noise = rng.normal(size=(4000, 6))
    predict, _ = baselines.glm((noise[:2000], parts[0][1]), (noise[2000:3000], parts[1][1]))
    predicted = predict(noise[3000:])
    assert -0.02 < bits_per_spike(predicted, parts[2][1]) < 0.01


def test_a_silent_neuron_and_a_constant_column_do_no_harm():
    x = np.ones((50, 2))
    predict, _ = baselines.glm((x, np.zeros((50, 1))), (x, np.zeros((50, 1))))
    predicted = predict(x)
    assert np.isfinite(predicted).all()
    assert predicted.max() < 0.01


def traces(*args):
    """All pieces of them."""
    return np.concatenate(list(baselines.traces(*args)))


@pytest.mark.parametrize("of", [traces, lambda *args: baselines.smoothed(*args, np.full(3, 0.7))])
def test_spikes_to_come_change_nothing(of):
    later = COUNTS.copy()
    later[60:] += 5
    first, second = (of(counts, SEGMENTS[1:], 5.0, 4) for counts in (COUNTS, later))
    np.testing.assert_array_equal(first[:16], second[:16])
    assert (first[16:] < second[16:]).all()


def test_smoothing_keeps_a_constant_and_traces_fade():
    constant = np.full((60, 2), 3)
    np.testing.assert_allclose(baselines.smoothed(constant, np.array([[0, 60]]), 8.0, 5, np.full(2, 3)), 3.0)
    one = np.zeros((10, 1))
    one[2] = 1
    np.testing.assert_allclose(traces(one, np.array([[0, 10]]), 2.0, 2)[:, 0], np.exp(-np.arange(8) / 2), rtol=1e-6)


def test_traces_go_on_from_piece_to_piece(monkeypatch):
    whole = traces(COUNTS, SEGMENTS, 3.0, 9)
    monkeypatch.setattr(baselines, "PIECE", 7)
    np.testing.assert_array_equal(traces(COUNTS, SEGMENTS, 3.0, 9), whole)


def test_a_psth_is_the_mean_of_other_trials_of_the_condition():
    counts = np.arange(24.0).reshape(24, 1)
    trials = np.arange(0, 24, 4)[:, None] + [0, 4]
    conditions = np.array([0, 1, 0, 1, 1, 0])
    found = baselines.psth(counts, (trials[:4], conditions[:4]), trials[4:], conditions[4:], 1)
    np.testing.assert_allclose(found[:, 0], [9, 10, 11, 5, 6, 7])
    with pytest.raises(ValueError, match="no training trial is of condition 1"):
        baselines.psth(counts, (trials[:1], conditions[:1]), trials[4:], conditions[4:], 1)
    with pytest.raises(ValueError, match="3 to 4 bins"):
        baselines.psth(counts, (trials[:4] + np.array([1, 0]), conditions[:4]), trials[4:], conditions[4:], 1)


def test_a_psth_is_smoothed_before_it_is_cut():
    """The bins before the first one that is asked for are known too."""
    trials, conditions = np.array([[0, 20], [20, 40], [40, 60]]), np.zeros(3)
    found = baselines.psth(COUNTS, (trials[:2], conditions[:2]), trials[2:], conditions[2:], 4, sd=2.0)
    mean = (COUNTS[:20] + COUNTS[20:40]) / 2
    np.testing.assert_allclose(found, gaussian_filter1d(mean, 2.0, axis=0)[4:], rtol=1e-5)

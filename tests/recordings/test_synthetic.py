"""Synthetic neurons: the published systems, with rates that the counts really come from."""

import doctest

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from rtdsae.errors import RecordingError
from rtdsae.evaluate.metrics import bits_per_spike
from rtdsae.recordings import synthetic

SMALL = {"n_conditions": 5, "n_trials": 5, "n_bins": 40}
MAKERS = [synthetic.lorenz, synthetic.chaotic_rnn]


def test_the_published_check_value_of_the_network():
    assert doctest.testmod(synthetic).attempted > 0
    assert doctest.testmod(synthetic).failed == 0


def test_the_lorenz_set_has_its_published_sizes():
    made = synthetic.lorenz()
    assert made.n_segments == 1300
    assert (made.n_bins, made.n_channels, made.bin_width_s) == (65_000, 30, 0.02)
    assert (made.splits == "valid").sum() == 260
    assert made.counts.mean() / made.bin_width_s == pytest.approx(5.0, rel=0.02)
    # Which read-out a seed draws moves this by a tenth; the published sets have 0.51 and 0.66.
    assert 0.4 < bits_per_spike(made.true_rates * made.bin_width_s, made.counts) < 0.7


def test_a_lorenz_bin_is_what_the_equations_give_and_has_the_mean_of_its_steps():
    begun = synthetic.attractor(np.random.RandomState(0).randn(3, 4))
    system = synthetic.Lorenz(np.ones((3, 1)), np.zeros(1), np.zeros(3), np.ones(3), 0.02)

    def flow(_, state):
        x, y, z = state
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    after, mean = system.advance(begun)
    for i in range(4):  # ten steps of 0.006
        found = solve_ivp(flow, (0, 0.06), begun[:, i], t_eval=0.006 * np.arange(1, 11), rtol=1e-10, atol=1e-10).y
        np.testing.assert_allclose(after[:, i], found[:, -1], atol=1e-3)
        np.testing.assert_allclose(mean[:, i], found.mean(1), atol=1e-3)


def test_the_network_set_has_its_published_sizes():
    made = synthetic.chaotic_rnn()
    assert made.n_segments == 4000
    assert (made.n_bins, made.n_channels, made.bin_width_s) == (400_000, 50, 0.01)
    assert (made.splits == "valid").sum() == 800
    assert made.counts.mean() / made.bin_width_s == pytest.approx(14.8, abs=0.1)
    assert made.true_rates.max() == pytest.approx(30)
    expected = made.true_rates * made.bin_width_s
    assert bits_per_spike(expected[:, :40], made.counts[:, :40]) == pytest.approx(0.359, abs=0.01)
    assert bits_per_spike(expected[:, 40:], made.counts[:, 40:]) == pytest.approx(0.279, abs=0.01)
    assert made.external is None


def test_trials_of_a_condition_share_rates_and_the_last_are_valid():
    made = synthetic.lorenz(**SMALL)
    rates = made.true_rates.reshape(5, 5, 40, 30)
    assert np.array_equal(rates[:, :1].repeat(5, axis=1), rates)
    assert made.conditions.tolist() == np.repeat(range(5), 5).tolist()
    assert made.splits.reshape(5, 5).tolist() == [["train"] * 4 + ["valid"]] * 5


@pytest.mark.parametrize("make", MAKERS)
def test_counts_are_poisson_with_the_true_rates(make):
    made = make(n_conditions=20, n_trials=50, n_bins=50)
    expected = made.true_rates.astype(float) * made.bin_width_s
    surprise = (made.counts - expected) / np.sqrt(expected.sum() / expected.size)
    assert abs(surprise.sum() / np.sqrt(surprise.size)) < 4
    # For Poisson counts, variance equals the mean wherever the rate is: in the low half and in the high.
    low = expected < np.median(expected)
    for half in (low, ~low):
        fano = np.square(made.counts - expected)[half].sum() / expected[half].sum()
        assert fano == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_seed_and_take_are_the_same_recording(make):
    assert make(**SMALL, seed=3, take=2).hash == make(**SMALL, seed=3, take=2).hash


def read_out(recording):
    """The linear map, with offset, from three neurons' log rates to all others'."""
    log_rates = np.log(recording.true_rates.astype(float))
    design = np.column_stack([log_rates[:, :3], np.ones(len(log_rates))])
    return np.linalg.lstsq(design, log_rates, rcond=None)[0]


def test_another_take_of_lorenz_has_the_same_neurons_and_other_states():
    first, second = synthetic.lorenz(**SMALL, seed=1), synthetic.lorenz(**SMALL, seed=1, take=1)
    other = synthetic.lorenz(**SMALL, seed=2)
    assert not np.allclose(first.true_rates, second.true_rates)
    assert np.allclose(read_out(first), read_out(second), atol=1e-3)
    assert not np.allclose(read_out(first), read_out(other), atol=0.1)


def test_another_take_of_the_network_has_the_same_dynamics():
    def flow(seed, take):
        made = synthetic.chaotic_rnn(seconds=60, seed=seed, take=take, pulses=False)
        x = np.arctanh(np.clip(made.true_rates.astype(float) / 15 - 1, -1 + 1e-6, 1 - 1e-6))
        tanh = made.true_rates / 15 - 1
        return np.linalg.lstsq(tanh[:-1], (x[1:] - 0.6 * x[:-1]) / 0.4, rcond=None)[0]

    first, second, other = flow(5, 0), flow(5, 1), flow(6, 0)
    assert np.allclose(first, second, atol=0.01)
    assert not np.allclose(first, other, atol=0.1)
    assert first[0, 0] == pytest.approx(1.5 * 0.06239899, abs=0.01)


def test_pulses_change_the_network_and_nobody_is_told():
    still, pulsed = (synthetic.chaotic_rnn(**SMALL, pulses=on, scaling="system") for on in (False, True))
    assert pulsed.external is None
    first = np.abs(still.true_rates - pulsed.true_rates).reshape(25, 40, 50).max(axis=2)
    when = (first > 1e-3).argmax(axis=1)
    assert when.min() > 10  # the pulse comes in the middle half, bins 10 to 29, and shows one bin later
    assert when.max() <= 30


def test_scaling_by_trial_uses_the_whole_range_in_every_trial():
    made = synthetic.chaotic_rnn(**SMALL)
    trials = made.true_rates.reshape(25, 40, 50)
    assert np.allclose(trials.max(axis=1), 30)
    assert np.allclose(trials.min(axis=1), 0)


@pytest.mark.parametrize(("make", "n_bins"), [(synthetic.lorenz, 150), (synthetic.chaotic_rnn, 300)])
def test_seconds_make_one_continuous_segment(make, n_bins):
    made = make(seconds=3, take=1)
    assert made.segments.tolist() == [[0, n_bins]]
    assert made.splits is made.conditions is None
    before, after = made.true_rates[:-1].ravel(), made.true_rates[1:].ravel()
    assert np.corrcoef(before, after)[0, 1] > 0.5
    assert made.split().splits.tolist() == ["train", "valid", "test"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n_conditions": 0}, "0 conditions x"),
        ({"seconds": 0.001}, "1 trials x 0 bins"),
        ({"bin_width_s": -0.02}, "bin_width_s is -0.02"),
        ({"bin_width_s": 0.027}, "bin_width_s is 0.027"),
        ({"n_neurons": 0}, "n_neurons is 0"),
        ({"valid": 1.0}, "valid is 1.0"),
        ({"seed": -1}, "seeds and takes are integers"),
        ({"take": 2**32}, "seeds and takes are integers"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, wrong, says):
    with pytest.raises(RecordingError, match=says):
        make(**SMALL | wrong)


def test_few_trials_have_one_for_validation_unless_none_is_wanted():
    assert synthetic.lorenz(n_conditions=3, n_trials=2).splits.tolist() == ["train", "valid"] * 3
    assert set(synthetic.lorenz(n_conditions=3, n_trials=2, valid=0).splits) == {"train"}

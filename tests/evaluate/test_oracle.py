"""The ideal observer: near exact inference, between a smoother and the truth, blind to the future."""

import dataclasses
import json

import h5py
import numpy as np
import pytest

from rtdsae.cli import main
from rtdsae.errors import RecordingError
from rtdsae.evaluate.gaussian_sum import INFLATION, propagated, take_in
from rtdsae.evaluate.metrics import bits_per_spike, r2
from rtdsae.evaluate.oracle import oracle_rates
from rtdsae.evaluate.particle_filter import lorenz_filter
from rtdsae.evaluate.score import add_oracle, score
from rtdsae.recordings import load, save, synthetic
from rtdsae.recordings.reaching import reaching
from rtdsae.train.latents import modelled_bins

S = 10
LORENZ = {"n_bins": 40, "n_neurons": 20}
NETWORK = {"n_bins": 60, "n_neurons": 20}


def heldout(recording, every=5):
    return dataclasses.replace(recording, heldout=np.arange(recording.n_channels) % every == every - 1)


@pytest.fixture(scope="module")
def lorenz():
    return heldout(synthetic.lorenz(n_conditions=60, n_trials=1, **LORENZ))


@pytest.fixture(scope="module")
def network():
    return heldout(synthetic.chaotic_rnn(n_conditions=60, n_trials=1, **NETWORK))


@pytest.fixture(params=["lorenz", "network"])
def made(request):
    return request.getfixturevalue(request.param)


def scores(recording, rates, s=S):
    """R2 to the true rates, and co-bps."""
    bins, out = modelled_bins(recording.segments, s), recording.heldout
    expected = rates[:, out] * recording.bin_width_s
    return r2(recording.true_rates[bins], rates).mean(), bits_per_spike(expected, recording.counts[bins][:, out])


def smoothed(recording, decay, s=S):
    """The held-in neurons' counts under a causal exponential, regressed to the true rates themselves."""
    trials = recording.counts.reshape(recording.n_segments, -1, recording.n_channels)[..., ~recording.heldout]
    state, series = np.zeros(trials[:, 0].shape), []
    for t in range(trials.shape[1]):
        state = decay * state + trials[:, t]
        series.append(state)
    x = np.stack(series, 1)[:, s:].reshape(-1, state.shape[1])
    x = np.column_stack([x, np.ones(len(x))])
    y = recording.true_rates[modelled_bins(recording.segments, s)]
    return np.maximum(x @ np.linalg.lstsq(x, y, rcond=None)[0], 1e-3)


def test_it_is_better_than_any_smoother_and_no_better_than_the_truth(made):
    oracle = scores(made, oracle_rates(made, made.segments, S))
    truth = scores(made, made.true_rates[modelled_bins(made.segments, S)])
    for decay in (0.5, 0.7, 0.8, 0.9, 0.95):
        assert np.all(np.greater(oracle, scores(made, smoothed(made, decay)))), decay
    assert oracle[0] > 0.6
    assert oracle[0] < truth[0] == 1
    assert 0 < oracle[1] < truth[1]


def exact(recording, others):
    """The posterior mean with the true rates of many more initial states as the prior: importance sampling alone."""
    shape = (-1, np.diff(recording.segments[0])[0], recording.n_channels)
    counts, rates = recording.counts.reshape(shape).astype(float), others.true_rates.reshape(shape)
    seen = np.flatnonzero(~recording.heldout)
    logs, found = 0, np.empty(counts.shape)
    for t in range(counts.shape[1]):
        now = np.maximum(rates[:, t, seen], 0.03)
        logs = logs + counts[:, t, seen] @ np.log(now).T - recording.bin_width_s * now.sum(1)
        weights = np.exp(logs - logs.max(1, keepdims=True))
        found[:, t] = weights @ rates[:, t] / weights.sum(1, keepdims=True)
    return found[:, S:].reshape(-1, recording.n_channels)


def test_particles_come_near_exact_inference(lorenz):
    true = exact(lorenz, synthetic.lorenz(n_conditions=10_000, n_trials=1, take=1, **LORENZ))
    assert r2(true, oracle_rates(lorenz, lorenz.segments, S)).mean() > 0.98


def test_the_sum_of_gaussians_comes_near_exact_inference():
    few = {"n_trials": 1, "n_bins": 40, "n_neurons": 12, "scaling": "system"}
    made = heldout(synthetic.chaotic_rnn(n_conditions=60, **few), every=4)
    true = exact(made, synthetic.chaotic_rnn(n_conditions=40_000, take=1, **few))
    assert r2(true, oracle_rates(made, made.segments, S)).mean() > 0.97


@pytest.mark.slow
def test_more_particles_do_not_make_it_worse(lorenz):
    few, some, many = (scores(lorenz, oracle_rates(lorenz, lorenz.segments, S, n))[0] for n in (100, 1000, 5000))
    assert few < some < many + 0.01


def test_it_does_not_lose_a_long_segment():
    made = heldout(synthetic.lorenz(seconds=20))
    rates = oracle_rates(made, made.segments, S, 1000)
    late = modelled_bins(made.segments, S)[-300:]
    assert r2(made.true_rates[late], rates[-300:]).mean() > 0.7


def test_later_counts_leave_earlier_rates_exactly_as_they_are(made):
    until = 25
    later = made.counts.reshape(60, -1, made.n_channels).copy()
    later[:, until:] = np.random.RandomState(0).poisson(1.0, later[:, until:].shape)
    changed = dataclasses.replace(made, counts=later.reshape(made.counts.shape))
    before, after = (oracle_rates(r, r.segments, 0, 500).reshape(60, -1, made.n_channels) for r in (made, changed))
    assert np.array_equal(before[:, :until], after[:, :until])
    assert not np.allclose(before[:, until], after[:, until])


def test_heldout_neurons_are_never_looked_at(made):
    counts = made.counts.copy()
    counts[:, made.heldout] = 3
    blind = oracle_rates(dataclasses.replace(made, counts=counts), made.segments, S, 500)
    assert np.array_equal(blind, oracle_rates(made, made.segments, S, 500))


@pytest.mark.slow
def test_segments_of_unequal_lengths_are_in_their_order(lorenz):
    cut = lorenz.segments.copy()
    cut[::2, 1] -= 5
    whole = oracle_rates(lorenz, lorenz.segments, S).reshape(60, 30, -1)
    parts = oracle_rates(lorenz, cut, S)
    expected = np.concatenate([trial[: 25 + 5 * (i % 2)] for i, trial in enumerate(whole)])
    assert r2(expected, parts).mean() > 0.95  # other particles, the same posterior


def test_a_network_is_told_each_trials_own_scale(network):
    chosen = network.segments[[40, 3]]
    rates = oracle_rates(network, chosen, S)
    assert r2(network.true_rates[modelled_bins(chosen, S)], rates).mean() > 0.6


def test_without_a_pulse_none_is_expected():
    made, noted = (heldout(synthetic.chaotic_rnn(n_conditions=40, n_trials=1, pulses=on, **NETWORK)) for on in (0, 1))
    without = scores(made, oracle_rates(made, made.segments, S))[0]
    assert without > 0.6
    assert noted.generator != made.generator


def refused(recording, says):
    with pytest.raises(ValueError, match=says):
        oracle_rates(recording, recording.segments, S)


def test_what_it_cannot_know_it_says(made):
    refused(dataclasses.replace(made, generator=""), "names no generator")
    refused(reaching(n_trials=1), "names no generator")
    refused(dataclasses.replace(made, generator='{"name": "mine"}'), "neither lorenz nor chaotic_rnn")
    refused(dataclasses.replace(made, true_rates=None), "no true rates")
    changed = "no longer what its generator made"
    refused(dataclasses.replace(made, true_rates=made.true_rates[:, ::-1]), changed)
    refused(dataclasses.replace(made, bin_width_s=0.004), changed)
    fewer = {"counts": made.counts[:, 1:], "true_rates": made.true_rates[:, 1:], "channels": (), "heldout": None}
    refused(dataclasses.replace(made, **fewer), changed)


def test_of_a_network_it_knows_whole_trials_only():
    refused(synthetic.chaotic_rnn(seconds=5).split(), "whole trials only")


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", '{"name": "lorenz"}', '{"name": "chaotic_rnn", "seed": 1, "take": 0}']
)
def test_a_generator_that_cannot_be_is_refused(text):
    with pytest.raises(RecordingError, match="generator is"):
        synthetic.system_of(text)


def test_the_system_is_had_back():
    made = synthetic.lorenz(n_conditions=3, n_trials=2, n_bins=20, seed=np.int64(4), rate_hz=7.0)
    system = synthetic.system_of(made.generator)
    logs = np.log(made.true_rates) - system.bias
    states = logs @ np.linalg.pinv(system.weights) * system.std + system.mean
    assert system.rates(states) == pytest.approx(made.true_rates, rel=1e-4)
    made = synthetic.chaotic_rnn(n_conditions=3, n_trials=2, n_bins=40, take=2)
    assert np.allclose(synthetic.system_of(made.generator).rates.repeat(2, 0).reshape(240, 50), made.true_rates)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_file_keeps_the_generator_and_the_hash_knows_nothing_of_it(tmp_path, made, suffix):
    path = tmp_path / f"made{suffix}"
    save(made, path)
    again = load(path)
    assert again.generator == made.generator
    assert json.loads(again.generator)["n_bins"] == made.segments[0, 1]
    assert again.hash == made.hash == dataclasses.replace(made, generator="").hash


def test_a_file_of_before_has_none(tmp_path, lorenz):
    save(lorenz, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "a") as file:
        del file.attrs["generator"]
    assert load(tmp_path / "old.h5").generator == ""
    assert load(tmp_path / "old.h5").hash == lorenz.hash


def test_a_models_part_of_the_oracle_is_of_what_neither_has_seen():
    """Bits of spikes that both have seen are no measure: a model that copies them has more than the oracle."""
    made = heldout(synthetic.lorenz(n_conditions=6, n_trials=1, **LORENZ))
    bins = modelled_bins(made.segments, S)
    found = score(
        None, dataclasses.replace(made, behaviour=None, behaviour_labels=()), bins, {"rates": made.true_rates[bins]}
    )
    add_oracle(found, None, made, made.segments, S)
    assert set(found["oracle"]) == {"r2_true_rates", "co_bps", "bps"}
    assert set(found["fraction_of_oracle"]) == {"r2_true_rates", "co_bps"}
    assert min(found["fraction_of_oracle"].values()) > 1


@pytest.mark.slow
def test_evaluate_reports_the_oracle_and_the_models_part_of_it(tmp_path, capsys):
    made = synthetic.lorenz(n_conditions=6, n_trials=5, n_bins=40, n_neurons=20)
    save(made, tmp_path / "lorenz.h5")
    (tmp_path / "c.yaml").write_text(
        "model: {family: lfads, ic_enc_dim: 6, f_dim: 4, ci_enc_dim: 6, con_dim: 5, z_dim: 2, gen_dim: 9, fac_dim: 4}\n"
        "window: {anchor_bins: 10, horizon_bins: 30}\nfit: {epochs: 2, accelerator: cpu}\ndata: {heldout_every: 5}\n"
    )
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "c.yaml"), "--data", str(tmp_path / "lorenz.h5"), "--out", run]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    held = heldout(made)
    segments = held.segments[held.splits == "valid"]
    bins, rates = modelled_bins(segments, 10), oracle_rates(held, segments, 10)
    assert set(said["oracle"]) == {"r2_true_rates", "co_bps", "bps"}
    assert said["oracle"]["r2_true_rates"] == pytest.approx(r2(made.true_rates[bins], rates).mean())
    assert said["oracle"]["co_bps"] == pytest.approx(
        bits_per_spike(rates[:, held.heldout] * 0.02, made.counts[bins][:, held.heldout])
    )
    for name in ("r2_true_rates", "co_bps"):
        assert said["fraction_of_oracle"][name] == pytest.approx(said[name] / said["oracle"][name])
    assert not {"oracle", "fraction_of_oracle"} & set(said["reasons"])
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["scores"]
    assert kept["fraction_of_oracle.co_bps"] == said["fraction_of_oracle"]["co_bps"]
    assert main(["evaluate", run]) == 0
    assert "fraction_of_oracle r2_true_rates" in capsys.readouterr().out


def test_neurons_that_are_not_seen_say_nothing_by_their_silence():
    made = synthetic.lorenz(n_conditions=3, n_trials=1, n_bins=6, n_neurons=12)
    system, heldin = synthetic.system_of(made.generator), np.arange(0, 12, 3)
    alone = dataclasses.replace(system, weights=system.weights[:, heldin], bias=system.bias[heldin])
    counts = made.counts[:, heldin].reshape(3, 6, 4).astype(np.float32)
    rates = lorenz_filter(system, counts, heldin, 400, 0)[..., heldin]
    np.testing.assert_allclose(rates, lorenz_filter(alone, counts, np.arange(4), 400, 0), rtol=1e-3)


def test_the_evidence_of_a_count_of_one_unit_is_its_integral():
    mean, variance, count, highest = 0.3, 0.5, 2.0, np.float32(0.6)
    scale = np.full((1, 1), -1.0, np.float32), np.full((1, 1), 2.0, np.float32)
    at = mean + np.sqrt(variance) * np.linspace(-8, 8, 4001)
    part = np.clip((np.tanh(at) + 1) / 2, 1e-3, 1)
    weights = np.exp(-np.square(at - mean) / (2 * variance) + count * np.log(part) - highest * part)
    prior = np.exp(-np.square(at - mean) / (2 * variance)).sum()
    means, covariances = np.full((1, 1), mean, np.float32), np.full((1, 1, 1), variance, np.float32)
    found = take_in(means, covariances, np.full((1, 1), count, np.float32), np.arange(1), scale, highest)
    expected = (weights * at).sum() / weights.sum()
    np.testing.assert_allclose(found, np.log(weights.sum() / prior), rtol=1e-3)
    np.testing.assert_allclose(means, expected, rtol=1e-2)
    np.testing.assert_allclose(covariances, (weights * np.square(at - expected)).sum() / weights.sum(), rtol=2e-2)


def test_independent_units_have_the_exact_moments_of_a_bin_later():
    rng = np.random.default_rng(0)
    recurrent, mean = rng.normal(size=(3, 3)).astype(np.float32), np.array([[0.5, -1.0, 0.0]], np.float32)
    leak, variance = np.float32(0.4), np.array([0.3, 0.6, 0.8], np.float32)
    x = mean + np.sqrt(variance) * rng.normal(size=(400_000, 3))
    later = (1 - leak) * x + np.tanh(x) @ recurrent.T
    found_mean, found = propagated(mean, np.diag(variance)[None], recurrent, leak)
    np.testing.assert_allclose(found_mean[0], later.mean(0), atol=0.01)
    np.testing.assert_allclose(found[0], INFLATION * np.cov(later.T), atol=0.01)

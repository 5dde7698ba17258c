"""Disentanglement measures: hand-computed cases, scikit-learn, and codes that are pure, rotated, noise or dead."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import hadamard
from sklearn.metrics import mutual_info_score

from rtdsae.evaluate import disentanglement
from rtdsae.evaluate.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    is_continuous,
    level_of,
    mcc,
    mig,
    purity,
    sap,
)

GAPS = [mig, sap]
VOTES = [beta_vae_score, factor_vae_score]
NEED_TWO = [dci, *VOTES]


def crossed(*levels: np.ndarray, repeats: int) -> np.ndarray:
    """Every combination of the factors' levels, so many trials each, `(n, F)`."""
    grid = np.stack(np.meshgrid(*levels, indexing="ij"), -1).reshape(-1, len(levels))
    return np.repeat(grid, repeats, 0)


def mixed(codes: np.ndarray) -> np.ndarray:
    """Four codes in other axes, each an even mixture of all four."""
    return codes @ hadamard(4) / 2


SPEED_GAIN = crossed(np.array([0.1, 0.2, 0.4]), np.array([0.5, 1.0, 2.0]), repeats=40)
N = len(SPEED_GAIN)
NOISE = np.random.default_rng(0).normal(size=(N, 6))
PURE = np.column_stack([np.log2(SPEED_GAIN) + 0.1 * NOISE[:, :2], NOISE[:, 2:4]])
MIXED = mixed(PURE)

DIRECTION_SPEED = crossed(np.arange(8) * 45.0, np.array([0.1, 0.2, 0.4]), repeats=16)
ANGLE = np.deg2rad(DIRECTION_SPEED[:, 0])
CIRCLE = np.column_stack([np.cos(ANGLE), np.sin(ANGLE), np.log2(DIRECTION_SPEED[:, 1])])
CIRCLE = CIRCLE + 0.02 * np.random.default_rng(1).normal(size=CIRCLE.shape)


def test_the_examples():
    assert doctest.testmod(disentanglement).attempted > 0
    assert doctest.testmod(disentanglement).failed == 0


# MIG


def test_mig_by_hand():
    # Of 10 + 10 trials the first code is up in 5, all of level 1; the second is up in half of either level.
    factor = np.repeat([0.0, 1.0], 10)[:, None]
    codes = np.stack([np.repeat([0.0, 0.0, 0.0, 1.0], 5), np.tile(np.repeat([0.0, 1.0], 5), 2)], 1)
    left = 15 / 20 * -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))  # entropy that the first code leaves
    assert mig(codes, factor) == pytest.approx((math.log(2) - left) / math.log(2))
    assert mig(codes[:, [1, 1]], factor) == pytest.approx(0, abs=1e-12)


def test_mig_weighs_levels_by_their_trials():
    factor = np.repeat([0.0, 1.0], [30, 10])[:, None]
    assert mig(np.column_stack([factor, np.zeros(40)]), factor) == pytest.approx(1)


@pytest.mark.parametrize("bins", [2, 5, 20])
def test_mig_is_made_of_scikit_learns_information(bins):
    cut = [np.digitize(code, np.histogram_bin_edges(code, bins)[1:-1]) for code in MIXED.T]
    speed = np.repeat(["slow", "even", "fast"], N // 3)
    second, best = sorted(mutual_info_score(speed, code) for code in cut)[-2:]
    assert mig(MIXED, SPEED_GAIN[:, [0]], bins) == pytest.approx((best - second) / math.log(3))


def test_a_circular_factor_has_no_gap_unless_its_circle_is_cut():
    direction = DIRECTION_SPEED[:, [0]]
    assert mig(CIRCLE, direction) < 0.1
    assert mig(np.column_stack([ANGLE, NOISE[:1].repeat(len(ANGLE), 0)]), direction) == pytest.approx(1)


# DCI


def test_purity_by_hand():
    importance = np.array([[0.5, 0.0], [0.25, 0.25], [0.25, 0.75]])
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert purity(importance) == pytest.approx(0.25 * 1 + 0.25 * 0 + 0.5 * (1 - quarter))
    first, second = 1.5 * math.log(2), quarter * math.log(2)  # of (2, 1, 1)/4 and (0, 1, 3)/4, in nats
    assert purity(importance.T) == pytest.approx(1 - (first + second) / 2 / math.log(3))


def test_purity_at_its_ends():
    assert purity(np.eye(3)) == 1
    assert purity(np.ones((5, 3))) == pytest.approx(0)
    assert purity(np.zeros((5, 3))) == 0
    assert purity(np.vstack([np.eye(3), np.zeros((2, 3))])) == 1  # unused codes weigh nothing


@given(
    importance=hnp.arrays(float, (4, 3), elements=st.floats(0, 1).map(lambda v: round(v, 3))),
    order=st.permutations(range(4)),
    scale=st.floats(0.01, 100),
)
def test_purity_knows_no_order_and_no_unit(importance, order, scale):
    assert -1e-9 <= purity(importance) <= 1 + 1e-9
    assert purity(importance[order] * scale) == pytest.approx(purity(importance), abs=1e-9)


def test_dci_of_pure_mixed_and_noise_codes():
    pure, mix, noise = dci(PURE, SPEED_GAIN), dci(MIXED, SPEED_GAIN), dci(NOISE, SPEED_GAIN)
    assert min(pure) > 0.98
    assert max(mix.disentanglement, mix.completeness) < 0.1
    assert mix.informativeness > 0.8
    assert max(noise.disentanglement, noise.completeness) < 0.15
    assert noise.informativeness == pytest.approx(1 / 3, abs=0.12)


def test_two_codes_of_one_circle_are_disentangled_and_incomplete():
    found = dci(CIRCLE, DIRECTION_SPEED)
    assert found.disentanglement > 0.98
    assert found.informativeness > 0.98
    assert found.completeness < 0.8


def test_dci_of_continuous_sources():
    rng = np.random.default_rng(2)
    sources = rng.normal(size=(400, 2))
    codes = np.column_stack([sources[:, 1], rng.normal(size=(400, 2)), -sources[:, 0]])
    assert min(dci(codes, sources)) > 0.97
    assert dci(mixed(codes), sources).disentanglement < 0.2
    assert dci(codes[:, 1:3], sources).informativeness < 0.1


def test_pure_codes_among_many_of_noise_stay_pure():
    rng = np.random.default_rng(0)
    found = dci(np.column_stack([CIRCLE, rng.normal(size=(len(CIRCLE), 20))]), DIRECTION_SPEED)
    assert found.disentanglement > 0.95
    assert found.disentanglement <= 1


# SAP


def test_sap_of_a_sum_by_hand():
    # R2 of either code alone is its share of the variance: .64 and .36.
    codes = np.random.default_rng(4).normal(size=(4000, 3))
    factor = codes @ [0.8, 0.6, 0.0]
    assert sap(codes, factor[:, None]) == pytest.approx(0.64 - 0.36, abs=0.06)
    assert sap(codes, codes[:, [2]]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_sap_is_one_less_guessing_at_most(seed):
    uneven = np.repeat([0.0, 1.0], [95, 5])[:, None]
    assert sap(np.column_stack([uneven, np.zeros(100)]), uneven, seed) == 0.5
    assert sap(np.column_stack([uneven, -3 * uneven]), uneven, seed) == 0
    continuous = NOISE[:60, [0]]
    assert 0.8 < sap(NOISE[:60, :2], continuous, seed) <= 1


def test_sap_of_a_rare_level_is_not_what_guessing_the_common_one_gives():
    rare = np.repeat([0.0, 1.0], [N * 9 // 10, N // 10])[:, None]
    assert sap(np.column_stack([2 * rare[:, 0] + NOISE[:, 0], NOISE[:, 1]]), rare) > 0.2  # 84 % of either are apart


def test_noise_among_dead_codes_has_no_sap():
    codes = np.column_stack([NOISE[:, 0], np.full((N, 3), 0.1)])
    assert sap(codes, SPEED_GAIN) < 0.1


# Groups of trials that share a level


@pytest.mark.parametrize("score", VOTES)
def test_groups_tell_factors_by_pure_codes(score):
    assert score(PURE, SPEED_GAIN) == 1
    assert score(CIRCLE, DIRECTION_SPEED) == 1  # two codes for one factor are as good
    assert score(MIXED, SPEED_GAIN) < 0.7
    assert score(NOISE, SPEED_GAIN) == pytest.approx(1 / 2, abs=0.1)


@pytest.mark.parametrize("score", VOTES)
def test_few_trials_are_not_known_by_their_noise(score):
    factors = crossed(np.arange(8.0), np.arange(2.0), repeats=5)
    noise = np.random.default_rng(0).normal(size=(8, len(factors), 10))
    assert np.mean([score(codes, factors, seed) for seed, codes in enumerate(noise)]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("score", VOTES)
def test_dead_codes_are_of_no_account(score):
    assert score(np.column_stack([np.full((N, 2), 0.1), PURE]), SPEED_GAIN) == 1
    assert score(np.full((N, 4), 0.1), SPEED_GAIN) == 0.5


@pytest.mark.parametrize("score", VOTES)
def test_a_level_of_one_trial_in_a_half_is_refused(score):
    factors = np.stack([np.repeat([0.0, 1.0], [95, 5]), np.tile([0.0, 1.0], 50)], 1)
    with pytest.raises(ValueError, match="a single trial in one half"):
        [score(NOISE[:100], factors, seed) for seed in range(20)]  # some seed splits the five into one and four


# MCC


def test_mcc_by_hand():
    source = np.array([1.0, 1.0, -1.0, -1.0])
    other = np.array([1.0, -1.0, 1.0, -1.0])
    third = source * other  # all three uncorrelated
    codes = np.stack([0.6 * source + 0.8 * third, 0.8 * source + 0.6 * other], 1)
    # Correlations: code 0 with (source, other) .6, 0; code 1 .8, .6. No code serves twice: .6 + .6 beats .8 + 0.
    assert mcc(codes, np.stack([source, other], 1)) == pytest.approx(0.6)
    assert mcc(codes[:, [1]], np.stack([source, other], 1)) == pytest.approx(0.4)  # the other source goes without


@settings(max_examples=50)
@given(
    sources=hnp.arrays(float, (12, 3), elements=st.integers(-9, 9)).filter(lambda s: (np.ptp(s, 0) > 0).all()),
    codes=hnp.arrays(float, (12, 4), elements=st.integers(-9, 9)),
    order=st.permutations(range(4)),
    scale=hnp.arrays(float, 4, elements=st.sampled_from([-50.0, -1.0, 1e-4, 2.0])),
)
def test_mcc_knows_no_order_sign_or_scale(sources, codes, order, scale):
    assert 0 <= mcc(codes, sources) <= 1
    assert mcc(sources, sources) <= 1
    assert mcc((codes * scale + 3)[:, order], sources) == pytest.approx(mcc(codes, sources), abs=1e-9)


def test_rounding_is_no_code():
    source = np.arange(9.0)[:, None]
    assert mcc(1 + 1e-8 * source, source) == 0
    assert mcc(1e-8 * source, source) == pytest.approx(1)


@pytest.mark.parametrize(
    ("codes", "sources", "match"),
    [
        (np.ones((5, 2)), np.ones((4, 2)), "shapes"),
        (np.ones((2, 2)), np.eye(2), "at least 3"),
        (np.eye(3), np.column_stack([np.arange(3), np.full(3, 0.1)]), "source 1 does not vary"),
    ],
)
def test_mcc_refuses(codes, sources, match):
    with pytest.raises(ValueError, match=match):
        mcc(codes, sources)


# All of them


@pytest.mark.parametrize("gap", GAPS)
def test_gaps_of_pure_mixed_and_noise_codes(gap):
    pure, mix, noise = (gap(codes, SPEED_GAIN) for codes in (PURE, MIXED, NOISE))
    assert pure > 0.5
    assert mix < 0.1
    assert noise < 0.05


def test_mig_of_pure_codes_is_near_one():
    assert mig(PURE, SPEED_GAIN) > 0.9


@settings(max_examples=15)
@given(order=st.permutations(range(4)), scale=hnp.arrays(float, 4, elements=st.sampled_from([-8.0, -1.0, 0.25, 2.0])))
@pytest.mark.parametrize("score", [mig, factor_vae_score])
def test_order_sign_and_scale_of_codes_do_not_matter(score, order, scale):
    other = (MIXED * scale)[:, order]
    assert score(other, SPEED_GAIN) == pytest.approx(score(MIXED, SPEED_GAIN), abs=0.02)  # bins have a closed end


@pytest.mark.parametrize("score", [dci, sap, *VOTES])
def test_a_seed_is_a_result(score):
    assert score(MIXED, SPEED_GAIN, seed=5) == score(MIXED, SPEED_GAIN, seed=5)


def test_dead_codes_score_nothing():
    dead = np.full((N, 4), 0.1)
    assert [score(dead, SPEED_GAIN) for score in (mig, sap, mcc)] == [0, 0, 0]
    assert dci(dead, SPEED_GAIN)[:2] == (0, 0)


@pytest.mark.parametrize("score", [*GAPS, *NEED_TWO])
@pytest.mark.parametrize(
    ("codes", "factors", "match"),
    [
        (np.ones((20, 2)), np.ones((19, 2)), "both must be"),
        (np.ones(20), np.ones((20, 2)), "both must be"),
        (np.ones((0, 2)), np.ones((0, 2)), "both must be"),
        (np.ones((20, 1)), np.ones((20, 2)), "at least 2 codes"),
        (np.full((20, 2), np.nan), np.ones((20, 2)), "finite"),
        (np.ones((20, 2)), np.ones((20, 2)), "one level only, 1.0"),
        (np.ones((20, 2)), np.tile(np.repeat([1.0, 2.0], [17, 3]), (2, 1)).T, "level 2.0 of a factor has 3 trials"),
        (np.ones((4, 2)), np.tile([1.0, 2.0], (2, 2)).T, "at least 5"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, codes, factors, match):
    with pytest.raises(ValueError, match=match):
        score(codes, factors)


@pytest.mark.parametrize("score", NEED_TWO)
def test_one_factor_cannot_be_told_from_others(score):
    with pytest.raises(ValueError, match="2 factors are needed"):
        score(PURE, SPEED_GAIN[:, :1])


def test_quantile_bins_of_a_continuous_factor():
    level = level_of(np.random.default_rng(0).permutation(100.0 * np.arange(100)))
    assert np.bincount(level).tolist() == [10] * 10
    assert set(level_of(np.r_[np.zeros(70), 1.0 + np.arange(30)])) == {0, 1, 2, 3}  # ties share a level


def test_integers_and_text_are_levels_however_many():
    assert not is_continuous(np.arange(100))
    assert [is_continuous(np.arange(float(n))) for n in (20, 21)] == [False, True]
    assert not is_continuous(np.array([f"maze {i}" for i in range(100)]))
    assert level_of(np.array(["out", "back"] * 5)).tolist() == [1, 0] * 5

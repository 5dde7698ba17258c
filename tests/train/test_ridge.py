"""Ridge regression: what it finds, and that nothing is found in noise."""

import numpy as np

from rtdsae.evaluate.metrics import r2
from rtdsae.train.ridge import mean_r2, ridge


def test_ridge_finds_a_straight_line_and_leaves_noise_alone():
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(900, 5)) * [1, 10, 0.1, 1, 0], rng.normal(size=(5, 2))
    y = x @ w + 3
    parts = [(x[a : a + 300], y[a : a + 300]) for a in (0, 300, 600)]
    assert r2(parts[2][1], ridge(parts[:1], parts[1:2]).predict(parts[2][0])).min() > 0.999
    unrelated = rng.normal(size=(900, 2))
    noise = [(x[a : a + 300], unrelated[a : a + 300]) for a in (0, 300, 600)]
    assert abs(r2(noise[2][1], ridge(noise[:1], noise[1:2]).predict(noise[2][0])).mean()) < 0.05


def test_what_is_chosen_on_says_how_good_it_is():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    y = x @ rng.normal(size=(4, 3)) + rng.normal(size=(400, 3))
    found = ridge([(x[:200], y[:200])], [(x[200:], y[200:])])
    np.testing.assert_allclose(found.score, r2(y[200:], found.predict(x[200:])).mean(), rtol=1e-9)


def test_all_parts_choose_together():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 2))
    fit, parts = [(x[:100], y[:100])], [(x[a:b], y[a:b]) for a, b in ((100, 130), (130, 300))]
    apart, together = ridge(fit, parts), ridge(fit, [(x[100:], y[100:])])
    assert (apart.alpha, apart.score) == (together.alpha, together.score)


def test_what_never_varies_has_no_score():
    actual = np.full((10, 2), 0.1)
    assert mean_r2(actual, actual + 1) == 0.0

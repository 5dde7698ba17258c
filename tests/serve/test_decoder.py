"""When the model is anchored and how lanes are blended, on the real engine against the same model in numpy."""

import numpy as np
import pytest
from toy_bundle import Toy

from rtdsae import bundle
from rtdsae.errors import ConfigError
from rtdsae.serve.decoder import Decoder, triangles
from rtdsae.serve.engine import Engine
from rtdsae.wire import Flags

S, R = 5, 12


def decoder(folder, anchor, lanes=1, **options):
    toy = Toy(lanes=lanes, n_anchor=S)
    engine = Engine(bundle.load(toy.write(folder / "toy")))
    return toy, Decoder(engine, S, R, toy.n_channels, anchor, **options)


def drive(decoder, x, observed=None):
    """Every bin's flags and factors, as the daemon does it: publish, then anchor if due."""
    observed = np.ones(len(x), bool) if observed is None else observed
    flags, factors = [], []
    for counts, seen in zip(x, observed, strict=True):
        flags.append(decoder.decode(counts, bool(seen)))
        factors.append(decoder.outputs["factors"].copy())
        decoder.anchor_if_due()
    return flags, np.array(factors)


def anchored(flags):
    return [t for t, flag in enumerate(flags) if flag is not None and flag & Flags.ANCHORED]


def lane(toy, x, anchors, n_observed=None):
    """Factors of one lane that is anchored after each of these bins; a forecast after the first `n_observed`."""
    state, factors = None, np.full((len(x), 4), np.nan)
    for t in range(len(x)):
        if state is not None:
            state, out = toy.step(state, x[t], float(n_observed is None or t < n_observed))
            factors[t] = out["factors"]
        if t in anchors:
            state = toy.anchor(x[t + 1 - S : t + 1])
    return factors


def test_once_is_anchored_on_the_first_whole_bins_and_never_again(tmp_path):
    toy, subject = decoder(tmp_path, "once")
    x, observed = toy.counts(60), np.ones(60, bool)
    observed[2] = False
    flags, factors = drive(subject, x, observed)
    assert anchored(flags) == [8]
    assert flags[:8] == [None] * 8
    np.testing.assert_allclose(factors[8:], lane(toy, x, [7])[8:], atol=1e-5)


def test_every_is_anchored_each_r_bins_on_the_bins_before(tmp_path):
    toy, subject = decoder(tmp_path, "every")
    x = toy.counts(60)
    flags, factors = drive(subject, x)
    assert anchored(flags) == [5, 17, 29, 41, 53]
    np.testing.assert_allclose(factors[5:], lane(toy, x, [4, 16, 28, 40, 52])[5:], atol=1e-5)
    assert subject.anchors == 5


def test_a_gap_puts_the_anchor_off_until_whole_bins_have_come(tmp_path):
    toy, subject = decoder(tmp_path, "every")
    observed = np.ones(60, bool)
    observed[15] = False
    flags, _ = drive(subject, toy.counts(60), observed)
    assert anchored(flags) == [5, 21, 33, 45, 57]
    assert flags[15] == Flags.GAP


def test_an_anchor_that_gaps_forbid_is_overdue_until_there_is_one(tmp_path):
    toy, subject = decoder(tmp_path, "lanes", lanes=2)
    observed = np.ones(60, bool)
    observed[10:40:4] = False
    overdue = []
    for counts, seen in zip(toy.counts(60), observed, strict=True):
        subject.decode(counts, bool(seen))
        overdue.append(subject.overdue)
        subject.anchor_if_due()
    assert overdue[10:44] == [*range(34)]  # due after bin 10
    assert overdue[44:46] == [0, 0]


def test_a_gap_right_after_an_anchor_is_both(tmp_path):
    toy, subject = decoder(tmp_path, "once")
    observed = np.ones(8, bool)
    observed[5] = False
    flags, _ = drive(subject, toy.counts(8), observed)
    assert flags[5:] == [Flags.ANCHORED | Flags.GAP, 0, 0]


def test_lanes_are_anchored_in_turn_and_blended_by_age(tmp_path):
    toy, subject = decoder(tmp_path, "lanes", lanes=2)
    x = toy.counts(60)
    flags, factors = drive(subject, x)
    assert anchored(flags) == [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]
    lanes = [lane(toy, x, [4, *range(16, 60, 12)]), lane(toy, x, [4, *range(10, 60, 12)])]
    for t in range(5, 60):
        age = (t - 4) % 12
        weight = 1 - abs(2 * age / 12 - 1)
        np.testing.assert_allclose(factors[t], weight * lanes[0][t] + (1 - weight) * lanes[1][t], atol=1e-5)


@pytest.mark.parametrize(("n_lanes", "stride"), [(2, 1), (2, 15), (3, 10), (8, 4)])
def test_weights_add_up_to_one_and_are_nothing_where_a_lane_is_anchored(n_lanes, stride):
    weights = triangles(n_lanes, stride)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    for i in range(n_lanes):
        assert weights[i * stride, i] == 0
    assert stride == 1 or np.abs(np.diff(weights, axis=0)).max() <= 1 / stride + 1e-6  # nothing jumps


def test_lanes_that_wait_for_their_anchor_keep_their_weights(tmp_path):
    toy, subject = decoder(tmp_path, "lanes", lanes=2)
    observed = np.ones(40, bool)
    observed[9] = False
    flags, _ = drive(subject, toy.counts(40), observed)
    assert anchored(flags) == [5, 15, 21, 27, 33, 39]


def test_an_anchor_that_is_asked_for_comes_with_the_next_whole_bins(tmp_path):
    toy, subject = decoder(tmp_path, "once")
    x = toy.counts(40)
    drive(subject, x[:20])
    subject.want_anchor()
    flags, factors = drive(subject, x[20:])
    assert anchored(flags) == [1]
    np.testing.assert_allclose(factors[1:], lane(toy, x, [20])[21:], atol=1e-5)


def test_an_anchor_that_is_asked_for_is_where_the_time_to_the_next_begins(tmp_path):
    toy, subject = decoder(tmp_path, "every")
    x = toy.counts(60)
    assert anchored(drive(subject, x[:20])[0]) == [5, 17]
    subject.want_anchor()
    assert anchored(drive(subject, x[20:])[0]) == [1, 13, 25, 37]


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_anchor_that_is_asked_for_while_one_is_made_comes_too(tmp_path, monkeypatch, lanes):
    toy, subject = decoder(tmp_path, "lanes" if lanes > 1 else "once", lanes=lanes)
    x, asked, anchor = toy.counts(40), [], subject._engine.anchor

    def slow(window, lane):
        anchor(window, lane)
        asked.append(lane)
        if len(asked) == 1:
            subject.want_anchor()

    monkeypatch.setattr(subject._engine, "anchor", slow)
    drive(subject, x[:8])
    assert asked == [None, None]  # all lanes, twice


def test_a_forecast_is_the_same_as_bins_that_are_not_observed(tmp_path):
    toy, subject = decoder(tmp_path, "once")
    x, observed = toy.counts(30), np.ones(30, bool)
    drive(subject, x[:20])
    for ahead in (1, 2, 5):
        subject.look_ahead(ahead)
        expected = toy.run(np.concatenate([x[:20], np.zeros((ahead, 6))]), np.r_[np.ones(20), np.zeros(ahead)])
        np.testing.assert_allclose(subject.outputs["factors"], expected["factors"][-1], atol=1e-5)
    _, factors = drive(subject, x[20:], observed[20:])
    np.testing.assert_allclose(factors, toy.run(x)["factors"][15:], atol=1e-5)  # the state stayed


def test_a_forecast_of_lanes_is_blended_as_the_last_bin_was(tmp_path):
    toy, subject = decoder(tmp_path, "lanes", lanes=2)
    x, weight = toy.counts(21), 2 / 3  # lane 0 is 4 of 12 bins old
    drive(subject, x)
    for ahead in (1, 2, 5):
        subject.look_ahead(ahead)
        later = np.concatenate([x, np.zeros((ahead, 6), np.float32)])
        first, second = (lane(toy, later, anchors, 21)[-1] for anchors in ([4, 16], [4, 10]))
        np.testing.assert_allclose(subject.outputs["factors"], weight * first + (1 - weight) * second, atol=1e-5)


def test_another_model_takes_over_from_the_same_bins(tmp_path):
    toy, subject = decoder(tmp_path, "once")
    x = toy.counts(40)
    drive(subject, x[:20])
    _, new = decoder(tmp_path / "new", "once", recent=subject.recent)
    new.anchor_if_due()
    flags, factors = drive(new, x[20:])
    assert flags[0] == Flags.ANCHORED
    np.testing.assert_allclose(factors, lane(toy, x, [19])[20:], atol=1e-5)


def test_lanes_need_a_bundle_of_lanes(tmp_path):
    with pytest.raises(ConfigError, match="export it with --lanes 2"):
        decoder(tmp_path, "lanes", lanes=1)
    with pytest.raises(ConfigError, match="must be one of once, every, lanes"):
        decoder(tmp_path / "b", "often")

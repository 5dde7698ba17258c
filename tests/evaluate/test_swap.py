"""The swap test on models whose generators use what they are told to use, so that the answer is known."""

import numpy as np
import pytest
import torch

from rtdsae.evaluate.swap import decode, swap_test
from rtdsae.evaluate.trials import Trials

N, T = 120, 12


class Generative:
    """A model that is a generator alone: the factors are f, z, or both side by side."""

    def __init__(self, uses):
        self.uses = uses

    def eval(self):
        return self

    def generate(self, f, z, u):
        return torch.cat([{"f": f, "z": z}[name] for name in self.uses], 2)


def trials(seed):
    """f holds the label of a trial, and z both another copy of it and what happens within the trial."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, N)
    series = np.cumsum(rng.normal(size=(N, T)), 1)
    copies = np.eye(3)[label][:, None].repeat(T, 1)
    noise = [0.05 * rng.normal(size=(N, T, 3)) for _ in range(2)]
    outputs = {"f": copies + noise[0], "z": np.concatenate([copies + noise[1], series[..., None]], 2)}
    return Trials(outputs, {"speed": label.astype(float)}, {"push": series})


def test_a_generator_that_reads_the_label_from_f_follows_f():
    found = swap_test(Generative("f"), trials(0), trials(1))
    assert found["speed"] == {"f": 1.0, "z": 0.0}
    assert found["push"]["z"] < 0.1  # f knows nothing of what happened


def test_a_generator_that_reads_everything_from_z_follows_z():
    found = swap_test(Generative("z"), trials(0), trials(1))
    assert found["speed"] == {"f": 0.0, "z": 1.0}
    assert found["push"]["z"] > 0.99
    assert found["push"]["f"] < 0.5


@pytest.mark.parametrize(("uses", "follows", "other"), [("f", "f", "z"), ("z", "z", "f")])
def test_a_continuous_label_is_followed_by_its_value(uses, follows, other):
    def of(seed):
        rng = np.random.default_rng(seed)
        speed = rng.normal(size=N)
        held = speed[:, None, None].repeat(T, 1)
        return Trials({"f": held, "z": held + 0.01 * rng.normal(size=(N, T, 1))}, {"speed": speed}, {})

    found = swap_test(Generative(uses), of(0), of(1))["speed"]
    assert found[follows] > 0.95
    assert found[other] < 0.2


def test_only_pairs_that_differ_count_and_nobody_gets_his_own_f():
    mine, seen = trials(0), []

    class Watched(Generative):
        def generate(self, f, z, u):
            seen.append(f.numpy())
            return super().generate(f, z, u)

    swap_test(Watched("f"), mine, trials(1))
    swapped = seen[0]
    assert not (np.abs(swapped - mine.outputs["f"]).max((1, 2)) < 1e-6).any()
    np.testing.assert_allclose(np.sort(swapped.ravel()), np.sort(mine.outputs["f"].ravel()), rtol=1e-6)  # a permutation


def test_what_cannot_be_probed_is_refused():
    nothing = trials(0)
    nothing.labels = {}
    with pytest.raises(ValueError, match="neither `labels` nor `conditions`"):
        swap_test(Generative("f"), nothing, trials(1))
    alike, others = trials(0), trials(1)
    alike.labels = {"speed": np.zeros(N)}
    with pytest.raises(ValueError, match="no two trials differ"):
        swap_test(Generative("f"), alike, others)


def test_decoding_is_the_models_own_generator():
    mine = trials(0)
    factors = decode(Generative("fz"), mine.outputs["f"], mine.outputs["z"], None)
    np.testing.assert_allclose(factors, np.concatenate([mine.outputs["f"], mine.outputs["z"]], 2), rtol=1e-6)

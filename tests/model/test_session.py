"""Between the model and one session's neurons."""

import numpy as np
import pytest
import torch

from rtdsae.model.reconstruction import make_reconstruction
from rtdsae.model.session import ReadIn, ReadOut, Session

KINDS = ("poisson", "negative_binomial", "gaussian", "zero_inflated_gamma")


def test_channels_are_standardised_by_the_training_bins():
    counts = torch.poisson(torch.tensor([0.5, 2.0, 9.0]).expand(400, 3), generator=torch.Generator().manual_seed(0))
    readin = ReadIn(3, 0)
    readin.fit(counts)
    normalised = readin.normalise(counts).numpy()
    np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(0, ddof=1), 1, rtol=1e-5)


def test_a_rare_spike_is_at_most_ten_deviations_and_a_silent_channel_is_unscaled():
    counts = torch.zeros(10_000, 2)
    counts[17, 0] = 1
    readin = ReadIn(2, 0)
    readin.fit(counts)
    spike, rest = readin.normalise(counts)[17], readin.normalise(counts)[0]
    assert 9.9 < spike[0] <= 10
    assert (spike[1], rest[1]) == (0, 0)
    assert readin.normalise(torch.tensor([0.0, 3.0]))[1] == 3


def test_without_common_inputs_the_channels_are_the_inputs():
    readin, x = ReadIn(3, 0), torch.randn(2, 5, 3)
    assert readin.dim == 3
    assert torch.equal(readin(x), x)
    assert list(readin.parameters()) == []


def test_common_inputs_are_a_linear_map_without_offset():
    readin, x = ReadIn(5, 2), torch.randn(2, 4, 5)
    assert readin.dim == 2
    torch.testing.assert_close(readin(x), torch.einsum("btc,dc->btd", x, readin.linear.weight))
    assert torch.equal(readin(torch.zeros(5)), torch.zeros(2))  # a channel at its mean says nothing


def test_read_out_gives_each_neuron_its_values():
    readout, factors = ReadOut(4, 3, 2), torch.randn(2, 5, 4)
    values = readout(factors)
    assert values.shape == (2, 5, 2, 3)
    weight, bias = readout.linear.weight.reshape(2, 3, 4), readout.linear.bias.reshape(2, 3)
    torch.testing.assert_close(values, torch.einsum("btf,vnf->btvn", factors, weight) + bias)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_session_starts_at_the_reconstructions_start(kind):
    """Where the factors are 0, each neuron has the values that its own training counts start at."""
    torch.manual_seed(0)
    counts = torch.poisson(torch.tensor([0.2, 1.0, 3.0, 7.0, 0.7]).expand(300, 5))
    session = Session(3, 5, 0, 4, kind)
    session.fit(counts, counts[:, :3])
    values = session.readout(torch.zeros(4))
    torch.testing.assert_close(values, make_reconstruction(kind, 5).start(counts))
    if kind != "zero_inflated_gamma":
        torch.testing.assert_close(session.reconstruction.mean(values), counts.mean(0))
    torch.testing.assert_close(session.readin.mean, counts[:, :3].mean(0))


def test_the_normalisation_is_saved_with_the_weights():
    counts = torch.poisson(torch.full((50, 3), 2.0))
    session, other = (Session(3, 3, 2, 4, "poisson") for _ in range(2))
    session.fit(counts, counts)
    other.load_state_dict(session.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(other.readin(other.readin.normalise(x)), session.readin(session.readin.normalise(x)))

"""Latent traversals: what moves, what stays, and how far."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rtdsae.evaluate.traversals import Traversals, f_prior_sd, traverse, z_prior
from rtdsae.model.distributions import Gaussian
from rtdsae.model.families import make_family
from rtdsae.model.families.dsae_full import DSAEFullConfig
from rtdsae.model.families.fdmm import FDMMConfig
from rtdsae.model.families.fhvae import FHVAEConfig
from rtdsae.model.families.lfads import LFADSConfig
from rtdsae.model.family import Dims, Neurons
from rtdsae.model.priors import Labelled, Normal, Sequence, Tiled

C, R = 7, 12
SMALL = {"f_dim": 3, "z_dim": 2, "gen_dim": 8, "fac_dim": 5}
RNG = np.random.default_rng(0)
F, Z = RNG.normal(size=(20, 3)), RNG.normal(size=(R, 2))


def family(config, external=0, **more):
    torch.manual_seed(0)
    return make_family(config(**SMALL, **more), Dims((Neurons("a", C, C),), external, 0, 4, 4, 0.02, 4, R)).eval()


@pytest.mark.parametrize("config", [LFADSConfig, DSAEFullConfig, FHVAEConfig, FDMMConfig])
def test_the_middle_step_is_the_mean_and_the_others_are_standard_deviations_away(config):
    model = family(config)
    moved = traverse(model, F, Z)
    assert moved.factors.shape == (3, 5, R, 5)
    assert moved.rates.shape == (3, 5, R, C)
    assert moved.steps.tolist() == [-2, -1, 0, 1, 2]
    for dimension in range(3):
        for step, rates in zip(moved.steps, moved.rates[dimension], strict=True):
            f = F.mean(0) + step * moved.prior_sd * (np.arange(3) == dimension)
            f = torch.from_numpy(np.tile(f, (1, R, 1)).astype(np.float32))
            z = torch.from_numpy(Z[None].astype(np.float32))
            with torch.no_grad():
                expected = model.outputs(model.generate(f, z, None), z, f)[1].rates[0]
            np.testing.assert_allclose(rates, expected.numpy(), rtol=1e-4)
    assert (moved.effect > 0).all()


def test_a_dimension_that_the_generator_does_not_read_has_no_effect():
    model = family(LFADSConfig)
    with torch.no_grad():
        model.gen.initial.weight[:, 1] = 0
    effect = traverse(model, F, Z).effect
    assert effect[1] == 0
    assert effect[[0, 2]].min() > 0


def test_external_inputs_stay_as_they_are():
    model = family(LFADSConfig, external=2)
    u = RNG.normal(size=(R, 2))
    assert not np.allclose(traverse(model, F, Z, u).rates, traverse(model, F, Z, 0 * u).rates)


def test_the_priors_spread_is_that_of_what_the_generator_gets():
    np.testing.assert_allclose(f_prior_sd(family(LFADSConfig, f_prior=Normal(variance=0.25))), 0.5, rtol=1e-6)
    np.testing.assert_allclose(f_prior_sd(family(LFADSConfig, f_prior=Sequence())), 1.0)
    labelled = family(LFADSConfig, f_prior=Labelled(variance=4.0))
    np.testing.assert_allclose(f_prior_sd(labelled), 2.0, rtol=1e-6)
    with torch.no_grad():
        labelled.f_prior.mean[:, 0] = torch.tensor([0.0, 0.0, 6.0, 6.0])
    np.testing.assert_allclose(f_prior_sd(labelled), [np.sqrt(4 + 9), 2, 2], rtol=1e-6)


def test_the_prior_of_z_is_where_its_chains_end_up():
    model = family(LFADSConfig)
    alpha, v = model.z_prior.alpha().detach().numpy(), model.z_prior.logvar.detach().exp().numpy()
    mean, sd = z_prior(model)
    np.testing.assert_allclose(sd, np.sqrt(v / (1 - alpha**2)), rtol=0.1)
    assert np.abs(mean).max() < 4 * sd.max() / np.sqrt(512)
    mean, sd = z_prior(family(LFADSConfig, z_prior=Tiled(variance=9.0)))
    np.testing.assert_allclose(sd, 3.0, rtol=0.1)
    for config in (DSAEFullConfig, FHVAEConfig, FDMMConfig):
        assert all(np.isfinite(part).all() for part in z_prior(family(config)))
    np.testing.assert_array_equal(z_prior(model)[1], z_prior(model)[1])


def test_the_priors_memory_goes_on_with_its_chains():
    class Counting:
        def begin(self, n):
            return torch.zeros(n, 2), torch.zeros(n, 1)

        def __call__(self, z, memory):
            return Gaussian(memory.expand(-1, 2), torch.full((len(z), 2), -60.0)), memory + 1

    mean, _ = z_prior(SimpleNamespace(z_prior=Counting(), z_dim=2))
    np.testing.assert_allclose(mean, 199, rtol=1e-4)


def test_an_effect_is_from_end_to_end():
    rates = np.arange(-2.0, 3.0)[None, :, None, None] * np.array([1.0, 3.0])
    moved = Traversals(np.arange(-2.0, 3.0), rates, rates, np.ones(1))
    np.testing.assert_allclose(moved.effect, np.sqrt((16 + 144) / 2))

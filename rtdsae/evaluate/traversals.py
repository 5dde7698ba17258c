"""Latent traversals: one dimension of f moved, all else where it usually is, and what the generator makes of it."""

from dataclasses import dataclass

import numpy as np
import torch

from rtdsae.model.family import Family
from rtdsae.model.priors import LabelledGaussian, LearnableGaussian, SequenceGaussian

__all__ = ["Traversals", "f_prior_sd", "traverse", "z_prior"]

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # prior standard deviations
CHAINS, BURN_IN = 512, 200  # of the prior of z
SEED = 0


@dataclass(frozen=True)
class Traversals:
    """What the generator gives for f moved along each of its dimensions.

    Attributes:
        steps: (n_steps,) in standard deviations of the prior.
        factors: (f_dim, n_steps, R, n_factors).
        rates: (f_dim, n_steps, R, C) in spikes/s.
        prior_sd: (f_dim,).
    """

    steps: np.ndarray
    factors: np.ndarray
    rates: np.ndarray
    prior_sd: np.ndarray

    @property
    def effect(self) -> np.ndarray:
        """How much each dimension moves the rates: root mean square of the change from end to end, (f_dim,)."""
        change: np.ndarray = self.rates[:, -1] - self.rates[:, 0]
        return np.sqrt(np.square(change).mean((1, 2)))


@torch.no_grad()
def traverse(family: Family, f: np.ndarray, z: np.ndarray, u: np.ndarray | None = None) -> Traversals:
    """Move each dimension of f by up to 2 standard deviations of its prior from the mean of its posterior means.

    Args:
        family: the model, its session in use.
        f: posterior means of segments, (n, f_dim).
        z: z's mean course after an anchor, (R, z_dim); it stays as it is.
        u: external inputs likewise, (R, U), or None.
    """
    sd, steps = f_prior_sd(family), np.array(STEPS)
    centre = f.mean(0)
    moved = centre + steps[None, :, None] * np.diag(sd)[:, None]  # (f_dim, steps, f_dim)
    grid = torch.from_numpy(moved.reshape(-1, len(centre)).astype(np.float32))
    tiled = grid[:, None].expand(-1, len(z), -1)
    same = [
        None if part is None else torch.from_numpy(part.astype(np.float32)).expand(len(grid), -1, -1) for part in (z, u)
    ]
    assert same[0] is not None
    factors = family.eval().generate(tiled, same[0], same[1])
    rates = family.outputs(factors, same[0], tiled)[1].rates
    shape = (len(centre), len(steps), len(z), -1)
    return Traversals(steps, factors.numpy().reshape(shape), rates.numpy().reshape(shape), sd)


@torch.no_grad()
def f_prior_sd(family: Family) -> np.ndarray:
    """Standard deviation of the prior of what the generator is given of f, (f_dim,).

    Of a labelled prior it is that of the mixture of its labels; of a sequence prior that of the sequences' means,
    which is 1, since the generator gets the estimate of a mean.
    """
    prior = family.f_prior
    if isinstance(prior, SequenceGaussian):
        return np.ones(family.f_dim)
    assert isinstance(prior, LabelledGaussian | LearnableGaussian)
    variance = prior.logvar.exp()
    if isinstance(prior, LabelledGaussian):
        variance = variance.mean(0) + prior.mean.var(0, unbiased=False)
    sd: np.ndarray = variance.sqrt().numpy().astype(float)
    return sd


@torch.no_grad()
def z_prior(family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of z under its prior once it has run for a while, (z_dim,) each: of many chains."""
    generator = torch.Generator().manual_seed(SEED)
    z, memory = family.z_prior.begin(CHAINS)
    for _ in range(BURN_IN):
        p, memory = family.z_prior(z, memory)
        z = p.sample(torch.randn(CHAINS, family.z_dim, generator=generator))
    return z.mean(0).numpy(), z.std(0).numpy()

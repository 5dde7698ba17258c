"""The families, one paper's model a file: a configuration's `family` chooses."""

from rtdsae.model.families.dsae_factorized import DSAEFactorized, DSAEFactorizedConfig
from rtdsae.model.families.dsae_full import DSAEFull, DSAEFullConfig
from rtdsae.model.families.fdmm import FDMM, FDMMConfig
from rtdsae.model.families.fhvae import FHVAE, FHVAEConfig
from rtdsae.model.families.lfads import LFADS, LFADSConfig
from rtdsae.model.family import Dims, Family

__all__ = ["ModelConfig", "make_family"]

ModelConfig = LFADSConfig | DSAEFullConfig | DSAEFactorizedConfig | FHVAEConfig | FDMMConfig


def make_family(config: ModelConfig, dims: Dims) -> Family:
    """A new model of the configuration's family."""
    match config:
        case LFADSConfig():
            return LFADS(config, dims)
        case DSAEFullConfig():
            return DSAEFull(config, dims)
        case DSAEFactorizedConfig():
            return DSAEFactorized(config, dims)
        case FHVAEConfig():
            return FHVAE(config, dims)
        case FDMMConfig():
            return FDMM(config, dims)

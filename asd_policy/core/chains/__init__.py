"""The known Gaussian chains, one family a file. DDPM's is `asd_policy.core.schedule`."""

from asd_policy.core.chains.ancestral import ancestral_chain, euler_ancestral_chain
from asd_policy.core.chains.ddim import ddim_chain, unclipped_ddim
from asd_policy.core.chains.edm import edm_chain, edm_sigmas
from asd_policy.core.chains.sde import sde_chain

__all__ = [
    "ancestral_chain",
    "ddim_chain",
    "edm_chain",
    "edm_sigmas",
    "euler_ancestral_chain",
    "sde_chain",
    "unclipped_ddim",
]

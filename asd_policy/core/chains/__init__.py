"""The known Gaussian chains, one family a file. DDPM's is `asd_policy.core.schedule`."""

from asd_policy.core.chains.ancestral import ancestral_chain, euler_ancestral_chain
from asd_policy.core.chains.ddim import ddim_chain, unclipped_ddim

__all__ = ["ancestral_chain", "ddim_chain", "euler_ancestral_chain", "unclipped_ddim"]

"""The sampler: exact draws of any Gaussian chain in few sequential network calls. Imports torch alone."""

from asd_policy.core.calibration import Calibration, calibrate
from asd_policy.core.capture import CAPTURES
from asd_policy.core.chain import Chain, GaussianChain
from asd_policy.core.chains import (
    ancestral_chain,
    ddim_chain,
    edm_chain,
    edm_sigmas,
    euler_ancestral_chain,
    sde_chain,
    unclipped_ddim,
)
from asd_policy.core.denoiser import DENOISERS, Denoiser, EpsilonDenoiser, SampleDenoiser, VDenoiser
from asd_policy.core.drafts import DRAFTS
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.draws import Draws, SampleStats
from asd_policy.core.noise import Noise, NoiseTape, seeded_generator
from asd_policy.core.paths import FlowPath, GaussianPath, VePath, VpPath
from asd_policy.core.plain import (
    Ddim,
    Ddpm,
    PlainSampler,
    chain_sampler,
    ddim_sampler,
    ddpm_sampler,
    sample_chain,
    sample_ddim,
    sample_ddpm,
)
from asd_policy.core.preconditioning import (
    SIGMA_DENOISERS,
    EdmDenoiser,
    ScoreDenoiser,
    SigmaEpsilonDenoiser,
    SigmaVDenoiser,
    VelocityDenoiser,
)
from asd_policy.core.sampler import Asd, AsdSampler
from asd_policy.core.samplers import SAMPLERS, as_spec, parse_sampler
from asd_policy.core.schedule import Schedule
from asd_policy.core.sequential import OnRound
from asd_policy.core.spec import Sampler, SamplerOptions, SamplerSpec

__all__ = [
    "CAPTURES",
    "DENOISERS",
    "DRAFTS",
    "SAMPLERS",
    "SIGMA_DENOISERS",
    "Asd",
    "AsdSampler",
    "Calibration",
    "Chain",
    "Ddim",
    "Ddpm",
    "Denoiser",
    "Draft",
    "Draws",
    "EdmDenoiser",
    "EpsilonDenoiser",
    "FlowPath",
    "GaussianChain",
    "GaussianPath",
    "Noise",
    "NoiseTape",
    "OnRound",
    "PlainSampler",
    "SampleDenoiser",
    "SampleStats",
    "Sampler",
    "SamplerOptions",
    "SamplerSpec",
    "Schedule",
    "ScoreDenoiser",
    "SigmaEpsilonDenoiser",
    "SigmaVDenoiser",
    "VDenoiser",
    "VePath",
    "VelocityDenoiser",
    "VpPath",
    "ancestral_chain",
    "as_spec",
    "calibrate",
    "chain_sampler",
    "ddim_chain",
    "ddim_sampler",
    "ddpm_sampler",
    "edm_chain",
    "edm_sigmas",
    "euler_ancestral_chain",
    "parse_sampler",
    "sample_chain",
    "sample_ddim",
    "sample_ddpm",
    "sde_chain",
    "seeded_generator",
    "unclipped_ddim",
]

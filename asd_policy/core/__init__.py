"""The sampler: exact draws of any DDPM in few sequential network calls. Imports torch alone."""

from asd_policy.core.calibration import Calibration, calibrate
from asd_policy.core.capture import CAPTURES
from asd_policy.core.denoiser import DENOISERS, Denoiser, EpsilonDenoiser, SampleDenoiser, VDenoiser
from asd_policy.core.drafts import DRAFTS
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.draws import Draws, SampleStats
from asd_policy.core.noise import Noise, NoiseTape, seeded_generator
from asd_policy.core.plain import Ddim, Ddpm, PlainSampler, ddim_sampler, ddpm_sampler, sample_ddim, sample_ddpm
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
    "Asd",
    "AsdSampler",
    "Calibration",
    "Ddim",
    "Ddpm",
    "Denoiser",
    "Draft",
    "Draws",
    "EpsilonDenoiser",
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
    "VDenoiser",
    "as_spec",
    "calibrate",
    "ddim_sampler",
    "ddpm_sampler",
    "parse_sampler",
    "sample_ddim",
    "sample_ddpm",
    "seeded_generator",
]

"""The sampler: exact draws of any DDPM in a fraction of its sequential network calls. Needs torch alone."""

from asd_policy.core.denoiser import DENOISERS, Denoiser, EpsilonDenoiser, SampleDenoiser, VDenoiser
from asd_policy.core.drafts import DRAFTS
from asd_policy.core.draws import Draws, SampleStats
from asd_policy.core.noise import Noise, NoiseTape, seeded_generator
from asd_policy.core.plain import PlainSampler, ddim_sampler, ddpm_sampler, sample_ddim, sample_ddpm
from asd_policy.core.sampler import AsdSampler, Calibration
from asd_policy.core.schedule import Schedule
from asd_policy.core.sequential import OnRound

__all__ = [
    "DENOISERS",
    "DRAFTS",
    "AsdSampler",
    "Calibration",
    "Denoiser",
    "Draws",
    "EpsilonDenoiser",
    "Noise",
    "NoiseTape",
    "OnRound",
    "PlainSampler",
    "SampleDenoiser",
    "SampleStats",
    "Schedule",
    "VDenoiser",
    "ddim_sampler",
    "ddpm_sampler",
    "sample_ddim",
    "sample_ddpm",
    "seeded_generator",
]

"""Image sampling: diffusers' U-Nets and pipelines, sampled exactly in few sequential network calls."""

from asd_policy.images.accelerate import accelerate_pipeline
from asd_policy.images.pipeline import AsdImagePipeline
from asd_policy.images.scheduler import ddpm_scheduler, make_denoiser
from asd_policy.images.stable_diffusion import AsdStableDiffusion
from asd_policy.images.stable_diffusion_xl import AsdStableDiffusionXL
from asd_policy.images.unet import UnetNetwork

__all__ = [
    "AsdImagePipeline",
    "AsdStableDiffusion",
    "AsdStableDiffusionXL",
    "UnetNetwork",
    "accelerate_pipeline",
    "ddpm_scheduler",
    "make_denoiser",
]

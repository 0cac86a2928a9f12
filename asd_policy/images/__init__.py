"""Image sampling: diffusers' U-Nets and pipelines, sampled exactly in few sequential network calls."""

from asd_policy.images.pipeline import AsdImagePipeline
from asd_policy.images.scheduler import ddpm_scheduler, make_denoiser
from asd_policy.images.stable_diffusion import AsdStableDiffusion, accelerate_pipeline
from asd_policy.images.unet import UnetNetwork

__all__ = [
    "AsdImagePipeline",
    "AsdStableDiffusion",
    "UnetNetwork",
    "accelerate_pipeline",
    "ddpm_scheduler",
    "make_denoiser",
]

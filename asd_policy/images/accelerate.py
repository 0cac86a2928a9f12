"""accelerate_pipeline: exact sampling of a diffusers pipeline in few sequential U-Net calls."""

from __future__ import annotations

from diffusers import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from asd_policy.core import Draft
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.window import Window
from asd_policy.errors import ConfigError
from asd_policy.images.pipeline import AsdImagePipeline
from asd_policy.images.stable_diffusion import AsdStableDiffusion
from asd_policy.images.stable_diffusion_xl import AsdStableDiffusionXL


def accelerate_pipeline(
    pipe: DiffusionPipeline,
    draft: str | Draft = "path",
    window: Window = 24,
    max_states: int | None = None,
    capture: str | Capture = "eager",
) -> AsdStableDiffusion | AsdStableDiffusionXL | AsdImagePipeline:
    """A pipeline with the call of `pipe` that samples exactly, in few sequential U-Net calls.

    What is sampled: the chain of an EulerAncestralDiscreteScheduler as it is; that of a DDIMScheduler in calls with
    eta > 0; for any other scheduler the DDPM with its betas. docs/images.md says more.

    Args:
        pipe: a StableDiffusionPipeline, StableDiffusionXLPipeline or DDPMPipeline. It is neither moved nor changed, and
            shared: later changes to it (another scheduler, LoRA weights, another device, offloading) apply to both.
        draft: "path", "reuse" or "frozen" (the paper's), another name in DRAFTS, or a `Draft`.
        window: how many steps a round speculates, or a table with a number for each step; None for all.
        max_states: most rows in one call of the U-Net; see `UnetNetwork`.
        capture: how the rounds are run: "eager", "compile", "cuda_graph", another name in CAPTURES, or a `Capture`; see
            `AsdSampler` and docs/images.md.

    Raises:
        ConfigError: on another pipeline, a U-Net or scheduler that is not sampled exactly, or bad options.
    """
    if isinstance(pipe, DDPMPipeline):
        return AsdImagePipeline(pipe, "asd", max_states, draft=draft, window=window, capture=capture)
    if isinstance(pipe, StableDiffusionPipeline):
        return AsdStableDiffusion(pipe, draft, window, max_states, capture)
    if isinstance(pipe, StableDiffusionXLPipeline):
        return AsdStableDiffusionXL(pipe, draft, window, max_states, capture)
    raise ConfigError(
        f"Got a {type(pipe).__name__}; expected a StableDiffusionPipeline, a StableDiffusionXLPipeline or a "
        "DDPMPipeline."
    )

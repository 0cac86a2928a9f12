"""accelerate_pipeline: Stable Diffusion's prompts, guidance and decoder around the core's sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Generator, Tensor

from asd_policy.core import AsdSampler, OnRound, SampleStats, Schedule
from asd_policy.errors import ConfigError
from asd_policy.images.pipeline import AsdImagePipeline
from asd_policy.images.progress import progress_bar
from asd_policy.images.unet import UnetNetwork, ddpm_scheduler, make_denoiser

StepEnd = Callable[[DiffusionPipeline, int, int, dict[str, Tensor]], dict[str, Tensor] | None]


def accelerate_pipeline(
    pipe: DiffusionPipeline, draft: str = "path", window: int | None = 24, max_states: int | None = None
) -> AsdStableDiffusion | AsdImagePipeline:
    """The pipeline, sampling the DDPM of its noise schedule exactly, with a fraction of the sequential U-Net calls.

    Args:
        pipe: a StableDiffusionPipeline or DDPMPipeline. It is used where it is and stays as it was: what is done to it
            later (LoRA weights, another device, offloading) holds for both.
        draft: "path", "reuse" or "frozen" (the paper's).
        window: how many steps a round speculates; None for all.
        max_states: rows that one call of the U-Net may have; see `UnetNetwork`.

    Raises:
        ConfigError: on another pipeline, or one whose U-Net or scheduler is not a DDPM's.
    """
    if isinstance(pipe, DDPMPipeline):
        return AsdImagePipeline(pipe, "asd", max_states, draft=draft, window=window)
    if isinstance(pipe, StableDiffusionPipeline):
        return AsdStableDiffusion(pipe, draft, window, max_states)
    raise ConfigError(f"Got a {type(pipe).__name__}; expected a StableDiffusionPipeline or a DDPMPipeline.")


class AsdStableDiffusion:
    """Called as a StableDiffusionPipeline is; made by `accelerate_pipeline`."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        draft: str = "path",
        window: int | None = 24,
        max_states: int | None = None,
    ):
        missing = [name for name in ("unet", "vae", "scheduler") if getattr(pipe, name, None) is None]
        if missing:
            raise ConfigError(f"The pipeline has no {', '.join(missing)}; load it with all its components.")
        self.pipe = pipe
        # Latents are not bounded, whatever a scheduler that never clips leaves to DDPMScheduler's defaults.
        self.scheduler = ddpm_scheduler(pipe.scheduler, clip_sample=pipe.scheduler.config.get("clip_sample", False))
        self.stats: SampleStats | None = None
        """What the last images cost; None if they were interrupted."""
        self._draft, self._window, self._max_states = draft, window, max_states
        self._sampler(None, 1.0, (1,))  # refuses now what would fail at the first prompt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generator | list[Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionPipelineOutput | tuple[Any, Any]:
        """As StableDiffusionPipeline's call, apart from this:

        Args:
            num_inference_steps: K, strided from the training timesteps; None takes all of them, which is what makes the
                samples those of the DDPM that was trained.
            generator: one for the batch or one per image. The noise is drawn as the core draws it: with one generator
                per image, it is what StableDiffusionPipeline with a DDPMScheduler draws from them.
            callback_on_step_end: called once per round, with the last step that is certain in every image and its
                timestep; `latents` has each image where it is. It may stop the run (`pipe._interrupt = True`), but not
                change tensors: the samples would have another law.

        Raises:
            ConfigError: on arguments that diffusers refuses, a batch that does not fit the generators, or a callback
                that changes tensors.
            NumericalError: if the U-Net returned NaN or infinity.
        """
        pipe, unet = self.pipe, self.pipe.unet
        inputs = list(getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs))
        sample_size = unet.config.sample_size
        rows, columns = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        height, width = height or rows * pipe.vae_scale_factor, width or columns * pipe.vae_scale_factor
        device = pipe._execution_device  # pipe.device is where offloaded components wait
        with _as_config_errors():
            embeds = prompt_embeds, negative_prompt_embeds
            pipe.check_inputs(prompt, height, width, None, negative_prompt, *embeds, None, None, inputs)
            if prompt is not None and (pipe.text_encoder is None or pipe.tokenizer is None):
                raise ConfigError("The pipeline has no text encoder or tokenizer: pass prompt_embeds, not a prompt.")
            toward, away = pipe.encode_prompt(
                prompt, device, num_images_per_prompt, guidance_scale > 1, negative_prompt, *embeds
            )
        cond = torch.stack([away, toward] if guidance_scale > 1 else [toward], dim=1)  # (B, 2 or 1, L, D)
        event_shape = unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor
        sampler = self._sampler(num_inference_steps, guidance_scale, event_shape)
        pipe._guidance_scale, pipe._num_timesteps, pipe._interrupt = guidance_scale, sampler.num_steps, False
        tensors = {"prompt_embeds": toward, "negative_prompt_embeds": away}
        told = None
        if callback_on_step_end is not None:
            told = self._told(callback_on_step_end, inputs, tensors, sampler.schedule.timesteps.tolist())
        latents = self._draw(sampler, cond, generator, told)
        images, flags = self._decode(latents, output_type, toward.dtype)
        pipe.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flags) if return_dict else (images, flags)

    def _sampler(self, num_steps: int | None, guidance_scale: float, event_shape: tuple[int, ...]) -> AsdSampler:
        network = UnetNetwork(self.pipe.unet, guidance_scale, self._max_states)
        schedule = Schedule.from_diffusers(self.scheduler, num_steps)
        denoiser = make_denoiser(network, self.scheduler, schedule).to(self.pipe._execution_device)
        return AsdSampler(denoiser, schedule, event_shape, self._draft, self._window)

    def _draw(
        self, sampler: AsdSampler, cond: Tensor, generator: Generator | list[Generator] | None, told: OnRound | None
    ) -> Tensor:
        """Latents (B, C, H, W): finished, or where a callback stopped them."""
        self.stats = None
        try:
            with progress_bar(self.pipe, sampler.num_steps, told) as report:
                draws = sampler.draw(len(cond), cond, generator, on_round=report)
        except _Interrupted as interrupted:
            return interrupted.latents
        self.stats = draws.stats
        return draws.x

    def _told(
        self, callback: StepEnd, inputs: Sequence[str], tensors: dict[str, Tensor], timesteps: Sequence[int]
    ) -> OnRound:
        """A callback of diffusers as one of the core."""

        def on_round(frontier: Tensor, x: Tensor) -> None:
            given = {name: {**tensors, "latents": x}[name] for name in inputs}
            step = int(frontier.min()) - 1
            returned = callback(self.pipe, step, timesteps[step], dict(given)) or {}
            changed = [name for name, value in returned.items() if value is not given.get(name)]
            if changed:
                raise ConfigError(
                    f"callback_on_step_end returned other {', '.join(changed)} than it was given. Changing a run "
                    "on its way gives samples of another law: use the plain pipeline for that."
                )
            if self.pipe.interrupt:
                raise _Interrupted(x)

        return on_round

    def _decode(self, latents: Tensor, output_type: str, dtype: torch.dtype) -> tuple[Any, list[bool] | None]:
        """Latents (B, C, H, W) -> images of `output_type`, and which of them the safety checker has blackened."""
        pipe, image, flags = self.pipe, latents, None
        if output_type != "latent":
            scaled = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
            image = pipe.vae.decode(scaled, return_dict=False)[0]
            image, flags = pipe.run_safety_checker(image, image.device, dtype)
        denormalize = [True] * len(image) if flags is None else [not flag for flag in flags]
        return pipe.image_processor.postprocess(image, output_type=output_type, do_denormalize=denormalize), flags


class _Interrupted(Exception):  # noqa: N818  # no error: a callback asked for it
    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


@contextmanager
def _as_config_errors() -> Iterator[None]:
    """diffusers' complaints about arguments, in this package's family."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error

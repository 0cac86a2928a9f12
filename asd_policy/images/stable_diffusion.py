"""accelerate_pipeline: exact sampling of Stable Diffusion, with its prompts, guidance and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from asd_policy.core import Asd, AsdSampler, Denoiser, Draft, NoiseTape, OnRound, SampleStats
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.window import Window
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import (
    OUTPUT_TYPES,
    as_config_errors,
    check_embeddings,
    check_name,
    check_pipeline,
    check_words,
    checked_window,
    finite,
    image_size,
    refuse,
    whole,
)
from asd_policy.images.callbacks import Interrupted, StepEnd, check_callback, watch
from asd_policy.images.capture import PipelineSamplers
from asd_policy.images.noise import Generators, diffusers_noise
from asd_policy.images.pipeline import AsdImagePipeline
from asd_policy.images.progress import progress_bar
from asd_policy.images.scheduler import ddpm_schedule, ddpm_scheduler
from asd_policy.images.unet import UnetNetwork

TENSOR_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""Tensors that callback_on_step_end can request."""


def accelerate_pipeline(
    pipe: DiffusionPipeline,
    draft: str | Draft = "path",
    window: Window = 24,
    max_states: int | None = None,
    capture: str | Capture = "eager",
) -> AsdStableDiffusion | AsdImagePipeline:
    """A pipeline that samples the DDPM of `pipe`'s noise schedule exactly, in few sequential U-Net calls.

    Args:
        pipe: a StableDiffusionPipeline or DDPMPipeline. It is neither moved nor changed, and shared: later changes to
            it (another scheduler, LoRA weights, another device, offloading) apply to both.
        draft: "path", "reuse" or "frozen" (the paper's), another name in DRAFTS, or a `Draft`.
        window: how many steps a round speculates, or a table with a number for each step; None for all.
        max_states: most rows in one call of the U-Net; see `UnetNetwork`.
        capture: how the rounds are run: "eager", "compile", "cuda_graph", another name in CAPTURES, or a `Capture`; see
            `AsdSampler` and docs/images.md.

    Raises:
        ConfigError: on another pipeline, a U-Net or scheduler that is not a DDPM's, or bad options.
    """
    if isinstance(pipe, DDPMPipeline):
        return AsdImagePipeline(pipe, "asd", max_states, draft=draft, window=window, capture=capture)
    if isinstance(pipe, StableDiffusionPipeline):
        return AsdStableDiffusion(pipe, draft, window, max_states, capture)
    raise ConfigError(f"Got a {type(pipe).__name__}; expected a StableDiffusionPipeline or a DDPMPipeline.")


class _Texts(NamedTuple):
    """The prompt and the negative prompt, as text or as embeddings."""

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None


class AsdStableDiffusion:
    """Has the call of a StableDiffusionPipeline; made by `accelerate_pipeline`."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        draft: str | Draft = "path",
        window: Window = 24,
        max_states: int | None = None,
        capture: str | Capture = "eager",
    ):
        self.pipe = pipe
        self.stats: SampleStats | None = None
        """The cost of the last images; None if they were interrupted."""
        self._spec = Asd(draft, checked_window(window), capture)
        max_states = None if max_states is None else whole("max_states", max_states)
        self._samplers: PipelineSamplers[AsdSampler] = PipelineSamplers(capture, max_states)
        table = self._spec.window if isinstance(self._spec.window, tuple) else None
        # Raises now what would fail at the first prompt.
        self._sampler(self._network(1.0), len(table) if table else None, None, (1,))

    @property
    def scheduler(self) -> DDPMScheduler:
        """The DDPM with the betas of the pipeline's scheduler."""
        # Latents are clipped only if the scheduler's config says so; DDPMScheduler's default would clip them.
        scheduler = self.pipe.scheduler
        return ddpm_scheduler(scheduler, clip_sample=getattr(scheduler, "config", {}).get("clip_sample", False))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **others: None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, Any]:
        """As the call of StableDiffusionPipeline with a DDPMScheduler, with these differences:

        Args:
            height, width: both or neither.
            num_inference_steps: K, strided from the training timesteps; None takes all of them. Only then is the law
                that of the trained DDPM.
            timesteps: the training timesteps to use, in descending order; num_inference_steps is then ignored.
            sigmas, ip_adapter_image, ip_adapter_image_embeds, and diffusers' former callback and callback_steps: None;
                anything else is refused.
            eta: ignored: it is DDIM's.
            generator: one for the batch or one per image. The noise equals diffusers' from the same generators in
                float32.
            cross_attention_kwargs: plain values, such as {"scale": 0.5} for LoRA weights.
            callback_on_step_end: called after each round, with the last step that is certain in every image and its
                timestep; `latents` has each image's present state. It may stop the run (`pipe._interrupt = True`) but
                not change it: the samples would have another law. capture="cuda_graph" cannot call it.

        Raises:
            ConfigError: on arguments that diffusers refuses or that do not exist, a batch that does not fit the
                generators or latents, a callback that changes the run, or as the constructor if the pipeline was
                changed.
            NumericalError: if the U-Net returned NaN or infinity.
        """
        adapters = {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds}
        refuse({"sigmas": sigmas, **adapters, **others}, self.__call__)
        check_name("output_type", output_type, OUTPUT_TYPES)
        self._samplers.check_watcher("callback_on_step_end", callback_on_step_end)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, TENSOR_INPUTS)
        pipe = self.pipe
        network = self._network(guidance_scale, guidance_rescale, cross_attention_kwargs)
        shape = self._event_shape(height, width, latents)
        sampler = self._sampler(network, num_inference_steps, timesteps, shape)
        pipe._guidance_scale, pipe._guidance_rescale = network.guidance_scale, network.guidance_rescale
        pipe._clip_skip, pipe._cross_attention_kwargs = clip_skip, cross_attention_kwargs
        pipe._num_timesteps, pipe._interrupt = sampler.num_steps, False

        texts = _Texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        cond = self._encode(texts, whole("num_images_per_prompt", num_images_per_prompt))
        inputs = callback_on_step_end_tensor_inputs
        embeds = {"prompt_embeds": cond[:, -1], "negative_prompt_embeds": cond[:, 0] if cond.shape[1] > 1 else None}
        watcher = watch(pipe, callback_on_step_end, inputs, embeds, sampler.schedule.timesteps.tolist())
        noise = self._noise(sampler, len(cond), generator, latents)
        drawn = self._draw(sampler, cond, noise, watcher)
        images, flags = self._decode(drawn, output_type, cond.dtype, generator)
        pipe.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flags) if return_dict else (images, flags)

    def _network(self, guidance_scale: float, rescale: float = 0.0, attention: Any = None) -> UnetNetwork:
        """The pipeline's present U-Net."""
        pipe, own = self.pipe, ("__call__", "prepare_latents")
        check_pipeline(pipe, StableDiffusionPipeline, ("unet", "vae", "scheduler"), own, text=True)
        guidance_scale, rescale = finite("guidance_scale", guidance_scale), finite("guidance_rescale", rescale)
        network = UnetNetwork(pipe.unet, guidance_scale, None, rescale, attention)
        latent, decoded = pipe.unet.config.in_channels, pipe.vae.config.get("latent_channels")
        if decoded not in (None, latent):
            raise ConfigError(f"The U-Net makes latents of {latent} channels; the VAE decodes {decoded}.")
        if pipe.safety_checker is not None and pipe.feature_extractor is None:
            raise ConfigError("The pipeline has a safety checker and no feature_extractor; expected both or neither.")
        return network

    def _sampler(
        self,
        network: UnetNetwork,
        num_steps: int | None,
        timesteps: Sequence[int] | None,
        event_shape: tuple[int, ...],
    ) -> AsdSampler:
        """The sampler for the present state of the pipeline."""
        scheduler = self.scheduler
        schedule = ddpm_schedule(scheduler, num_steps, timesteps)

        def make(denoiser: Denoiser, capture: Capture) -> AsdSampler:
            return replace(self._spec, capture=capture).build(denoiser, schedule, event_shape)

        return self._samplers.get(network, scheduler, schedule, event_shape, self.pipe._execution_device, make)

    def _event_shape(self, height: int | None, width: int | None, latents: Tensor | None) -> tuple[int, ...]:
        """(C, H, W) of a latent image, from the latents, the requested size or the U-Net."""
        pipe, config = self.pipe, self.pipe.unet.config
        if latents is not None and (not isinstance(latents, Tensor) or latents.ndim != 4):
            raise ConfigError(f"latents is {latents!r}; expected a tensor (B, C, H, W) or None.")
        if height is None and width is None:
            size = config.sample_size if latents is None else latents.shape[2:]
            if size is None:
                raise ConfigError("The U-Net has no sample_size; pass height and width.")
            return config.in_channels, *image_size(size)
        asked = [whole("height or width", value) for value in (height, width) if value is not None]
        if any(value % 8 for value in asked):
            raise ConfigError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}.")
        if len(asked) == 1:
            raise ConfigError(f"height is {height} and width is {width}; expected both or neither.")
        return config.in_channels, *(value // pipe.vae_scale_factor for value in asked)

    def _encode(self, texts: _Texts, images_per_prompt: int) -> Tensor:
        """The U-Net's condition (B, G, L, D): with guidance (G = 2) negative embeddings, then the prompt's."""
        pipe, options = self.pipe, self.pipe.cross_attention_kwargs or {}
        guided = pipe.do_classifier_free_guidance
        prompt, negative, embeds, negative_embeds = texts
        check_words(prompt=prompt, negative_prompt=negative)
        check_embeddings(pipe.unet.config, prompt_embeds=embeds, negative_prompt_embeds=negative_embeds)
        with as_config_errors():
            pipe.check_inputs(prompt, 8, 8, None, negative, embeds, negative_embeds)
            words = prompt is not None or (guided and negative_embeds is None)
            if words and (pipe.text_encoder is None or pipe.tokenizer is None):
                raise ConfigError(
                    "The pipeline has no text encoder or tokenizer: pass prompt_embeds, not a prompt, and "
                    "negative_prompt_embeds for guidance."
                )
            embedded: tuple[Tensor, Tensor] = pipe.encode_prompt(
                prompt,
                pipe._execution_device,  # pipe.device is where offloaded components wait
                images_per_prompt,
                guided,
                negative,
                embeds,
                negative_embeds,
                lora_scale=options.get("scale"),
                clip_skip=None if pipe.clip_skip is None else whole("clip_skip", pipe.clip_skip, least=0),
            )
        toward, away = embedded
        check_embeddings(pipe.unet.config, **{"The text encoder's output": toward})
        if not guided:
            return toward.unsqueeze(1)
        if toward.shape != away.shape:
            raise ConfigError(
                f"Embeddings of the prompt have shape {tuple(toward.shape)}, those of the negative prompt "
                f"{tuple(away.shape)}; expected the same."
            )
        return torch.stack([away, toward], dim=1)

    def _noise(self, sampler: AsdSampler, batch_size: int, generator: Generators, latents: Tensor | None) -> NoiseTape:
        """The tape. It starts at `latents` if they are given."""
        device, shape = self.pipe._execution_device, sampler.event_shape
        if latents is not None:
            latents = latents.to(device, torch.float32)
            if latents.shape != (batch_size, *shape) or not bool(latents.isfinite().all()):
                raise ConfigError(
                    f"latents have shape {tuple(latents.shape)}; expected finite values of {(batch_size, *shape)}."
                )
        return diffusers_noise(batch_size, sampler.num_steps, shape, generator, device, latents)

    def _draw(self, sampler: AsdSampler, cond: Tensor, noise: Any, watcher: OnRound) -> Tensor:
        """Latents (B, C, H, W): finished, or in the state at which a callback stopped them."""
        self.stats = None
        try:
            with progress_bar(self.pipe, sampler.num_steps, watcher) as report:
                draws = sampler.draw(len(cond), cond, noise, on_round=report if self._samplers.watched else None)
        except Interrupted as interrupted:
            return interrupted.latents
        self.stats = draws.stats
        return draws.x

    def _decode(
        self, latents: Tensor, output_type: str, dtype: torch.dtype, generator: Generators
    ) -> tuple[Any, list[bool] | None]:
        """Decode latents (B, C, H, W) to `output_type`, and tell which images the safety checker has blackened."""
        pipe, image, flags = self.pipe, latents, None
        if output_type != "latent":
            scaled = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
            image = pipe.vae.decode(scaled, return_dict=False, generator=generator)[0]
            image, flags = pipe.run_safety_checker(image, image.device, dtype)
        denormalize = [True] * len(image) if flags is None else [not flag for flag in flags]
        return pipe.image_processor.postprocess(image, output_type=output_type, do_denormalize=denormalize), flags

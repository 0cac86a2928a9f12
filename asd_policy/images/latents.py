"""The drawing of latents, which Stable Diffusion and Stable Diffusion XL share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from asd_policy.core import Asd, AsdSampler, Denoiser, Draft, SampleStats
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.window import Window
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import (
    OUTPUT_TYPES,
    check_name,
    check_pipeline,
    checked_window,
    finite,
    image_size,
    whole,
)
from asd_policy.images.callbacks import Interrupted, StepEnd, check_callback, watch
from asd_policy.images.capture import PipelineSamplers
from asd_policy.images.laws import DdpmOfBetas, Law, StepsAsked, law_at_construction, law_of
from asd_policy.images.noise import Generators, diffusers_noise
from asd_policy.images.progress import progress_bar
from asd_policy.images.unet import UnetNetwork


@dataclass(frozen=True)
class Kind:
    """A kind of text-to-image pipeline.

    Attributes:
        pipeline: diffusers' class.
        additions: the `addition_embed_type`s of the U-Nets that the pipeline feeds.
        tensor_inputs: tensors that `callback_on_step_end` can request.
    """

    pipeline: type[DiffusionPipeline]
    additions: tuple[str | None, ...]
    tensor_inputs: tuple[str, ...]


class Request(NamedTuple):
    """The arguments that the calls of both pipelines have, apart from texts and sizes; named as in diffusers."""

    steps: StepsAsked
    guidance_scale: float
    guidance_rescale: float
    cross_attention_kwargs: dict[str, Any] | None
    clip_skip: int | None
    generator: Generators
    latents: Tensor | None
    output_type: str
    callback_on_step_end: StepEnd | None
    callback_on_step_end_tensor_inputs: Sequence[str]


class LatentPipeline:
    """Samples the latents of a text-to-image pipeline as it is at each call; subclasses encode texts and decode images.

    Args:
        pipe, draft, window, max_states, capture: as `accelerate_pipeline`.

    Attributes:
        kind: the kind of pipeline that the subclass takes.
        pipe: the pipeline, as it is at each call.
        stats: the cost of the last images; None if they were interrupted.

    Raises:
        ConfigError: as `accelerate_pipeline`.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        pipe: Any,
        draft: str | Draft = "path",
        window: Window = 24,
        max_states: int | None = None,
        capture: str | Capture = "eager",
    ):
        self.pipe = pipe
        self.stats: SampleStats | None = None
        self._betas = DdpmOfBetas(clips_by_default=False)  # DDPMScheduler's own default would clip latents at 1
        self._spec = Asd(draft, checked_window(window), capture)
        max_states = None if max_states is None else whole("max_states", max_states)
        self._samplers: PipelineSamplers[AsdSampler] = PipelineSamplers(capture, max_states)
        network = self._network(1.0)
        # Raises now what would fail at the first prompt.
        self._build(network, law_at_construction(pipe.scheduler, self._spec.window, self._betas), (1,))

    @property
    def scheduler(self) -> DDPMScheduler:
        """The DDPM with the betas of the pipeline's scheduler, which is sampled unless the scheduler is kept."""
        return self._betas.scheduler(self.pipe.scheduler)

    def _begin(self, request: Request, height: int | None, width: int | None) -> AsdSampler:
        """Check the request against the present pipeline, set the attributes that diffusers sets, make the sampler.

        Args:
            height, width: of the images, both or neither.

        Raises:
            ConfigError: on arguments that do not fit, or as the constructor if the pipeline was changed.
        """
        check_name("output_type", request.output_type, OUTPUT_TYPES)
        self._samplers.check_watcher("callback_on_step_end", request.callback_on_step_end)
        inputs = request.callback_on_step_end_tensor_inputs
        check_callback(request.callback_on_step_end, inputs, self.kind.tensor_inputs)
        network = self._network(request.guidance_scale, request.guidance_rescale, request.cross_attention_kwargs)
        shape = self._event_shape(height, width, request.latents)
        pipe = self.pipe
        sampler = self._build(network, law_of(pipe.scheduler, request.steps, self._betas), shape)
        pipe._guidance_scale, pipe._guidance_rescale = network.guidance_scale, network.guidance_rescale
        pipe._clip_skip, pipe._cross_attention_kwargs = request.clip_skip, request.cross_attention_kwargs
        pipe._num_timesteps, pipe._interrupt = sampler.num_steps, False
        return sampler

    def _draw(
        self, sampler: AsdSampler, request: Request, cond: Tensor, tensors: Mapping[str, Tensor | None]
    ) -> Tensor:
        """Latents (B, C, H, W): finished, or in the state at which a callback stopped them.

        Args:
            cond: (B, G, ...) as `UnetNetwork`.
            tensors: the tensors beside the latents that `callback_on_step_end` can request.
        """
        callback, inputs = request.callback_on_step_end, request.callback_on_step_end_tensor_inputs
        watcher = watch(self.pipe, callback, inputs, tensors, sampler.schedule.timesteps.tolist())
        device, shape = self.pipe._execution_device, sampler.event_shape
        start = None if request.latents is None else request.latents.to(device, torch.float32)
        _check_latents(start, (len(cond), *shape))
        noise = diffusers_noise(len(cond), sampler.num_steps, shape, request.generator, device, start)
        self.stats = None
        try:
            with progress_bar(self.pipe, sampler.num_steps, watcher) as report:
                draws = sampler.draw(len(cond), cond, noise, on_round=report if self._samplers.watched else None)
        except Interrupted as interrupted:
            return interrupted.latents
        self.stats = draws.stats
        return draws.x

    def _network(self, guidance_scale: float, rescale: float = 0.0, attention: Any = None) -> UnetNetwork:
        """The pipeline's present U-Net."""
        pipe, kind = self.pipe, self.kind
        own = ("__call__", "prepare_latents")
        check_pipeline(pipe, kind.pipeline, ("unet", "vae", "scheduler"), own, kind.additions)
        guidance_scale, rescale = finite("guidance_scale", guidance_scale), finite("guidance_rescale", rescale)
        network = UnetNetwork(pipe.unet, guidance_scale, None, rescale, attention)
        latent, decoded = pipe.unet.config.in_channels, pipe.vae.config.get("latent_channels")
        if decoded not in (None, latent):
            raise ConfigError(f"The U-Net makes latents of {latent} channels; the VAE decodes {decoded}.")
        if getattr(pipe, "safety_checker", None) is not None and pipe.feature_extractor is None:
            raise ConfigError("The pipeline has a safety checker and no feature_extractor; expected both or neither.")
        return network

    def _build(self, network: UnetNetwork, law: Law, event_shape: tuple[int, ...]) -> AsdSampler:
        """The sampler for the present state of the pipeline."""

        def make(denoiser: Denoiser, capture: Capture) -> AsdSampler:
            return replace(self._spec, capture=capture).build(denoiser, law.chain, event_shape)

        return self._samplers.get(network, law, event_shape, self.pipe._execution_device, make)

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


def _check_latents(latents: Tensor | None, expected: tuple[int, ...]) -> None:
    """Raise ConfigError unless the latents are None or finite and of the `expected` shape (B, C, H, W)."""
    if latents is not None and (latents.shape != expected or not bool(latents.isfinite().all())):
        raise ConfigError(f"latents have shape {tuple(latents.shape)}; expected finite values of {expected}.")


def halves(name: str, toward: Tensor, away: Tensor | None) -> Tensor:
    """Stack what guidance moves away from and toward, each (B, ...), to (B, G, ...); G is 1 without `away`.

    Args:
        name: what they are, for the error.

    Raises:
        ConfigError: if their shapes differ.
    """
    if away is None:
        return toward.unsqueeze(1)
    if toward.shape != away.shape:
        raise ConfigError(
            f"{name} of the prompt have shape {tuple(toward.shape)}, those of the negative prompt "
            f"{tuple(away.shape)}; expected the same."
        )
    return torch.stack([away, toward], dim=1)

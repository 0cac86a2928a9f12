"""AsdStableDiffusionXL: exact sampling of Stable Diffusion XL, with its two prompts, sizes, guidance and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.images.arguments import (
    as_config_errors,
    check_embeddings,
    check_pooled,
    check_words,
    finite,
    refuse,
    whole,
)
from asd_policy.images.callbacks import StepEnd
from asd_policy.images.conditions import TextAndSizes, pooled_width
from asd_policy.images.latents import Kind, LatentPipeline, Request, halves
from asd_policy.images.laws import StepsAsked, warn_of_ddim
from asd_policy.images.noise import Generators

Pair = Sequence[float]
"""Two numbers: a height and a width, or the top and the left edge of a crop."""


class _Texts(NamedTuple):
    """The prompts and the negative prompts, as text or as embeddings."""

    prompt: str | list[str] | None
    prompt_2: str | list[str] | None
    negative_prompt: str | list[str] | None
    negative_prompt_2: str | list[str] | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None


class _Sizes(NamedTuple):
    """The sizes that the U-Net is told."""

    original_size: Pair | None
    crops_coords_top_left: Pair
    target_size: Pair | None
    negative_original_size: Pair | None
    negative_crops_coords_top_left: Pair
    negative_target_size: Pair | None


class AsdStableDiffusionXL(LatentPipeline):
    """Has the call of a StableDiffusionXLPipeline; made by `accelerate_pipeline`."""

    kind = Kind(
        StableDiffusionXLPipeline,
        additions=("text_time",),
        tensor_inputs=("latents", "prompt_embeds", "add_text_embeds", "add_time_ids"),
    )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: None = None,
        denoising_end: None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        negative_original_size: Pair | None = None,
        negative_crops_coords_top_left: Pair = (0, 0),
        negative_target_size: Pair | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **others: None,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """As the call of StableDiffusionXLPipeline, with the differences of `AsdStableDiffusion` and these:

        Args:
            height, width: one alone is fine; the other has the pipeline's default.
            denoising_end: None. Latents for a refiner are not supported.
            negative_original_size, negative_target_size: both or neither. With several images each gets its own
                negative sizes, where diffusers mixes those of different images.

        Raises as `AsdStableDiffusion`.
        """
        adapters = {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds}
        refuse({"sigmas": sigmas, "denoising_end": denoising_end, **adapters, **others}, self.__call__)
        request = Request(
            StepsAsked(num_inference_steps, timesteps, eta),
            guidance_scale,
            guidance_rescale,
            cross_attention_kwargs,
            clip_skip,
            generator,
            latents,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        default = _default_size(self.pipe, height, width)
        size = default if latents is None or (height, width) != (None, None) else (None, None)
        sampler = self._begin(request, *size)
        warn_of_ddim(self.pipe.scheduler, request.steps)
        self.pipe._denoising_end = None
        texts = _Texts(
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        sizes = _Sizes(
            original_size or default,
            crops_coords_top_left,
            target_size or default,
            negative_original_size,
            negative_crops_coords_top_left,
            negative_target_size,
        )
        cond = self._encode(texts, sizes, whole("num_images_per_prompt", num_images_per_prompt))
        given = {
            "prompt_embeds": cond.text[:, -1],
            "add_text_embeds": cond.pooled[:, -1],
            "add_time_ids": cond.sizes[:, -1],
        }
        drawn = self._draw(sampler, request, cond.packed(), given)
        images = self._decode(drawn, output_type)
        self.pipe.maybe_free_model_hooks()
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

    def _encode(self, texts: _Texts, sizes: _Sizes, images_per_prompt: int) -> TextAndSizes:
        """The U-Net's condition, each part (B, G, ...): with guidance (G = 2) the negative half, then the prompt's."""
        pipe, options = self.pipe, self.pipe.cross_attention_kwargs or {}
        guided = pipe.do_classifier_free_guidance
        _check_texts(pipe, texts)
        clip_skip = None if pipe.clip_skip is None else whole("clip_skip", pipe.clip_skip, least=0)
        with as_config_errors():
            embedded: tuple[Tensor, Tensor, Tensor, Tensor] = pipe.encode_prompt(
                **texts._asdict(),
                device=pipe._execution_device,  # pipe.device is where offloaded components wait
                num_images_per_prompt=images_per_prompt,
                do_classifier_free_guidance=guided,
                lora_scale=options.get("scale"),
                clip_skip=clip_skip,
            )
        toward, away, pooled, pooled_away = embedded
        check_embeddings(pipe.unet.config, **{"The text encoders' output": toward})
        check_pooled(pipe.unet.config, **{"The pooled output of the text encoders": pooled})
        told, told_away = _time_ids(pipe, sizes, toward.dtype)
        device, rows = toward.device, (len(toward), -1)
        return TextAndSizes(
            halves("Embeddings", toward, away if guided else None),
            halves("Pooled embeddings", pooled.to(device), pooled_away.to(device) if guided else None),
            halves("Sizes", told.to(device).expand(rows), told_away.to(device).expand(rows) if guided else None),
        )

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        """Decode latents (B, C, H, W) to `output_type`."""
        pipe = self.pipe
        if output_type == "latent":
            return latents
        vae, config = pipe.vae, pipe.vae.config
        upcast = vae.dtype == torch.float16 and config.force_upcast  # the VAE overflows in half precision
        try:
            if upcast:
                pipe.upcast_vae()
            latents = latents.to(next(iter(vae.post_quant_conv.parameters())).dtype if upcast else vae.dtype)
            image = vae.decode(_unscaled(latents, config), return_dict=False)[0]
        finally:
            if upcast:
                vae.to(dtype=torch.float16)
        if pipe.watermark is not None:
            image = pipe.watermark.apply_watermark(image)
        return pipe.image_processor.postprocess(image, output_type=output_type)


def _default_size(pipe: StableDiffusionXLPipeline, height: int | None, width: int | None) -> tuple[Any, Any]:
    """The height and width, with the pipeline's default size in place of None."""
    if height is not None and width is not None:
        return height, width
    default = whole("The pipeline's default_sample_size", pipe.default_sample_size) * pipe.vae_scale_factor
    return default if height is None else height, default if width is None else width


def _check_texts(pipe: StableDiffusionXLPipeline, texts: _Texts) -> None:
    """Raise ConfigError on texts and embeddings that diffusers refuses, ignores or fails on."""
    words = {name: getattr(texts, name) for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")}
    check_words(**words)
    embeds = {name: getattr(texts, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    pooled = {name: getattr(texts, name) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
    check_embeddings(pipe.unet.config, **embeds)
    check_pooled(pipe.unet.config, **pooled)
    with as_config_errors():
        pipe.check_inputs(
            texts.prompt, texts.prompt_2, 8, 8, None, texts.negative_prompt, texts.negative_prompt_2, **embeds, **pooled
        )
    for tokens, summary in zip(embeds.values(), pooled.values(), strict=True):
        if tokens is not None and summary is not None and len(tokens) != len(summary):
            raise ConfigError(f"Got {len(tokens)} embeddings and {len(summary)} pooled embeddings; expected as many.")
    zeros = texts.negative_prompt is None and pipe.config.force_zeros_for_empty_prompt
    if zeros and texts.negative_prompt_2 is not None:
        raise ConfigError(
            "negative_prompt_2 has no effect without negative_prompt: pass both, or negative_prompt alone."
        )
    if zeros and texts.negative_prompt_embeds is None and texts.negative_pooled_prompt_embeds is not None:
        raise ConfigError("negative_pooled_prompt_embeds has no effect without negative_prompt_embeds: pass both.")
    guided = pipe.do_classifier_free_guidance and texts.negative_prompt_embeds is None and not zeros
    encoders = pipe.text_encoder_2, pipe.tokenizer_2
    pair = (pipe.text_encoder is None) == (pipe.tokenizer is None)
    if (texts.prompt is not None or guided) and (None in encoders or not pair):
        raise ConfigError(
            "The pipeline lacks a text encoder or tokenizer: pass prompt_embeds and pooled_prompt_embeds, no prompt; "
            "and for guidance their negative forms."
        )


def _time_ids(pipe: StableDiffusionXLPipeline, sizes: _Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """diffusers' `add_time_ids` (1, 6), and those of the negative half."""
    optional = ("negative_original_size", "negative_target_size")
    asked = {name: value for name, value in sizes._asdict().items() if value is not None or name not in optional}
    given = {name: _pair(name, value) for name, value in asked.items()}
    negative = [name in given for name in optional]
    if any(negative) != all(negative):
        raise ConfigError(
            f"negative_original_size is {sizes.negative_original_size} and negative_target_size is "
            f"{sizes.negative_target_size}; expected both or neither."
        )
    if any(given["negative_crops_coords_top_left"]) and not any(negative):
        raise ConfigError(
            "negative_crops_coords_top_left has no effect without negative_original_size and negative_target_size."
        )
    width = pooled_width(pipe.unet.config)

    def ids(prefix: str) -> Tensor:
        names = (f"{prefix}original_size", f"{prefix}crops_coords_top_left", f"{prefix}target_size")
        told: Tensor = pipe._get_add_time_ids(*(given[name] for name in names), dtype, width)
        return told

    with as_config_errors():
        told = ids("")
        return told, ids("negative_") if any(negative) else told


def _pair(name: str, value: Any) -> tuple[float, float]:
    """The two numbers of a size. Raises ConfigError if `value` is something else."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ConfigError(f"{name} is {value!r}; expected two numbers, such as (1024, 1024).")
    return finite(name, value[0]), finite(name, value[1])


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    """Latents (B, C, H, W) in the units of the VAE with this `config`."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return latents / float(config.scaling_factor)
    center, spread = (torch.tensor(column).view(1, -1, 1, 1).to(latents) for column in (mean, std))
    return latents * spread / float(config.scaling_factor) + center

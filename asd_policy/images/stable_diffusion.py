"""AsdStableDiffusion: exact sampling of Stable Diffusion, with its prompts, guidance and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.images.arguments import as_config_errors, check_embeddings, check_words, refuse, whole
from asd_policy.images.callbacks import StepEnd
from asd_policy.images.latents import Kind, LatentPipeline, Request, halves
from asd_policy.images.laws import StepsAsked, warn_of_ddim
from asd_policy.images.noise import Generators


class _Texts(NamedTuple):
    """The prompt and the negative prompt, as text or as embeddings."""

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None


class AsdStableDiffusion(LatentPipeline):
    """Has the call of a StableDiffusionPipeline; made by `accelerate_pipeline`."""

    kind = Kind(
        StableDiffusionPipeline,
        additions=(None, "text"),
        tensor_inputs=("latents", "prompt_embeds", "negative_prompt_embeds"),
    )

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
        """As the call of StableDiffusionPipeline with the scheduler that is sampled, with these differences:

        Args:
            height, width: both or neither.
            num_inference_steps: K. None takes all training timesteps of a DDPM, and only then is the law that of the
                trained DDPM; for a kept scheduler (Euler ancestral, or DDIM with eta > 0) None is 50.
            timesteps: the training timesteps of a DDPM to use, in descending order, in place of num_inference_steps.
                Kept schedulers take none.
            sigmas, ip_adapter_image, ip_adapter_image_embeds, and diffusers' former callback and callback_steps: None;
                anything else is refused.
            eta: of a DDIMScheduler: above 0, DDIM's own chain is sampled; with 0, the DDPM with its betas, and a
                warning says so. Schedulers that have no eta ignore it.
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
        sampler = self._begin(request, height, width)
        warn_of_ddim(self.pipe.scheduler, request.steps)
        texts = _Texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        cond = self._encode(texts, whole("num_images_per_prompt", num_images_per_prompt))
        embeds = {"prompt_embeds": cond[:, -1], "negative_prompt_embeds": cond[:, 0] if cond.shape[1] > 1 else None}
        drawn = self._draw(sampler, request, cond, embeds)
        images, flags = self._decode(drawn, output_type, cond.dtype, generator)
        self.pipe.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flags) if return_dict else (images, flags)

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
        return halves("Embeddings", toward, away if guided else None)

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

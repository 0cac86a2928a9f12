"""AsdImagePipeline: a DDPMPipeline, unconditional or class-conditional, sampled through the core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Generator, Tensor

from asd_policy.core import OnRound, SampleStats, Schedule
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.images.progress import progress_bar
from asd_policy.images.unet import UnetNetwork, ddpm_scheduler, make_denoiser
from asd_policy.policies.samplers import make_sampler


class AsdImagePipeline:
    """Draws images from the law of a DDPMPipeline.

    Args:
        pipe: the pipeline, whose U-Net, device and progress bar are used as they are.
        sampler: "asd" (exact, few rounds), "ddpm" (exact, K rounds) or "ddim" (another law).
        max_states: rows that one call of the U-Net may have; see `UnetNetwork`.
        sampler_options: asd: `draft`, `window`; ddim: `num_steps`, `eta`.

    Raises:
        ConfigError: on a U-Net or a scheduler that is not a DDPM's.
    """

    def __init__(self, pipe: DDPMPipeline, sampler: str = "asd", max_states: int | None = None, **sampler_options: Any):
        self.pipe = pipe
        self.scheduler = ddpm_scheduler(pipe.scheduler)
        self.stats: SampleStats | None = None
        """What the last images cost."""
        self._sampler, self._options, self._max_states = sampler, sampler_options, max_states
        self._network(1.0)  # refuses now what would fail at the first images

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        sampler: str = "asd",
        max_states: int | None = None,
        loading: dict[str, Any] | None = None,
        **sampler_options: Any,
    ) -> AsdImagePipeline:
        """Load a DDPMPipeline's folder, or its name on the Hugging Face hub.

        Args:
            loading: for `DDPMPipeline.from_pretrained`, such as torch_dtype or revision. Weights are read from
                safetensors alone, which hold no code; {"use_safetensors": False} allows pickles.

        Raises:
            CheckpointError: if it is no such folder or repository.
            ConfigError: as the constructor.
        """
        try:
            pipe = DDPMPipeline.from_pretrained(name_or_path, **{"use_safetensors": True, **(loading or {})})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"Cannot read {name_or_path} as a DDPMPipeline with safetensors: {error}") from error
        return cls(pipe.to(device), sampler, max_states, **sampler_options)

    def with_sampler(self, sampler: str, **sampler_options: Any) -> AsdImagePipeline:
        """The same images, drawn by another sampler."""
        return AsdImagePipeline(self.pipe, sampler, self._max_states, **sampler_options)

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        size = self.pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.pipe.unet.config.in_channels, height, width

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        guidance_scale: float = 1.0,
        negative_label: int | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        on_round: OnRound | None = None,
    ) -> ImagePipelineOutput:
        """Draw images.

        Args:
            batch_size: how many.
            class_labels: one per image, for a class-conditional U-Net.
            guidance_scale: above 1, move by so much from `negative_label` toward the images' own labels.
            negative_label: the label to move away from; in most models the one that was trained as "no class".
            generator: one for the batch or one per image: with one each, the plain sampler ("ddpm") draws what
                DDPMPipeline draws from them.
            num_inference_steps: K, strided from the training timesteps; None takes all of them.
            output_type: "pil", "np", "pt" for a tensor (B, C, H, W) in [0, 1], or "latent" for one as it was drawn.
            on_round: called after each round with how far the images are.

        Raises:
            ConfigError: on labels that do not fit the U-Net or the batch, or as the sampler does.
            NumericalError: if the U-Net returned NaN or infinity.
        """
        cond = self._condition(batch_size, class_labels, guidance_scale, negative_label)
        schedule = Schedule.from_diffusers(self.scheduler, num_inference_steps)
        denoiser = make_denoiser(self._network(guidance_scale), self.scheduler, schedule).to(self.pipe.device)
        sampler = make_sampler(self._sampler, denoiser, schedule, self.event_shape, **self._options)
        with progress_bar(self.pipe, sampler.num_steps, on_round) as report:
            draws = sampler.draw(batch_size, cond, generator, on_round=report)
        self.stats = draws.stats
        return ImagePipelineOutput(VaeImageProcessor().postprocess(draws.x, output_type))

    def _network(self, guidance_scale: float) -> UnetNetwork:
        return UnetNetwork(self.pipe.unet, guidance_scale, self._max_states)

    def _condition(
        self, batch_size: int, labels: Sequence[int] | None, guidance_scale: float, negative: int | None
    ) -> Tensor | None:
        """The network's condition: (B, 1) labels, (B, 2) with guidance, None for an unconditional U-Net."""
        classes = self.pipe.unet.config.num_class_embeds
        if (labels is None) != (classes is None):
            raise ConfigError(
                f"The U-Net has {classes or 'no'} classes, and class_labels is {labels}; expected "
                f"{'a label for each image' if classes else 'None'}."
            )
        if guidance_scale > 1 and (labels is None or negative is None):
            raise ConfigError(f"guidance_scale {guidance_scale} needs class_labels, and a negative_label to move from.")
        if labels is None:
            return None
        row = list(labels) if negative is None else [*labels, negative]
        if len(labels) != batch_size or not all(0 <= label < classes for label in row):
            raise ConfigError(f"Got labels {row} for {batch_size} images; expected one each, from 0 to {classes - 1}.")
        pairs = [[negative, label] if guidance_scale > 1 else [label] for label in labels]
        return torch.tensor(pairs, device=self.pipe.device)

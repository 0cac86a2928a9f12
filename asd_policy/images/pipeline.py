"""AsdImagePipeline: exact sampling of a DDPMPipeline, unconditional or class-conditional."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any, Unpack

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from asd_policy.core import Ddim, Denoiser, OnRound, Sampler, SamplerOptions, SamplerSpec, SampleStats, as_spec
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.samplers import with_options
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.images.arguments import (
    OUTPUT_TYPES,
    as_config_errors,
    check_name,
    check_pipeline,
    finite,
    image_size,
    whole,
    without_calibration,
)
from asd_policy.images.capture import PipelineSamplers
from asd_policy.images.laws import DdpmOfBetas, Law, StepsAsked, law_at_construction, law_of, warn_of_ddim
from asd_policy.images.noise import Generators, diffusers_noise
from asd_policy.images.progress import progress_bar
from asd_policy.images.unet import UnetNetwork

BETAS = DdpmOfBetas(clips_by_default=True)


class AsdImagePipeline:
    """Draws images from the law of a DDPMPipeline's scheduler; see `accelerate_pipeline` for what that is.

    Args:
        pipe: the pipeline. Each call uses its present U-Net, scheduler, device and progress bar.
        sampler: "asd" (exact, few rounds), "ddpm" (exact, K rounds: one for each step of the chain) or "ddim" (another
            law), command-line text such as "asd:path:16", or a spec.
        max_states: most rows in one call of the U-Net; see `UnetNetwork`.
        options: sampler options. asd: `draft`, `window`; ddim: `num_steps`, `eta`; all: `capture`, how the steps are
            run, see `AsdSampler` and docs/images.md.

    Raises:
        ConfigError: on another pipeline, a U-Net or scheduler that is not a DDPM's, or options that the sampler does
            not take. A call raises it too, if the pipeline was changed.
    """

    def __init__(
        self,
        pipe: DDPMPipeline,
        sampler: str | SamplerSpec = "asd",
        max_states: int | None = None,
        **options: Unpack[SamplerOptions],
    ):
        self.pipe = pipe
        self.stats: SampleStats | None = None
        """The cost of the last images."""
        self._spec = without_calibration(as_spec(sampler, **options))
        self._max_states = None if max_states is None else whole("max_states", max_states)
        self._samplers: PipelineSamplers[Sampler] = PipelineSamplers(self._spec.capture, self._max_states)
        network = self._network(1.0)
        # Raises now what would fail at the first images.
        if isinstance(self._spec, Ddim):
            self._build(network, self._law(StepsAsked()))
        else:
            window = getattr(self._spec, "window", None)
            self._build(network, law_at_construction(pipe.scheduler, window, BETAS))

    @property
    def scheduler(self) -> DDPMScheduler:
        """The DDPM with the betas of the pipeline's scheduler, which is sampled unless the scheduler is kept."""
        return BETAS.scheduler(self.pipe.scheduler)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        sampler: str | SamplerSpec = "asd",
        max_states: int | None = None,
        loading: dict[str, Any] | None = None,
        **options: Unpack[SamplerOptions],
    ) -> AsdImagePipeline:
        """Load a DDPMPipeline from a folder or from the Hugging Face hub.

        Args:
            loading: arguments of `DDPMPipeline.from_pretrained`, such as torch_dtype or revision. Weights are read from
                safetensors only, which hold no code; {"use_safetensors": False} allows pickles.

        Raises:
            CheckpointError: if there is no such folder or repository, or its weights do not fit its U-Net.
            ConfigError: on a device that this machine lacks, or as the constructor.
        """
        loading = {"use_safetensors": True, **(loading or {})}
        try:
            pipe = DDPMPipeline.from_pretrained(name_or_path, **loading)
            misplaced = _misplaced_tensors(pipe.unet, loading)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"Cannot read {name_or_path} as a DDPMPipeline with safetensors: {error}") from error
        if misplaced:
            raise CheckpointError(f"The weights in {name_or_path} do not fit its U-Net: {misplaced}.")
        with as_config_errors():
            pipe.to(device)
        return cls(pipe, sampler, max_states, **options)

    def with_sampler(self, sampler: str | SamplerSpec, **options: Unpack[SamplerOptions]) -> AsdImagePipeline:
        """The same pipeline with another sampler; arguments as the constructor's."""
        return AsdImagePipeline(self.pipe, sampler, self._max_states, **options)

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image. Raises ConfigError if the U-Net has no sample_size."""
        size = self.pipe.unet.config.sample_size
        if size is None:
            raise ConfigError("The U-Net has no sample_size; expected the height and width of an image.")
        height, width = image_size(size)
        return self.pipe.unet.config.in_channels, height, width

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        guidance_scale: float = 1.0,
        negative_label: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        on_round: OnRound | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
    ) -> ImagePipelineOutput:
        """Draw images.

        Args:
            batch_size: number of images.
            class_labels: one per image, for a class-conditional U-Net.
            guidance_scale: above 1, classifier-free guidance from `negative_label` toward `class_labels`.
            negative_label: the label to move away from, usually the one trained as "no class".
            generator: one for the batch or one per image. The plain sampler ("ddpm") draws the same images from it as
                DDPMPipeline.
            num_inference_steps: K, strided from the training timesteps; None takes all of them. For a scheduler that is
                kept (see `eta`) None is 50. Sampler "ddim" has its own `num_steps`.
            output_type: "pil", "np", "pt" for a tensor (B, C, H, W) in [0, 1], or "latent" for the tensor as drawn.
            on_round: called after each round with the frontier and the images. capture="cuda_graph" cannot call it.
            return_dict: False returns a tuple with the images.
            eta: of a DDIMScheduler: above 0, DDIM's own chain is sampled, as DDIMPipeline does. An
                EulerAncestralDiscreteScheduler is sampled as it is, any other scheduler as the DDPM of its betas.
                Sampler "ddim" has its own `eta`.

        Raises:
            ConfigError: on labels that do not fit the U-Net or the batch, or as the constructor or the sampler.
            NumericalError: if the U-Net returned NaN or infinity.
        """
        check_name("output_type", output_type, OUTPUT_TYPES)
        batch_size, guidance_scale = whole("batch_size", batch_size), finite("guidance_scale", guidance_scale)
        self._samplers.check_watcher("on_round", on_round)
        sampler = self._sampler(num_inference_steps, guidance_scale, eta)
        if not isinstance(self._spec, Ddim):
            warn_of_ddim(self.pipe.scheduler, StepsAsked(eta=eta))
        cond = self._condition(batch_size, class_labels, guidance_scale, negative_label)
        device = self.pipe._execution_device
        noise = diffusers_noise(batch_size, sampler.num_steps, self.event_shape, generator, device)
        self.stats = None
        with progress_bar(self.pipe, sampler.num_steps, on_round) as report:
            draws = sampler.draw(batch_size, cond, noise, on_round=report if self._samplers.watched else None)
        self.stats = draws.stats
        images = VaeImageProcessor().postprocess(draws.x, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _law(self, asked: StepsAsked) -> Law:
        """The law of a call. Raises ConfigError as `law_of`, or on an `eta` or steps that have no effect."""
        scheduler = self.pipe.scheduler
        if isinstance(self._spec, Ddim):
            if asked.eta != 0:
                raise ConfigError(f"eta is {asked.eta!r}; with sampler 'ddim' it is an option of the sampler.")
            if asked.num_inference_steps is not None:
                raise ConfigError(
                    f"num_inference_steps is {asked.num_inference_steps!r}; with sampler 'ddim' the steps are an "
                    "option of the sampler, num_steps."
                )
            return BETAS.law(scheduler, asked)  # DDIM strides the timesteps of a DDPM
        if asked.eta != 0 and not isinstance(scheduler, DDIMScheduler):
            name = type(scheduler).__name__
            raise ConfigError(f"eta is {asked.eta!r}, which is DDIM's; the pipeline's scheduler is a {name}.")
        return law_of(scheduler, asked, BETAS)

    def _sampler(self, num_steps: int | None, guidance_scale: float, eta: float = 0.0) -> Sampler:
        """The sampler of a call on the present pipeline."""
        return self._build(self._network(guidance_scale), self._law(StepsAsked(num_steps, eta=eta)))

    def _network(self, guidance_scale: float) -> UnetNetwork:
        """The pipeline's present U-Net."""
        check_pipeline(self.pipe, DDPMPipeline, ("unet", "scheduler"), ("__call__",))
        return UnetNetwork(self.pipe.unet, guidance_scale)

    def _build(self, network: UnetNetwork, law: Law) -> Sampler:
        shape, device = self.event_shape, self.pipe._execution_device

        def make(denoiser: Denoiser, capture: Capture) -> Sampler:
            return with_options(self._spec, capture=capture).build(denoiser, law.chain, shape)

        return self._samplers.get(network, law, shape, device, make)

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
        try:
            given = list(labels)
            row = [index(label) for label in (given if negative is None else [*given, negative])]
        except TypeError as error:
            raise ConfigError(
                f"class_labels is {labels!r:.80} and negative_label is {negative!r:.80}; expected whole numbers, "
                f"one for each image: {error}."
            ) from error
        if len(given) != batch_size or not all(0 <= label < classes for label in row):
            raise ConfigError(f"Got labels {row} for {batch_size} images; expected one each, from 0 to {classes - 1}.")
        pairs = [[row[-1], label] if guidance_scale > 1 else [label] for label in row[:batch_size]]
        return torch.tensor(pairs, device=self.pipe._execution_device)


def _misplaced_tensors(unet: Any, loading: dict[str, Any]) -> str:
    """Names of missing and unexpected tensors in the U-Net's files; "" if none. diffusers leaves the missing random."""
    options = {name: value for name, value in loading.items() if name in ("use_safetensors", "variant")}
    _, found = type(unet).from_pretrained(unet.config._name_or_path, output_loading_info=True, **options)
    names = {kind: found[f"{kind}_keys"] for kind in ("missing", "unexpected")}
    return "; ".join(f"{kind} {', '.join(sorted(keys)[:8])}" for kind, keys in names.items() if keys)

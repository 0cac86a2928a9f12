"""The plain samplers: of any chain, DDPM's among them, and DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from asd_policy.core.capture import make_capture
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.chain import Chain, as_chain
from asd_policy.core.chains.ddim import as_schedule, check_eta, check_switches, without_clip
from asd_policy.core.checks import as_device, as_event_shape, check_condition
from asd_policy.core.denoiser import Denoiser, check_timesteps, device_of, prepare
from asd_policy.core.draws import Drawn, Draws
from asd_policy.core.noise import Noise, NoiseTape
from asd_policy.core.schedule import Schedule
from asd_policy.core.sequential import OnRound, Steps, chain_steps, ddim_steps
from asd_policy.core.spec import label_of, options_word, read_count, read_words
from asd_policy.core.transfer import moved


class PlainSampler:
    """Draws with one network call per step.

    Args:
        denoiser: (x (N, *E), t (N,) timesteps of the steps, cond (N, ...) | None) -> clean sample (N, *E).
        steps: the steps and their update rule.
        event_shape: E, the shape of one sample.
        capture: how the steps are run: a name in CAPTURES, or a capture; see `AsdSampler`.
        device: the device for a denoiser that is a plain function; a module is sampled on its own device.

    Raises:
        ConfigError: on a capture that does not exist or is incomplete, timesteps that the denoiser does not take, or a
            device that this machine lacks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steps: Steps,
        event_shape: Sequence[int],
        capture: str | Capture = "eager",
        device: torch.device | str | None = None,
    ):
        check_timesteps(denoiser, steps.timesteps)
        self.denoiser = denoiser
        self.event_shape = as_event_shape(event_shape)
        self._steps = steps
        self._timesteps = steps.timesteps
        self._device = None if device is None else as_device(device)
        self.capture = make_capture(capture)

    @property
    def num_steps(self) -> int:
        """K, the number of steps of a sample."""
        return self._steps.num_steps

    def rows(self, due: int, batch_size: int) -> int:
        """As `AsdSampler.rows`."""
        return self.capture.rows(due, batch_size)

    def draw(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Noise = None,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """As `AsdSampler.draw`; `warm` is ignored."""
        return self.launch(batch_size, cond, generator, warm, on_round).read()[0]

    @torch.no_grad()
    def launch(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Noise = None,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Drawn:
        """As `AsdSampler.launch`; `warm` is ignored."""
        check_condition(cond, batch_size)
        device = device_of(self.denoiser, self._device)
        tape = NoiseTape.draw(batch_size, self.num_steps, self.event_shape, generator, device)
        [self._timesteps] = moved((self._timesteps,), device)
        context = prepare(self.denoiser, self._timesteps, cond)
        x = self.capture.run_steps(self._steps, self.denoiser, context, tape, on_round)
        return Drawn(x, record=None, calls=self.num_steps, predictions=None)


def chain_sampler(
    denoiser: Denoiser,
    schedule: Chain,
    event_shape: Sequence[int],
    capture: str | Capture = "eager",
    device: torch.device | str | None = None,
) -> PlainSampler:
    """One network call per step of the chain, as `sample_chain`."""
    return PlainSampler(denoiser, chain_steps(as_chain(schedule)), event_shape, capture, device)


ddpm_sampler = chain_sampler
"""`chain_sampler` for a DDPM, whose chain is a Schedule."""


def ddim_sampler(
    denoiser: Denoiser,
    schedule: Schedule,
    event_shape: Sequence[int],
    num_steps: int = 10,
    eta: float = 0.0,
    use_clipped_model_output: bool = True,
    set_alpha_to_one: bool = True,
    capture: str | Capture = "eager",
    device: torch.device | str | None = None,
) -> PlainSampler:
    """DDIM, as `sample_ddim`."""
    check_eta(eta)
    denoiser, clip = (denoiser, None) if use_clipped_model_output else without_clip(denoiser)
    return PlainSampler(
        denoiser, ddim_steps(schedule, num_steps, eta, clip, set_alpha_to_one), event_shape, capture, device
    )


@dataclass(frozen=True)
class Ddpm:
    """The spec of `chain_sampler`: K steps, exact."""

    capture: str | Capture = "eager"

    name: ClassVar[str] = "ddpm"
    form: ClassVar[str] = "ddpm[:CAPTURE]"

    def __post_init__(self) -> None:
        make_capture(self.capture)  # raises ConfigError if it cannot be made

    @property
    def label(self) -> str:
        """As `SamplerSpec.label`."""
        return label_of(self)

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """As `SamplerSpec.parse`."""
        return cls(**read_words(words, capture=str))

    def build(
        self,
        denoiser: Denoiser,
        schedule: Chain,
        event_shape: Sequence[int],
        device: torch.device | str | None = None,
    ) -> PlainSampler:
        """As `SamplerSpec.build`."""
        return chain_sampler(denoiser, schedule, event_shape, self.capture, device)


@dataclass(frozen=True)
class Ddim:
    """The spec of `ddim_sampler`: fewer steps, another law.

    Attributes:
        use_clipped_model_output: None takes the model's own setting, or True if it has none.
        set_alpha_to_one: likewise.
    """

    num_steps: int = 10
    eta: float = 0.0
    capture: str | Capture = "eager"
    use_clipped_model_output: bool | None = None
    set_alpha_to_one: bool | None = None

    name: ClassVar[str] = "ddim"
    form: ClassVar[str] = "ddim[:STEPS[:CAPTURE]]"

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_switches(self.use_clipped_model_output, self.set_alpha_to_one)
        make_capture(self.capture)  # raises ConfigError if it cannot be made

    @property
    def label(self) -> str:
        """As `SamplerSpec.label`. Options without a form on the command line follow after commas."""
        return label_of(self, str(self.num_steps)) + options_word(
            eta=self.eta or None,
            use_clipped_model_output=self.use_clipped_model_output,
            set_alpha_to_one=self.set_alpha_to_one,
        )

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """As `SamplerSpec.parse`."""
        return cls(**read_words(words, num_steps=read_count, capture=str))

    def build(
        self,
        denoiser: Denoiser,
        schedule: Chain,
        event_shape: Sequence[int],
        device: torch.device | str | None = None,
    ) -> PlainSampler:
        """As `SamplerSpec.build`. The chain must be a Schedule, whose timesteps DDIM strides."""
        clipped, to_one = self.use_clipped_model_output, self.set_alpha_to_one
        return ddim_sampler(
            denoiser,
            as_schedule(schedule),
            event_shape,
            self.num_steps,
            self.eta,
            use_clipped_model_output=clipped is None or clipped,
            set_alpha_to_one=to_one is None or to_one,
            capture=self.capture,
            device=device,
        )


def sample_chain(
    denoiser: Denoiser,
    schedule: Chain,
    event_shape: Sequence[int],
    batch_size: int = 1,
    cond: Tensor | None = None,
    generator: Noise = None,
    on_round: OnRound | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Samples of a chain, with one network call per step. The reference law of every exact sampler.

    Args:
        schedule: the chain: a DDPM's Schedule, or a GaussianChain.
        cond: (B, ...) or None, passed to the denoiser.
        generator: one for the batch or one per sample. `AsdSampler` draws the same tape from the same generator.
        on_round: called after each step.
        device: the device for a denoiser that is a plain function; a module is sampled on its own device.

    Returns:
        x (B, *event_shape), float32, on that device.

    Raises:
        ConfigError: on a batch, condition or denoiser output whose shape does not fit, timesteps that the denoiser does
            not take, or a device that is not the denoiser's.
        NumericalError: if the network returned NaN or infinity.
    """
    sampler = chain_sampler(denoiser, schedule, event_shape, device=device)
    return sampler.draw(batch_size, cond, generator, on_round=on_round).x


sample_ddpm = sample_chain
"""`sample_chain` for a DDPM: ancestral sampling (Ho et al. 2020, Algorithm 2)."""


def sample_ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    event_shape: Sequence[int],
    batch_size: int = 1,
    cond: Tensor | None = None,
    generator: Noise = None,
    num_steps: int = 10,
    eta: float = 0.0,
    on_round: OnRound | None = None,
    use_clipped_model_output: bool = True,
    set_alpha_to_one: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12, https://arxiv.org/abs/2010.02502): fewer steps, but another distribution.

    Equal to diffusers' DDIMScheduler with the same settings, in every timestep spacing.

    Args:
        num_steps: number of steps, taken from the schedule's training timesteps.
        eta: 0 is deterministic given the start; 1 adds the noise of DDPM's small variance.
        use_clipped_model_output: compute the noise direction from the clipped prediction. False takes the unclipped
            prediction, as diffusers does by default. They are equal if nothing is clipped.
        set_alpha_to_one: the last step ends at the clean sample. False ends it at training timestep 0.

    Returns and raises as `sample_chain`. ConfigError also if `eta` is negative or not finite, or if the denoiser
    cannot return the unclipped predictions asked for.
    """
    sampler = ddim_sampler(
        denoiser, schedule, event_shape, num_steps, eta, use_clipped_model_output, set_alpha_to_one, device=device
    )
    return sampler.draw(batch_size, cond, generator, on_round=on_round).x

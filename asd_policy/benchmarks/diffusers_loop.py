"""The usual sampling loop of diffusers as a baseline: `DDPMScheduler.step` around the plain network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Generator, Tensor

from asd_policy.core import Noise, OnRound, Schedule
from asd_policy.core.draws import Drawn, Draws
from asd_policy.errors import ConfigError
from asd_policy.policies.config import SchedulerConfig
from asd_policy.policies.diffusion import DiffusionPolicy

LoopStep = Callable[[Tensor, int, Tensor, Generator], Tensor]
"""(the network's output (B, *E), timestep, x (B, *E), generator) -> the next x."""


class DiffusersLoop:
    """diffusers' loop as a policy's sampler. It draws the noise on the policy's device, for the whole batch at once.

    Args:
        policy: the policy whose network and scheduler to run.
        restated: use `RestatedStep`, for machines without diffusers.
    """

    def __init__(self, policy: DiffusionPolicy, restated: bool = False):
        config = policy.config
        self.network: Callable[..., Tensor] = policy.network
        self.num_steps = config.scheduler.num_train_timesteps
        self._step = RestatedStep(config.scheduler) if restated else diffusers_step(config.scheduler)
        self._event_shape, self._device = (config.horizon, config.action_dim), policy.device
        self._generator = Generator(policy.device).manual_seed(0)

    @torch.inference_mode()
    def run(self, cond: Tensor, generator: Generator) -> Tensor:
        """cond (B, ...) -> x (B, *E)."""
        batch_size, device = len(cond), self._device
        x = torch.randn((batch_size, *self._event_shape), generator=generator, device=generator.device).to(device)
        for t in torch.arange(self.num_steps - 1, -1, -1, device="cpu"):
            noise = self.network(x, t.to(device).expand(batch_size), cond)
            x = self._step(noise, int(t), x, generator)
        return x

    def rows(self, due: int, batch_size: int) -> int:
        """As `Sampler.rows`."""
        return due

    def launch(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Drawn:
        """As `Sampler.launch`, with its own generator instead of the given ones."""
        assert cond is not None
        return Drawn(self.run(cond, self._generator), record=None, calls=self.num_steps, predictions=None)

    def draw(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """As `Sampler.draw`."""
        return self.launch(batch_size, cond, generator).read()[0]


def diffusers_step(config: SchedulerConfig) -> LoopStep:
    """diffusers' step. Raises ImportError if diffusers is not installed."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(asdict(config))  # from_config ignores DDIM's settings
    scheduler.set_timesteps(config.num_train_timesteps)

    def step(output: Tensor, t: int, x: Tensor, generator: Generator) -> Tensor:
        following: Tensor = scheduler.step(output, t, x, generator=generator).prev_sample
        return following

    return step


class RestatedStep:
    """The operations of diffusers' DDPMScheduler.step. Coefficients are computed on the CPU at every step, as there.

    Raises:
        ConfigError: unless the scheduler predicts noise, clips, and has the small variance.
    """

    def __init__(self, config: SchedulerConfig):
        if (config.prediction_type, config.variance_type, config.clip_sample) != ("epsilon", "fixed_small", True):
            raise ConfigError(f"Only clipped predictions of noise with the small variance are restated; got {config}.")
        self._alphas_cumprod = Schedule.from_diffusers(asdict(config)).alphas_cumprod.float()
        self._one, self._clip = torch.tensor(1.0, device="cpu"), config.clip_sample_range
        self._timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1, device="cpu")

    def __call__(self, output: Tensor, t: int, x: Tensor, generator: Generator) -> Tensor:
        """As `LoopStep`."""
        prev_t = self._previous(t)
        alpha_prod, alpha_prod_prev = self._alphas_cumprod[t], self._alpha_prod(prev_t)
        beta_prod, beta_prod_prev = 1 - alpha_prod, 1 - alpha_prod_prev
        current_alpha = alpha_prod / alpha_prod_prev
        current_beta = 1 - current_alpha
        x0 = (x - beta_prod**0.5 * output) / alpha_prod**0.5
        x0 = x0.clamp(-self._clip, self._clip)
        x0_weight = (alpha_prod_prev**0.5 * current_beta) / beta_prod
        x_weight = current_alpha**0.5 * beta_prod_prev / beta_prod
        mean = x0_weight * x0 + x_weight * x
        if t == 0:
            return mean + 0
        noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
        return mean + self._variance(t) ** 0.5 * noise

    def _previous(self, t: int) -> Tensor:
        index = (self._timesteps == t).nonzero(as_tuple=True)[0][0]
        last = index == len(self._timesteps) - 1
        return torch.tensor(-1, device="cpu") if last else self._timesteps[index + 1]

    def _alpha_prod(self, t: Tensor) -> Tensor:
        return self._alphas_cumprod[t] if t >= 0 else self._one

    def _variance(self, t: int) -> Tensor:
        alpha_prod, alpha_prod_prev = self._alphas_cumprod[t], self._alpha_prod(self._previous(t))
        variance = (1 - alpha_prod_prev) / (1 - alpha_prod) * (1 - alpha_prod / alpha_prod_prev)
        return variance.clamp(min=1e-20)


def loop_policy(policy: DiffusionPolicy, restated: bool) -> DiffusionPolicy:
    """A policy with the same weights that samples with diffusers' loop."""
    other = policy.with_sampler("ddpm")
    other.sampler = DiffusersLoop(policy, restated)
    return other


def has_diffusers() -> bool:
    """Whether diffusers can be imported."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return False
    return True

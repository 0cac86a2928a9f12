"""The coefficients of the reverse chain x_{k+1} = a_k x_k + b_k X_k(x_k) + s_k xi_k.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 7 (https://arxiv.org/abs/2006.11239). Step k = 0 is the
noisiest. `timesteps[k]` is the training timestep that the network receives at step k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asd_policy.core.checks import as_count, is_integer
from asd_policy.errors import ConfigError, UnknownNameError

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")
NOISE_LEVEL_SETTINGS = {"snr_shift_scale": 1.0, "use_flow_sigmas": False, "timestep_type": "discrete"}
"""Settings of diffusers' schedulers that change the noise levels -> the value that leaves them unchanged."""
SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True, eq=False)
class Schedule:
    """A DDPM's reverse chain of K steps, strided from T training timesteps. All tensors are float64 on the CPU.

    Build one with `from_betas` or `from_diffusers`.

    Raises:
        ConfigError: unless `alphas_cumprod` falls within (0, 1) and `timesteps` descend within 0 to T - 1.
    """

    alphas_cumprod: Tensor  # (T,) abar of each training timestep
    timesteps: Tensor  # (K,) int64, descending
    variance: str = "fixed_small"
    spacing: str = "leading"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        abar, timesteps = self.alphas_cumprod, self.timesteps
        for name, value in (("alphas_cumprod", abar), ("timesteps", timesteps)):
            if not isinstance(value, Tensor) or value.is_floating_point() != (name == "alphas_cumprod"):
                kind = "floats" if name == "alphas_cumprod" else "integers"
                raise ConfigError(f"{name} is {value!r:.80}; expected a tensor of {kind}.")
        object.__setattr__(self, "alphas_cumprod", abar := abar.to("cpu", torch.float64))
        object.__setattr__(self, "timesteps", timesteps := timesteps.to("cpu", torch.int64))
        if self.variance not in VARIANCES:
            raise UnknownNameError("variance", self.variance, VARIANCES)
        if self.spacing not in SPACINGS:
            raise UnknownNameError("timestep spacing", self.spacing, SPACINGS)
        if not is_integer(self.steps_offset):
            raise ConfigError(f"steps_offset is {self.steps_offset!r}; expected an integer.")
        falling = bool((abar > 0).all() and (abar < 1).all() and (abar.diff() < 0).all())
        if abar.ndim != 1 or len(abar) == 0 or not falling:
            raise ConfigError(f"alphas_cumprod must fall from below 1 to above 0; got {abar}.")
        if not bool(abar.rsqrt().float().isfinite().all()):
            raise ConfigError(
                f"The smallest alphas_cumprod is {float(abar.min()):.1e}: float32 cannot tell a clean sample from such "
                "noise. Take smaller or fewer betas."
            )
        inside = len(timesteps) > 0 and 0 <= int(timesteps.min()) <= int(timesteps.max()) < len(abar)
        if timesteps.ndim != 1 or not inside or not bool((timesteps.diff() < 0).all()):
            raise ConfigError(f"timesteps must descend within 0 to {len(abar) - 1}; got {timesteps.tolist()}.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        same = self._settings == other._settings and torch.equal(self.timesteps, other.timesteps)
        return same and torch.equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash((self._settings, len(self.alphas_cumprod), self.num_steps))

    @property
    def _settings(self) -> tuple[str, str, int]:
        return self.variance, self.spacing, self.steps_offset

    @property
    def num_steps(self) -> int:
        """K, the number of steps: the sequential network calls of the plain sampler."""
        return len(self.timesteps)

    @property
    def abar(self) -> Tensor:
        """(K,) the signal's share of variance before each step."""
        return self.alphas_cumprod[self.timesteps]

    @property
    def abar_next(self) -> Tensor:
        """(K,) the signal's share of variance after each step ("prev" in DDPM's order of time); 1 after the last."""
        return torch.cat([self.abar[1:], self.abar.new_ones(1)])

    @property
    def _alpha(self) -> Tensor:
        return self.abar / self.abar_next

    @property
    def a(self) -> Tensor:
        """(K,) weight of the state x_k in the mean of x_{k+1}."""
        return self._alpha.sqrt() * (1 - self.abar_next) / (1 - self.abar)

    @property
    def b(self) -> Tensor:
        """(K,) weight of the clean-sample prediction X_k in the mean of x_{k+1}."""
        return self.abar_next.sqrt() * (1 - self._alpha) / (1 - self.abar)

    @property
    def s(self) -> Tensor:
        """(K,) standard deviation of x_{k+1} given x_k; 0 at timestep 0.

        The last step of a strided chain may be at a later timestep. With "fixed_large" it then has noise.
        """
        beta = 1 - self._alpha
        small = beta * (1 - self.abar_next) / (1 - self.abar)
        s = (beta if self.variance == "fixed_large" else small).sqrt()
        return torch.where(self.timesteps == 0, 0, s)

    def with_num_steps(self, num_steps: int | None) -> Schedule:
        """The same diffusion strided to `num_steps` of its T training timesteps; None takes all T.

        Raises:
            ConfigError: if `num_steps` is not between 1 and T.
        """
        total = len(self.alphas_cumprod)
        if num_steps is None:
            return replace(self, timesteps=torch.arange(total - 1, -1, -1, device="cpu"))
        if not is_integer(num_steps) or not 1 <= num_steps <= total:
            raise ConfigError(f"num_steps is {num_steps}; expected 1 to {total}, the number of training timesteps.")
        num_steps = int(num_steps)
        timesteps = _strided_timesteps(total, num_steps, self.spacing, self.steps_offset)
        if timesteps.max() >= total or timesteps.min() < 0:
            raise ConfigError(
                f"steps_offset {self.steps_offset} with num_steps {num_steps} asks for timesteps "
                f"{int(timesteps.min())} to {int(timesteps.max())} of {total} training timesteps. "
                "Take fewer steps or another offset."
            )
        return replace(self, timesteps=timesteps)

    @staticmethod
    def from_betas(
        betas: Tensor,
        variance: str = "fixed_small",
        num_steps: int | None = None,
        spacing: str = "leading",
        steps_offset: int = 0,
    ) -> Schedule:
        """The chain of a DDPM trained with `betas` (T,). The other arguments are named and valued as in diffusers.

        Raises:
            ConfigError: on betas outside (0, 1), an unknown name, or a `num_steps` that does not fit.
        """
        try:
            betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"betas must be a vector of numbers; got {betas!r:.80}: {error}.") from error
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ConfigError(f"betas must be a vector with values in (0, 1); got shape {tuple(betas.shape)}: {betas}.")
        every_step = torch.arange(len(betas) - 1, -1, -1, device="cpu")
        schedule = Schedule(torch.cumprod(1 - betas, dim=0), every_step, variance, spacing, steps_offset)
        return schedule.with_num_steps(num_steps)

    @staticmethod
    def from_diffusers(scheduler: Any, num_steps: int | None = None) -> Schedule:
        """The chain of a diffusers scheduler, or of its config as a mapping.

        Missing entries take DDPMScheduler's defaults. A `variance_type` of None is "fixed_small", as in DDPMScheduler's
        step.

        Raises:
            ConfigError: on a scheduler without betas, or a beta schedule, variance or spacing that this package does
                not sample exactly.
        """
        config: Mapping[str, Any] = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", {})
        saved_without_betas = "_class_name" in config and (
            config.get("beta_schedule") is None and config.get("trained_betas") is None
        )
        if saved_without_betas or not (isinstance(scheduler, Mapping) or hasattr(scheduler, "alphas_cumprod")):
            name = config.get("_class_name", type(scheduler).__name__)
            raise ConfigError(f"{name} has no betas: it belongs to another family than DDPMScheduler.")
        if config.get("rescale_betas_zero_snr"):
            raise ConfigError("rescale_betas_zero_snr=True is not supported: its first step has no signal at all.")
        for name, plain in NOISE_LEVEL_SETTINGS.items():
            if config.get(name) not in (None, plain):
                raise ConfigError(f"{name}={config[name]!r} is not supported: its noise levels are not its betas'.")
        variance = config.get("variance_type", "fixed_small")
        schedule = Schedule.from_betas(
            _betas_from_config(config),
            variance="fixed_small" if variance is None else variance,
            num_steps=num_steps,
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=config.get("steps_offset", 0),
        )
        _check_noise_levels(scheduler, schedule)
        return schedule


def _check_noise_levels(scheduler: Any, schedule: Schedule) -> None:
    """Raise ConfigError if a scheduler's own noise levels, in float32, differ from those of its config."""
    actual = getattr(scheduler, "alphas_cumprod", None)
    if actual is None:
        return
    actual, expected = torch.as_tensor(actual, dtype=torch.float64, device="cpu"), schedule.alphas_cumprod
    if actual.shape != expected.shape or not torch.allclose(actual, expected, rtol=1e-3, atol=1e-6):
        raise ConfigError(
            f"The alphas_cumprod of the {type(scheduler).__name__} are not those of its configuration. Do not change "
            "them in place: make a scheduler with trained_betas."
        )


def _strided_timesteps(total: int, num_steps: int, spacing: str, steps_offset: int) -> Tensor:
    """(K,) int64, descending: Table 2 of https://arxiv.org/abs/2305.08891, rounded as NumPy rounds it in diffusers.

    torch.linspace and torch.arange differ from NumPy's in the last bit, which would move timesteps that lie half-way.
    """
    if spacing == "linspace":
        stride = (total - 1) / max(1, num_steps - 1)
        return (torch.arange(num_steps, dtype=torch.float64, device="cpu") * stride).round().long().flip(0)
    if spacing == "leading":
        return (torch.arange(num_steps, device="cpu") * (total // num_steps)).flip(0) + steps_offset
    if math.ceil(total / (total / num_steps)) != num_steps:  # the length of np.arange(total, 0, -total / num_steps)
        raise ConfigError(
            f"diffusers rounds trailing timesteps for num_steps {num_steps} of {total} to {num_steps + 1} of them, the "
            "last one -1. Take another number of steps, or another timestep_spacing."
        )
    stride = (total - total / num_steps) - total  # as np.arange rounds it
    return (total + torch.arange(num_steps, dtype=torch.float64, device="cpu") * stride).round().long() - 1


def _betas_from_config(config: Mapping[str, Any]) -> Tensor:
    """(T,) float64 betas of a diffusers scheduler config."""
    if config.get("trained_betas") is not None:
        betas: Tensor = config["trained_betas"]  # or a list of numbers
        return betas
    total = as_count(config.get("num_train_timesteps", 1000), "num_train_timesteps")
    start, end = (_number(config, *entry) for entry in (("beta_start", 1e-4), ("beta_end", 0.02)))
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return torch.linspace(start, end, total, dtype=torch.float64, device="cpu")
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64, device="cpu") ** 2
    if name == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
        edges = torch.arange(total + 1, dtype=torch.float64, device="cpu") / total
        abar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    raise UnknownNameError("beta_schedule", name, ("linear", "scaled_linear", "squaredcos_cap_v2"))


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a number between 0 and 1.")
    return float(value)

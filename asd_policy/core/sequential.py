"""The steps of the plain samplers, one network call each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from asd_policy.core.chain import GaussianChain
from asd_policy.core.chains.ddim import ddim_coefficients
from asd_policy.core.denoiser import Context, Denoiser, Evaluate, clipped
from asd_policy.core.noise import NoiseTape
from asd_policy.core.schedule import Schedule

OnRound = Callable[[Tensor, Tensor], None]
"""Called after each round with the frontier (B,) int64, the number of certain steps of each chain, and x (B, *E)."""


Step = Callable[[tuple[float, ...], Tensor, Tensor, Tensor], Tensor]
"""(a step's coefficients, x (B, *E), prediction of the clean sample (B, *E), noise (B, *E)) -> the next x (B, *E)."""


class Steps:
    """All steps of a plain sampler, one network call each. No step reads a value on the host: a capture can record it.

    Args:
        timesteps: (K,) what the denoiser is told at each step.
        coefficients: K tuples, the coefficients of each step.
        step: the update rule of a step.
        start_std: standard deviation of the first state.
    """

    def __init__(
        self, timesteps: Tensor, coefficients: Sequence[tuple[float, ...]], step: Step, start_std: float = 1.0
    ):
        self.num_steps, self.timesteps = len(timesteps), timesteps
        self._coefficients, self._step, self._start_std = coefficients, step, start_std

    def __call__(
        self,
        network: Evaluate,
        denoiser: Denoiser,
        context: Context,
        tape: NoiseTape,
        on_round: OnRound | None = None,
    ) -> Tensor:
        """x (B, *E) at the end of the tape's chains; `network` is `denoise` or a capture's version of it."""
        step, row = _steps_and_rows(self.num_steps, len(tape.start), tape.start.device)
        x = self._start_std * tape.start
        for k, coefficients in enumerate(self._coefficients):
            x0 = network(denoiser, x, step[k], row, context)
            x = self._step(coefficients, x, x0, tape.xi[:, k])
            if on_round is not None:
                on_round(step[k] + 1, x)
        return x


def chain_steps(chain: GaussianChain) -> Steps:
    """The steps of any chain; a DDPM's are ancestral sampling (Ho et al. 2020, Algorithm 2)."""
    return Steps(chain.timesteps, _rows(chain.a, chain.b, chain.s), _chain_step, chain.start_std)


def _chain_step(coefficients: tuple[float, ...], x: Tensor, x0: Tensor, xi: Tensor) -> Tensor:
    a, b, s = coefficients
    return a * x + b * x0 + s * xi


def ddim_steps(schedule: Schedule, num_steps: int, eta: float, clip: float | None, set_alpha_to_one: bool) -> Steps:
    """DDIM (Song et al. 2021, eq. 12). Arguments as `sample_ddim`; `clip` bounds unclipped predictions."""
    timesteps, *coefficients = ddim_coefficients(schedule, num_steps, eta, set_alpha_to_one)
    return Steps(timesteps, _rows(*coefficients), partial(_ddim_step, clip))


def _ddim_step(clip: float | None, coefficients: tuple[float, ...], x: Tensor, x0: Tensor, xi: Tensor) -> Tensor:
    signal, noise, next_signal, direction, sigma = coefficients
    epsilon = (x - signal * x0) / noise
    return next_signal * clipped(x0, clip) + direction * epsilon + sigma * xi


def _rows(*columns: Tensor) -> list[tuple[float, ...]]:
    """Transpose columns (K,) into K rows of numbers."""
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _steps_and_rows(num_steps: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """step (K, B), row k full of k, and row (B,), 0 to B - 1. Made in advance, so that no step copies from the host."""
    step = torch.arange(num_steps, device=device).unsqueeze(1).expand(num_steps, batch_size)
    return step, torch.arange(batch_size, device=device)

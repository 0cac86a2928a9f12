"""ParaDiGMS, a parallel sampler as a baseline (Shih et al. 2023, Algorithm 1, https://arxiv.org/abs/2305.16317).

A Picard iteration over a sliding window: all states of the window are denoised at once, and the window moves past the
states that have converged. It is approximate; the tolerance sets how far it is from the DDPM's law. The arithmetic of a
step is diffusers' DDPMParallelScheduler. The loop does the same as diffusers' former StableDiffusionParadigmsPipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMParallelScheduler
from torch import Generator, Tensor

from asd_policy.core import NoiseTape


@torch.inference_mode()
def sample_paradigms(
    net: Callable[[Tensor, Tensor], Tensor],
    scheduler: DDPMParallelScheduler,
    event_shape: Sequence[int],
    batch_size: int = 1,
    generator: Generator | Sequence[Generator] | None = None,
    window: int = 64,
    tolerance: float = 0.1,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """Draw samples. The window moves with the slowest of them.

    Args:
        net: (x (N, *E), t (N,) int64) -> prediction (N, *E); of B samples' windows, N = W * B with B running fastest.
        scheduler: with its timesteps set.
        generator: as for the core's samplers, with the same noise.
        window: number of states denoised at once.
        tolerance: the change below which a state has converged, as a multiple of the noise added to it.

    Returns:
        x (B, *E), and the rounds: sequential network calls.
    """
    timesteps = scheduler.timesteps.to(device)
    num_steps, event = len(timesteps), tuple(event_shape)
    tape = NoiseTape.draw(batch_size, num_steps, event, generator, device)
    variance = torch.stack([scheduler._get_variance(t) for t in scheduler.timesteps]).to(device)
    variance[-1] = 0  # the last step returns its mean, as DDPMScheduler.step does
    noise = variance.sqrt().view(-1, 1, *(1,) * len(event)) * tape.xi.transpose(0, 1)  # (K, B, *E)
    following = torch.cat([variance[1:], variance.new_zeros(1)])  # variance of the noise added to each new state
    allowed = tolerance**2 * following * tape.start[0].numel()  # (K,) squared distances
    states = tape.start.unsqueeze(0).repeat(num_steps + 1, *(1,) * tape.start.ndim)  # (K + 1, B, *E)
    begin = rounds = 0
    while begin < num_steps:
        end = min(begin + window, num_steps)
        x, t = states[begin:end], timesteps[begin:end].repeat_interleave(batch_size)
        mean = scheduler.batch_step_no_noise(net(x.flatten(0, 1), t), t, x.flatten(0, 1)).view_as(x)
        rounds += 1
        moved = states[begin] + (mean - x + noise[begin:end]).cumsum(dim=0)
        error = (moved - states[begin + 1 : end + 1]).flatten(2).square().sum(dim=-1).amax(dim=1)  # (W,)
        states[begin + 1 : end + 1] = moved
        # A state is final when all states before it have converged. The first always is: its start was final.
        unsettled = (error > allowed[begin:end]).nonzero()
        settled = int(unsettled[0]) if len(unsettled) else end - begin
        begin = min(begin + settled + 1, end)
        states[end + 1 : begin + window + 1] = states[end]
    return states[-1], rounds

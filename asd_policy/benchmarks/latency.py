"""Latency of samplers, timed in turn on the same observations, and the network's share of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from asd_policy.benchmarks.diffusers_loop import DiffusersLoop
from asd_policy.benchmarks.work import chunk_range, round_cost
from asd_policy.core import AsdSampler, EpsilonDenoiser, Sampler, SampleStats, Schedule
from asd_policy.core.speculative import begin
from asd_policy.policies.config import SchedulerConfig
from asd_policy.policies.diffusion import DiffusionPolicy

CLOCKED = 10  # chunks in which network calls are timed
GROWTH_DRAFTS = ("frozen", "path")  # drafts whose rounds are counted against the number of steps
GROWTH_STEPS = 2000  # about as many denoising steps, over all conditions, for each count

Draw = Callable[[Tensor, torch.Generator], SampleStats | None]
"""(cond (1, ...), generator) -> the chunk's statistics; None from a sampler without statistics."""


@dataclass(frozen=True)
class Timing:
    """The timing of one sampler over all observations."""

    sampler: str
    median_ms: float
    p95_ms: float
    rounds: float  # mean
    evaluations: float  # mean
    acceptance: list[float]  # (K,)
    network_share: float = float("nan")  # share of the time; NaN if it cannot be measured, as in a CUDA graph
    operations: float = float("nan")  # torch's operations in a round, on a GPU kernels; NaN for compiled code on a CPU
    network_operations: float = float("nan")  # the network's part of the operations


def loop_draw(loop: DiffusersLoop) -> Draw:
    """diffusers' loop, which has no statistics."""

    def draw(cond: Tensor, generator: torch.Generator) -> None:
        loop.run(cond, generator)

    return draw


def sampler_draw(policy: DiffusionPolicy) -> Draw:
    """A policy's own sampler, from the learned first guess if it has one, without an earlier chunk."""
    return lambda cond, generator: policy.sampler.draw(1, cond, [generator], policy.chunks.first_guess(cond)).stats


def time_in_turn(draws: Mapping[str, Draw], conds: Sequence[Tensor], done: Callable[[], object]) -> list[Timing]:
    """Time every sampler on every condition.

    All samplers run on one condition before the next, so that a machine that slows down slows all of them alike.

    Args:
        draws: label -> sampler.
        conds: conditions, each (1, ...).
        done: called after each draw, and after each sampler's first draw, which is not timed.
    """
    for draw in draws.values():
        draw(conds[0], torch.Generator().manual_seed(0))  # compiles
        done()
    seconds: dict[str, list[float]] = {label: [] for label in draws}
    costs: dict[str, list[SampleStats | None]] = {label: [] for label in draws}
    for seed, cond in enumerate(conds):
        for label, draw in draws.items():
            generator = torch.Generator().manual_seed(seed)
            started = _now(cond)
            costs[label].append(draw(cond, generator))
            seconds[label].append(_now(cond) - started)
            done()
    return [_timing(label, seconds[label], [cost for cost in costs[label] if cost]) for label in draws]


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def _timing(label: str, seconds: Sequence[float], costs: Sequence[SampleStats]) -> Timing:
    milliseconds = 1000 * np.array(seconds)
    rounds, evaluations = (
        float(np.mean([getattr(c, name).float().mean() for c in costs])) if costs else float("nan")
        for name in ("rounds", "evaluations")
    )
    acceptance = torch.stack([c.acceptance for c in costs]).mean(dim=0).tolist() if costs else []
    p95 = float(np.percentile(milliseconds, 95))
    return Timing(label, float(np.median(milliseconds)), p95, rounds, evaluations, acceptance)


def with_round_cost(timing: Timing, sampler: Sampler, draw: Draw, conds: Sequence[Tensor]) -> Timing:
    """The timing with the operations of a round and the network's share, measured on the first conditions."""
    some = itertools.cycle(conds)

    def run() -> tuple[float, int]:
        cond, generator = next(some), torch.Generator().manual_seed(0)
        started = _now(cond)
        with chunk_range():
            stats = draw(cond, generator)
        return _now(cond) - started, sampler.num_steps if stats is None else int(stats.rounds.max())

    cost = round_cost(sampler, run, conds[0].device, min(CLOCKED, len(conds)))
    return replace(timing, operations=cost.kernels, network_operations=cost.network, network_share=cost.network_share)


def buffer_bytes(sampler: AsdSampler, cond: Tensor) -> int:
    """Bytes of a sampler's tensors for conditions `cond` (B, ...): the noise tape, the state and the draft's memory."""
    batch = sampler.batch(len(cond), cond, None)
    leaves = pytree.tree_leaves((batch, begin(batch, sampler.draft)))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def rounds_at(policy: DiffusionPolicy, num_steps: int, draft: str, conds: Tensor) -> float:
    """Mean rounds of a chain of `num_steps` steps, with a window of all of them.

    The network was trained on T timesteps. For timestep t of `num_steps` it gets (t + 1) T / num_steps - 1, which has
    the same noise level.

    Args:
        conds: (N, ...).
    """
    scheduler: SchedulerConfig = policy.config.scheduler
    schedule = Schedule.from_diffusers(asdict(scheduler) | {"num_train_timesteps": num_steps})
    ratio = scheduler.num_train_timesteps / num_steps

    def network(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        predicted: Tensor = policy.network(x, (t + 1) * ratio - 1, cond)
        return predicted

    denoiser = EpsilonDenoiser(network, schedule, scheduler.clip_sample_range).to(policy.device)
    event_shape = policy.config.horizon, policy.config.action_dim
    sampler = AsdSampler(denoiser, schedule, event_shape, draft=draft, window=None)
    return float(sampler(len(conds), conds, torch.Generator().manual_seed(0))[1].rounds.float().mean())


def rounds_against_steps(
    policy: DiffusionPolicy, steps: Sequence[int], conds: Sequence[Tensor], done: Callable[[], object]
) -> dict[str, dict[int, float]]:
    """Mean rounds by draft and number of denoising steps. Chains of many steps use fewer of the conditions.

    Args:
        conds: each (1, ...).
        done: called after each number of steps of each draft.
    """
    growth: dict[str, dict[int, float]] = {draft: {} for draft in GROWTH_DRAFTS}
    for draft, rounds in growth.items():
        for num_steps in steps:
            few = torch.cat(list(conds[:: max(1, len(conds) * num_steps // GROWTH_STEPS)]))
            rounds[num_steps] = rounds_at(policy, num_steps, draft, few)
            done()
    return growth

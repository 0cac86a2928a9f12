"""What a chunk costs: samplers timed in turn on the same observations, and what share of that the network takes."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from asd_policy.benchmarks.diffusers_loop import DiffusersLoop
from asd_policy.benchmarks.work import chunk_range, round_cost
from asd_policy.core import AsdSampler, EpsilonDenoiser, Sampler, SampleStats, Schedule
from asd_policy.core.speculative import begin
from asd_policy.policies.config import SchedulerConfig
from asd_policy.policies.diffusion import DiffusionPolicy, Observation

CLOCKED = 10  # chunks in which the time of the network is taken

Draw = Callable[[Tensor, torch.Generator], SampleStats | None]
"""(cond (1, ...), generator) -> what the chunk cost, if the sampler tells."""


@dataclass(frozen=True)
class Timing:
    """One sampler over all observations."""

    sampler: str
    median_ms: float
    p95_ms: float
    rounds: float  # mean
    evaluations: float  # mean
    acceptance: list[float]  # (K,)
    network_share: float = float("nan")  # of the time; NaN where nobody can tell, as of a CUDA graph
    operations: float = float("nan")  # of a round, on a GPU kernels; NaN for compiled code on a CPU
    network_operations: float = float("nan")  # of these, the network's


def record_histories(policy: DiffusionPolicy, env: gymnasium.Env, seed: int) -> Iterator[tuple[list[Observation], int]]:
    """Run an episode; yield the observations that each chunk was sampled from, and the rounds that it took."""
    policy.reset(seed=seed)
    obs, _ = env.reset(seed=seed)
    history, chunk, over = deque([obs], maxlen=policy.config.n_obs_steps), policy.stats, False
    while not over:
        action = policy.act(obs)
        if policy.stats is not None and policy.stats is not chunk:
            chunk = policy.stats
            yield list(history), int(chunk.rounds[0])
        obs, _, terminated, truncated, info = env.step(action)
        history.append(obs)
        over = terminated or truncated or bool(info["success"])


def loop_draw(loop: DiffusersLoop) -> Draw:
    """The loop that users of diffusers write, which tells no cost."""

    def draw(cond: Tensor, generator: torch.Generator) -> None:
        loop.run(cond, generator)

    return draw


def sampler_draw(policy: DiffusionPolicy) -> Draw:
    """A policy's own sampler, without a warm start."""
    return lambda cond, generator: policy.sampler.draw(1, cond, [generator]).stats


def time_in_turn(draws: Mapping[str, Draw], conds: Sequence[Tensor], done: Callable[[], None]) -> list[Timing]:
    """Time every sampler on every condition, all samplers on one before the next: a machine that slows, slows all."""
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
    """The timing, with the operations of a round and the network's share, on some of the conditions."""
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
    """Memory of all that a sampler keeps through its rounds for conditions `cond` (B, ...): tape, state, memory."""
    chain = sampler.chain(len(cond), cond, None)
    leaves = pytree.tree_leaves((chain, begin(chain, sampler.draft)))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def rounds_at(policy: DiffusionPolicy, num_steps: int, draft: str, conds: Tensor) -> float:
    """Mean rounds of a chain of `num_steps` steps, all of them in the window.

    The network was trained on T timesteps of a schedule that is defined for any number of them: timestep t of
    `num_steps` is told to it as (t + 1) T / num_steps - 1, where the signal is equally strong.
    """
    scheduler: SchedulerConfig = policy.config.scheduler
    schedule = Schedule.from_diffusers(asdict(scheduler) | {"num_train_timesteps": num_steps})
    ratio = scheduler.num_train_timesteps / num_steps

    def network(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return policy.network(x, (t + 1) * ratio - 1, cond)

    denoiser = EpsilonDenoiser(network, schedule, scheduler.clip_sample_range).to(policy.device)
    event_shape = policy.config.horizon, policy.config.action_dim
    sampler = AsdSampler(denoiser, schedule, event_shape, draft=draft, window=None)
    return float(sampler(len(conds), conds, torch.Generator().manual_seed(0))[1].rounds.float().mean())

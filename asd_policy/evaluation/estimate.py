"""Estimates the duration of a sweep from a few control steps of each sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import mean
from time import monotonic
from typing import Any

import gymnasium

from asd_policy.evaluation.results import Record, check_same_settings
from asd_policy.evaluation.rollout import rollout
from asd_policy.evaluation.sweep import Plan
from asd_policy.evaluation.vector import kill_envs, rollout_batch, vector_env
from asd_policy.evaluation.worker import LoadedTask

MEASURED_STEPS = 32
"""Control steps measured for each sampler: four chunks of the shipped policies."""


@dataclass(frozen=True)
class Estimate:
    """The cost of one sampler on one task."""

    task: str
    sampler: str
    on_file: int  # episodes
    to_run: int  # episodes
    seconds: float  # per control step of one episode; 0 if there is nothing to run
    steps: float  # control steps of an episode
    at_most: bool  # whether `steps` is the time limit, not the mean of the episodes on file

    @property
    def hours(self) -> float:
        return self.to_run * self.seconds * self.steps / 3600


def estimate(
    plan: Plan, records: Sequence[Record], load: Callable[[str], LoadedTask], batch: int
) -> Iterator[Estimate]:
    """Measure each sampler of each task on this machine, with one worker.

    Args:
        records: the episodes on file.

    Raises:
        ConfigError: if the records were made with other checkpoints or settings.
    """
    check_same_settings(records, plan.checkpoints, plan.settings)
    left = Counter((key.task, key.sampler) for key in plan.missing(records))
    for task in plan.checkpoints:
        parts = load(task)
        time_limit = cache(partial(_time_limit, parts.make_env))  # it makes an environment, at most once
        for sampler in plan.samplers:
            lengths = [r.length for r in records if (r.task, r.sampler) == (task, sampler) and r.error is None]
            to_run = left[task, sampler]
            yield Estimate(
                task,
                sampler,
                len(plan.env_seeds) * plan.repeats - to_run,
                to_run,
                seconds_per_step(parts, sampler, plan.env_seeds[0], batch) if to_run else 0.0,
                mean(lengths) if lengths else time_limit(),
                not lengths,
            )


def seconds_per_step(parts: LoadedTask, sampler: str, env_seed: int, batch: int) -> float:
    """Seconds for each control step of one episode, including the reset but not compilation."""
    make_env, policy = partial(_cut, parts.make_env), parts.make_policy(sampler)
    if batch == 1:
        env = make_env()
        seconds = _timed(lambda: rollout(env, policy, env_seed, 0).length)
        env.close()
    else:
        envs = vector_env(make_env, batch)
        seeds, noise_seeds = [env_seed] * batch, range(batch)
        seconds = _timed(lambda: sum(episode.length for episode in rollout_batch(envs, policy, seeds, noise_seeds)))
        kill_envs(envs)
    return seconds


def _timed(run: Callable[[], int]) -> float:
    """Seconds for each step of `run`, which returns its number of steps. The first of its two runs compiles."""
    run()
    started = monotonic()
    steps = run()
    return (monotonic() - started) / steps


def _time_limit(make_env: Callable[[], gymnasium.Env[Any, Any]]) -> float:
    env = make_env()
    limit = env.spec.max_episode_steps if env.spec is not None else None
    env.close()
    return limit or MEASURED_STEPS


def _cut(make_env: Callable[[], gymnasium.Env[Any, Any]]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TimeLimit(make_env(), MEASURED_STEPS)

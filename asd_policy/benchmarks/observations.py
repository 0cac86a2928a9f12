"""Observations recorded along episodes of a policy's environment, for benchmarks and calibration."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.observations import Observation


@dataclass(frozen=True)
class Histories:
    """A policy's observations at its chunks.

    Attributes:
        observations: for each chunk the last `n_obs_steps` observations, oldest first; fewer at an episode's start.
        warm_rounds: mean rounds of the chunks with a warm start from the previous chunk; NaN without any.
    """

    observations: list[list[Observation]]
    warm_rounds: float

    @property
    def latest(self) -> list[Observation]:
        """The last observation of each chunk."""
        return [history[-1] for history in self.observations]


def record_histories(
    policy: DiffusionPolicy, env: gymnasium.Env[Any, Any], count: int, seed: int, recorded: Callable[[], object]
) -> Histories:
    """Run episodes until the policy has sampled `count` chunks.

    Args:
        env: the policy's environment, which reports `info["success"]`.
        seed: seed of the first episode; each next one adds 1.
        recorded: called after each of the `count` chunks.

    Raises:
        ConfigError: if `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"Got {count} observations to record; expected at least 1.")
    histories: list[list[Observation]] = []
    warm: list[int] = []
    while len(histories) < count:
        for turn, (history, rounds) in enumerate(_episode(policy, env, seed)):
            warm += [rounds] if turn else []
            if len(histories) < count:  # the last episode is finished for the mean of the rounds
                histories.append(history)
                recorded()
        seed += 1
    return Histories(histories, sum(warm) / len(warm) if warm else float("nan"))


def record_conditions(
    policy: DiffusionPolicy, env: gymnasium.Env[Any, Any], count: int, seed: int, recorded: Callable[[], object]
) -> Tensor:
    """Run episodes until `count` conditions are recorded, one at every step: (count, D), on the policy's device.

    Args:
        env, seed, recorded: as `record_histories`; `recorded` is called after each condition.

    Raises:
        ConfigError: if `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"Got {count} observations to record; expected at least 1.")
    conditions: list[Tensor] = []
    while len(conditions) < count:
        policy.reset(seed=seed)
        obs, _ = env.reset(seed=seed)
        history, over = deque([obs], maxlen=policy.config.n_obs_steps), False
        while not over and len(conditions) < count:
            conditions.append(policy.condition(history))
            recorded()
            obs, _, terminated, truncated, info = env.step(policy.act(obs))
            history.append(obs)
            over = terminated or truncated or bool(info["success"])
        seed += 1
    return torch.cat(conditions)


def _episode(
    policy: DiffusionPolicy, env: gymnasium.Env[Any, Any], seed: int
) -> Iterator[tuple[list[Observation], int]]:
    """Run an episode, and yield each chunk's observations and rounds."""
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

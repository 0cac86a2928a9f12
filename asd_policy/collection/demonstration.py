"""One demonstration: a worker that runs a task's expert in its environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import envs
from asd_policy.collection.settings import Collection
from asd_policy.data.gate import Demonstration

Seed = tuple[int]
"""A task of a worker: the seed of one episode."""

STYLE_STREAM, NOISE_STREAM, MISS_STREAM = 0, 1, 2
"""Random streams of an episode: the expert's style, its disturbances, and the misses."""

ActionPair = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]
"""(A,), (A,): the expert's action, which is the label, and the action to execute."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a seed: its demonstration, or None if the expert failed."""

    seed: int
    episode: Demonstration | None


class Demonstrator:
    """A worker of a backend: takes a seed and returns its demonstration, which depends on the seed alone.

    Args:
        collection: the task and its exploration settings.
    """

    def __init__(self, collection: Collection):
        self._collection = collection
        envs.register(collection.task)  # this process may not have registered a task of another package
        self._env: gymnasium.Env[dict[str, Any], Any] = gymnasium.make(collection.env_id, terminate_on_success=False)
        self._policy = None if collection.lead is None else collection.lead.load()
        self._obs: dict[str, Any] = {}

    def __call__(self, task: Seed) -> Outcome:
        (seed,) = task
        return Outcome(seed, self._demonstrate(seed))

    def close(self) -> None:
        self._env.close()

    def _demonstrate(self, seed: int) -> Demonstration | None:
        from envs.robosuite_env import SimulationError  # here: the collecting process needs no simulator

        self._obs, _ = self._env.reset(seed=seed)
        observations, labels, executions, successes = [], [], [], []
        for label, action in self._actions(seed):
            executed = action.astype(np.float32)
            observations.append(self._obs)
            labels.append(label)
            executions.append(executed)
            try:
                self._obs, _, _, truncated, info = self._env.step(executed)
            except SimulationError:
                return None
            successes.append(bool(info["success"]))
            if truncated:
                break
        if not successes or not successes[-1]:
            return None
        return Demonstration(
            seed=seed,
            obs={key: np.stack([obs[key] for obs in observations]) for key in observations[0]},
            action=np.stack(labels).astype(np.float32),
            executed_action=np.stack(executions),
            steps_to_success=successes.index(True) + 1,
        )

    def _actions(self, seed: int) -> Iterator[ActionPair]:
        """For each step the expert's action and the one to execute. While a policy acts first, the label is zeros."""
        from envs.experts import make_expert, make_misses
        from envs.exploration import exploration_noise
        from envs.pose_actions import to_pose_action

        collection, env = self._collection, self._env
        if collection.lead is not None and self._policy is not None:
            for led in collection.lead.act(self._policy, lambda: self._obs, seed):
                yield np.zeros_like(led), led
        style, noise, chance = (
            np.random.default_rng([seed, stream]) for stream in (STYLE_STREAM, NOISE_STREAM, MISS_STREAM)
        )
        simulation = env.get_wrapper_attr("robosuite")
        disturbances = exploration_noise(collection.exploration, len(collection.task.robots), noise)
        misses = make_misses(env, collection.exploration.misses, chance)
        for action, disturbance, miss in zip(make_expert(env, style), disturbances, misses, strict=False):
            executed = np.clip(action + disturbance, -1.0, 1.0) if miss is None else miss
            if collection.actions == "delta":
                yield action, executed
            else:
                frame = collection.actions
                yield to_pose_action(simulation, action, frame), to_pose_action(simulation, executed, frame)

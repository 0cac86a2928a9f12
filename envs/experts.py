"""Runs a task's expert in its environment.

    for action in make_expert(env, np.random.default_rng(0)):
        env.step(action)

Step the environment between two actions of the expert, because each action depends on the present state.
"""

from collections.abc import Iterator
from itertools import repeat

import gymnasium
import numpy as np

from envs.robosuite_env import Obs, RobosuiteEnv
from envs.spec import Action
from envs.tasks import TASKS

Env = gymnasium.Env[Obs, Action]


def make_expert(env: Env, rng: np.random.Generator) -> Iterator[Action]:
    """The expert of the environment's task, for one episode. Call it after `reset`.

    Args:
        env: one of this package's environments, wrapped or not.
        rng: draws the episode's variation in speed, waypoints and grasp.

    Raises:
        gymnasium.error.Error: if the task has no expert.
    """
    base = _base(env)
    if base.task.expert is None:
        have = ", ".join(name for name, task in TASKS.items() if task.expert)
        raise gymnasium.error.Error(f"Task {base.task.name!r} has no expert; these have: {have}.")
    return base.task.expert(base.robosuite, rng)


def make_misses(env: Env, rate: float, rng: np.random.Generator) -> Iterator[Action | None]:
    """At each step of the episode, an action that leads the expert past its goal, or None to use the expert's own.

    Args:
        env: as for `make_expert`, and stepped as its expert is.
        rate: `envs.tasks.Exploration.misses`.
        rng: draws when and where the expert misses.

    Raises:
        ValueError: if `rate` is not zero and the task has no misses.
    """
    base = _base(env)
    if rate == 0.0:
        return repeat(None)
    if base.task.misses is None:
        have = ", ".join(name for name, task in TASKS.items() if task.misses)
        raise ValueError(f"The expert of {base.task.name} cannot be led past its goal; those that can: {have}.")
    return base.task.misses(base.robosuite, rate, rng)


def _base(env: Env) -> RobosuiteEnv:
    base = env.unwrapped
    if not isinstance(base, RobosuiteEnv):
        raise TypeError(f"Got {env}, expected an environment of `envs`: {', '.join(sorted(TASKS))}.")
    return base

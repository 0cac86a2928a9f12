"""Scripted demonstrators, by task name.

An expert is an iterator of actions. Each `next()` looks at the simulation and answers with the action (7 per arm,
in [-1, 1]) for the step to come, so the environment must be stepped between two calls, with that action or a
perturbed one:

    for action in make_expert(env, np.random.default_rng(0)):
        env.step(action)
"""

from collections.abc import Callable, Iterator
from itertools import repeat

import gymnasium
import numpy as np

from envs.experts.motion import Action
from envs.experts.square import square_expert
from envs.experts.tool_hang import beside_the_stand, tool_hang_expert
from envs.experts.transport import transport_expert
from envs.robosuite_env import RobosuiteEnv

EXPERTS: dict[str, Callable[[RobosuiteEnv, np.random.Generator], Iterator[Action]]] = {
    "square": square_expert,
    "tool_hang": tool_hang_expert,
    "transport": transport_expert,
}

MISSES: dict[str, Callable[[RobosuiteEnv, float, np.random.Generator], Iterator[Action | None]]] = {
    "tool_hang": beside_the_stand,
}


def make_expert(env: gymnasium.Env, rng: np.random.Generator) -> Iterator[Action]:
    """The expert for one episode of the environment's task; call it after `reset`.

    Args:
        env: one of this package's environments, wrapped or not.
        rng: source of the episode's variation in speed, waypoints and grasp.
    """
    base = _base(env)
    return EXPERTS[base.task.name](base, rng)


def make_misses(env: gymnasium.Env, rate: float, rng: np.random.Generator) -> Iterator[Action | None]:
    """For each step of the episode, the action that leads the expert past its goal, or None to let it go on.

    Args:
        env: as for `make_expert`, and stepped as its expert is.
        rate: of `envs.tasks.Exploration.misses`.
        rng: decides when, and where to.

    Raises:
        ValueError: if the task has no place that the expert can be led past, and `rate` is not zero.
    """
    base = _base(env)
    if rate == 0.0:
        return repeat(None)
    if base.task.name not in MISSES:
        raise ValueError(f"The expert of {base.task.name} cannot be led past its goal; those of {list(MISSES)} can.")
    return MISSES[base.task.name](base, rate, rng)


def _base(env: gymnasium.Env) -> RobosuiteEnv:
    base = env.unwrapped
    if not isinstance(base, RobosuiteEnv):
        raise TypeError(f"Got {env}, expected an environment of `envs`: {', '.join(sorted(EXPERTS))}.")
    return base

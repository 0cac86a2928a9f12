"""Scripted demonstrators, by task name.

An expert is an iterator of actions. Each `next()` looks at the simulation and answers with the action (7 per arm,
in [-1, 1]) for the step to come, so the environment must be stepped between two calls, with that action or a
perturbed one:

    for action in make_expert(env, np.random.default_rng(0)):
        env.step(action)
"""

from collections.abc import Callable, Iterator

import gymnasium
import numpy as np

from envs.experts.motion import Action
from envs.experts.square import square_expert
from envs.experts.tool_hang import tool_hang_expert
from envs.experts.transport import transport_expert
from envs.robosuite_env import RobosuiteEnv

EXPERTS: dict[str, Callable[[RobosuiteEnv, np.random.Generator], Iterator[Action]]] = {
    "square": square_expert,
    "tool_hang": tool_hang_expert,
    "transport": transport_expert,
}


def make_expert(env: gymnasium.Env, rng: np.random.Generator) -> Iterator[Action]:
    """The expert for one episode of the environment's task; call it after `reset`.

    Args:
        env: one of this package's environments, wrapped or not.
        rng: source of the episode's variation in speed, waypoints and grasp.
    """
    base = env.unwrapped
    if not isinstance(base, RobosuiteEnv):
        raise TypeError(f"Got {env}, expected an environment of `envs`: {', '.join(sorted(EXPERTS))}.")
    return EXPERTS[base.task.name](base, rng)

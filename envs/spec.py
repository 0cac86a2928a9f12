"""`TaskSpec`: the description of a task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import parse_env_id
from numpy.typing import NDArray

ARM_OBSERVATIONS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""Low-dimensional observations of one arm (m, unit quaternion xyzw, m), in robomimic's order."""

ARM_ACTION_DIM = 7
"""OSC_POSE: position (3), rotation (3), gripper (1)."""

ACTIONS = {"delta": "", "base": "BasePose", "world": "WorldPose"}
"""Kind of actions -> suffix of the environment's name.

"delta": changes of the achieved pose; 1 is 0.05 m or 0.5 rad. "base", "world": a target pose, position in metres and
rotation vector in radians, in the frame of the arm's base (robomimic 0.5) or of the world (real-stanford's files).
"""

Action = NDArray[np.float64]
"""(7,) for each arm, concatenated, in [-1, 1]."""

Expert = Callable[[Any, np.random.Generator], Iterator[Action]]
"""`expert(sim, rng)` demonstrates one episode.

Call it after the reset of `sim`, robosuite's environment. Each `next()` reads the state of the simulation and returns
the action of the coming step. The caller steps the environment in between, with that action or a disturbed one. All
randomness comes from `rng`. The iterator ends a few steps after success.
"""

Misses = Callable[[Any, float, np.random.Generator], Iterator[Action | None]]
"""`misses(sim, rate, rng)` sometimes leads an expert past its goal: at each step an action to execute, or None.

`rate` is `Exploration.misses`. None executes the expert's own action.
"""


@dataclass(frozen=True)
class Exploration:
    """The disturbances of an expert during demonstrations (see `envs.exploration`).

    Attributes:
        noise: standard deviation of white noise on the actions, as a fraction of a full action.
        pushes: probability per step and arm that a push begins.
        closings: probability per step and arm that the fingers begin to close.
        misses: probability of a miss at each opportunity to lead the expert past its goal (see `Misses`).
    """

    noise: float = 0.05
    pushes: float = 0.0
    closings: float = 0.0
    misses: float = 0.0


@dataclass(frozen=True)
class TaskSpec:
    """One manipulation task: its robosuite environment, observations and expert.

    Attributes:
        name: key in `envs.tasks.TASKS`.
        env_id: gymnasium id with delta actions, such as "asd/Square-v0".
        robosuite_name: robosuite's environment class.
        object_dim: size of the `object` observation.
        horizon: time limit in control steps (20 per second).
        robots: robosuite's robot name for each arm.
        make_options: further arguments of `robosuite.make`.
        expert: demonstrates the task; None if there is none. A module-level function, so that specs can be pickled.
        misses: leads the expert past its goal; None if the task has no misses.
        exploration: the disturbances of the expert during demonstrations.

    Raises:
        gymnasium.error.Error: on invalid values.
    """

    name: str
    env_id: str
    robosuite_name: str
    object_dim: int
    horizon: int
    robots: tuple[str, ...] = ("Panda",)
    make_options: Mapping[str, Any] = field(default_factory=dict)
    expert: Expert | None = None
    misses: Misses | None = None
    exploration: Exploration = field(default_factory=Exploration)

    def __post_init__(self) -> None:
        _, _, version = parse_env_id(self.env_id)
        for attribute, good, expected in (
            ("env_id", version is not None, "a version at its end, such as -v0"),
            ("object_dim", self.object_dim >= 1, "at least 1"),
            ("horizon", self.horizon >= 1, "at least 1"),
            ("robots", isinstance(self.robots, tuple) and len(self.robots) >= 1, "a tuple of names, one per arm"),
            ("expert", self.expert is None or callable(self.expert), "expert(sim, rng), or None"),
            ("misses", self.misses is None or callable(self.misses), "misses(sim, rate, rng), or None"),
        ):
            if not good:
                raise gymnasium.error.Error(
                    f"Task {self.name!r}: {attribute} is {getattr(self, attribute)!r}; expected {expected}."
                )

    @property
    def obs_dims(self) -> dict[str, int]:
        """Observation keys and sizes, in robomimic's order."""
        dims = {"object": self.object_dim}
        for arm in range(len(self.robots)):
            dims |= {f"robot{arm}_{key}": dim for key, dim in ARM_OBSERVATIONS.items()}
        return dims

    def variant(self, actions: str) -> str:
        """The gymnasium id with this kind of actions, a key of `ACTIONS`."""
        name, _, version = self.env_id.rpartition("-")
        return f"{name}{ACTIONS[actions]}-{version}"

    @property
    def action_dim(self) -> int:
        return ARM_ACTION_DIM * len(self.robots)

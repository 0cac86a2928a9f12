"""What distinguishes one robosuite task from another: a spec, not a subclass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARM_OBSERVATIONS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""Low-dimensional observations of one arm (m, unit quaternion xyzw, m), in robomimic's order."""

ARM_ACTION_DIM = 7
"""OSC_POSE: position (3), rotation (3), gripper (1)."""

ACTIONS = {"delta": "", "base": "BasePose", "world": "WorldPose"}
"""What position and rotation are, and how the environment's name says it.

"delta": changes of the achieved pose, 1 being 0.05 m or 0.5 rad. "base", "world": a target pose, in metres and axis
times angle in radians, in the frame of the arm's base (as in robomimic 0.5) or of the world (as in real-stanford's).
"""


@dataclass(frozen=True)
class Exploration:
    """What disturbs an expert while it demonstrates (`envs.experts.exploration`).

    Attributes:
        noise: standard deviation of white noise on the actions, in fractions of a full one.
        pushes: probability that a push on an arm begins at a step.
        closings: probability that an arm's fingers begin to close by themselves at a step.
        misses: probability, each time that what is held comes over the place it goes into, that it is led past it
            (`envs.experts.MISSES`).
    """

    noise: float = 0.05
    pushes: float = 0.0
    closings: float = 0.0
    misses: float = 0.0


@dataclass(frozen=True)
class TaskSpec:
    """One manipulation task: how robosuite builds it and what a policy sees of it.

    Attributes:
        name: key in `TASKS`, and the name of the expert.
        env_id: gymnasium id, with delta actions.
        robosuite_name: robosuite's environment class.
        object_dim: size of the `object` observation.
        horizon: time limit in control steps (20 per second).
        robots: one robosuite robot name per arm.
        make_options: further arguments of `robosuite.make`.
        exploration: what disturbs the expert while demonstrations are collected.
    """

    name: str
    env_id: str
    robosuite_name: str
    object_dim: int
    horizon: int
    robots: tuple[str, ...] = ("Panda",)
    make_options: Mapping[str, Any] = field(default_factory=dict)
    exploration: Exploration = field(default_factory=Exploration)

    @property
    def obs_dims(self) -> dict[str, int]:
        """Observation keys and sizes, in robomimic's order."""
        dims = {"object": self.object_dim}
        for arm in range(len(self.robots)):
            dims |= {f"robot{arm}_{key}": dim for key, dim in ARM_OBSERVATIONS.items()}
        return dims

    def variant(self, actions: str) -> str:
        """The gymnasium id where actions are one of `ACTIONS`."""
        name, version = self.env_id.rsplit("-", 1)
        return f"{name}{ACTIONS[actions]}-{version}"

    @property
    def action_dim(self) -> int:
        return ARM_ACTION_DIM * len(self.robots)


TASKS = {
    task.name: task
    for task in (
        TaskSpec("square", "asd/Square-v0", "NutAssemblySquare", object_dim=14, horizon=400),
        TaskSpec(
            "transport",
            "asd/Transport-v0",
            "TwoArmTransport",
            object_dim=41,
            horizon=700,
            robots=("Panda", "Panda"),
            make_options={"env_configuration": "opposed"},
        ),
        TaskSpec(
            "tool_hang", "asd/ToolHang-v0", "ToolHang", object_dim=44, horizon=700, exploration=Exploration(noise=0.03)
        ),
    )
}

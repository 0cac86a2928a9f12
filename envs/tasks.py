"""What distinguishes one robosuite task from another: a spec, not a subclass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARM_OBSERVATIONS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""Low-dimensional observations of one arm (m, unit quaternion xyzw, m), in robomimic's order."""

ARM_ACTION_DIM = 7
"""OSC_POSE: position delta (3), rotation delta (3), gripper (1)."""


@dataclass(frozen=True)
class TaskSpec:
    """One manipulation task: how robosuite builds it and what a policy sees of it.

    Attributes:
        name: key in `TASKS`, and the name of the expert.
        env_id: gymnasium id.
        robosuite_name: robosuite's environment class.
        object_dim: size of the `object` observation.
        horizon: time limit in control steps (20 per second).
        robots: one robosuite robot name per arm.
        make_options: further arguments of `robosuite.make`.
        exploration_noise: standard deviation of the action noise under which demonstrations are collected, in
            fractions of a full action.
    """

    name: str
    env_id: str
    robosuite_name: str
    object_dim: int
    horizon: int
    robots: tuple[str, ...] = ("Panda",)
    make_options: Mapping[str, Any] = field(default_factory=dict)
    exploration_noise: float = 0.05

    @property
    def obs_dims(self) -> dict[str, int]:
        """Observation keys and sizes, in robomimic's order."""
        dims = {"object": self.object_dim}
        for arm in range(len(self.robots)):
            dims |= {f"robot{arm}_{key}": dim for key, dim in ARM_OBSERVATIONS.items()}
        return dims

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
        TaskSpec("tool_hang", "asd/ToolHang-v0", "ToolHang", object_dim=44, horizon=700, exploration_noise=0.03),
    )
}

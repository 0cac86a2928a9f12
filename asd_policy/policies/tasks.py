"""Names of robomimic's tasks and observations, and our environments for them."""

ENV_IDS = {
    "square": "asd/Square-v0",
    "NutAssemblySquare": "asd/Square-v0",
    "transport": "asd/Transport-v0",
    "TwoArmTransport": "asd/Transport-v0",
    "tool_hang": "asd/ToolHang-v0",
    "ToolHang": "asd/ToolHang-v0",
}
"""robomimic's task, or robosuite's environment -> our environment."""

POSES = {"base": "BasePose", "world": "WorldPose"}
"""Frame of target poses -> its part of our environments' names."""

ARM_DIMS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""Vector observations of one arm and their sizes, in robomimic's order."""


def env_id(name: str, poses: str | None = None) -> str:
    """The id of our environment for a task; an unknown name is returned unchanged.

    Args:
        name: robomimic's name of the task, or robosuite's of the environment.
        poses: the frame of target poses, a key of `POSES`; None if actions are deltas.
    """
    ours = ENV_IDS.get(name)
    if ours is None or poses is None:
        return name if ours is None else ours
    task, _, version = ours.rpartition("-")
    return f"{task}{POSES[poses]}-{version}"


def is_ours(env: str) -> bool:
    """Whether an environment is one of ours."""
    return env.startswith("asd/")


def arms_of(env: str) -> int:
    """The number of arms of one of our environments."""
    return 2 if env.startswith("asd/Transport") else 1


def takes_poses(env: str) -> bool:
    """Whether the actions of one of our environments are target poses."""
    return is_ours(env) and env.rpartition("-")[0].endswith(tuple(POSES.values()))

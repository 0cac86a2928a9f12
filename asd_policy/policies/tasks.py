"""What the names of robomimic's tasks and observations mean here."""

ENV_IDS = {
    "square": "asd/Square-v0",
    "NutAssemblySquare": "asd/Square-v0",
    "transport": "asd/Transport-v0",
    "TwoArmTransport": "asd/Transport-v0",
    "tool_hang": "asd/ToolHang-v0",
    "ToolHang": "asd/ToolHang-v0",
}
"""robomimic's name of a task, and robosuite's of its environment -> our environment."""

POSES = {"base": "BasePose", "world": "WorldPose"}
"""The frame of target poses -> how the names of our environments that take them say it."""

ARM_DIMS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""Low-dimensional observations of one arm, in robomimic's order."""


def env_id(name: str, poses: str | None = None) -> str:
    """The id of the environment that others call `name`; a name that is not known stays as it is.

    Args:
        poses: a key of `POSES` where actions are target poses.
    """
    ours = ENV_IDS.get(name)
    if ours is None or poses is None:
        return name if ours is None else ours
    task, _, version = ours.rpartition("-")
    return f"{task}{POSES[poses]}-{version}"


def is_ours(env: str) -> bool:
    """Whether an environment is one of those here."""
    return env.startswith("asd/")


def arms_of(env: str) -> int:
    """How many arms one of our environments has."""
    return 2 if env.startswith("asd/Transport") else 1


def takes_poses(env: str) -> bool:
    """Whether the actions of one of our environments are target poses."""
    return is_ours(env) and env.rpartition("-")[0].endswith(tuple(POSES.values()))

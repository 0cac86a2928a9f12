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

ARM_DIMS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""Low-dimensional observations of one arm, in robomimic's order."""


def env_id(name: str) -> str:
    """The id of the environment that others call `name`; a name that is not known stays as it is."""
    return ENV_IDS.get(name, name)

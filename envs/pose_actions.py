"""Converts delta actions to target poses."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.graphics import mujoco
from envs.motion import METRES_PER_UNIT, RADIANS_PER_UNIT
from envs.spec import ARM_ACTION_DIM


def to_pose_action(env: Any, action: NDArray[np.floating[Any]], frame: str) -> NDArray[np.float64]:
    """The pose action with the same effect as a delta action in the environment's present state.

    Args:
        env: the robosuite environment.
        action: (7,) for each arm, concatenated; position and rotation are clipped to [-1, 1], as by the controller.
        frame: the frame of the poses, "base" or "world".

    Returns:
        the same shape: position in metres, axis times angle in radians, gripper.
    """
    # Between steps, poses lag one physics step behind the joints. The controller will read updated ones.
    mujoco.mj_kinematics(env.sim.model._model, env.sim.data._data)
    arms = action.reshape(-1, ARM_ACTION_DIM)
    return np.concatenate([_arm(env, robot, arm, frame) for robot, arm in zip(env.robots, arms, strict=True)])


def _arm(env: Any, robot: Any, action: NDArray[np.floating[Any]], frame: str) -> NDArray[np.float64]:
    controller, site = robot.part_controllers["right"], robot.eef_site_id["right"]
    base = Rotation.from_matrix(controller.origin_ori)
    change = np.clip(action[:6], -1.0, 1.0).astype(np.float64)
    position = base.inv().apply(env.sim.data.site_xpos[site] - controller.origin_pos) + METRES_PER_UNIT * change[:3]
    hand = base.inv() * Rotation.from_matrix(env.sim.data.site_xmat[site].reshape(3, 3))
    rotation = Rotation.from_rotvec(RADIANS_PER_UNIT * change[3:]) * hand
    if frame == "world":
        position, rotation = base.apply(position) + controller.origin_pos, base * rotation
    return np.concatenate([position, rotation.as_rotvec(), action[6:]])

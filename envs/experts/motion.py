"""Motion library of the scripted experts: live poses, a servo through OSC_POSE deltas, and phases.

A phase is a generator of actions: each `next()` looks at the simulation as it is now and yields the action for
the next control step; the phase ends, yielding nothing more, when its goal is reached. An expert strings phases
together with `yield from`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Action = NDArray[np.float64]
Condition = Callable[[], bool]

METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
OPEN, CLOSE = -1.0, 1.0
DOWN = Rotation.from_matrix([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The vertical gripper at yaw 0: fingers open along world y, approach direction along -z."""


@dataclass(frozen=True)
class Pose:
    """A pose in the world frame: position (3,) in metres, and rotation."""

    position: NDArray[np.float64]
    rotation: Rotation


LivePose = Callable[[], Pose]
"""A pose that is looked up, or computed, anew at each call."""


class Arm:
    """One arm of a robosuite environment, moved by OSC_POSE deltas relative to its achieved pose.

    Args:
        env: the robosuite environment, after its reset.
        index: which of its single-arm robots.
    """

    def __init__(self, env: Any, index: int = 0):
        robot = env.robots[index]
        self._data = env.sim.data
        self._site = robot.eef_site_id["right"]
        self._world_to_base = Rotation.from_matrix(robot.part_controllers["right"].origin_ori).inv()

    def pose(self) -> Pose:
        """Pose of the grip site: x along the fingers' opening, z along the approach."""
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        return Pose(self._data.site_xpos[self._site].copy(), Rotation.from_matrix(rotation))

    def toward(self, goal: Pose, speed: float, grip: float) -> Action:
        """One step toward the goal: (7,) in [-1, 1]; no translation or rotation component exceeds `speed`."""
        pose = self.pose()
        shift = self._world_to_base.apply(goal.position - pose.position) / METRES_PER_UNIT
        turn = self._world_to_base.apply((goal.rotation * pose.rotation.inv()).as_rotvec()) / RADIANS_PER_UNIT
        return np.concatenate([_limited(shift, speed), _limited(turn, speed), [grip]])

    def move(self, goal: LivePose, until: Condition, *, speed: float, grip: float, max_steps: int) -> Iterator[Action]:
        """Servo to the goal until the condition holds, or for `max_steps` control steps."""
        for _ in range(max_steps):
            if until():
                return
            yield self.toward(goal(), speed, grip)

    def hold(self, steps: int, grip: float) -> Iterator[Action]:
        """Stay where the arm is, opening or closing the gripper."""
        for _ in range(steps):
            yield np.array([0.0] * 6 + [grip])


def body_pose(env: Any, body: str) -> LivePose:
    """The live pose of a body of the simulation."""
    data, index = env.sim.data, env.sim.model.body_name2id(body)

    def pose() -> Pose:
        return Pose(data.body_xpos[index].copy(), Rotation.from_quat(data.body_xquat[index], scalar_first=True))

    return pose


def carrying(hand: LivePose, carried: LivePose, goal: LivePose) -> LivePose:
    """The hand pose that brings the carried object to `goal`, from where the object now sits in the hand."""

    def hand_goal() -> Pose:
        target, held, pose = goal(), carried(), hand()
        turn = target.rotation * held.rotation.inv()
        return Pose(target.position + turn.apply(pose.position - held.position), turn * pose.rotation)

    return hand_goal


def near(pose: LivePose, goal: LivePose, metres: float, radians: float) -> Condition:
    """Whether the pose is within both tolerances of the goal."""

    def reached() -> bool:
        now, target = pose(), goal()
        shift = np.linalg.norm(target.position - now.position)
        turn = (target.rotation * now.rotation.inv()).magnitude()
        return bool(shift < metres and turn < radians)

    return reached


def fixed(pose: Pose) -> LivePose:
    return lambda: pose


def gripper_down(yaw: float) -> Rotation:
    """The vertical gripper, turned by `yaw` radians about world z from its home orientation."""
    return Rotation.from_euler("z", yaw) * DOWN


def wrap(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _limited(vector: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    return vector * min(1.0, limit / max(np.abs(vector).max(), 1e-9))

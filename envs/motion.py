"""Motion library of the scripted experts: live poses, a servo through OSC_POSE deltas, and phases.

A phase is a generator of actions. Each `next()` reads the present state of the simulation and yields the action for
the next control step. The phase ends when its goal is reached. An expert chains phases with `yield from`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.spec import Action

Condition = Callable[[], bool]

METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
MAX_SHIFT = 0.02  # metres
OPEN, CLOSE = -1.0, 1.0
DOWN = Rotation.from_matrix([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The vertical gripper at yaw 0: the fingers open along world y, the approach direction is -z."""


@dataclass(frozen=True)
class Pose:
    """A pose in the world frame: position (3,) in metres, and rotation."""

    position: NDArray[np.float64]
    rotation: Rotation

    def apply(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """The world position (3,) of a point (3,) given in this pose's coordinates."""
        turned: NDArray[np.float64] = self.rotation.apply(point)
        return self.position + turned


LivePose = Callable[[], Pose]
"""A pose that is computed anew at each call."""


class Arm:
    """One arm of a robosuite environment, moved by OSC_POSE deltas relative to its achieved pose.

    Args:
        sim: robosuite's environment, after its reset.
        index: index of the arm among robosuite's single-arm robots.
    """

    def __init__(self, sim: Any, index: int = 0):
        robot = sim.robots[index]
        self._data = sim.sim.data
        self._site = robot.eef_site_id["right"]
        self._world_to_base = Rotation.from_matrix(robot.part_controllers["right"].origin_ori).inv()

    def pose(self) -> Pose:
        """Pose of the grip site: x along the opening of the fingers, z along the approach."""
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

    def reach(
        self, goal: LivePose, tolerance: tuple[float, float], *, speed: float, grip: float, max_steps: int
    ) -> Iterator[Action]:
        """Servo to the goal until the hand is within the tolerance (metres, radians)."""
        return self.move(goal, near(self.pose, goal, *tolerance), speed=speed, grip=grip, max_steps=max_steps)

    def carry(
        self, held: LivePose, goal: LivePose, tolerance: tuple[float, float], *, speed: float, max_steps: int
    ) -> Iterator[Action]:
        """Bring the held object to the goal, within the tolerance (metres, radians)."""
        arrived = near(held, goal, *tolerance)
        return self.move(carrying(self.pose, held, goal), arrived, speed=speed, grip=CLOSE, max_steps=max_steps)

    def grasp(
        self,
        goal: LivePose,
        hover: float,
        tolerance: tuple[float, float],
        speeds: tuple[float, float],
        close_steps: int,
        settle_steps: int = 1,
    ) -> Iterator[Action]:
        """Move to `hover` metres before the goal, then to the goal along the approach direction, and close the fingers.

        Args:
            goal: the pose of the grasp.
            hover: distance of the first stop, in metres back along the goal's approach.
            tolerance: metres and radians within which the grasp is reached.
            speeds: fractions of full speed, to the hover pose and from there.
            close_steps: control steps to close the fingers.
            settle_steps: consecutive control steps that the hand must be within tolerance before it closes.
        """
        back = backed_off(goal, hover)
        fast, slow = speeds
        settled = steadily(near(self.pose, goal, *tolerance), settle_steps)
        yield from self.reach(back, (0.02, 0.2), speed=fast, grip=OPEN, max_steps=80)
        yield from self.move(goal, settled, speed=slow, grip=OPEN, max_steps=60)
        yield from self.wait(never, grip=CLOSE, max_steps=close_steps)

    def wait(self, until: Condition, *, grip: float, max_steps: int) -> Iterator[Action]:
        """Hold the present pose against external forces until the condition holds."""
        return self.move(fixed(self.pose()), until, speed=0.5, grip=grip, max_steps=max_steps)

    def hold(self, steps: int, grip: float) -> Iterator[Action]:
        """Command no motion, only open or close the gripper. Unlike with `wait`, the arm may drift."""
        for _ in range(steps):
            yield np.array([0.0] * 6 + [grip])


def body_pose(sim: Any, body: str) -> LivePose:
    """The live pose of a body of the simulation."""
    data, index = sim.sim.data, sim.sim.model.body_name2id(body)

    def pose() -> Pose:
        return Pose(data.body_xpos[index].copy(), Rotation.from_quat(data.body_xquat[index], scalar_first=True))

    return pose


def carrying(hand: LivePose, carried: LivePose, goal: LivePose) -> LivePose:
    """The hand pose that brings the carried object to `goal`, given the object's present pose in the hand."""

    def hand_goal() -> Pose:
        target, held, pose = goal(), carried(), hand()
        turn = target.rotation * held.rotation.inv()
        return Pose(target.position + turn.apply(pose.position - held.position), turn * pose.rotation)

    return hand_goal


def backed_off(goal: LivePose, metres: float) -> LivePose:
    """The goal, moved back against its approach direction."""

    def pose() -> Pose:
        target = goal()
        return Pose(target.position - target.rotation.apply([0.0, 0.0, metres]), target.rotation)

    return pose


def without_offset(pose: LivePose, goal: LivePose, gain: float) -> LivePose:
    """The goal, shifted by `gain` times the summed errors of `pose`, at most 2 cm: integral control.

    Each call adds one error, so call it once per control step.
    """
    total = np.zeros(3)

    def shifted() -> Pose:
        nonlocal total
        target = goal()
        total = np.clip(total + gain * (target.position - pose().position), -MAX_SHIFT, MAX_SHIFT)
        return Pose(target.position + total, target.rotation)

    return shifted


def eagerly(pose: LivePose, goal: LivePose, gain: float) -> LivePose:
    """The goal, moved further by `gain` times the remaining error of `pose`: a stiffer servo."""

    def beyond() -> Pose:
        now, target = pose(), goal()
        turn = Rotation.from_rotvec(gain * (target.rotation * now.rotation.inv()).as_rotvec())
        return Pose(target.position + gain * (target.position - now.position), turn * target.rotation)

    return beyond


def descending(pose: LivePose, goal: LivePose, step: float) -> LivePose:
    """The goal, but at most `step` metres below `pose`, so that the descent does not use up a limited action."""

    def below() -> Pose:
        target = goal()
        x, y, z = target.position
        return Pose(np.array([x, y, max(z, pose().position[2] - step)]), target.rotation)

    return below


def at_height_of(pose: LivePose, goal: LivePose) -> LivePose:
    """The goal, but at the height of `pose`."""

    def level() -> Pose:
        target = goal()
        return Pose(np.array([*target.position[:2], pose().position[2]]), target.rotation)

    return level


def near(pose: LivePose, goal: LivePose, metres: float, radians: float) -> Condition:
    """Whether the pose is within both tolerances of the goal."""

    def reached() -> bool:
        now, target = pose(), goal()
        shift = np.linalg.norm(target.position - now.position)
        turn = (target.rotation * now.rotation.inv()).magnitude()
        return bool(shift < metres and turn < radians)

    return reached


def steadily(condition: Condition, steps: int) -> Condition:
    """Whether the condition has held at the last `steps` calls."""
    held = 0

    def steady() -> bool:
        nonlocal held
        held = held + 1 if condition() else 0
        return held >= steps

    return steady


def either(first: Condition, second: Condition) -> Condition:
    """Whether one of the conditions holds."""
    return lambda: first() or second()


def never() -> bool:
    """The condition of a phase that ends after its number of steps."""
    return False


def fixed(pose: Pose) -> LivePose:
    return lambda: pose


def gripper_down(yaw: float) -> Rotation:
    """The vertical gripper, turned by `yaw` radians about world z from its home orientation."""
    return Rotation.from_euler("z", yaw) * DOWN


def wrap(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _limited(vector: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    return vector * min(1.0, limit / max(float(np.abs(vector).max()), 1e-9))

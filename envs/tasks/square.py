"""Square: grasp the nut by its handle and lower it over the square peg."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from envs.motion import (
    CLOSE,
    METRES_PER_UNIT,
    OPEN,
    Arm,
    LivePose,
    Pose,
    body_pose,
    carrying,
    fixed,
    gripper_down,
    near,
    wrap,
)
from envs.spec import Action, TaskSpec

PEG_XY = np.array([0.23, 0.10])
HANDLE = np.array([0.060, 0.0, 0.0])  # grip point in the nut's frame; nearer to the nut, the fingers hit its corners
TRANSFER_Z, INSERTED_Z = 1.0, 0.868
MAX_GRASPS = 4
MAX_FLIP_COST = 0.6  # either grasp may be taken up to about 20 degrees from the handle's yaw of equal costs


@dataclass(frozen=True)
class Style:
    """The variation between demonstrations (metres, radians, fractions of full speed, control steps)."""

    speed: float
    descent_speed: float
    insertion_speed: float
    hover: float
    grasp_offset: tuple[float, float]  # along the handle, and up
    yaw_offset: float
    close_steps: int
    lift_z: float
    align_z: float
    flip_cost: float  # of the grasp with the gripper turned by pi

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Style":
        speed = rng.uniform(0.75, 1.0)
        return cls(
            speed=speed,
            descent_speed=speed * rng.uniform(0.7, 0.8),
            insertion_speed=rng.uniform(0.4, 0.5),
            hover=rng.uniform(0.08, 0.13),
            grasp_offset=(rng.uniform(-0.004, 0.004), 0.002 + rng.uniform(0.0, 0.006)),
            yaw_offset=rng.normal(0.0, 0.03),
            close_steps=int(rng.integers(10, 12)),
            lift_z=rng.uniform(1.00, 1.04),
            align_z=rng.uniform(0.965, 0.985),
            flip_cost=rng.uniform(-MAX_FLIP_COST, MAX_FLIP_COST),
        )


def expert(sim: Any, rng: np.random.Generator) -> Iterator[Action]:
    """Actions of one episode, from the reset to a few steps after the release."""
    style = Style.sample(rng)
    arm, nut = Arm(sim), body_pose(sim, "SquareNut_main")
    for _ in range(MAX_GRASPS):
        flip, peg_yaw = choose_grasp(nut(), style.flip_cost)
        yield from grasp(arm, nut, flip, style)
        yield from carry(arm, nut, peg_yaw, style)
        if held(arm, nut):
            break
    yield from insert(arm, nut, peg_yaw, style)
    yield from release(arm)


def choose_grasp(nut: Pose, flip_cost: float) -> tuple[float, float]:
    """The gripper's yaw relative to the nut (0 or pi), and the nut's yaw on the peg (a multiple of pi / 2).

    Prefers small gripper yaws at both ends and little turning between them, so that the wrist stays off its limits. If
    both grasps are about equally good, either is taken: a policy that has begun to turn the other way must know how to
    continue.
    """

    def cost(choice: tuple[float, float]) -> float:
        flip, peg_yaw = choice
        at_grasp, at_peg = wrap(nut_yaw(nut) + flip), wrap(peg_yaw + flip)
        largest = max(abs(at_grasp), abs(at_peg))
        out_of_reach = 10.0 * (largest > 2.0) + 10.0 * (peg_yaw == 0.0)  # handle beyond the peg
        return largest + 0.3 * abs(at_grasp - at_peg) + out_of_reach + flip_cost * (flip > 0.0)

    return min(product((0.0, np.pi), (0.0, np.pi / 2, np.pi, -np.pi / 2)), key=cost)


def nut_yaw(nut: Pose) -> float:
    x_axis = nut.rotation.apply([1.0, 0.0, 0.0])
    return float(np.arctan2(x_axis[1], x_axis[0]))


def held(arm: Arm, nut: LivePose) -> bool:
    """Whether the handle is between the fingers."""
    handle = nut().position + nut().rotation.apply(HANDLE)
    return bool(np.linalg.norm(arm.pose().position - handle) < 0.03)


def grasp(arm: Arm, nut: LivePose, flip: float, style: Style) -> Iterator[Action]:
    """Hover over the handle, descend, close, lift."""

    def above(height: float) -> LivePose:
        def pose() -> Pose:
            along, up = style.grasp_offset
            grip = nut().position + nut().rotation.apply(HANDLE + np.array([along, 0.0, 0.0]))
            yaw = nut_yaw(nut()) + flip + style.yaw_offset
            return Pose(grip + np.array([0.0, 0.0, up + height]), gripper_down(yaw))

        return pose

    hover, handle = above(style.hover), above(0.0)
    yield from arm.reach(hover, (0.02, 0.2), speed=style.speed, grip=OPEN, max_steps=80)
    yield from arm.reach(handle, (0.006, 0.06), speed=style.descent_speed, grip=OPEN, max_steps=40)
    yield from arm.hold(style.close_steps, CLOSE)
    gripped = arm.pose()
    lifted = fixed(Pose(np.array([*gripped.position[:2], style.lift_z]), gripped.rotation))
    yield from arm.reach(lifted, (0.02, 0.2), speed=style.speed, grip=CLOSE, max_steps=40)


def carry(arm: Arm, nut: LivePose, peg_yaw: float, style: Style) -> Iterator[Action]:
    """Bring the nut over the peg and align it. Stops if the nut is lost."""

    def move(z: float, metres: float, radians: float, speed: float) -> Iterator[Action]:
        goal = fixed(Pose(np.array([*PEG_XY, z]), Rotation.from_euler("z", peg_yaw)))
        arrived = near(nut, goal, metres, radians)
        hand_goal = carrying(arm.pose, nut, goal)
        return arm.move(hand_goal, lambda: arrived() or not held(arm, nut), speed=speed, grip=CLOSE, max_steps=100)

    yield from move(TRANSFER_Z, 0.02, 0.15, style.speed)
    yield from move(style.align_z, 0.004, 0.04, style.descent_speed)


def insert(arm: Arm, nut: LivePose, peg_yaw: float, style: Style) -> Iterator[Action]:
    """Lower the nut around the peg."""

    def below() -> Pose:
        # Just below the nut, so that the descent does not use up the action. And beyond the peg's axis by the nut's
        # distance from it, because descending drags the hand toward the robot.
        x, y, z = nut().position
        step = style.insertion_speed * METRES_PER_UNIT
        return Pose(np.array([2 * PEG_XY[0] - x, 2 * PEG_XY[1] - y, z - step]), Rotation.from_euler("z", peg_yaw))

    def inserted() -> bool:
        position = nut().position
        return position[2] < INSERTED_Z and bool(np.abs(position[:2] - PEG_XY).max() < 0.03)

    yield from arm.move(carrying(arm.pose, nut, below), inserted, speed=style.insertion_speed, grip=CLOSE, max_steps=60)


def release(arm: Arm) -> Iterator[Action]:
    """Open the fingers, then rise a little."""
    yield from arm.hold(8, OPEN)
    pose = arm.pose()
    up = fixed(Pose(pose.position + np.array([0.0, 0.0, 0.1]), pose.rotation))
    yield from arm.move(up, lambda: False, speed=0.8, grip=OPEN, max_steps=5)


SQUARE = TaskSpec("square", "asd/Square-v0", "NutAssemblySquare", object_dim=14, horizon=400, expert=expert)

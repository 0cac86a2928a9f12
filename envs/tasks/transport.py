"""Transport: the first arm uncovers a bin and hands over the hammer in it; the second drops it into another.

The second arm first clears its target bin. The two experts run in parallel and report their progress in a shared
`Handover`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.motion import (
    CLOSE,
    OPEN,
    Arm,
    LivePose,
    Pose,
    body_pose,
    carrying,
    either,
    fixed,
    gripper_down,
    near,
    never,
    wrap,
)
from envs.spec import Action, TaskSpec

GIVER_YAW, RECEIVER_YAW = np.pi / 2, -np.pi / 2  # home orientations: fingers open along world x
LID_HANDLE = np.array([0.0, 0.0, 0.005])  # in the lid's frame
LID_PLACE = np.array([-0.20, -0.45])
LID_ON_TABLE_Z = 0.832  # of its handle
CLEAR_Z = 0.985  # of the hammer: above it, it may move sideways over the bin's rim
# Nearer to its own base (0.41 m), a vertical hand above z 1.03 reaches the arm's joint limits.
AROUND_BASE = np.array([0.0, -0.36, 1.05])
BETWEEN_BINS = np.array([0.0, 0.38])
READY = np.array([0.0, 0.28, 1.22])
OVER_BIN_Z = 1.05
DROP_OFFSET = np.array([0.0, -0.02])  # from the bin's centre, away from the arm's own base
MAX_GRASPS = 4
RECEIVER_BESIDE = 0.012  # metres from the handle to the middle of the fingers: it fell from grips at 13 and 16 mm
# A hand that descends fast drifts 3 cm sideways before it returns. If it closes meanwhile, it half misses the cube.
SETTLE_STEPS = 4


@dataclass(frozen=True)
class Style:
    """The variation between demonstrations (metres, radians, fractions of full speed, control steps)."""

    speeds: tuple[float, float]  # of the giver and of the receiver
    slow_down: float
    hover: float
    close_steps: int
    lid_grasp: tuple[float, float]  # along its handle, and up
    lid_lift_z: float
    giver_grip: float  # from the handle's centre
    receiver_grip: float
    present: tuple[float, float, float]
    lean: float
    trash_turn: float
    trash_lift_z: float
    trash_drop_z: float
    hammer_drop_z: float
    yaw_offset: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Style":
        return cls(
            speeds=(rng.uniform(0.8, 1.0), rng.uniform(0.8, 1.0)),
            slow_down=rng.uniform(0.7, 0.8),
            hover=rng.uniform(0.08, 0.12),
            close_steps=int(rng.integers(11, 14)),
            lid_grasp=(rng.uniform(-0.012, 0.012), rng.uniform(0.002, 0.006)),
            lid_lift_z=rng.uniform(1.04, 1.07),
            giver_grip=rng.uniform(0.040, 0.052),
            receiver_grip=rng.uniform(0.055, 0.065),
            present=(rng.uniform(-0.03, 0.03), rng.uniform(-0.02, 0.02), rng.uniform(1.05, 1.09)),
            lean=np.deg2rad(rng.uniform(15.0, 25.0)),
            trash_turn=rng.uniform(-np.pi / 8, np.pi / 8),
            trash_lift_z=rng.uniform(1.03, 1.05),
            trash_drop_z=rng.uniform(0.93, 0.97),
            hammer_drop_z=rng.uniform(0.90, 0.94),
            yaw_offset=rng.normal(0.0, 0.03),
        )


@dataclass
class Handover:
    """The progress of the arms. One arm sets each flag and the other waits for it."""

    presented: bool = False
    gripped: bool = False
    clear: bool = False
    delivered: bool = False


def expert(sim: Any, rng: np.random.Generator) -> Iterator[Action]:
    """Actions (14,) of one episode, from the reset to a few steps after the hammer is dropped."""
    style, handover = Style.sample(rng), Handover()
    giver, receiver = give(sim, style, handover), receive(sim, style, handover)
    for left, right in zip(giver, receiver, strict=False):  # the receiver ends the episode
        yield np.concatenate([left, right])


def give(sim: Any, style: Style, handover: Handover) -> Iterator[Action]:
    """The actions of the first arm."""
    arm, hammer = Arm(sim, 0), body_pose(sim, "payload_root")
    yield from remove_lid(arm, body_pose(sim, "transport_start_bin_lid_root"), style)
    for _ in range(MAX_GRASPS):
        yield from take_hammer(arm, hammer, style)
        yield from present(arm, hammer, style)
        if held(arm, hammer, -style.giver_grip):
            break
        # Let it fall before following it: otherwise it is chased upward while it hangs on the fingers.
        yield from arm.wait(never, grip=OPEN, max_steps=10)
    handover.presented = True
    yield from arm.wait(lambda: handover.gripped, grip=CLOSE, max_steps=400)
    yield from arm.wait(never, grip=OPEN, max_steps=8)
    yield from rise(arm, np.array([0.0, 0.0, 0.11]), style.speeds[0])
    handover.clear = True
    yield from rise(arm, np.array([0.0, -0.12, 0.02]), style.speeds[0])
    yield from arm.wait(lambda: handover.delivered, grip=OPEN, max_steps=400)


def receive(sim: Any, style: Style, handover: Handover) -> Iterator[Action]:
    """The actions of the second arm."""
    arm, hammer = Arm(sim, 1), body_pose(sim, "payload_root")
    bins = {name: sim.transport.objects[name].root_body for name in ("target_bin", "trash_bin")}
    yield from remove_trash(arm, body_pose(sim, "trash_main"), body_pose(sim, bins["trash_bin"])().position, style)
    yield from get_ready(arm, style)
    yield from arm.wait(lambda: handover.presented, grip=OPEN, max_steps=500)
    for _ in range(MAX_GRASPS):
        yield from grip_hammer(arm, hammer, style)
        if held(arm, hammer, style.receiver_grip, RECEIVER_BESIDE):
            break
    handover.gripped = True
    yield from arm.wait(lambda: handover.clear, grip=CLOSE, max_steps=100)
    yield from deliver(arm, hammer, body_pose(sim, bins["target_bin"])().position, style)
    handover.delivered = True
    yield from rise(arm, np.array([0.0, 0.0, 0.1]), style.speeds[1], steps=5)


def heading(hammer: Pose) -> float:
    """The yaw of the hammer's handle from world y, in [-pi / 2, pi / 2), whichever end is the head."""
    x, y, _ = hammer.rotation.apply([0.0, 0.0, 1.0])
    return float(np.arctan(-x / y))


def straightened(hammer: Pose) -> Rotation:
    """The hammer's rotation with its handle along world y."""
    return Rotation.from_euler("z", -heading(hammer)) * hammer.rotation


def along_handle(hammer: Pose, distance: float) -> NDArray[np.float64]:
    """The point on the handle's axis at this distance from its centre, positive toward the receiver."""
    along: NDArray[np.float64] = Rotation.from_euler("z", heading(hammer)).apply([0.0, distance, 0.0])
    return hammer.position + along


def held(arm: Arm, hammer: LivePose, distance: float, beside: float = 0.04) -> bool:
    """Whether the handle is between the fingers, at most `beside` metres from their middle, and gripped within 5 cm of
    `distance` from its own centre: it may have slipped along."""
    off = arm.pose().position - along_handle(hammer(), distance)
    across, along, up = Rotation.from_euler("z", -heading(hammer())).apply(off)
    return bool(abs(along) < 0.05 and np.hypot(across, up) < beside)


def rise(arm: Arm, shift: NDArray[np.float64], speed: float, steps: int = 40) -> Iterator[Action]:
    """Move by `shift` with open fingers."""
    pose = arm.pose()
    goal = fixed(Pose(pose.position + shift, pose.rotation))
    yield from arm.reach(goal, (0.02, 0.2), speed=speed, grip=OPEN, max_steps=steps)


def remove_lid(arm: Arm, lid: LivePose, style: Style) -> Iterator[Action]:
    """Take the lid by its handle and put it on the table beside the bin."""
    speed, slow = style.speeds[0], style.speeds[0] * style.slow_down

    def handle() -> Pose:
        along, up = style.lid_grasp
        grip = lid().apply(LID_HANDLE) + np.array([0.0, along, up])
        return Pose(grip, gripper_down(GIVER_YAW + style.yaw_offset))

    def level(xy: NDArray[np.float64], z: float) -> LivePose:
        return fixed(Pose(np.array([*xy, z]), Rotation.identity()))

    def on_table() -> bool:
        return bool(lid().apply(LID_HANDLE)[2] < LID_ON_TABLE_Z)

    def lost() -> bool:
        return bool(np.linalg.norm(arm.pose().position - handle().position) > 0.03)

    for _ in range(MAX_GRASPS):
        yield from arm.grasp(handle, style.hover, (0.006, 0.06), (speed, slow), style.close_steps, SETTLE_STEPS)
        lifted = level(lid().position[:2], style.lid_lift_z)
        up, arrived = carrying(arm.pose, lid, lifted), near(lid, lifted, 0.02, 0.15)
        yield from arm.move(up, either(arrived, lost), speed=speed, grip=CLOSE, max_steps=80)
        if not lost():
            break
    yield from arm.carry(lid, level(LID_PLACE, style.lid_lift_z), (0.02, 0.15), speed=speed, max_steps=80)
    down = carrying(arm.pose, lid, level(LID_PLACE, 0.80))
    yield from arm.move(down, on_table, speed=slow, grip=CLOSE, max_steps=60)
    yield from arm.wait(never, grip=OPEN, max_steps=8)
    yield from rise(arm, np.array([0.0, 0.0, 0.20]), speed)


def take_hammer(arm: Arm, hammer: LivePose, style: Style) -> Iterator[Action]:
    """Grasp the hammer in the bin and lift it straight up; moved sideways, it would pivot at the rim."""
    speed, slow = style.speeds[0], style.speeds[0] * style.slow_down

    def handle() -> Pose:
        grip = along_handle(hammer(), -style.giver_grip)
        return Pose(grip, gripper_down(heading(hammer()) + GIVER_YAW + style.yaw_offset))

    def out_of_the_bin() -> bool:
        return bool(hammer().position[2] > CLEAR_Z)

    if arm.pose().position[0] < 0.0:
        around = fixed(Pose(AROUND_BASE, handle().rotation))
        yield from arm.reach(around, (0.05, 0.4), speed=speed, grip=OPEN, max_steps=80)
    yield from arm.grasp(handle, 0.18, (0.006, 0.06), (speed, slow), style.close_steps, SETTLE_STEPS)
    pose = arm.pose()
    up = fixed(Pose(pose.position + np.array([0.0, 0.0, 0.25]), pose.rotation))
    until = either(out_of_the_bin, lambda: not held(arm, hammer, -style.giver_grip))
    yield from arm.move(up, until, speed=slow, grip=CLOSE, max_steps=60)


def present(arm: Arm, hammer: LivePose, style: Style) -> Iterator[Action]:
    """Hold the hammer out toward the receiver. Stops if the hammer is lost."""
    speed, slow = style.speeds[0], style.speeds[0] * style.slow_down
    start = hammer()
    x, y, _ = start.position
    forward = fixed(Pose(np.array([x, y + 0.13, 1.06]), start.rotation))
    shown = fixed(Pose(np.array(style.present), straightened(start)))

    def bring(goal: LivePose, metres: float, radians: float, speed: float) -> Iterator[Action]:
        until = either(near(hammer, goal, metres, radians), lambda: not held(arm, hammer, -style.giver_grip))
        hand_goal = carrying(arm.pose, hammer, goal)
        return arm.move(hand_goal, until, speed=speed, grip=CLOSE, max_steps=100)

    yield from bring(forward, 0.03, 0.2, speed)
    yield from bring(shown, 0.012, 0.08, slow)


def remove_trash(arm: Arm, trash: LivePose, trash_bin: NDArray[np.float64], style: Style) -> Iterator[Action]:
    """Carry the cube from the target bin to the trash bin."""
    speed, slow = style.speeds[1], style.speeds[1] * style.slow_down

    def cube() -> Pose:
        # A cube looks the same at every quarter turn. The style chooses the turn.
        yaw = trash().rotation.as_euler("xyz")[2]
        turn = wrap(4 * (yaw - style.trash_turn)) / 4 + style.trash_turn
        return Pose(trash().position, gripper_down(RECEIVER_YAW + turn))

    def go(xy: NDArray[np.float64], z: float, speed: float) -> Iterator[Action]:
        goal = fixed(Pose(np.array([*xy, z]), arm.pose().rotation))
        return arm.reach(goal, (0.02, 0.3), speed=speed, grip=CLOSE, max_steps=60)

    for _ in range(MAX_GRASPS):
        yield from arm.grasp(cube, style.hover + 0.12, (0.006, 0.06), (speed, slow), style.close_steps, SETTLE_STEPS)
        yield from go(arm.pose().position[:2], style.trash_lift_z, slow)
        if np.linalg.norm(arm.pose().position - trash().position) < 0.03:
            break
    yield from go(BETWEEN_BINS, style.trash_lift_z, speed)
    yield from go(trash_bin[:2], style.trash_lift_z, speed)
    yield from go(trash_bin[:2], style.trash_drop_z, slow)
    yield from arm.wait(never, grip=OPEN, max_steps=8)
    yield from rise(arm, np.array([-0.06, -0.06, 0.12]), speed)


def get_ready(arm: Arm, style: Style) -> Iterator[Action]:
    """Wait near the middle, leaning toward the giver."""
    ready = fixed(Pose(READY, leaning(0.0, style.lean)))
    yield from arm.reach(ready, (0.03, 0.2), speed=style.speeds[1], grip=OPEN, max_steps=80)


def leaning(yaw: float, lean: float) -> Rotation:
    """The receiver's hand across a handle at `yaw`, its approach tilted by `lean` toward the giver."""
    return Rotation.from_euler("z", yaw) * Rotation.from_euler("x", -lean) * gripper_down(RECEIVER_YAW)


def grip_hammer(arm: Arm, hammer: LivePose, style: Style) -> Iterator[Action]:
    """Take the free end of the handle."""
    speed, slow = style.speeds[1], style.speeds[1] * style.slow_down

    def handle() -> Pose:
        pose = hammer()
        return Pose(along_handle(pose, style.receiver_grip), leaning(heading(pose), style.lean))

    yield from arm.grasp(handle, 0.09, (0.006, 0.06), (speed, slow), style.close_steps, SETTLE_STEPS)


def deliver(arm: Arm, hammer: LivePose, target_bin: NDArray[np.float64], style: Style) -> Iterator[Action]:
    """Drop the hammer into the target bin."""
    speed, slow = style.speeds[1], style.speeds[1] * style.slow_down
    xy, level = target_bin[:2] + DROP_OFFSET, straightened(hammer())
    for z, pace in ((OVER_BIN_Z, speed), (style.hammer_drop_z, slow)):
        goal = fixed(Pose(np.array([*xy, z]), level))
        yield from arm.carry(hammer, goal, (0.02, 0.2), speed=pace, max_steps=100)
    yield from arm.wait(never, grip=OPEN, max_steps=12)


TRANSPORT = TaskSpec(
    "transport",
    "asd/Transport-v0",
    "TwoArmTransport",
    object_dim=41,
    horizon=700,
    robots=("Panda", "Panda"),
    make_options={"env_configuration": "opposed"},
    expert=expert,
)

"""Tool Hang: stand the hook frame upright in its stand, then hang the tool on the hook by its ring."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.motion import (
    CLOSE,
    METRES_PER_UNIT,
    OPEN,
    Arm,
    Condition,
    LivePose,
    Pose,
    at_height_of,
    backed_off,
    body_pose,
    carrying,
    descending,
    eagerly,
    fixed,
    gripper_down,
    near,
    never,
    steadily,
    without_offset,
)
from envs.spec import Action, Exploration, TaskSpec

GRIP = np.array([0.04375, 0.0, 0.0525])  # centre of the frame's grip; like the next two, in the frame's coordinates
TIP = np.array([0.04375, 0.0, -0.13445])
HOOK = np.array([-0.04375, 0.0, 0.102])  # top of the upturned end
RING = np.array([-0.0945, 0.0, 0.0])  # centre of the ring that goes over the hook, in the tool's coordinates
MOUTH = np.array([0.0, 0.045, 0.08])  # of the stand's cavity, in the stand's coordinates
UPRIGHT = Rotation.from_euler("z", np.pi)  # the frame upright, its hook toward world +x
ENTERED_Z, INSERTED_Z = 0.945, 0.8165  # of the tip
LIFTED_Z = 0.95  # of the frame and of the tool
MAX_OFF = 0.003  # largest distance of the tip from the mouth's axis for entering
MAX_OFF_INSIDE = 0.008  # largest distance inside the cavity; further off, the tip is beside the stand
VIA = np.array([0.02, -0.10, 1.12])  # between the frame and the tool
MAX_GRASPS, MAX_ENTRIES = 3, 4
EAGERNESS = 0.7  # gain of the servo over the stand

MISS_SPEED, MISS_DROP = (0.15, 0.6), (0.3, 0.9)  # of a full action, aside and down
MISS_STEPS, MISS_Z = 4, (0.875, 0.940)  # control steps aside; height at which the tip is released beside the stand

TILTS = np.deg2rad([0.0, 25.0, 50.0])
RING_OUTWARD = np.array([-0.002, -0.003, -0.0045])  # from the hook's top, so that the ring slides down its inner side
RING_UP = np.array([-0.0065, -0.0105, -0.0143])


@dataclass(frozen=True)
class Style:
    """The variation between demonstrations (metres, radians, fractions of full speed, control steps)."""

    speed: float
    descent_speed: float
    precise_speed: float
    entry_speed: float  # into the stand's mouth
    hover: float
    close_steps: int
    lean: float  # of the hand on the frame
    frame_grasp: tuple[float, float]  # along the grip, and up
    frame_lift_z: float
    upright_z: float  # of the tip, like the next
    align_z: float
    upright_beside: tuple[float, float]  # of the tip, from over the mouth
    upright_turn: tuple[float, float, float]  # from upright, a rotation vector
    retreat: float
    tool_grasp: tuple[float, float]  # along the handle, and up
    tool_lift_z: float
    ring_height: float  # over the hook, before it is lowered around it
    tilt: float
    tilt_steps: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Style":
        speed = rng.uniform(0.7, 1.0)
        return cls(
            speed=speed,
            descent_speed=speed * rng.uniform(0.7, 0.8),
            precise_speed=rng.uniform(0.35, 0.5),
            entry_speed=rng.uniform(0.12, 0.2),
            hover=rng.uniform(0.08, 0.12),
            close_steps=int(rng.integers(11, 15)),
            lean=np.deg2rad(35.0) + rng.uniform(-0.1, 0.1),
            frame_grasp=(-rng.uniform(0.004, 0.020), rng.uniform(-0.006, 0.014)),
            frame_lift_z=rng.uniform(1.04, 1.08),
            upright_z=rng.uniform(1.015, 1.035),
            upright_beside=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
            align_z=rng.uniform(0.975, 0.985),
            upright_turn=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
            retreat=rng.uniform(0.09, 0.12),
            tool_grasp=(rng.uniform(-0.012, 0.012), rng.uniform(-0.001, 0.009)),
            tool_lift_z=rng.uniform(1.13, 1.16),
            ring_height=rng.uniform(0.018, 0.030),
            tilt=np.deg2rad(rng.uniform(46.0, 54.0)),
            tilt_steps=int(rng.integers(36, 46)),
        )


def expert(sim: Any, rng: np.random.Generator) -> Iterator[Action]:
    """Actions until the tool hangs still, from the reset or from a state reached by a policy before the hook."""
    style = Style.sample(rng)
    arm, frame, tool = Arm(sim), body_pose(sim, "frame_root"), body_pose(sim, "tool_root")
    mouth = body_pose(sim, "stand_root")().apply(MOUTH)
    if frame().apply(TIP)[2] > INSERTED_Z or not near_upright(frame):
        for _ in range(MAX_GRASPS):
            if frame().position[2] > LIFTED_Z:
                break
            yield from take_frame(arm, frame, style)
        yield from bring_frame(arm, frame, mouth, style)
        yield from mount_frame(arm, frame, mouth, style, rng)
    if tool().position[2] < LIFTED_Z:
        yield from leave_frame(arm, style)
    for _ in range(MAX_GRASPS):
        if tool().position[2] > LIFTED_Z:
            break
        yield from take_tool(arm, tool, style)
    standing = frame()  # fixed, because the tool would otherwise chase a frame that turns in its stand
    yield from bring_tool(arm, tool, standing, style)
    yield from hang_tool(arm, tool, standing, style)


def placed(point: NDArray[np.float64], target: NDArray[np.float64], rotation: Rotation) -> Pose:
    """The pose with this rotation that places the body's point (3,) at the target (3,) in the world."""
    return Pose(target - rotation.apply(point), rotation)


def lift(arm: Arm, z: float, style: Style) -> Iterator[Action]:
    """Lift the held object straight up."""
    pose = arm.pose()
    goal = fixed(Pose(np.array([*pose.position[:2], z]), pose.rotation))
    yield from arm.reach(goal, (0.02, 0.2), speed=style.descent_speed, grip=CLOSE, max_steps=50)


def take_frame(arm: Arm, frame: LivePose, style: Style) -> Iterator[Action]:
    """Grasp the lying frame so that the hand points forward and down once the frame is upright."""
    across, approach = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(style.lean), -np.sin(style.lean)])
    hand = Rotation.from_matrix(np.column_stack([across, np.cross(approach, across), approach]))

    def grip() -> Pose:
        along, up = style.frame_grasp
        point = frame().apply(GRIP + np.array([0.0, 0.0, along]))
        return Pose(point + np.array([0.0, 0.0, up]), frame().rotation * hand)

    speeds = style.speed, style.descent_speed
    yield from arm.grasp(grip, style.hover, (0.005, 0.05), speeds, style.close_steps)
    yield from lift(arm, style.frame_lift_z, style)


def tip_at(position: NDArray[np.float64], rotation: Rotation = UPRIGHT) -> LivePose:
    """The frame's pose with its tip at this position in the world."""
    return fixed(placed(TIP, position, rotation))


def near_upright(frame: LivePose) -> bool:
    return bool((frame().rotation.inv() * UPRIGHT).magnitude() < 0.4)


def bring_frame(arm: Arm, frame: LivePose, mouth: NDArray[np.float64], style: Style) -> Iterator[Action]:
    """Bring the frame upright over the stand, unless it is there."""
    if near_upright(frame) and np.linalg.norm((frame().apply(TIP) - mouth)[:2]) < 0.06:
        return
    place = np.array([*(mouth[:2] + style.upright_beside), style.upright_z])
    up = tip_at(place, Rotation.from_rotvec(style.upright_turn) * UPRIGHT)
    yield from arm.carry(frame, up, (0.012, 0.05), speed=style.speed, max_steps=120)


def mount_frame(
    arm: Arm, frame: LivePose, mouth: NDArray[np.float64], style: Style, rng: np.random.Generator
) -> Iterator[Action]:
    """Lower the upright frame's tip into the stand's cavity. If it is stuck, try a little beside.

    The tip is aligned close above the mouth, without integral control, and from a small offset on every side: a policy
    with two observations must infer the offset from them, and learns that from large corrections. The tip enters
    slowly, so that the policy observes it several times on the way, and a tip on the rim can slide in. Whenever the tip
    is off the mouth on the way, or beside the stand, it rises again. So the tip's position alone determines the next
    action.
    """

    def over(z: float, beside: NDArray[np.float64]) -> LivePose:
        return tip_at(np.array([*(mouth[:2] + beside), z]))

    def tip() -> NDArray[np.float64]:
        return frame().apply(TIP)

    def tip_below(z: float) -> bool:
        return bool(tip()[2] < z)

    def off(beside: NDArray[np.float64]) -> float:
        return float(np.linalg.norm((tip() - mouth)[:2] - beside))

    def entered() -> bool:
        return tip_below(ENTERED_Z) and off(np.zeros(2)) < MAX_OFF_INSIDE

    def entering(beside: NDArray[np.float64]) -> LivePose:
        above, inside = over(style.align_z, beside)(), over(0.93, beside)()

        def goal() -> Pose:
            if tip_below(ENTERED_Z) and not entered():  # straight up, along the stand
                return placed(TIP, np.array([*tip()[:2], style.align_z]), UPRIGHT)
            return inside if entered() or off(beside) < MAX_OFF else above

        return goal

    def lower(goal: LivePose, until: Condition, speed: float) -> Iterator[Action]:
        way = descending(frame, eagerly(frame, goal, EAGERNESS), speed * METRES_PER_UNIT)
        hand_goal = carrying(arm.pose, frame, way)
        return arm.move(hand_goal, until, speed=style.precise_speed, grip=CLOSE, max_steps=60)

    beside = np.zeros(2)
    for _ in range(MAX_ENTRIES):
        above = over(style.align_z, beside)
        aligned = steadily(near(frame, at_height_of(frame, above), 0.002, 0.02), 3)
        hand_goal = carrying(arm.pose, frame, eagerly(frame, above, EAGERNESS))
        if not tip_below(ENTERED_Z):
            yield from arm.move(hand_goal, aligned, speed=style.descent_speed, grip=CLOSE, max_steps=60)
        yield from lower(entering(beside), entered, style.entry_speed)
        if entered():
            break
        beside = rng.uniform(-0.0015, 0.0015, 2)
    yield from lower(over(0.800, beside), lambda: tip_below(INSERTED_Z), style.precise_speed)


def misses(sim: Any, rate: float, rng: np.random.Generator) -> Iterator[Action | None]:
    """At each step an action that leads the frame down beside the stand, from above the mouth; None otherwise.

    A policy that misjudges the mouth does the same, and from there the expert demonstrates the recovery. Pushes rarely
    lead there.
    """
    frame = body_pose(sim, "frame_root")
    mouth = body_pose(sim, "stand_root")().apply(MOUTH)

    def motion(direction: NDArray[np.float64], speed: float) -> Action:
        return np.array([*(speed * direction), 0.0, 0.0, 0.0, CLOSE])

    over = False
    while True:
        tip, before = frame().apply(TIP), over
        over = float(np.linalg.norm((tip - mouth)[:2])) < 0.004 and ENTERED_Z < tip[2] < 0.985
        if not (over and not before and rng.random() < rate):
            yield None
            continue
        angle, lowest = rng.uniform(-np.pi, np.pi), rng.uniform(*MISS_Z)
        aside, down = np.array([np.cos(angle), np.sin(angle), 0.0]), np.array([0.0, 0.0, -1.0])
        yield from [motion(aside, rng.uniform(*MISS_SPEED))] * MISS_STEPS
        drop = rng.uniform(*MISS_DROP)
        for _ in range(20):
            if frame().apply(TIP)[2] < lowest:
                break
            yield motion(down, drop)


def leave_frame(arm: Arm, style: Style) -> Iterator[Action]:
    """Release the frame, back off, then rise."""
    yield from arm.wait(never, grip=OPEN, max_steps=8)
    away = fixed(backed_off(fixed(arm.pose()), style.retreat)())
    yield from arm.reach(away, (0.02, 0.3), speed=style.descent_speed, grip=OPEN, max_steps=40)
    x, y, z = away().position
    up = fixed(Pose(np.array([x, y, max(z, 1.15)]), away().rotation))
    yield from arm.reach(up, (0.03, 0.3), speed=style.speed, grip=OPEN, max_steps=40)


def take_tool(arm: Arm, tool: LivePose, style: Style) -> Iterator[Action]:
    """Grasp the lying tool from above, across its handle."""
    yaw = tool().rotation.as_euler("xyz")[2]
    turn = np.pi if yaw < np.deg2rad(-125.0) else 0.0  # keeps the wrist off its limit

    def handle() -> Pose:
        along, up = style.tool_grasp
        point = tool().apply(np.array([along, 0.0, 0.0])) + np.array([0.0, 0.0, up])
        return Pose(point, gripper_down(tool().rotation.as_euler("xyz")[2] + turn))

    # Via the home orientation: directly from the frame's orientation, the wrist would turn the other way.
    via = fixed(Pose(VIA, gripper_down(0.0)))
    yield from arm.reach(via, (0.05, 0.3), speed=style.speed, grip=OPEN, max_steps=80)
    speeds = style.speed, style.descent_speed
    yield from arm.grasp(handle, style.hover, (0.004, 0.05), speeds, style.close_steps)
    yield from lift(arm, style.tool_lift_z, style)


def ring_over_hook(frame: Pose, outward: float, up: float, tilt: float) -> Pose:
    """The tool's pose with the ring's centre beside the hook's top and the handle pointing outward, down by `tilt`."""
    x, y, _ = frame.rotation.apply([-1.0, 0.0, 0.0])
    turned = Rotation.from_euler("z", np.arctan2(y, x))
    target = frame.apply(HOOK) + turned.apply([outward, 0.0, up])
    return placed(RING, target, turned * Rotation.from_euler("y", tilt))


def bring_tool(arm: Arm, tool: LivePose, frame: Pose, style: Style) -> Iterator[Action]:
    """Turn the handle outward and bring the ring over the hook, finally straight down: from the side it catches."""
    turned = Pose(tool().position, ring_over_hook(frame, 0.0, 0.0, 0.0).rotation)
    stations = (
        (turned, 0.03, 0.15, 1, style.speed),
        (ring_over_hook(frame, 0.05, 0.07, 0.0), 0.02, 0.1, 1, style.speed),
        (ring_over_hook(frame, 0.0, 0.04, 0.0), 0.006, 0.06, 1, style.descent_speed),
        (ring_over_hook(frame, 0.0, style.ring_height, 0.0), 0.003, 0.03, 2, style.precise_speed),
    )
    for station, metres, radians, steps, speed in stations:
        goal = fixed(station)
        hand_goal = carrying(arm.pose, tool, without_offset(tool, goal, 0.05))
        arrived = steadily(near(tool, goal, metres, radians), steps)
        yield from arm.move(hand_goal, arrived, speed=speed, grip=CLOSE, max_steps=80)


def hang_tool(arm: Arm, tool: LivePose, frame: Pose, style: Style) -> Iterator[Action]:
    """Lower the ring around the hook, tilt the handle down so that the ring slides in, and release."""

    tilt = 0.0

    def ring() -> Pose:
        outward, up = (float(np.interp(tilt, TILTS, values)) for values in (RING_OUTWARD, RING_UP))
        return ring_over_hook(frame, outward, up, tilt)

    hand_goal = carrying(arm.pose, tool, without_offset(tool, ring, 0.1))

    def move(metres: float, max_steps: int) -> Iterator[Action]:
        arrived = near(tool, ring, metres, 0.1)
        return arm.move(hand_goal, arrived, speed=style.precise_speed, grip=CLOSE, max_steps=max_steps)

    yield from move(0.003, 30)
    for angle in np.linspace(0.0, style.tilt, style.tilt_steps):
        tilt = angle
        yield from move(0.0, 1)
    yield from move(0.0015, 25)
    yield from arm.wait(never, grip=OPEN, max_steps=8)
    away = fixed(backed_off(fixed(arm.pose()), 0.10)())
    yield from arm.reach(away, (0.02, 0.3), speed=0.5, grip=OPEN, max_steps=30)
    yield from arm.wait(never, grip=OPEN, max_steps=20)


TOOL_HANG = TaskSpec(
    "tool_hang",
    "asd/ToolHang-v0",
    "ToolHang",
    object_dim=44,
    horizon=700,
    expert=expert,
    misses=misses,
    exploration=Exploration(noise=0.03),
)

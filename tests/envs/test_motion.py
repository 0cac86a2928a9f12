from itertools import islice

import gymnasium
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.motion import (
    CLOSE,
    OPEN,
    Arm,
    Pose,
    at_height_of,
    backed_off,
    carrying,
    descending,
    eagerly,
    fixed,
    gripper_down,
    near,
    never,
    steadily,
    without_offset,
    wrap,
)
from envs.tasks.square import MAX_FLIP_COST, choose_grasp
from envs.tasks.tool_hang import HOOK, RING, UPRIGHT, ring_over_hook
from envs.tasks.transport import along_handle, heading, leaning, straightened


def random_pose(rng: np.random.Generator) -> Pose:
    return Pose(rng.standard_normal(3), Rotation.random(random_state=rng))


def compose(a: Pose, b: Pose) -> Pose:
    return Pose(a.position + a.rotation.apply(b.position), a.rotation * b.rotation)


def test_carrying_brings_the_held_object_to_its_goal():
    rng = np.random.default_rng(0)
    hand, object_in_hand, goal = (random_pose(rng) for _ in range(3))
    held = compose(hand, object_in_hand)
    hand_goal = carrying(fixed(hand), fixed(held), fixed(goal))()
    reached = compose(hand_goal, object_in_hand)
    np.testing.assert_allclose(reached.position, goal.position, atol=1e-12)
    assert (reached.rotation * goal.rotation.inv()).magnitude() < 1e-7


@pytest.mark.parametrize(("shift", "turn", "expected"), [(0.019, 0.19, True), (0.021, 0.0, False), (0.0, 0.21, False)])
def test_near_needs_both_tolerances(shift, turn, expected):
    origin = Pose(np.zeros(3), Rotation.identity())
    other = Pose(np.array([0.0, shift, 0.0]), Rotation.from_euler("x", turn))
    assert near(fixed(origin), fixed(other), 0.02, 0.2)() is expected


def test_gripper_down_points_down_and_opens_along_y_at_home():
    home = gripper_down(0.0)
    np.testing.assert_allclose(home.apply([0, 0, 1]), [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(home.apply([1, 0, 0]), [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(gripper_down(np.pi / 2).apply([1, 0, 0]), [-1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("angle", [-7.0, -np.pi, 0.0, 3.0, np.pi, 10.0])
def test_wrap_keeps_the_angle(angle):
    assert -np.pi <= wrap(angle) < np.pi
    np.testing.assert_allclose(np.exp(1j * wrap(angle)), np.exp(1j * angle))


def choose_at(yaw, flip_cost):
    return choose_grasp(Pose(np.zeros(3), Rotation.from_euler("z", yaw)), flip_cost)


@pytest.mark.parametrize("flip_cost", [-MAX_FLIP_COST, 0.0, MAX_FLIP_COST])
@pytest.mark.parametrize("yaw", np.linspace(-np.pi, np.pi, 37))
def test_square_grasps_keep_the_wrist_off_its_limits(yaw, flip_cost):
    flip, peg_yaw = choose_at(yaw, flip_cost)
    at_grasp, at_peg = wrap(yaw + flip), wrap(peg_yaw + flip)
    assert max(abs(at_grasp), abs(at_peg)) <= 2.0
    assert abs(at_grasp - at_peg) < np.pi  # or the servo would turn the other way round
    assert peg_yaw != 0.0  # the handle would be out of reach


@pytest.mark.parametrize(("degrees", "grasps"), [(0, 1), (60, 1), (80, 2), (-90, 2), (100, 2), (120, 1), (-180, 1)])
def test_square_is_grasped_either_way_where_both_are_about_as_good(degrees, grasps):
    flips = {choose_at(np.deg2rad(degrees), cost)[0] for cost in (-MAX_FLIP_COST, MAX_FLIP_COST)}
    assert len(flips) == grasps


def test_backed_off_retreats_against_the_approach():
    goal = random_pose(np.random.default_rng(0))
    back = backed_off(fixed(goal), 0.1)()
    np.testing.assert_allclose(goal.rotation.inv().apply(back.position - goal.position), [0, 0, -0.1], atol=1e-12)


def test_steadily_counts_looks_in_a_row():
    answers = iter([True, True, False, True, True, True])
    steady = steadily(lambda: next(answers), 3)
    assert [steady() for _ in range(6)] == [False] * 5 + [True]


def test_without_offset_pulls_out_a_constant_error_up_to_its_limit():
    goal = Pose(np.array([0.1, 0.0, 1.0]), Rotation.identity())
    sagging = Pose(goal.position - np.array([0.0, 0.0, 0.005]), Rotation.identity())
    shifted = without_offset(fixed(sagging), fixed(goal), 0.1)
    heights = [shifted().position[2] for _ in range(100)]
    np.testing.assert_allclose(heights[:2], [1.0005, 1.001])
    assert heights[-1] == pytest.approx(1.02)


def test_eagerly_goes_as_much_beyond_the_goal_as_asked():
    here, goal = random_pose(np.random.default_rng(0)), random_pose(np.random.default_rng(1))
    beyond = eagerly(fixed(here), fixed(goal), 0.5)()
    np.testing.assert_allclose(beyond.position - here.position, 1.5 * (goal.position - here.position))
    missing = goal.rotation * here.rotation.inv()
    np.testing.assert_allclose((beyond.rotation * goal.rotation.inv()).as_rotvec(), 0.5 * missing.as_rotvec())
    still = eagerly(fixed(goal), fixed(goal), 0.5)()
    np.testing.assert_allclose(still.position, goal.position)
    assert (still.rotation * goal.rotation.inv()).magnitude() == pytest.approx(0.0, abs=1e-7)


def test_descending_goes_down_by_steps_and_no_further_than_the_goal():
    goal = fixed(Pose(np.array([0.1, 0.2, 0.8]), Rotation.identity()))
    heights = [
        descending(fixed(Pose(np.array([0.0, 0.0, z]), Rotation.identity())), goal, 0.02)().position[2]
        for z in (1.0, 0.81)
    ]
    np.testing.assert_allclose(heights, [0.98, 0.8])


def test_at_height_of_keeps_all_of_the_goal_but_its_height():
    goal, here = random_pose(np.random.default_rng(0)), random_pose(np.random.default_rng(1))
    level = at_height_of(fixed(here), fixed(goal))()
    np.testing.assert_array_equal(level.position, [*goal.position[:2], here.position[2]])
    assert level.rotation is goal.rotation


@pytest.fixture(scope="module")
def two_arms():
    env = gymnasium.make("envs:asd/Transport-v0")
    env.reset(seed=0)
    yield env
    env.close()


@pytest.mark.parametrize("index", [0, 1])
def test_each_arm_reaches_a_goal_given_in_the_world_frame_and_the_other_keeps_still(two_arms, index):
    arm, other = Arm(two_arms.unwrapped.robosuite, index), Arm(two_arms.unwrapped.robosuite, 1 - index)
    start, pose = arm.pose(), other.pose()
    shifted = start.position + np.array([0.06, 0.03, 0.05])
    goal = fixed(Pose(shifted, Rotation.from_euler("z", 0.4) * start.rotation))
    reach = arm.reach(goal, (0.008, 0.08), speed=1.0, grip=OPEN, max_steps=40)
    for moved, kept in zip(reach, other.wait(never, grip=CLOSE, max_steps=40), strict=False):
        two_arms.step(np.concatenate([moved, kept] if index == 0 else [kept, moved]).astype(np.float32))
    assert near(arm.pose, goal, 0.008, 0.08)()
    assert near(other.pose, fixed(pose), 0.015, 0.1)()


class PassingHand(Arm):
    """A hand that passes its goal at height 0, turns round, and stays there."""

    def __init__(self):
        self.heights = iter([0.0, 0.02, 0.0, 0.0, 0.0, 0.0])
        self.height = -0.1

    def pose(self):
        return Pose(np.array([0.0, 0.0, self.height]), Rotation.identity())

    def toward(self, goal, speed, grip):
        self.height = next(self.heights)
        return np.array([0.0] * 6 + [grip])


@pytest.mark.parametrize(("settle_steps", "steps_before_closing"), [(1, 1), (3, 5)])
def test_a_hand_closes_once_it_has_settled(settle_steps, steps_before_closing):
    goal = fixed(Pose(np.zeros(3), Rotation.identity()))
    actions = PassingHand().grasp(goal, 0.1, (0.005, 0.1), (1.0, 1.0), 1, settle_steps)
    assert [action[6] for action in actions] == [OPEN] * steps_before_closing + [CLOSE]


def test_waiting_ends_with_its_condition(two_arms):
    arm = Arm(two_arms.unwrapped.robosuite, 1)
    answers = iter([False, False, True])
    actions = list(islice(arm.wait(lambda: next(answers), grip=CLOSE, max_steps=9), 9))
    assert [action[6] for action in actions] == [CLOSE, CLOSE]


@pytest.mark.parametrize("flipped", [False, True])
def test_the_hammers_handle_points_to_the_receiver_whichever_end_is_the_head(flipped):
    along_y = Rotation.from_euler("x", np.pi / 2 if flipped else -np.pi / 2)
    hammer = Pose(np.array([0.2, -0.45, 0.83]), Rotation.from_euler("z", 0.4) * along_y)
    assert heading(hammer) == pytest.approx(0.4)
    assert heading(Pose(hammer.position, straightened(hammer))) == pytest.approx(0.0, abs=1e-12)
    expected = hammer.position + 0.06 * np.array([-np.sin(0.4), np.cos(0.4), 0.0])
    np.testing.assert_allclose(along_handle(hammer, 0.06), expected)


def test_the_receiver_leans_toward_the_giver_with_its_fingers_across_the_handle():
    hand = leaning(0.0, 0.3)
    np.testing.assert_allclose(hand.apply([0, 0, 1]), [0, -np.sin(0.3), -np.cos(0.3)], atol=1e-12)
    np.testing.assert_allclose(hand.apply([1, 0, 0]), [1, 0, 0], atol=1e-12)


def test_the_ring_hangs_over_the_hook_with_the_handle_outward_and_down():
    frame = Pose(np.array([-0.036, 0.045, 0.944]), UPRIGHT)
    tool = ring_over_hook(frame, -0.003, -0.010, 0.5)
    np.testing.assert_allclose(tool.apply(RING) - frame.apply(HOOK), [-0.003, 0, -0.010], atol=1e-12)
    np.testing.assert_allclose(tool.rotation.apply([1, 0, 0]), [np.cos(0.5), 0, -np.sin(0.5)], atol=1e-12)

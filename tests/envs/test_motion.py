import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.experts.motion import Pose, carrying, fixed, gripper_down, near, wrap
from envs.experts.square import choose_grasp


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


@pytest.mark.parametrize("yaw", np.linspace(-np.pi, np.pi, 37))
def test_square_grasps_keep_the_wrist_off_its_limits(yaw):
    flip, peg_yaw = choose_grasp(Pose(np.zeros(3), Rotation.from_euler("z", yaw)))
    at_grasp, at_peg = wrap(yaw + flip), wrap(peg_yaw + flip)
    assert max(abs(at_grasp), abs(at_peg)) <= 2.0
    assert abs(at_grasp - at_peg) < np.pi  # or the servo would turn the other way round
    assert peg_yaw != 0.0  # the handle would be out of reach

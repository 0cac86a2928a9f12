"""Target poses: the environments that take them do what those with deltas do, bit for bit but for rounding."""

import gymnasium
import numpy as np
import pytest

from asd_policy.policies.tasks import ENV_IDS, env_id, takes_poses
from envs.pose_actions import to_pose_action
from envs.tasks import ACTIONS, ARM_ACTION_DIM, TASKS

SEED, STEPS = 5, 8


@pytest.fixture(scope="module", params=sorted(TASKS))
def rollout(request):
    """A task, observations along a rollout with deltas, some of them clipped, and the same actions as poses."""
    task = TASKS[request.param]
    env = gymnasium.make(f"envs:{task.env_id}")
    generator = np.random.default_rng(0)
    observations, poses = [env.reset(seed=SEED)[0]], {"base": [], "world": []}
    for _ in range(STEPS):
        action = generator.uniform(-1.2, 1.2, task.action_dim).astype(np.float32)
        for frame, actions in poses.items():
            actions.append(to_pose_action(env.unwrapped.robosuite, action, frame))
        observations.append(env.step(action)[0])
    env.close()
    return task, observations, poses


@pytest.mark.parametrize("frame", ["base", "world"])
def test_poses_do_what_the_deltas_did(rollout, frame):
    task, observations, poses = rollout
    env = gymnasium.make(f"envs:{task.variant(frame)}")
    env.reset(seed=SEED)
    for action, expected in zip(poses[frame], observations[1:], strict=True):
        obs = env.step(action)[0]
        for key, values in expected.items():
            np.testing.assert_allclose(obs[key], values, atol=2e-6, err_msg=key)
    env.close()


def test_the_two_frames_differ(rollout):
    _, _, poses = rollout
    assert np.abs(np.array(poses["base"]) - np.array(poses["world"])).max() > 0.1


def test_a_pose_has_no_bounds_and_a_gripper_has():
    space = gymnasium.make("envs:asd/TransportBasePose-v0").action_space
    assert np.isinf(space.high.reshape(-1, ARM_ACTION_DIM)[:, :6]).all()
    assert (space.high.reshape(-1, ARM_ACTION_DIM)[:, 6] == 1).all()


def test_policies_and_environments_agree_on_names():
    for name, delta in ENV_IDS.items():
        task = next(task for task in TASKS.values() if task.env_id == delta)
        for actions in ACTIONS:
            ours = env_id(name, None if actions == "delta" else actions)
            assert ours == task.variant(actions)
            assert takes_poses(ours) == (actions != "delta")
    assert env_id("Lift", "base") == "Lift"


def test_an_unknown_kind_of_actions_is_refused():
    with pytest.raises(gymnasium.error.Error, match=r"Unknown actions 'joint'. Available: base, delta, world"):
        gymnasium.make("envs:asd/Square-v0", actions="joint")

"""The action transform: rotations against scipy and robomimic, and through a policy's config."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from asd_policy.errors import ConfigError
from asd_policy.policies.actions import ActionPart, axis_angle_to_rot6d, rot6d_to_axis_angle, to_env_actions
from asd_policy.policies.config import PolicyConfig

ANGLES = [0.0, 1e-9, 1e-4, 0.3, 1.5, 3.0, np.pi - 1e-4, np.pi - 1e-9]


def axis_angles(angle: float) -> np.ndarray:
    axes = np.random.default_rng(0).standard_normal((200, 3))
    return angle * axes / np.linalg.norm(axes, axis=1, keepdims=True)


@pytest.mark.parametrize("angle", ANGLES)
def test_round_trip_agrees_with_scipy(angle):
    expected = axis_angles(angle)
    rows = Rotation.from_rotvec(expected).as_matrix()[:, :2].reshape(-1, 6)
    np.testing.assert_allclose(axis_angle_to_rot6d(torch.from_numpy(expected)), rows, atol=1e-12)
    back = Rotation.from_rotvec(rot6d_to_axis_angle(torch.from_numpy(rows)).numpy())
    assert (back * Rotation.from_rotvec(expected).inv()).magnitude().max() < 1e-7


def test_rows_that_are_not_orthonormal_agree_with_robomimic():
    from robomimic.utils.torch_utils import rot_6d_to_axis_angle

    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    ours = Rotation.from_rotvec(rot6d_to_axis_angle(rows).numpy())
    theirs = Rotation.from_rotvec(rot_6d_to_axis_angle(rows).numpy())
    assert (ours * theirs.inv()).magnitude().max() < 2e-3  # theirs is in float32


def test_parts_lie_side_by_side():
    parts = (ActionPart("keep", 3), ActionPart("rot6d", 6), ActionPart("keep", 1))
    rotation = torch.tensor([0.1, -0.2, 0.3])
    action = torch.cat([torch.tensor([1.0, 2.0, 3.0]), axis_angle_to_rot6d(rotation), torch.tensor([-1.0])])
    env = to_env_actions(action.expand(2, 8, 10), parts)
    assert env.shape == (2, 8, 7)
    torch.testing.assert_close(env[1, 3], torch.tensor([1.0, 2.0, 3.0, 0.1, -0.2, 0.3, -1.0]))
    assert to_env_actions(action, ()) is action


def test_config_round_trip(tmp_path):
    parts = (ActionPart("keep", 3), ActionPart("rot6d", 6), ActionPart("keep", 1))
    config = PolicyConfig("asd/Square-v0", {"object": 14}, action_dim=10, action_bound=None, action_parts=parts)
    config.save(tmp_path / "config.json")
    assert PolicyConfig.load(tmp_path / "config.json") == config
    assert config.env_action_dim == 7
    old = config.to_dict()
    del old["action_parts"]
    assert PolicyConfig.from_dict(old).env_action_dim == 10


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"kind": "keep", "dim": 3}], "sum to 10"),
        ([{"kind": "rot6d", "dim": 10}], "expected 6"),
        ([{"kind": "euler", "dim": 10}], "Available: keep, rot6d"),
        ([{"kind": "keep"}], "dim"),
        ([3], "JSON object"),
        ({"kind": "keep"}, "action_parts"),
    ],
)
def test_bad_parts(parts, message):
    data = PolicyConfig("asd/Square-v0", {"object": 14}, action_dim=10).to_dict() | {"action_parts": parts}
    with pytest.raises(ConfigError, match=message):
        PolicyConfig.from_dict(data)

"""Signs of quaternions: steady, a rotation's own, and through a policy's config."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from asd_policy.errors import ConfigError
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.quaternions import Quaternion, with_steady_signs


def observations(seed: int, spread: float = 0.4) -> torch.Tensor:
    """(200, 6): one entry, a quaternion within 3 `spread` rad of a half turn with random signs, one entry."""
    generator = torch.Generator().manual_seed(seed)
    turns = (spread * torch.randn(200, 3, generator=generator)).clamp(-spread, spread)
    q = (Rotation.from_rotvec(turns.numpy()) * Rotation.from_euler("z", 180, degrees=True)).as_quat()
    sign = torch.randint(0, 2, (200, 1), generator=generator) * 2 - 1
    rest = torch.randn(200, 2, generator=generator)
    return torch.cat([rest[:, :1], torch.from_numpy(q).float() * sign, rest[:, 1:]], dim=1)


@given(st.integers(0, 10**6))
def test_signs_are_steady_and_nothing_else_changes(seed: int) -> None:
    obs = {"object": observations(seed), "eef": torch.ones(200, 3)}
    steady = with_steady_signs(obs, [Quaternion.mean_of("object", 1, obs["object"])])
    q = steady["object"][:, 1:5]
    assert (q @ q.T > 0).all()  # all on one side, so no two of them are far apart by their sign
    raw = obs["object"][:, 1:5]
    assert ((q == raw) | (q == -raw)).all()
    assert torch.equal(steady["object"][:, [0, 5]], obs["object"][:, [0, 5]])
    assert torch.equal(steady["eef"], obs["eef"])


def test_the_sign_given_makes_no_difference() -> None:
    obs = observations(0)
    flipped = torch.cat([obs[:, :1], -obs[:, 1:5], obs[:, 5:]], dim=1)
    quaternions = [Quaternion.mean_of("object", 1, obs)]
    one, other = (with_steady_signs({"object": x}, quaternions)["object"] for x in (obs, flipped))
    assert torch.equal(one, other)


def test_mean_of_rotations_agrees_with_scipy() -> None:
    obs = observations(1)
    mean = Rotation.from_quat(obs[:, 1:5].numpy()).mean()
    ours = Rotation.from_quat(Quaternion.mean_of("object", 1, obs).towards)
    assert (ours * mean.inv()).magnitude() < 1e-5


def test_config_round_trip_and_older_files() -> None:
    quaternions = (Quaternion("object", 3, (0.0, 0.0, 1.0, 0.0)),)
    config = PolicyConfig("asd/ToolHang-v0", {"object": 44}, action_dim=7, quaternions=quaternions)
    data = json.loads(json.dumps(config.to_dict()))
    assert PolicyConfig.from_dict(data) == config
    del data["quaternions"]
    assert PolicyConfig.from_dict(data).quaternions == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"key": "object", "first": 11, "towards": [0, 0, 0, 1]}, "entries of"),
        ({"key": "rgb", "first": 0, "towards": [0, 0, 0, 1]}, "entries of"),
        ({"key": "object", "first": -1, "towards": [0, 0, 0, 1]}, "an index"),
        ({"key": "object", "first": 0, "towards": [0, 0, 0]}, "4 numbers"),
        ({"key": "object", "first": 0, "towards": [0, 0, 0, 0]}, "not all zero"),
        ({"key": "object", "first": 0, "towards": [0, 0, 0, "1"]}, "towards.3 is .1.; expected a valid number"),
        ({"key": "object", "first": 0}, "quaternions.0.towards is missing"),
    ],
)
def test_what_cannot_be_a_quaternion(entry: dict, message: str) -> None:
    data = PolicyConfig("asd/Square-v0", {"object": 14}, action_dim=7).to_dict() | {"quaternions": [entry]}
    with pytest.raises(ConfigError, match=message):
        PolicyConfig.from_dict(data)

"""Converts a network's actions to the environment's, part by part."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from asd_policy.errors import ConfigError, UnknownNameError

KINDS = ("keep", "rot6d")
ROT6D, AXIS_ANGLE = 6, 3


@dataclass(frozen=True)
class ActionPart:
    """Consecutive entries of the network's action.

    Attributes:
        kind: "keep" leaves them unchanged; "rot6d" turns the first two rows of a rotation matrix into an axis-angle
            vector.
        dim: number of entries in the network's action.

    Raises:
        UnknownNameError: on another kind.
        ConfigError: if the dim does not fit the kind.
    """

    kind: str
    dim: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of action part", self.kind, KINDS)
        if type(self.dim) is not int or self.dim < 1 or (self.kind == "rot6d" and self.dim != ROT6D):
            raise ConfigError(
                f"Action part {self.kind!r} has dim {self.dim!r}; expected {ROT6D} for rot6d, else an integer above 0."
            )

    @property
    def env_dim(self) -> int:
        """Number of entries in the environment's action."""
        return AXIS_ANGLE if self.kind == "rot6d" else self.dim


POSE_ARM = (ActionPart("keep", 3), ActionPart("rot6d", ROT6D), ActionPart("keep", 1))
"""A target pose and a gripper: 10 entries for the network, 7 for the environment."""

POSE_ARM_DIM = sum(part.dim for part in POSE_ARM)
POSE_ARM_ENV_DIM = sum(part.env_dim for part in POSE_ARM)


def from_env_poses(actions: Tensor) -> Tensor:
    """The environment's pose actions (..., 7 per arm) -> the network's (..., 10 per arm), as in `POSE_ARM`."""
    position, rotation, gripper = actions.unflatten(-1, (-1, POSE_ARM_ENV_DIM)).split((3, AXIS_ANGLE, 1), dim=-1)
    return torch.cat([position, axis_angle_to_rot6d(rotation), gripper], dim=-1).flatten(-2)


def to_env_actions(actions: Tensor, parts: Sequence[ActionPart]) -> Tensor:
    """The network's actions (..., A) -> the environment's (..., A_env). Without parts they are the same."""
    if not parts:
        return actions
    pieces = actions.split([part.dim for part in parts], dim=-1)
    return torch.cat(
        [
            rot6d_to_axis_angle(piece) if part.kind == "rot6d" else piece
            for part, piece in zip(parts, pieces, strict=True)
        ],
        dim=-1,
    )


def rot6d_to_axis_angle(rot6d: Tensor) -> Tensor:
    """(..., 6), two rows of a rotation matrix, not necessarily orthonormal -> (..., 3) axis times angle in rad.

    Rows are made orthonormal by Gram-Schmidt (Zhou et al. 2019, https://arxiv.org/abs/1812.07035).
    """
    first, second = rot6d.double().split(3, dim=-1)
    x = normalize(first, dim=-1)
    y = normalize(second - (x * second).sum(dim=-1, keepdim=True) * x, dim=-1)
    matrix = torch.stack([x, y, torch.linalg.cross(x, y)], dim=-2)
    return _quaternion_to_axis_angle(_matrix_to_quaternion(matrix)).to(rot6d.dtype)


def axis_angle_to_rot6d(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis times angle in rad -> (..., 6), the first two rows of its rotation matrix."""
    x, y, z = axis_angle.double().unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    rows: Tensor = torch.linalg.matrix_exp(cross)[..., :2, :]
    return rows.flatten(-2).to(axis_angle.dtype)


def _matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 4) unit quaternions wxyz whose largest entry is positive, accurate at every angle.

    The four rows below are the quaternion times 4 w, 4 x, 4 y and 4 z. Normalising the longest never divides by zero.
    The sign is PyTorch3D's choice, so that actions equal the original's; angles can be larger than pi.
    """
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], dim=-1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], dim=-1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], dim=-1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    longest = rows.norm(dim=-1).argmax(dim=-1)[..., None, None].expand(*m.shape[:-2], 1, 4)
    return normalize(rows.gather(-2, longest).squeeze(-2), dim=-1)


def _quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    """(..., 4) wxyz -> (..., 3), of angle between 0 and 2 pi."""
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    sine = vector.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, w)
    return vector * torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), 2.0)

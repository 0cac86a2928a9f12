"""Sign normalisation of quaternions: q and -q are the same rotation, and simulators return either."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asd_policy.errors import ConfigError

SIZE = 4


@dataclass(frozen=True)
class Quaternion:
    """A quaternion in an observation. Of q and -q the policy gets the one whose dot product with `towards` is positive.

    Attributes:
        key: the observation key.
        first: index of the first of the four entries.
        towards: a quaternion in the same order of entries. The sign does not flip as long as rotations stay within
            half a turn of it.

    Raises:
        ConfigError: on an invalid index or quaternion.
    """

    key: str
    first: int
    towards: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "towards", tuple(self.towards))
        numbers = all(isinstance(value, int | float) and abs(value) < 2**62 for value in self.towards)
        if (
            not isinstance(self.first, int)
            or self.first < 0
            or len(self.towards) != SIZE
            or not numbers
            or not any(self.towards)
        ):
            raise ConfigError(
                f"Quaternion of {self.key!r}: first is {self.first}, towards {self.towards}; "
                f"expected an index of at least 0 and {SIZE} numbers, finite and not all zero."
            )

    @classmethod
    def mean_of(cls, key: str, first: int, obs: Tensor) -> "Quaternion":
        """The quaternion whose `towards` is the mean rotation of observations (N, D).

        The mean is the first principal axis, which does not depend on the quaternions' signs (Markley et al. 2007,
        "Averaging quaternions", https://doi.org/10.2514/1.28949).
        """
        q = obs[:, first : first + SIZE].double()
        return cls(key, first, tuple(torch.linalg.eigh(q.T @ q).eigenvectors[:, -1].tolist()))


def with_steady_signs(obs: Mapping[str, Tensor], quaternions: Sequence[Quaternion]) -> dict[str, Tensor]:
    """A copy of the observations (..., D) by key, with the quaternions' signs normalised."""
    result = dict(obs)
    for quaternion in quaternions:
        before, q, after = result[quaternion.key].tensor_split((quaternion.first, quaternion.first + SIZE), dim=-1)
        side = q @ q.new_tensor(quaternion.towards)
        result[quaternion.key] = torch.cat([before, torch.where(side[..., None] < 0, -q, q), after], dim=-1)
    return result

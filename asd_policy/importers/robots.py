"""Sizes and meaning of named robot observations and actions."""

from collections.abc import Sequence

from asd_policy.errors import CheckpointError
from asd_policy.policies.recording import NEW_CONTROLLERS
from asd_policy.policies.tasks import ARM_DIMS, takes_poses


def split_observation(keys: Sequence[str], total: int, where: str) -> dict[str, int]:
    """The sizes of vector observations that have `total` entries together. At most one size may be unknown.

    Raises:
        CheckpointError: if more than one size is unknown, or the sizes do not add up to `total`.
    """
    known = {key: dim for key in keys for name, dim in ARM_DIMS.items() if key.endswith(name)}
    rest = total - sum(known.values())
    unknown = [key for key in keys if key not in known]
    if len(unknown) > 1 or (rest <= 0 if unknown else rest != 0):
        raise CheckpointError(
            f"{where}: cannot tell the sizes of {unknown or list(keys)} among {total} observed numbers. "
            "Pass obs_keys, a size for each key in this order."
        )
    return {key: known.get(key, rest) for key in keys}


def action_bound(env: str) -> float | None:
    """The bound of an environment's actions: 1 for delta actions in our environments, None for all others."""
    return None if takes_poses(env) or not env.startswith("asd/") else 1.0


def version_notes(env: str, robosuite: tuple[int, int]) -> tuple[str, ...]:
    """Notes on running a policy of an older robosuite version in our environment.

    Args:
        robosuite: the version (major, minor) the policy was trained with; (0, 0) if unknown.
    """
    if not env.startswith("asd/") or robosuite >= NEW_CONTROLLERS:
        return ()
    version = ".".join(map(str, robosuite)) if robosuite > (0, 0) else "of an unknown version"
    return (f"Trained in robosuite {version}, with other controllers than {env} has: success may not carry over.",)


POSES_ELSEWHERE = "Actions are absolute poses: run them in an environment whose controller takes absolute input."
"""A note for policies of other packages' environments."""

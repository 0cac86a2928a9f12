"""Robots: the observations and actions that files describe by name alone."""

from collections.abc import Sequence

from asd_policy.errors import CheckpointError
from asd_policy.policies.tasks import ARM_DIMS, takes_poses

NEW_CONTROLLERS = (1, 5)
"""The robosuite that the environments here are made with, and which changed the arms' controllers."""


def split_observation(keys: Sequence[str], total: int, where: str) -> dict[str, int]:
    """Sizes of low-dimensional observation keys that have `total` entries together; one size may be unknown.

    Raises:
        CheckpointError: if more than one is, or they do not add up.
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
    """Delta actions of this package's environments lie in [-1, 1]; of others nothing is known."""
    return None if takes_poses(env) or not env.startswith("asd/") else 1.0


def pose_notes(env: str, robosuite: tuple[int, int]) -> tuple[str, ...]:
    """What somebody should know of a policy whose actions are absolute poses."""
    if not takes_poses(env):
        return ("Actions are absolute poses: run them in an environment whose controller takes absolute input.",)
    if robosuite < NEW_CONTROLLERS:
        version = ".".join(map(str, robosuite))
        return (f"Trained in robosuite {version}, with other controllers than {env} has: success may not carry over.",)
    return ()


def scheduler_notes(name: str, steps: int | None, total: int) -> tuple[str, ...]:
    """What the file samples with where this package, by default, does otherwise."""
    if "DDIM" in name:
        return (f'The file samples with DDIM in {steps} steps; so does sampler="ddim", num_steps={steps}.',)
    if steps not in (None, total):
        return (f"The file samples with {steps} of {total} DDPM steps; here all {total} are taken.",)
    return ()

"""Which formats there are, how a file's is recognised by its content, and the one way in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

import torch

from asd_policy.core import SamplerOptions, SamplerSpec
from asd_policy.errors import CheckpointError, ConfigError, UnknownNameError
from asd_policy.importers import diffusion_policy, lerobot, native, robomimic
from asd_policy.importers.checkpoint import CONFIG, Checkpoint
from asd_policy.importers.files import read_json
from asd_policy.importers.torch_file import TorchFile
from asd_policy.policies.diffusion import DiffusionPolicy

Reader = Callable[..., Checkpoint]

FORMATS: Mapping[str, Reader] = {
    native.FORMAT: native.read,
    diffusion_policy.FORMAT: diffusion_policy.read,
    robomimic.FORMAT: robomimic.read,
    lerobot.FORMAT: lerobot.read,
}
"""Format -> what reads it."""

FOLDER_MARKS = {native.FORMAT: {"obs_keys", "format_version"}, lerobot.FORMAT: {"input_features", "output_features"}}
FILE_MARKS = {
    diffusion_policy.FORMAT: {"cfg", "state_dicts", "pickles"},
    robomimic.FORMAT: {"algo_name", "shape_metadata", "env_metadata"},
}
PICKLED = {diffusion_policy.FORMAT, robomimic.FORMAT}


def detect_format(path: str | Path) -> str:
    """The name of the format of a checkpoint, by what is in it. Runs none of it.

    Raises:
        UnknownNameError: if there is no such file or folder.
        CheckpointError: if it is in none of the formats or in several, damaged, or cannot be looked at.
    """
    path = Path(path)
    try:
        folder, single = (path / CONFIG).is_file(), path.is_file()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise CheckpointError(f"Cannot read the checkpoint {str(path)[:1000]}: {error.strerror}.") from error
    if folder:
        marks, found = FOLDER_MARKS, set(read_json(path / CONFIG))
    elif single:
        marks, found = FILE_MARKS, TorchFile.open(path).strings()
    else:
        raise UnknownNameError("checkpoint", str(path), _checkpoints_beside(path))
    formats = [name for name, mark in marks.items() if mark <= found]
    if len(formats) != 1:
        expected = "; ".join(f"{name}: {', '.join(sorted(mark))}" for name, mark in marks.items())
        told = f"has the entries of {' and '.join(formats)} at once" if formats else "is in no format that is known"
        raise CheckpointError(f"{path} {told}. Expected the entries of one of them: {expected}.")
    return formats[0]


def read_checkpoint(
    path: str | Path,
    obs_keys: Mapping[str, int] | None = None,
    env_id: str | None = None,
    trust_pickle: bool = False,
) -> Checkpoint:
    """A checkpoint in any format.

    Args:
        path: a native or lerobot folder, a real-stanford `.ckpt`, a robomimic `.pth`.
        obs_keys: the environment's observation keys and sizes, in the order in which the policy was trained on them,
            where the file has them in one piece.
        env_id: the environment, where the file does not name it.
        trust_pickle: let the file run any code on this machine while it is read.

    Raises:
        UnsafeFileError: if a file asks to run code and is not trusted.
        CheckpointError, ConfigError: on a file that cannot be used, with the reason.
    """
    path = Path(path)
    name = detect_format(path)
    options = {"trust_pickle": trust_pickle} if name in PICKLED else {}
    try:
        checkpoint = FORMATS[name](path, **options)
        checkpoint.check_values()
    except (CheckpointError, ConfigError):
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        # Values of the wrong type deep inside a stranger's file: what they break does not matter.
        raise CheckpointError(f"{path} looks like {name}, but cannot be understood: {error!r:.300}.") from error
    if obs_keys is not None:
        checkpoint = checkpoint.with_obs_keys(obs_keys)
    return checkpoint if env_id is None else checkpoint.with_env_id(env_id)


def load_policy(
    path: str | Path,
    sampler: str | SamplerSpec = "asd",
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    obs_keys: Mapping[str, int] | None = None,
    env_id: str | None = None,
    trust_pickle: bool = False,
    **sampler_options: Unpack[SamplerOptions],
) -> DiffusionPolicy:
    """A policy from its file, in any format. What the file does otherwise than this package is given as a warning.

    Args:
        path: a native or lerobot folder, a real-stanford `.ckpt`, a robomimic `.pth`; the format is detected.
        sampler: a name ("asd", "ddpm", "ddim"), a command line's text ("asd:path:16"), or a spec.
        device: where to sample.
        dtype: of the weights that run at every evaluation; see `PolicyModel`.
        obs_keys, env_id, trust_pickle: see `read_checkpoint`.
        sampler_options: asd: `draft`, `window`, `capture`; ddpm: `capture`; ddim: `num_steps`, `eta`, `capture`.

    Raises:
        ConfigError: on a checkpoint, sampler or option name that does not exist, or a config that makes no sense.
        CheckpointError: on a damaged file, or weights that do not fit the config.
    """
    checkpoint = read_checkpoint(path, obs_keys, env_id, trust_pickle)
    for note in checkpoint.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return checkpoint.policy(sampler, device, dtype, **sampler_options)


def _checkpoints_beside(path: Path) -> list[str]:
    """Checkpoint folders next to where one was looked for."""
    return [str(config.parent) for config in path.parent.glob(f"*/{CONFIG}")]

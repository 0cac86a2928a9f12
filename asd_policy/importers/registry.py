"""The registry of checkpoint formats, and functions that read a checkpoint or policy in any of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import torch

from asd_policy.core import SamplerOptions, SamplerSpec
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.importers import diffusion_policy, lerobot, native, robomimic
from asd_policy.importers.checkpoint import CONFIG, Checkpoint
from asd_policy.importers.files import read_json
from asd_policy.importers.format import Formats, Place
from asd_policy.importers.shipped import find_checkpoint
from asd_policy.importers.torch_file import TorchFile
from asd_policy.policies.diffusion import DiffusionPolicy

FORMATS = Formats()
"""Name -> format. Add one with `FORMATS[format.name] = format`."""

for _format in (native.FORMAT, diffusion_policy.FORMAT, robomimic.FORMAT, lerobot.FORMAT):
    FORMATS[_format.name] = _format


def detect_format(path_or_name: str | Path) -> str:
    """Detect a checkpoint's format from its content, without running code from it. Returns the format's name.

    Args:
        path_or_name: see `find_checkpoint`.

    Raises:
        UnknownNameError: if there is no such file or folder.
        CheckpointError: if the content matches no format or several, is damaged, or cannot be read.
    """
    path = find_checkpoint(path_or_name)
    place: Place = "folder" if path.is_dir() else "file"
    found = set(read_json(path / CONFIG)) if place == "folder" else TorchFile.open(path).strings()
    candidates = [candidate for candidate in FORMATS.values() if candidate.place == place]
    names = [candidate.name for candidate in candidates if candidate.marks <= found]
    if len(names) != 1:
        expected = "; ".join(f"{candidate.name}: {', '.join(sorted(candidate.marks))}" for candidate in candidates)
        told = f"has the entries of {' and '.join(names)} at once" if names else "is in no format that is known"
        raise CheckpointError(f"{path} {told}. Expected the entries of one of them: {expected}.")
    return names[0]


def read_checkpoint(
    path: str | Path,
    obs_keys: Mapping[str, int] | None = None,
    env_id: str | None = None,
    trust_pickle: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Read a checkpoint in any format.

    Args:
        path: a native or lerobot folder, a real-stanford `.ckpt`, a robomimic `.pth`, the name of a shipped
            checkpoint such as "square", or a repository of the Hugging Face hub; see `find_checkpoint`.
        obs_keys: the environment's observation keys and sizes, in the order in which the policy was trained on them.
            Needed if the file has all observations in one vector.
        env_id: the environment. Needed if the file does not name it.
        trust_pickle: allow a pickled file to run any code on this machine while it is read.
        revision: the branch, tag or commit of a repository of the hub.

    Raises:
        UnknownNameError: if there is no such file, folder, shipped checkpoint or repository.
        UnsafeFileError: if a file asks to run code and is not trusted.
        CheckpointError, ConfigError: if the file cannot be used; the message gives the reason.
    """
    path = find_checkpoint(path, revision)
    found = FORMATS[detect_format(path)]
    read = found.read_trusted if trust_pickle and found.read_trusted is not None else found.read
    try:
        checkpoint = read(path)
        checkpoint.check_values()
    except (CheckpointError, ConfigError):
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        # values of a wrong type deep inside a file can raise anything
        raise CheckpointError(f"{path} looks like {found.name}, but cannot be understood: {error!r:.300}.") from error
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
    revision: str | None = None,
    guess: bool = True,
    **sampler_options: Unpack[SamplerOptions],
) -> DiffusionPolicy:
    """Load a policy in any format. Warns where this package differs from the file's own library.

    Args:
        path: a file, a folder, the name of a shipped checkpoint, or a repository of the Hugging Face hub ("user/name"
            or "user/name@revision"); see `find_checkpoint`. The format is detected.
        sampler: a name ("asd", "ddpm", "ddim"), command-line text ("asd:path:16"), or a spec.
        device: the device to sample on.
        dtype: of the weights used in every network call; see `PolicyModel`.
        obs_keys, env_id, trust_pickle, revision: see `read_checkpoint`.
        guess: start sampler="asd" from the learned first guess beside the checkpoint, if there is one. It reduces the
            network calls; a seed gives other samples than without it, of the same law.
        sampler_options: asd: `draft`, `window`, `capture`; ddpm: `capture`; ddim: `num_steps`, `eta`, `capture`. asd
            takes `num_steps` and `eta` too, to draw exactly from the law of DDIM with an `eta` above 0.

    Raises:
        UnknownNameError: if there is no such checkpoint; the message says what was tried.
        ConfigError: on an unknown sampler or option, or an invalid config.
        CheckpointError: on a damaged file, weights that do not fit the config, or a first guess of other weights.
    """
    checkpoint = read_checkpoint(path, obs_keys, env_id, trust_pickle, revision)
    for note in checkpoint.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return checkpoint.policy(sampler, device, dtype, guess, **sampler_options)

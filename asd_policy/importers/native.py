"""The native checkpoint: a folder with `config.json` and `model.safetensors`. Nothing in it is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asd_policy.errors import CheckpointError, UnknownNameError
from asd_policy.nets import ConditionalUnet1D
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.network import build_network
from asd_policy.policies.normalizer import LinearNormalizer

CONFIG, WEIGHTS, WINDOWS = "config.json", "model.safetensors", "windows.json"


def load_policy(
    path: str | Path, sampler: str = "asd", device: torch.device | str = "cpu", **sampler_options: Any
) -> DiffusionPolicy:
    """A policy from its folder.

    Args:
        path: a folder with `config.json` and `model.safetensors`.
        sampler: "asd", "ddpm" or "ddim".
        device: where to sample.
        sampler_options: asd: `draft`, `window`, `capture`; ddim: `num_steps`, `eta`.

    Raises:
        ConfigError: on a checkpoint, sampler or option name that does not exist, or a config that makes no sense.
        CheckpointError: on a damaged file, or weights that do not fit the config.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise UnknownNameError("checkpoint", str(path), _checkpoints_beside(folder))
    config = PolicyConfig.load(folder / CONFIG)
    modules = nn.ModuleDict({"model": build_network(config), "normalizer": _build_normalizer(config)})
    _load_weights(modules, folder / WEIGHTS)
    network, normalizer = modules["model"], modules["normalizer"]
    assert isinstance(network, ConditionalUnet1D)
    assert isinstance(normalizer, LinearNormalizer)
    return DiffusionPolicy(network, normalizer, config, sampler, device, folder / WINDOWS, **sampler_options)


def _build_normalizer(config: PolicyConfig) -> LinearNormalizer:
    return LinearNormalizer({**config.obs_keys, "action": config.action_dim})


def _load_weights(modules: nn.Module, path: Path) -> None:
    """Fill the modules from a safetensors file whose tensors are exactly theirs."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file complete?") from error
    expected: dict[str, Tensor] = modules.state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is not of this network" for name in found.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, the config says {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:5])
        raise CheckpointError(f"{path} does not fit its config.json in {len(wrong)} tensors: {listed}.")
    modules.load_state_dict(found)


def _checkpoints_beside(folder: Path) -> list[str]:
    """Checkpoint folders next to where one was looked for."""
    return [str(config.parent) for config in folder.parent.glob(f"*/{CONFIG}")]

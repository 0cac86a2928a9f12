"""Small files of other libraries' formats, with changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asd_policy.nets import ConditionalUnet1D
from tests.importers import real_stanford
from tests.importers.originals import GOLDEN_LEROBOT

BEFORE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
AFTER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"

Tensors = dict[str, Tensor]
Edit = Callable[[Any], Any]


def unet_state(action_dim: int, seed: int = 0) -> Tensors:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConditionalUnet1D(
            action_dim, 46, down_dims=(8, 16), kernel_size=3, diffusion_step_embed_dim=8
        ).state_dict()


def small_real_stanford(
    path: Path, action_dim: int = 7, cfg: Edit | None = None, state: Edit | None = None
) -> dict[str, Any]:
    """Write a `.ckpt` whose actions are no poses, and return what is in it. Edits change, or return another."""
    config = real_stanford.configuration(action_dim, 20)
    config["task"]["abs_action"] = False
    config["policy"]["model"].update(down_dims=[8, 16], kernel_size=3, diffusion_step_embed_dim=8)
    ones, zeros = ({"obs": made(23), "action": made(action_dim)} for made in (torch.ones, torch.zeros))
    tensors = real_stanford.policy_state(unet_state(action_dim), ones, zeros)
    config = (cfg(config) or config) if cfg else config
    tensors = (state(tensors) or tensors) if state else tensors
    payload = {"cfg": config, "state_dicts": {"ema_model": tensors}, "pickles": {}}
    torch.save(payload, path)
    return payload


def changed_robomimic(source: Path, path: Path, edit: Edit) -> Path:
    """A copy of a `.pth` with another payload."""
    payload = torch.load(source, weights_only=False)
    edit(payload)
    torch.save(payload, path)
    return path


def with_config(edit: Edit) -> Edit:
    """An edit of a robomimic payload's configuration."""

    def change(payload: dict[str, Any]) -> None:
        config = json.loads(payload["config"])
        edit(config)
        payload["config"] = json.dumps(config)

    return change


def changed_lerobot(
    path: Path,
    config: dict[str, Any] | None = None,
    stats: Tensors | None = None,
    weights: Edit | None = None,
) -> Path:
    """A copy of the golden folder with other settings, statistics in both pipelines, and weights."""
    shutil.copytree(GOLDEN_LEROBOT, path, ignore=shutil.ignore_patterns("golden.safetensors"))
    settings = json.loads((path / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(settings))
    for file in (BEFORE, AFTER):
        save_file(load_file(path / file) | (stats or {}), path / file)
    if weights is not None:
        save_file(weights(load_file(path / "model.safetensors")), path / "model.safetensors")
    return path


def legacy_lerobot(path: Path, stats: Tensors, config: dict[str, Any] | None = None) -> Path:
    """A folder of lerobot before processors: statistics beside the weights."""
    changed_lerobot(path, config)
    known = load_file(path / BEFORE) | stats
    weights = load_file(path / "model.safetensors")
    for name, value in known.items():
        feature, _, statistic = name.rpartition(".")
        group = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
        weights[f"{group}.buffer_{feature.replace('.', '_')}.{statistic}"] = value
    save_file(weights, path / "model.safetensors")
    for file in path.glob("policy_*"):
        file.unlink()
    return path

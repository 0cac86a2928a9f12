"""Checkpoints as real-stanford's `BaseWorkspace.save_checkpoint` writes them: dill, with an OmegaConf configuration."""

import json
from pathlib import Path
from typing import Any

import dill
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from tests.importers.recipe import kept_in, restored

GOLDEN = Path(__file__).parent / "golden" / "real_stanford"
OBS_KEYS = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]


def configuration(action_dim: int, num_steps: int) -> dict[str, Any]:
    """The parts of `train_diffusion_unet_lowdim_workspace` with `square_lowdim_abs` that a policy needs, resolved."""
    return {
        "name": "train_diffusion_unet_lowdim",
        "horizon": 16,
        "training": {"use_ema": True},
        "task": {
            "name": "square_lowdim",
            "task_name": "square",
            "obs_dim": 23,
            "action_dim": action_dim,
            "obs_keys": OBS_KEYS,
            "abs_action": action_dim % 10 == 0,
        },
        "policy": {
            "_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
            "model": {
                "_target_": "diffusion_policy.model.diffusion.conditional_unet1d.ConditionalUnet1D",
                "input_dim": action_dim,
                "local_cond_dim": None,
                "global_cond_dim": 46,
                "diffusion_step_embed_dim": 16,
                "down_dims": [16, 32],
                "kernel_size": 5,
                "n_groups": 8,
                "cond_predict_scale": True,
            },
            "noise_scheduler": {
                "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
                "num_train_timesteps": num_steps,
                "beta_start": 0.0001,
                "beta_end": 0.02,
                "beta_schedule": "squaredcos_cap_v2",
                "variance_type": "fixed_small",
                "clip_sample": True,
                "prediction_type": "epsilon",
            },
            "horizon": 16,
            "obs_dim": 23,
            "action_dim": action_dim,
            "n_action_steps": 8,
            "n_obs_steps": 2,
            "num_inference_steps": num_steps,
            "obs_as_local_cond": False,
            "obs_as_global_cond": True,
            "pred_action_steps_only": False,
            "oa_step_convention": True,
        },
    }


def policy_state(
    network: dict[str, Tensor], scales: dict[str, Tensor], offsets: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict of the policy module."""
    state = {"_dummy_variable": torch.empty(0), "mask_generator._dummy_variable": torch.empty(0)}
    state |= {f"model.{name}": value for name, value in network.items()}
    for field, scale in scales.items():
        prefix = f"normalizer.params_dict.{field}"
        state |= {f"{prefix}.scale": scale, f"{prefix}.offset": offsets[field]}
        state |= {f"{prefix}.input_stats.{name}": torch.zeros_like(scale) for name in ("min", "max", "mean", "std")}
    return state


def save_payload(path: Path, payload: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(payload, file, pickle_module=dill)


def payload(cfg: dict[str, Any], state: dict[str, Tensor], last: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """What is pickled: the average is `state`, the last weights something else, and an optimizer."""
    if last is None:
        last = {name: value + 1 for name, value in state.items()}
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return {
        "cfg": OmegaConf.create(cfg),
        "state_dicts": {"model": last, "ema_model": state, "optimizer": optimizer.state_dict()},
        "pickles": {"_output_dir": dill.dumps("data/outputs"), "epoch": dill.dumps(3), "global_step": dill.dumps(7)},
    }


def save_checkpoint(
    path: Path, network: dict[str, Tensor], scales: dict[str, Tensor], offsets: dict[str, Tensor], num_steps: int
) -> None:
    """Write a small policy's file."""
    cfg = configuration(len(scales["action"]), num_steps)
    save_payload(path, payload(cfg, policy_state(network, scales, offsets)))


def image_policy_state(name: str) -> dict[str, Tensor]:
    """The state dict of an image policy of `make_real_stanford_golden.py`: its weights are made here again."""
    made = json.loads((GOLDEN / f"{name}.json").read_text())
    return restored(made["shapes"], kept_in(load_file(GOLDEN / f"{name}.safetensors")), made["aliases"])


def image_policy_checkpoint(path: Path, name: str) -> None:
    """Write that policy's file. The last weights are zeros that take no room, each of the average is stored once."""
    state = image_policy_state(name)
    last = {at: torch.zeros(()).expand(value.shape) for at, value in state.items()}
    save_payload(path, payload(json.loads((GOLDEN / f"{name}.json").read_text())["cfg"], state, last))

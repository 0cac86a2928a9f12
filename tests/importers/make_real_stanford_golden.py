"""Remake `golden/real_stanford`: small policies built, saved and run by real-stanford's own code.

    git clone https://github.com/real-stanford/diffusion_policy
    pip install torch diffusers==0.35.2 einops zarr dill hydra-core==1.3.2 omegaconf==2.3.0
    pip install torchvision h5py tqdm tensorboardX && pip install --no-deps robomimic==0.2.0
    PYTHONPATH=diffusion_policy python tests/importers/make_real_stanford_golden.py diffusion_policy

For each low-dimensional architecture there is the `.ckpt` that its `BaseWorkspace.save_checkpoint` wrote with its own
configuration files, and a `.safetensors` with an observation, the noise of one DDPM chain, the network's input and
output, and the actions (still with 6-D rotations: real-stanford's environment runner, not its policy, undoes them).

The image policies have ResNets, too big to keep: `hybrid.json` holds the configuration and the names and shapes of the
tensors. The weights come from `recipe.py`; `hybrid.safetensors` keeps the tensors that are none. `hybrid` is
DiffusionUnetHybridImagePolicy. `multi_image` and `shared` are DiffusionUnetImagePolicy: a ResNet-18 with group norm for
each camera on a crop, and one ResNet-18 with batch norm for both cameras on a resized image. torchvision 0.13, of
real-stanford's environment, resizes tensors without antialiasing; newer versions are told to.

To remake some of them: `... make_real_stanford_golden.py diffusion_policy multi_image shared`.
"""

import copy
import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dill
import hydra
import numpy as np
import torch
import torchvision
from diffusion_policy.common import normalize_util
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.workspace.base_workspace import BaseWorkspace
from omegaconf import OmegaConf
from recipe import CONSTANTS, KEPT, aliases_of, restored, shapes_of
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden" / "real_stanford"
NUM_STEPS = 20
COMMON = [f"policy.noise_scheduler.num_train_timesteps={NUM_STEPS}", f"policy.num_inference_steps={NUM_STEPS}"]
OVERRIDES = {
    "unet": ["policy.model.down_dims=[8,16]", "policy.model.diffusion_step_embed_dim=8", "policy.model.kernel_size=3"],
    "transformer": [
        "policy.model.n_emb=16",
        "policy.model.n_layer=2",
        "horizon=10",
        "n_obs_steps=2",
        "n_action_steps=8",
    ],
}
SMALL = ["policy.down_dims=[8,16]", "policy.diffusion_step_embed_dim=8", "policy.kernel_size=3"]
TINY = [f"task.shape_meta.obs.{key}_image.shape=[3,24,28]" for key in ("agentview", "robot0_eye_in_hand")]
IMAGES = {
    "hybrid": ("train_diffusion_unet_hybrid_workspace", SMALL),
    "multi_image": ("train_diffusion_unet_image_workspace", [*SMALL, *TINY, "policy.obs_encoder.crop_shape=[20,23]"]),
    "shared": (
        "train_diffusion_unet_real_pretrained_workspace",
        [
            *SMALL,
            *TINY,
            "policy.obs_encoder.rgb_model.weights=null",
            "policy.obs_encoder.resize_shape=[30,20]",
            "policy.noise_scheduler._target_=diffusers.DDPMScheduler",
            "~policy.noise_scheduler.set_alpha_to_one",
            "~policy.noise_scheduler.steps_offset",
        ],
    ),
}
"""Name -> the workspace of an image policy, and its overrides."""


class Workspace(BaseWorkspace):
    """What every workspace of theirs saves."""

    include_keys = ("global_step", "epoch")

    def __init__(self, cfg: Any):
        super().__init__(cfg, output_dir="outputs")
        self.model = hydra.utils.instantiate(cfg.policy)
        self.ema_model = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.global_step, self.epoch = 7, 3


def main(repository: Path, names: list[str]) -> None:
    OmegaConf.register_new_resolver("eval", eval, replace=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with hydra.initialize_config_dir(str(repository.resolve() / "diffusion_policy" / "config"), version_base=None):
        for name, overrides in OVERRIDES.items():
            if name in names:
                make(name, composed(f"train_diffusion_{name}_lowdim_workspace", "square_lowdim_abs", overrides))
        for name, (workspace, overrides) in IMAGES.items():
            if name in names:
                with resizing_as_before():
                    make_image_policy(name, composed(workspace, "square_image_abs", overrides))


def composed(workspace: str, task: str, overrides: list[str]) -> Any:
    cfg = hydra.compose(workspace, overrides=[f"task={task}", *COMMON, *overrides])
    OmegaConf.resolve(cfg)  # as their train.py does
    return cfg


def make(name: str, cfg: Any) -> None:
    torch.manual_seed(0)
    workspace = Workspace(cfg)
    policy = workspace.ema_model.eval()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": torch.randn(50, cfg.obs_dim) * 2 + 1, "action": torch.randn(50, cfg.action_dim) * 0.5})
    for each in (workspace.model, policy):
        each.set_normalizer(normalizer)
    workspace.save_checkpoint(FOLDER / f"{name}.ckpt", use_thread=False)

    obs = torch.randn(1, 1, cfg.obs_dim).expand(-1, cfg.n_obs_steps, -1)
    start = torch.randn(1, cfg.horizon, cfg.action_dim)
    xi = torch.randn(1, NUM_STEPS, cfg.horizon, cfg.action_dim)
    with torch.no_grad(), drawing(start, xi):
        actions = policy.predict_action({"obs": obs})["action"]
    sample, timestep = torch.randn(3, cfg.horizon, cfg.action_dim), torch.tensor([0, 7, NUM_STEPS - 1])
    cond = torch.randn(3, cfg.n_obs_steps, cfg.obs_dim)
    with torch.no_grad():
        if name == "unet":
            output = policy.model(sample, timestep, global_cond=cond.flatten(1))
        else:
            output = policy.model(sample, timestep, cond)
    golden = {"obs": obs[0, 0], "start": start, "xi": xi, "actions": actions[0]}
    golden |= {"sample": sample, "timestep": timestep, "cond": cond.flatten(1), "output": output}
    save_file({key: value.contiguous() for key, value in golden.items()}, FOLDER / f"{name}.safetensors")
    assert dill.loads(torch.load(FOLDER / f"{name}.ckpt", weights_only=False)["pickles"]["epoch"]) == 3


@contextmanager
def drawing(start: Tensor, xi: Tensor) -> Iterator[None]:
    """Let the next chain draw this noise."""
    scheduler = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with (
        mock.patch(scheduler, side_effect=xi.unbind(dim=1)),
        mock.patch("torch.randn", side_effect=[start]),
    ):
        yield


@contextmanager
def resizing_as_before() -> Iterator[None]:
    """torchvision's Resize with the default of version 0.13 for tensors."""
    without = functools.partial(torchvision.transforms.Resize, antialias=False)
    with mock.patch("torchvision.transforms.Resize", without):
        yield


def make_image_policy(name: str, cfg: Any) -> None:
    torch.manual_seed(0)
    policy = hydra.utils.instantiate(cfg.policy).eval()
    policy.set_normalizer(normalizer_of(cfg.shape_meta))
    state = policy.state_dict()
    shapes, aliases = shapes_of(state), aliases_of(state)
    kept = {at: value for at, value in state.items() if at.startswith("normalizer.") or at.endswith(CONSTANTS)}
    kept = {at: value.clone() for at, value in kept.items() if at not in aliases}
    policy.load_state_dict(restored(shapes, kept, aliases))
    described = {"cfg": OmegaConf.to_container(cfg), "shapes": shapes, "aliases": aliases}
    (FOLDER / f"{name}.json").write_text(json.dumps(described) + "\n")

    obs = {key: observed(entry) for key, entry in cfg.shape_meta.obs.items()}
    batch = {key: for_policy(value).expand(1, cfg.n_obs_steps, *for_policy(value).shape) for key, value in obs.items()}
    action_dim = cfg.shape_meta.action.shape[0]
    start = torch.randn(1, cfg.horizon, action_dim)
    xi = torch.randn(1, NUM_STEPS, cfg.horizon, action_dim)
    conditions: list[Tensor] = []
    hook = policy.model.register_forward_pre_hook(
        lambda _, __, kwargs: conditions.append(kwargs["global_cond"]), with_kwargs=True
    )
    with torch.no_grad(), drawing(start, xi):
        actions = policy.predict_action(batch)["action"]
    hook.remove()
    count = 3 if name == "hybrid" else 1  # the features of the others are many
    sample, timestep = torch.randn(count, cfg.horizon, action_dim), torch.tensor([7, 0, NUM_STEPS - 1])[:count]
    cond = torch.randn(count, conditions[0].shape[1])
    with torch.no_grad():
        output = policy.model(sample, timestep, global_cond=cond)
    golden = {f"obs.{key}": value for key, value in obs.items()} | {"start": start, "xi": xi, "actions": actions[0]}
    golden |= {"sample": sample, "timestep": timestep, "cond": cond, "output": output, "global_cond": conditions[0]}
    golden |= {KEPT + at: value for at, value in kept.items()}
    save_file({key: value.contiguous() for key, value in golden.items()}, FOLDER / f"{name}.safetensors")


def normalizer_of(shape_meta: Any) -> LinearNormalizer:
    """What `RobomimicReplayImageDataset.get_normalizer` makes of random data (its module needs pytorch3d)."""
    normalizer = LinearNormalizer()
    actions = random_stats(shape_meta.action.shape)
    normalizer["action"] = normalize_util.robomimic_abs_action_only_normalizer_from_stat(actions)
    for key, entry in shape_meta.obs.items():
        if entry.get("type") == "rgb":
            normalizer[key] = normalize_util.get_image_range_normalizer()
        elif key.endswith("quat"):
            normalizer[key] = normalize_util.get_identity_normalizer_from_stat(random_stats(entry.shape))
        else:
            normalizer[key] = normalize_util.get_range_normalizer_from_stat(random_stats(entry.shape))
    return normalizer


def random_stats(shape: Any) -> dict[str, np.ndarray]:
    return normalize_util.array_to_stats((torch.randn(50, *shape) * 0.5 + 0.2).numpy())


def observed(entry: Any) -> Tensor:
    """A vector, or an image of bytes with its channels last, as the files of demonstrations hold it."""
    if entry.get("type") == "rgb":
        channels, *size = entry.shape
        return torch.randint(256, (*size, channels), dtype=torch.uint8)
    return torch.randn(*entry.shape)


def for_policy(value: Tensor) -> Tensor:
    return value.permute(2, 0, 1) / 255 if value.dtype == torch.uint8 else value


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*OVERRIDES, *IMAGES])

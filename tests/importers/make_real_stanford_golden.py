"""Remake `golden/real_stanford`: small policies built, saved and run by real-stanford's own code.

    git clone https://github.com/real-stanford/diffusion_policy
    pip install torch diffusers==0.35.2 einops zarr dill hydra-core==1.3.2 omegaconf==2.3.0
    PYTHONPATH=diffusion_policy python tests/importers/make_real_stanford_golden.py diffusion_policy

For each architecture there is the `.ckpt` that its `BaseWorkspace.save_checkpoint` wrote with its own configuration
files, and a `.safetensors` with an observation, the noise of one DDPM chain, the network's input and output, and the
actions (still with 6-D rotations: real-stanford's environment runner, not its policy, undoes them).
"""

import copy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import dill
import hydra
import torch
from diffusion_policy.model.common.normalizer import LinearNormalizer
from diffusion_policy.workspace.base_workspace import BaseWorkspace
from omegaconf import OmegaConf
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden" / "real_stanford"
NUM_STEPS = 20
COMMON = ["task=square_lowdim_abs", f"policy.noise_scheduler.num_train_timesteps={NUM_STEPS}"]
COMMON += [f"policy.num_inference_steps={NUM_STEPS}"]
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


class Workspace(BaseWorkspace):
    """What every workspace of theirs saves."""

    include_keys = ("global_step", "epoch")

    def __init__(self, cfg: Any):
        super().__init__(cfg, output_dir="outputs")
        self.model = hydra.utils.instantiate(cfg.policy)
        self.ema_model = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.global_step, self.epoch = 7, 3


def main(repository: Path) -> None:
    OmegaConf.register_new_resolver("eval", eval, replace=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with hydra.initialize_config_dir(str(repository.resolve() / "diffusion_policy" / "config"), version_base=None):
        for name, overrides in OVERRIDES.items():
            cfg = hydra.compose(f"train_diffusion_{name}_lowdim_workspace", overrides=COMMON + overrides)
            OmegaConf.resolve(cfg)  # as their train.py does
            make(name, cfg)


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
    scheduler = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with (
        torch.no_grad(),
        mock.patch(scheduler, side_effect=xi.unbind(dim=1)),
        mock.patch("torch.randn", side_effect=[start]),
    ):
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A file made for DDIM acts as its library does: diffusers' DDIMScheduler, called as these libraries call it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from asd_policy.importers import load_policy, read_checkpoint
from tests.importers.small import changed_lerobot, changed_robomimic, small_real_stanford, with_config
from tests.importers.test_schedulers import ddim

STEPS = 8
VARIANTS = (
    {},
    {"set_alpha_to_one": False},
    {"steps_offset": 1, "set_alpha_to_one": False},
    {"clip_sample": False},
    {"timestep_spacing": "trailing"},
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction"},
)


def chunks(path, start: torch.Tensor, scheduler: DDIMScheduler) -> tuple[np.ndarray, np.ndarray]:
    """A chunk's actions of the policy in the file, and those of diffusers' scheduler with its network."""
    policy = load_policy(path, sampler="ddim", num_steps=STEPS)
    config = policy.config
    obs = {key: np.full(shape, 0.3, np.float32) for key, shape in config.obs_shapes.items()}
    policy.reset(seed=3)
    ours = np.stack([policy.act(obs) for _ in range(config.n_action_steps)])
    cond = policy.condition([obs])
    scheduler.set_timesteps(STEPS)
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(policy.network(x, t.reshape(1), cond), t, x).prev_sample
        first = config.n_obs_steps - 1
        theirs = policy.normalizer.unnormalize("action", x[0, first : first + config.n_action_steps])
    bound = np.inf if config.action_bound is None else config.action_bound
    return ours, theirs.numpy().clip(-bound, bound)


def start_of(path) -> torch.Tensor:
    config = read_checkpoint(path).config
    return torch.randn(1, config.horizon, config.action_dim, generator=torch.Generator().manual_seed(3))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_real_stanford(tmp_path, variant):
    path = tmp_path / "a.ckpt"
    small_real_stanford(path, cfg=ddim(variant, STEPS))
    scheduler = DDIMScheduler(20, beta_schedule="squaredcos_cap_v2", **variant)
    ours, theirs = chunks(path, start_of(path), scheduler)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lerobot(tmp_path):
    path = changed_lerobot(tmp_path / "a", {"noise_scheduler_type": "DDIM", "num_inference_steps": STEPS})
    scheduler = DDIMScheduler(20, beta_schedule="squaredcos_cap_v2", clip_sample_range=1.5)
    ours, theirs = chunks(path, start_of(path), scheduler)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1, np.abs(ours).max()))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("variant", [{}, {"set_alpha_to_one": False, "steps_offset": 1}], ids=str)
def test_robomimic(all_originals, tmp_path, variant):
    def edit(config):
        config["algo"]["ddpm"]["enabled"], config["algo"]["ddim"]["enabled"] = False, True
        config["algo"]["ddim"].update(num_train_timesteps=20, num_inference_timesteps=STEPS, **variant)
        config["train"]["action_config"] = {}  # no rotations to undo

    path = changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", with_config(edit))
    scheduler = DDIMScheduler(20, beta_schedule="squaredcos_cap_v2", **variant)
    ours, theirs = chunks(path, start_of(path), scheduler)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1, np.abs(ours).max()))

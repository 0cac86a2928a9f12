"""Policies in the files of other libraries, and what those libraries compute with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor

from tests.importers.real_stanford import save_checkpoint

GOLDEN_LEROBOT = Path(__file__).parent / "golden" / "lerobot"
GOLDEN_STANFORD = Path(__file__).parent / "golden" / "real_stanford"
OBS = {"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
ACTION_KEYS = {"action_dict/abs_pos": 3, "action_dict/abs_rot_6d": 6, "action_dict/gripper": 1}
ACTION_DIM, HORIZON, NUM_STEPS, STACK = 10, 16, 20, 2


@dataclass(frozen=True)
class Original:
    """A file and the original's behaviour.

    Attributes:
        path: the file or folder.
        obs: one observation, seen twice.
        start, xi: the noise of a chunk, (1, H, A) and (1, K, H, A).
        actions: (Ta, A_env), what the original does with that observation and noise.
        inputs: the network's (sample, timestep, cond).
        output: what the original's network makes of them.
    """

    path: Path
    obs: dict[str, np.ndarray]
    start: Tensor
    xi: Tensor
    actions: np.ndarray
    inputs: tuple[Tensor, Tensor, Tensor]
    output: Tensor


def lerobot_original() -> Original:
    """Made by lerobot: see `make_lerobot_golden.py`."""
    golden = load_file(GOLDEN_LEROBOT / "golden.safetensors")
    return Original(
        GOLDEN_LEROBOT,
        {name.removeprefix("observation."): v.numpy() for name, v in golden.items() if name.startswith("observation.")},
        golden["start"],
        golden["xi"],
        golden["actions"].numpy(),
        (golden["sample"], golden["timestep"], golden["cond"]),
        golden["output"],
    )


def noise(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (HORIZON, ACTION_DIM)
    return torch.randn(1, *shape, generator=generator), torch.randn(1, NUM_STEPS, *shape, generator=generator)


def observation() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(dim).astype(np.float32) for key, dim in OBS.items()}


def network_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(3, HORIZON, ACTION_DIM, generator=generator)
    return sample, torch.tensor([0, 7, NUM_STEPS - 1]), torch.randn(3, STACK * 23, generator=generator)


@contextmanager
def small_robomimic_unet() -> Iterator[None]:
    """robomimic ignores the sizes in its config: its own network has 66 million parameters."""
    from robomimic.models import diffusion_policy_nets as nets

    small = partial(nets.ConditionalUnet1D, down_dims=[16, 32], diffusion_step_embed_dim=16)
    with mock.patch.object(nets, "ConditionalUnet1D", small):
        yield


def robomimic_original(path: Path, ema: bool = True, normalise_obs: bool = True) -> Original:
    """Built, saved and run by robomimic: absolute actions with 6-D rotations, normalised."""
    import robomimic.utils.file_utils as file_utils

    save_robomimic(path, ema, normalise_obs)
    rollout, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    rollout.start_episode()
    obs, (start, xi) = observation(), noise()
    stacked = {key: np.stack([value] * STACK) for key, value in obs.items()}
    with mock.patch("torch.randn", side_effect=[start, *xi.unbind(dim=1)]):
        actions = [rollout({**stacked})]
    actions += [rollout({**stacked}) for _ in range(7)]
    nets = rollout.policy.ema_nets if ema else rollout.policy.nets
    inputs = network_inputs()
    with torch.no_grad():
        output = nets["policy"]["noise_pred_net"](inputs[0], inputs[1], global_cond=inputs[2])
    return Original(path, obs, start, xi, np.stack(actions), inputs, output)


def save_robomimic(path: Path, ema: bool, normalise_obs: bool) -> None:
    """A DiffusionPolicyUNet with random weights through robomimic's own factory and `save_model`."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory
    from robomimic.config import config_factory
    from robomimic.utils.train_utils import save_model

    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.observation.modalities.obs.low_dim = list(reversed(OBS))
        config.train.action_keys = list(ACTION_KEYS)
        config.train.action_config = {
            key: {"normalization": "min_max"} | ({"format": "rot_6d"} if "rot_6d" in key else {}) for key in ACTION_KEYS
        }
        config.train.hdf5_normalize_obs = normalise_obs
        config.algo.ema.enabled = ema
        config.algo.optim_params["policy"]["num_train_batches"] = 10  # its train.py counts them
        config.algo.optim_params["policy"]["num_epochs"] = 10
        config.algo.ddpm.num_train_timesteps = config.algo.ddpm.num_inference_timesteps = NUM_STEPS
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = {key: [dim] for key, dim in sorted(OBS.items())}
    meta = {"ac_dim": ACTION_DIM, "all_shapes": shapes, "all_obs_keys": list(reversed(OBS)), "use_images": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = algo_factory("diffusion_policy", config, shapes, ACTION_DIM, device=torch.device("cpu"))
        if ema:  # an average that is not the last weights, as after training
            for parameter in model.ema_nets.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)

    def stats(dims: dict[str, int]) -> dict[str, Any]:
        return {k: {"offset": rng.normal(size=(1, d)), "scale": rng.uniform(0.5, 2, (1, d))} for k, d in dims.items()}

    save_model(
        model,
        config,
        {"env_name": "NutAssemblySquare", "env_version": "1.5.1", "type": 1, "env_kwargs": {}},
        meta,
        str(path),
        variable_state={"epoch": 3, "best_success_rate": {"NutAssemblySquare": np.float64(0.5)}},
        obs_normalization_stats=stats(OBS) if normalise_obs else None,
        action_normalization_stats=stats(ACTION_KEYS),
    )


def real_stanford_original(architecture: str) -> Original:
    """Made by real-stanford's code: see `make_real_stanford_golden.py`. The rotations are undone by robomimic."""
    from robomimic.utils.torch_utils import rot_6d_to_axis_angle

    golden = load_file(GOLDEN_STANFORD / f"{architecture}.safetensors")
    position, rotation, gripper = golden["actions"].split([3, 6, 1], dim=-1)
    actions = torch.cat([position, rot_6d_to_axis_angle(rotation), gripper], dim=-1)
    return Original(
        GOLDEN_STANFORD / f"{architecture}.ckpt",
        dict(zip(OBS, [piece.numpy() for piece in golden["obs"].split(list(OBS.values()))], strict=True)),
        golden["start"],
        golden["xi"],
        actions.numpy(),
        (golden["sample"], golden["timestep"], golden["cond"]),
        golden["output"],
    )


def lookalike_of_real_stanford(path: Path) -> Original:
    """A larger file in real-stanford's layout; its network is computed by robomimic's class, which shares maths and
    names, and the chain by diffusers."""
    from robomimic.models.diffusion_policy_nets import ConditionalUnet1D
    from robomimic.utils.torch_utils import rot_6d_to_axis_angle

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConditionalUnet1D(ACTION_DIM, STACK * 23, diffusion_step_embed_dim=16, down_dims=[16, 32])
        scales = {"obs": torch.rand(23) + 0.5, "action": torch.rand(ACTION_DIM) + 0.5}
        offsets = {"obs": torch.randn(23), "action": torch.randn(ACTION_DIM)}
    save_checkpoint(path, net.state_dict(), scales, offsets, NUM_STEPS)
    obs, (start, xi) = observation(), noise()
    steps = torch.from_numpy(np.concatenate(list(obs.values()))).expand(1, STACK, -1)
    cond = (steps * scales["obs"] + offsets["obs"]).flatten(1)
    chunk = (ddpm_chunk(net, cond, start, xi) - offsets["action"]) / scales["action"]
    executed = chunk[0, STACK - 1 : STACK - 1 + 8]
    position, rotation, gripper = executed.split([3, 6, 1], dim=-1)
    actions = torch.cat([position, rot_6d_to_axis_angle(rotation), gripper], dim=-1)
    inputs = network_inputs()
    with torch.no_grad():
        output = net(inputs[0], inputs[1], global_cond=inputs[2])
    return Original(path, obs, start, xi, actions.numpy(), inputs, output)


@torch.no_grad()
def ddpm_chunk(net: Callable[..., Tensor], cond: Tensor, start: Tensor, xi: Tensor) -> Tensor:
    """The chain as real-stanford's policies run it, with diffusers' scheduler."""
    scheduler = DDPMScheduler(num_train_timesteps=NUM_STEPS, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(NUM_STEPS)
    x = start
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", side_effect=xi.unbind(dim=1)):
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t, global_cond=cond), t, x).prev_sample
    return x

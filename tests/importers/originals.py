"""Policies in the files of other libraries, and what those libraries compute with them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.importers.real_stanford import image_policy_checkpoint, save_checkpoint
from tests.importers.recipe import kept_in, restored

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_LEROBOT = GOLDEN / "lerobot"
GOLDEN_STANFORD = GOLDEN / "real_stanford"
OBS = {"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
VECTORS = {key: (dim,) for key, dim in OBS.items()}
IMAGES = {"agentview_image": (84, 84, 3), "robot0_eye_in_hand_image": (84, 84, 3)}
WITH_IMAGES = {key: shape for key, shape in VECTORS.items() if key != "object"} | IMAGES
ACTION_KEYS = {"action_dict/abs_pos": 3, "action_dict/abs_rot_6d": 6, "action_dict/gripper": 1}
ACTION_DIM, HORIZON, NUM_STEPS, STACK = 10, 16, 20, 2


@dataclass(frozen=True)
class Original:
    """A file and the original's behaviour.

    Attributes:
        path: the file or folder.
        obs: one observation, seen twice; images are bytes with their channels last.
        start, xi: the noise of a chunk, (1, H, A) and (1, K, H, A).
        actions: (Ta, A_env), what the original does with that observation and noise.
        inputs: the network's (sample, timestep, cond).
        output: what the original's network makes of them.
        cond: the condition that the original computed of the observation, (1, D), where it is known.
    """

    path: Path
    obs: dict[str, np.ndarray]
    start: Tensor
    xi: Tensor
    actions: np.ndarray
    inputs: tuple[Tensor, Tensor, Tensor]
    output: Tensor
    cond: Tensor | None = None


def lerobot_original(folder: Path = GOLDEN_LEROBOT) -> Original:
    """Made by lerobot: see `make_lerobot_golden.py`."""
    return _of_lerobot(folder, load_file(folder / "golden.safetensors"))


def lerobot_rgb_original(folder: Path, variant: str = "lerobot_rgb") -> Original:
    """Made by lerobot, but for its weights, which are made here again; also `lerobot_rgb_separate`."""
    golden = load_file(GOLDEN / variant / "golden.safetensors")
    shutil.copytree(GOLDEN / variant, folder, ignore=shutil.ignore_patterns("golden.safetensors", "shapes.json"))
    shapes = json.loads((GOLDEN / variant / "shapes.json").read_text())
    save_file(restored(shapes, kept_in(golden), {}), folder / "model.safetensors")
    return _of_lerobot(folder, golden)


def _of_lerobot(folder: Path, golden: dict[str, Tensor]) -> Original:
    return Original(
        folder,
        {name.rpartition(".")[2]: v.numpy() for name, v in golden.items() if name.startswith("observation.")},
        golden["start"],
        golden["xi"],
        golden["actions"].numpy(),
        (golden["sample"], golden["timestep"], golden["cond"]),
        golden["output"],
        golden.get("global_cond"),
    )


def noise(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (HORIZON, ACTION_DIM)
    return torch.randn(1, *shape, generator=generator), torch.randn(1, NUM_STEPS, *shape, generator=generator)


def observation(shapes: Mapping[str, tuple[int, ...]] = VECTORS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        key: rng.integers(256, size=shape, dtype=np.uint8)
        if key in IMAGES
        else rng.standard_normal(shape).astype(np.float32)
        for key, shape in shapes.items()
    }


def network_inputs(cond_dim: int = STACK * 23) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(3, HORIZON, ACTION_DIM, generator=generator)
    return sample, torch.tensor([0, 7, NUM_STEPS - 1]), torch.randn(3, cond_dim, generator=generator)


@contextmanager
def small_robomimic_unet() -> Iterator[None]:
    """robomimic ignores the sizes in its config: its own network has 66 million parameters."""
    from robomimic.models import diffusion_policy_nets as nets

    small = partial(nets.ConditionalUnet1D, down_dims=[16, 32], diffusion_step_embed_dim=16)
    with mock.patch.object(nets, "ConditionalUnet1D", small):
        yield


def robomimic_original(
    path: Path, ema: bool = True, normalise_obs: bool = True, shapes: Mapping[str, tuple[int, ...]] = VECTORS
) -> Original:
    """Built, saved and run by robomimic: absolute actions with 6-D rotations, normalised."""
    import robomimic.utils.file_utils as file_utils

    save_robomimic(path, ema, normalise_obs, shapes)
    rollout, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    rollout.start_episode()
    obs, (start, xi) = observation(shapes), noise()
    stacked = {key: np.stack([value] * STACK) for key, value in obs.items()}
    nets = rollout.policy.ema_nets if ema else rollout.policy.nets
    nets.eval()  # this build of robomimic leaves the average in training mode, where crops are random
    net = nets["policy"]["noise_pred_net"]
    with mock.patch("torch.randn", side_effect=[start, *xi.unbind(dim=1)]), conditions(net) as seen:
        actions = [rollout({**stacked})]
    actions += [rollout({**stacked}) for _ in range(7)]
    inputs = network_inputs(seen[0].shape[1])
    with torch.no_grad():
        output = net(inputs[0], inputs[1], global_cond=inputs[2])
    return Original(path, obs, start, xi, np.stack(actions), inputs, output, seen[0])


def robomimic_image_original(path: Path) -> Original:
    """The same with two cameras, robomimic's default encoder of images, and observations as they are."""
    return robomimic_original(path, normalise_obs=False, shapes=WITH_IMAGES)


@contextmanager
def conditions(net: nn.Module) -> Iterator[list[Tensor]]:
    """The conditions that the network is called with meanwhile."""
    seen: list[Tensor] = []
    hook = net.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["global_cond"]), with_kwargs=True)
    yield seen
    hook.remove()


def save_robomimic(path: Path, ema: bool, normalise_obs: bool, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A DiffusionPolicyUNet with random weights through robomimic's own factory and `save_model`."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory
    from robomimic.config import config_factory
    from robomimic.scripts.generate_paper_configs import modify_config_for_default_image_exp
    from robomimic.utils.train_utils import save_model

    images = [key for key in shapes if key in IMAGES]
    config = config_factory("diffusion_policy")
    if images:
        modify_config_for_default_image_exp(config)
    with config.unlocked():
        config.observation.modalities.obs.low_dim = [key for key in reversed(shapes) if key not in images]
        config.observation.modalities.obs.rgb = images
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
    processed = {key: (*shape[-1:], *shape[:-1]) for key, shape in sorted(shapes.items())}  # channels first
    meta = {"ac_dim": ACTION_DIM, "all_shapes": {key: list(shape) for key, shape in processed.items()}}
    meta |= {"all_obs_keys": list(reversed(shapes)), "use_images": bool(images)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = algo_factory("diffusion_policy", config, meta["all_shapes"], ACTION_DIM, device=torch.device("cpu"))
        if ema:  # an average that is not the last weights, as after training
            for parameter in model.ema_nets.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)

    def stats(by_key: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        sizes = {key: (1, *shape) for key, shape in by_key.items()}
        return {key: {"offset": rng.normal(size=s), "scale": rng.uniform(0.5, 2, s)} for key, s in sizes.items()}

    save_model(
        model,
        config,
        {"env_name": "NutAssemblySquare", "env_version": "1.5.1", "type": 1, "env_kwargs": {}},
        meta,
        str(path),
        variable_state={"epoch": 3, "best_success_rate": {"NutAssemblySquare": np.float64(0.5)}},
        obs_normalization_stats=stats({key: processed[key] for key in shapes}) if normalise_obs else None,
        action_normalization_stats=stats({key: (dim,) for key, dim in ACTION_KEYS.items()}),
    )


def real_stanford_original(architecture: str) -> Original:
    """Made by real-stanford's code: see `make_real_stanford_golden.py`."""
    golden = load_file(GOLDEN_STANFORD / f"{architecture}.safetensors")
    pieces = golden["obs"].split(list(OBS.values()))
    golden |= {f"obs.{key}": piece for key, piece in zip(OBS, pieces, strict=True)}
    return _of_real_stanford(GOLDEN_STANFORD / f"{architecture}.ckpt", golden)


def real_stanford_image_original(path: Path, name: str = "hybrid") -> Original:
    """Made by real-stanford's code, but for its weights, which are made here again; also `multi_image`, `shared`."""
    image_policy_checkpoint(path, name)
    return _of_real_stanford(path, load_file(GOLDEN_STANFORD / f"{name}.safetensors"))


def _of_real_stanford(path: Path, golden: dict[str, Tensor]) -> Original:
    """The rotations are undone by robomimic."""
    from robomimic.utils.torch_utils import rot_6d_to_axis_angle

    position, rotation, gripper = golden["actions"].split([3, 6, 1], dim=-1)
    actions = torch.cat([position, rot_6d_to_axis_angle(rotation), gripper], dim=-1)
    return Original(
        path,
        {name.removeprefix("obs."): value.numpy() for name, value in golden.items() if name.startswith("obs.")},
        golden["start"],
        golden["xi"],
        actions.numpy(),
        (golden["sample"], golden["timestep"], golden["cond"]),
        golden["output"],
        golden.get("global_cond"),
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

"""Makes the golden files of this package's own formats: a native checkpoint, a lerobot folder and an episode store.

    python tests/goldens/importers/make.py tests/goldens/importers/v1

Run it again only into a new folder, when the version of a format changes: old goldens must stay readable. Weights,
observations and noise come from fixed seeds; `expected.safetensors` holds what was put in and what came out.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.importers import FORMATS, Checkpoint, load_policy
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.config import NetworkConfig, PolicyConfig, SchedulerConfig
from asd_policy.policies.network import build_network
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.quaternions import Quaternion

OBS_KEYS = {"object": 5, "robot0_eef_quat": 4}
PARTS = (ActionPart("keep", 3), ActionPart("rot6d", 6), ActionPart("keep", 1))
STEPS = (3, 5)
"""Steps of each stored episode."""


def checkpoint(**changes: object) -> Checkpoint:
    """A small policy with random weights and normalisation."""
    config = PolicyConfig(
        env_id="asd/SquareBasePose-v0",
        obs_keys=OBS_KEYS,
        action_dim=10,
        action_bound=None,
        network=NetworkConfig(down_dims=(8, 16), diffusion_step_embed_dim=8, kernel_size=3),
        scheduler=SchedulerConfig(num_train_timesteps=12),
        action_parts=PARTS,
        **changes,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    normalizer = LinearNormalizer(config.normalizer_dims)
    for field in normalizer.fields.values():
        for name, value in field.named_buffers():
            value.copy_(torch.rand_like(value) + (0.5 if name == "scale" else 0.0))
    parts = {"model": build_network(config), "normalizer": normalizer, "encoders": nn.ModuleDict()}
    return Checkpoint(Path(), "native", config, nn.ModuleDict(parts).state_dict())


def observation() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(dim).astype(np.float32) for key, dim in OBS_KEYS.items()}


def actions(folder: Path, sampler: str) -> NDArray[np.float32]:
    """The first chunk's executed actions for `observation()` and the noise of seed 0, (T, A)."""
    policy = load_policy(folder, sampler=sampler)
    policy.reset(seed=0)
    return np.stack([policy.act(observation()) for _ in range(policy.config.n_action_steps)])


def demonstrations() -> list[Demonstration]:
    rng = np.random.default_rng(1)
    found = []
    for seed, steps in enumerate(STEPS):
        obs = {
            "object": rng.standard_normal((steps, 4)).astype(np.float32),
            "agentview_image": rng.integers(256, size=(steps, 6, 5, 3), dtype=np.uint8),
        }
        action = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
        found.append(Demonstration(seed, obs, action, action / 2, steps - 1))
    return found


def main(folder: Path) -> None:
    """Write everything into a folder that does not exist yet."""
    folder.mkdir(parents=True)
    whole = checkpoint(octaves=1, quaternions=(Quaternion("robot0_eef_quat", 0, (0, 0, 0, 1)),))
    whole.save(folder / "native")
    FORMATS.writable()["lerobot"](checkpoint(), folder / "lerobot")
    first = demonstrations()[0]
    shapes = {key: value.shape[1:] for key, value in first.obs.items()}
    attrs = {"env_id": "asd/Square-v0", "action_kind": "delta", "notes": ["a note"]}
    store = EpisodeStore.create(folder / "store.zarr", shapes, 7, attrs)
    for demonstration in demonstrations():
        store.append(demonstration)
    store.close()
    expected = {
        f"{name}.{sampler}": torch.from_numpy(actions(folder / name, sampler))
        for name in ("native", "lerobot")
        for sampler in ("ddpm", "asd:frozen")  # the path draft may be improved, which changes the samples of a seed
    }
    save_file(expected | stored(), folder / "expected.safetensors")


def stored() -> dict[str, Tensor]:
    """The numbers in the store, by their place in a demonstration."""
    values: dict[str, Tensor] = {}
    for number, demonstration in enumerate(demonstrations()):
        arrays = {**demonstration.obs, "action": demonstration.action, "executed": demonstration.executed_action}
        values |= {f"store.{number}.{key}": torch.from_numpy(value) for key, value in arrays.items()}
    return values


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The shipped policy written in every layout and read back acts as before; robomimic reads what we wrote."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asd_policy.errors import ConfigError
from asd_policy.importers import FORMATS, Checkpoint, lerobot, load_policy, read_checkpoint, robomimic
from asd_policy.importers.checkpoint import field_name
from asd_policy.policies.quaternions import Quaternion
from tests.importers import originals, real_stanford
from tests.importers.test_parity import actions_with

SQUARE = Path(__file__).parents[2] / "checkpoints" / "square"
STEPS = 16  # two chunks


@pytest.fixture(scope="module")
def square() -> Checkpoint:
    return read_checkpoint(SQUARE)


@pytest.fixture(scope="module")
def env() -> gymnasium.Env:
    return gymnasium.make("envs:asd/Square-v0")


def action_hash(env: gymnasium.Env, path: Path) -> tuple[str, int]:
    """Of the first actions in an episode, where any other bit gives another hash; and the last chunk's rounds."""
    policy = load_policy(path, sampler="asd", window=16, guess=False)  # an exported file has no first guess
    obs, _ = env.reset(seed=100000)
    policy.reset(seed=0)
    digest = hashlib.sha256()
    for _ in range(STEPS):
        action = policy.act(obs)
        digest.update(action.tobytes())
        obs, *_ = env.step(action)
    assert policy.stats is not None
    return digest.hexdigest()[:16], int(policy.stats.rounds[0])


def write(square: Checkpoint, name: str, path: Path) -> None:
    if name == "diffusion_policy":
        write_real_stanford(square, path)
        return
    # our layout, not robomimic's size
    with mock.patch.object(robomimic.writing, "ROBOMIMIC_NETWORK", square.config.network):
        FORMATS.writable()[name](square, path)


def write_real_stanford(square: Checkpoint, path: Path) -> None:
    """There is no exporter for this one: its generator writes the file."""
    config = real_stanford.configuration(7, 100)
    config["policy"]["model"] |= {k: v for k, v in asdict(square.config.network).items() if k != "name"}
    config["policy"]["model"]["down_dims"] = list(square.config.network.down_dims)
    network = {n.removeprefix("model."): v for n, v in square.tensors.items() if n.startswith("model.")}
    fields = {
        kind: {
            "obs": torch.cat([square.tensors[field_name(key, kind)] for key in square.config.obs_keys]),
            "action": square.tensors[field_name("action", kind)],
        }
        for kind in ("scale", "offset")
    }
    state = real_stanford.policy_state(network, fields["scale"], fields["offset"])
    real_stanford.save_payload(path, real_stanford.payload(config, state))


@pytest.fixture(scope="module")
def native_hash(env) -> tuple[str, int]:
    return action_hash(env, SQUARE)


@pytest.mark.parametrize("name", ["diffusion_policy", "lerobot", "native", "robomimic"])
def test_rollouts_are_equal(square, env, native_hash, tmp_path, name):
    path = tmp_path / "policy"
    write(square, name, path)
    found = action_hash(env, path)
    print(f"\n{name:18} {STEPS} actions in asd/Square-v0: {found[0]}, native {native_hash[0]}; ", end="")
    print(f"rounds of the last chunk: ASD {found[1]}, DDPM {square.config.scheduler.num_train_timesteps}")
    assert read_checkpoint(path).format == name
    # DDIM, which this policy does not run with here, is the file's library's.
    scheduler = replace(square.config.scheduler, use_clipped_model_output=name == "native")
    assert read_checkpoint(path).config == replace(square.config, scheduler=scheduler)
    assert found == native_hash


def test_robomimic_reads_what_we_write(all_originals, tmp_path):
    """Its own policy, imported and exported, acts in robomimic as it did."""
    from robomimic.utils.file_utils import policy_from_checkpoint

    original = all_originals["robomimic"]
    checkpoint = read_checkpoint(original.path)
    path = tmp_path / "model.pth"
    with mock.patch.object(robomimic.writing, "ROBOMIMIC_NETWORK", checkpoint.config.network):
        robomimic.write(checkpoint, path)
    with originals.small_robomimic_unet():
        rollout, _ = policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    rollout.start_episode()
    stacked = {key: np.stack([value] * 2) for key, value in original.obs.items()}
    with mock.patch("torch.randn", side_effect=[original.start, *original.xi.unbind(dim=1)]):
        action = rollout(stacked)
    np.testing.assert_allclose(action, original.actions[0], atol=1e-5)
    assert read_checkpoint(path).config == checkpoint.config


@pytest.mark.parametrize("write", [robomimic.write, lerobot.write])
def test_no_other_format_steadies_quaternions(square, tmp_path, write):
    quaternions = (Quaternion("object", 3, (0, 0, 0, 1)),)
    steady = replace(square, config=replace(square.config, quaternions=quaternions))
    with pytest.raises(ConfigError, match="cannot express observations with quaternions of normalised sign"):
        write(steady, tmp_path / "out")


@pytest.mark.parametrize("write", [robomimic.write, lerobot.write])
def test_no_other_format_has_octaves(square, tmp_path, write):
    finer = replace(square, config=replace(square.config, octaves=4))
    with pytest.raises(ConfigError, match="cannot express observations with octaves"):
        write(finer, tmp_path / "out")


def test_what_robomimic_cannot_express(square, tmp_path):
    with pytest.raises(ConfigError, match="cannot express the network"):
        robomimic.write(square, tmp_path / "model.pth")
    reordered = square.with_obs_keys(dict(reversed(square.config.obs_keys.items())))
    with (
        mock.patch.object(robomimic.writing, "ROBOMIMIC_NETWORK", square.config.network),
        pytest.raises(ConfigError, match="cannot express the order of observations"),
    ):
        robomimic.write(reordered, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_what_lerobot_cannot_express(square, tmp_path):
    with pytest.raises(ConfigError, match="two keys at least"):
        lerobot.write(square.with_obs_keys({"all": 23}), tmp_path)


@pytest.mark.parametrize("name", ["lerobot image", "lerobot image, separate"])
def test_lerobots_images_come_back(all_originals, tmp_path, name):
    """With every tensor that lerobot's own file of separate encoders has."""
    original = all_originals[name]
    checkpoint = read_checkpoint(original.path)
    lerobot.write(checkpoint, tmp_path / "out")
    again = read_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    np.testing.assert_allclose(actions_with(again.policy("ddpm"), original), original.actions, atol=2e-5)
    if "separate" in name:
        theirs, ours = (load_file(path / "model.safetensors") for path in (original.path, tmp_path / "out"))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
        for key in (key for key in theirs if "pos_grid" in key):
            torch.testing.assert_close(ours[key], theirs[key])


@pytest.mark.parametrize(
    ("name", "message"),
    [("robomimic image", "the order of observations"), ("diffusion_policy image", "the order of observations")],
)
def test_images_that_lerobot_cannot_express(all_originals, tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        lerobot.write(read_checkpoint(all_originals[name].path), tmp_path / "out")


def test_crops_that_lerobot_would_place_elsewhere(all_originals, tmp_path):
    checkpoint = read_checkpoint(all_originals["lerobot image"].path)
    moved = tuple(replace(image, crop=(0, 0, *image.crop[2:])) for image in checkpoint.config.images)
    with pytest.raises(ConfigError, match="a central crop, not resized"):
        lerobot.write(replace(checkpoint, config=replace(checkpoint.config, images=moved)), tmp_path / "out")


def test_a_policy_in_memory_can_be_saved(square, tmp_path):
    Checkpoint.of(square.policy()).save(tmp_path)
    saved = read_checkpoint(tmp_path)
    assert saved.config == square.config
    assert all(torch.equal(saved.tensors[name], value) for name, value in square.tensors.items())


def test_lerobot_has_no_encoders_that_average(all_originals, tmp_path):
    checkpoint = read_checkpoint(all_originals["lerobot image"].path)
    images = tuple(replace(image, pool="average") for image in checkpoint.config.images)
    averaged = replace(checkpoint, config=replace(checkpoint.config, images=images))
    with pytest.raises(ConfigError, match=r"cannot express images with the pooling average; it can express keypoints"):
        lerobot.write(averaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()

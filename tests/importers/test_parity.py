"""Each format's policy computes here what it computes in its own library. `pytest -s` prints the differences."""

import json
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from asd_policy.core import sampler, sequential
from asd_policy.core.noise import NoiseTape
from asd_policy.errors import ConfigError
from asd_policy.importers import FORMATS, detect_format, load_policy, read_checkpoint
from asd_policy.policies.diffusion import DiffusionPolicy
from tests.importers import originals
from tests.importers.originals import Original

FOREIGN = [
    "diffusion_policy",
    "diffusion_policy image",
    "diffusion_policy image, average",
    "diffusion_policy image, shared",
    "diffusion_policy transformer",
    "diffusion_policy unet",
    "lerobot",
    "lerobot image",
    "lerobot image, separate",
    "robomimic",
    "robomimic image",
]


def actions_with(policy: DiffusionPolicy, original: Original) -> np.ndarray:
    """A chunk's executed actions, given the original's observation and noise."""
    tape = NoiseTape(original.start, original.xi, torch.full(original.xi.shape[:2], 0.5))
    with mock.patch.object(sequential.NoiseTape, "draw", return_value=tape):
        policy.reset(seed=0)
        return np.stack([policy.act(original.obs) for _ in range(policy.config.n_action_steps)])


@pytest.mark.parametrize("name", FOREIGN)
def test_network_and_chunk(all_originals, name):
    original = all_originals[name]
    assert detect_format(original.path) == name.split()[0]
    policy = load_policy(original.path, sampler="ddpm")
    with torch.inference_mode():
        network_error = float((policy.network(*original.inputs) - original.output).abs().max())
    known = original.cond is not None
    condition_error = float((policy.condition([original.obs]) - original.cond).abs().max()) if known else 0.0
    ours = actions_with(policy, original)
    chunk_error = float(np.abs(ours - original.actions).max())
    told = f"condition {condition_error:.1e}  " if known else ""
    print(f"\n{name:32} network {network_error:.1e}  {told}chunk {chunk_error:.1e}")
    assert ours.shape == original.actions.shape
    assert network_error < 1e-5
    assert condition_error < 1e-5
    assert chunk_error < 1e-5 * max(1, np.abs(ours).max())


@pytest.mark.parametrize("name", FOREIGN)
def test_conversion_to_the_native_format_changes_nothing(all_originals, name, tmp_path):
    original = all_originals[name]
    read_checkpoint(original.path).save(tmp_path / "native")
    assert detect_format(tmp_path / "native") == "native"
    ours, converted = (load_policy(path, sampler="asd") for path in (original.path, tmp_path / "native"))
    assert converted.config == ours.config
    assert np.array_equal(actions_with(ours, original), actions_with(converted, original))


def test_what_is_done_otherwise_is_a_warning(all_originals, recwarn):
    with pytest.warns(UserWarning, match="Trained in robosuite 1.2"):
        load_policy(all_originals["diffusion_policy"].path)
    with pytest.warns(UserWarning, match="resized without antialiasing, as in torchvision 0.13"):
        load_policy(all_originals["diffusion_policy image, shared"].path)
    recwarn.clear()
    load_policy(all_originals["lerobot"].path)
    assert not recwarn.list


def test_what_is_found(all_originals):
    robomimic, lerobot, stanford = (
        load_policy(all_originals[name].path).config for name in ("robomimic", "lerobot", "diffusion_policy")
    )
    assert list(robomimic.obs_keys.items()) == list(stanford.obs_keys.items()) == list(originals.OBS.items())
    assert (robomimic.env_id, stanford.env_id) == ("asd/SquareBasePose-v0", "asd/SquareWorldPose-v0")
    assert robomimic.action_parts == stanford.action_parts
    assert (stanford.env_action_dim, stanford.action_bound) == (7, None)
    assert (lerobot.horizon, lerobot.n_action_steps, lerobot.network.n_groups) == (8, 5, 4)
    assert lerobot.scheduler.clip_sample_range == 1.5
    assert dict(lerobot.obs_keys) == {"state": 9, "environment_state": 14}


def test_robomimic_without_average_or_observation_normalisation(tmp_path):
    with originals.small_robomimic_unet():
        original = originals.robomimic_original(tmp_path / "model.pth", ema=False, normalise_obs=False)
    np.testing.assert_allclose(actions_with(load_policy(original.path, "ddpm"), original), original.actions, atol=1e-5)


def test_robomimic_before_action_keys(all_originals, tmp_path):
    payload = torch.load(all_originals["robomimic"].path, weights_only=False)
    config = json.loads(payload["config"])
    del config["train"]["action_keys"], config["train"]["action_config"], payload["action_normalization_stats"]
    payload["config"] = json.dumps(config)
    torch.save(payload, tmp_path / "old.pth")
    policy = load_policy(tmp_path / "old.pth", "ddpm")
    assert (policy.config.action_parts, policy.config.action_bound) == ((), 1.0)
    assert torch.equal(policy.normalizer.fields["action"].scale, torch.ones(10))


def test_legacy_lerobot_folder(all_originals, tmp_path):
    """Before processors, statistics lay beside the weights; compiled networks had another prefix."""
    from safetensors.torch import load_file, save_file

    original = all_originals["lerobot"]
    weights = load_file(original.path / "model.safetensors")
    weights = {name.replace("unet.", "unet._orig_mod."): value for name, value in weights.items()}
    stats = load_file(original.path / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    for name, value in stats.items():
        feature, _, statistic = name.rpartition(".")
        groups = ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",)
        weights |= {f"{group}.buffer_{feature.replace('.', '_')}.{statistic}": value.clone() for group in groups}
    save_file(weights, tmp_path / "model.safetensors")
    shutil.copy(original.path / "config.json", tmp_path)
    np.testing.assert_allclose(actions_with(load_policy(tmp_path, "ddpm"), original), original.actions, atol=1e-5)


def test_observations_can_be_cut_into_the_environments_keys(all_originals):
    original = all_originals["lerobot"]
    keys = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 14}
    policy = load_policy(original.path, "ddpm", obs_keys=keys, env_id="asd/Square-v0")
    whole = np.concatenate([original.obs["state"], original.obs["environment_state"]])
    pieces = dict(zip(keys, np.split(whole, np.cumsum(list(keys.values()))[:-1]), strict=True))
    np.testing.assert_allclose(actions_with(policy, replace(original, obs=pieces)), original.actions, atol=1e-5)
    assert policy.config.env_id == "asd/Square-v0"


def test_images_can_be_named_as_the_environment_does(all_originals):
    original = all_originals["lerobot image"]
    keys = {"robot0_eef_pos": 3, "rest": 6, "agentview_image": 16, "robot0_eye_in_hand_image": 16}
    policy = load_policy(original.path, "ddpm", obs_keys=keys)
    assert [image.key for image in policy.config.images] == ["agentview_image", "robot0_eye_in_hand_image"]
    position, rest = np.split(original.obs["state"], [3])
    pieces = dict(zip(keys, (position, rest, original.obs["front"], original.obs["wrist"]), strict=True))
    np.testing.assert_allclose(actions_with(policy, replace(original, obs=pieces)), original.actions, atol=2e-5)
    with pytest.raises(ConfigError, match="cut through images"):
        load_policy(original.path, obs_keys={"state": 9, "a": 8, "b": 24})


def test_sampler_modules_draw_from_one_tape():
    assert sampler.NoiseTape is sequential.NoiseTape  # or the patch above would miss one of them


def test_every_format_is_compared_and_its_golden_files_are_small():
    assert {name.split()[0] for name in FOREIGN} == FORMATS.keys() - {"native"}
    assert sum(file.stat().st_size for file in originals.GOLDEN.rglob("*")) < 1.25 * 2**20

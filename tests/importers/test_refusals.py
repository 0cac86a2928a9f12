"""Files of other kinds and versions, and files under wrong names: refused with the reason, or read all the same."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.importers import load_policy, read_checkpoint
from asd_policy.policies.image_keys import ImageKey
from tests.importers import real_stanford
from tests.importers.originals import GOLDEN_LEROBOT, GOLDEN_STANFORD

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.ckpt", b"not a checkpoint", "zip file that torch.save writes"),
        ("empty.pth", b"", "zip file that torch.save writes"),
    ],
)
def test_mislabelled_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / name)


def test_other_torch_files(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no format that is known.*robomimic: algo_name"):
        load_policy(tmp_path / "a.pth")
    torch.save({"algo_name": 1}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"since torch 1\.6"):
        load_policy(tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="0 data"):
        load_policy(tmp_path / "c.pth")


def test_the_name_of_a_file_does_not_matter(all_originals, tmp_path):
    for name, wrong in (("robomimic", "a.ckpt"), ("diffusion_policy", "a.pth")):
        shutil.copy(all_originals[name].path, tmp_path / wrong)
        assert read_checkpoint(tmp_path / wrong).format == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(algo_name="bc"), "kind 'bc'; expected 'diffusion_policy'"),
        (lambda p: p.update(config="{"), "config holds no JSON"),
        (lambda p: p.update(config="[" * 10**5), "config holds no JSON"),
        (lambda p: p.update(config=json.dumps({"algo": {}})), "lacks 'train'"),
        (lambda p: p["model"]["ema"].update(stranger=torch.ones(1)), r"\(ema\).*no part of the policy uses: stranger"),
        (lambda p: p["model"]["ema"].popitem(), "is missing"),
        (
            lambda p: p["model"]["ema"].update({"policy.obs_encoder.nets.x": torch.ones(1)}),
            "no part of the policy uses",
        ),
        (lambda p: p["action_normalization_stats"].popitem(), "lacks 'action_dict/gripper'"),
        (lambda p: p["shape_metadata"]["all_shapes"].update(object=[3, 84, 84]), "encoder of object lacks the tensor"),
        (lambda p: p["shape_metadata"]["all_shapes"].update(object=[84, 84]), "expected a vector or an image"),
        (lambda p: p["shape_metadata"]["all_shapes"].update(object=[15]), r"normalisation of 'object' has shape"),
        (lambda p: p.update(model={"ema": None, "nets": {}}), "no temporal U-Net"),
        (lambda p: p.update(model=[]), "looks like robomimic|lacks"),
    ],
)
def test_robomimic_files_of_another_kind(all_originals, tmp_path, change, message):
    payload = torch.load(all_originals["robomimic"].path, weights_only=False)
    change(payload)
    torch.save(payload, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "model.pth")


CORE = "policy.obs_encoder.nets.obs.obs_nets.agentview_image."


def change_rgb(payload: dict[str, Any], **settings: Any) -> None:
    config = json.loads(payload["config"])
    config["observation"]["encoder"]["rgb"].update(settings)
    payload["config"] = json.dumps(config)


def hide_modality(payload: dict[str, Any]) -> None:
    config = json.loads(payload["config"])
    config["observation"]["modalities"]["obs"]["rgb"] = ["agentview_image"]
    payload["config"] = json.dumps(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: change_rgb(p, obs_randomizer_class="ColorRandomizer"), "after ColorRandomizer; expected"),
        (lambda p: change_rgb(p, core_kwargs={"backbone_class": "R3MConv"}), "encoded by R3MConv"),
        (lambda p: change_rgb(p, core_kwargs={"backbone_kwargs": {"input_coord_conv": True}}), "with coordinates"),
        (lambda p: change_rgb(p, obs_randomizer_kwargs={"crop_height": 99, "crop_width": 76}), "crop is"),
        (hide_modality, "'robot0_eye_in_hand_image' is an image, but not of colours"),
        (lambda p: p.update(obs_normalization_stats={"agentview_image": {}}), "normalised pixel by pixel"),
        (lambda p: p["model"]["ema"].pop(f"{CORE}pool.temperature"), "expected the same tensors twice"),
        (lambda p: p["model"]["ema"].pop(f"{CORE}nets.3.weight"), "has no 'out.weight'"),
        (lambda p: p["model"]["ema"].update({f"{CORE}nets.4.weight": torch.ones(1)}), "no part of the policy uses"),
        (lambda p: p["shape_metadata"]["all_shapes"].update(agentview_image=[1, 84, 84]), "does not fit"),
    ],
)
def test_robomimic_images_of_another_kind(all_originals, tmp_path, change, message):
    payload = torch.load(all_originals["robomimic image"].path, weights_only=False)
    change(payload)
    torch.save(payload, tmp_path / "model.pth")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_policy(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("hybrid", "eval_fixed_crop", False, "crops images at random even when it acts"),
        ("hybrid", "shape_meta.obs.agentview_image.type", "depth", "of type depth; expected low_dim or rgb"),
        ("hybrid", "crop_shape", "${crop}", "unresolved '.*never evaluated"),
        (
            "hybrid",
            "_target_",
            "d.DiffusionTransformerHybridImagePolicy",
            "is not supported: its transformer takes images",
        ),
        (
            "multi_image",
            "_target_",
            "d.DiffusionUnetTimmPolicy",
            "TimmPolicy, which is not supported: its images are cropped",
        ),
        (
            "multi_image",
            "obs_encoder._target_",
            "a.TimmObsEncoder",
            "encoded by TimmObsEncoder; expected MultiImageObsEnc",
        ),
        ("multi_image", "obs_encoder.extra", 1, "MultiImageObsEncoder with extra; expected"),
        ("multi_image", "obs_encoder.rgb_model.name", "resnet17", "backbone is 'resnet17'; expected one of"),
        ("multi_image", "obs_encoder.rgb_model.name", "resnet34", "(?i)missing"),
        ("multi_image", "obs_encoder.rgb_model._target_", "a.get_vit", "rgb_model is .*expected get_resnet"),
        (
            "multi_image",
            "obs_encoder.rgb_model.replace_stride_with_dilation",
            [1],
            "rgb_model is .*expected get_resnet",
        ),
        ("multi_image", "obs_encoder.share_rgb_model", True, "has no layer4; expected a ResNet"),
        ("shared", "obs_encoder.share_rgb_model", False, "has no layer4; expected a ResNet"),
        ("multi_image", "obs_encoder.crop_shape", [99, 99], "crop is"),
        ("multi_image", "obs_encoder.crop_shape", {"agentview_image": [20, 23]}, "lacks 'robot0_eye_in_hand_image'"),
        ("multi_image", "obs_encoder.imagenet_norm", "${norm}", "unresolved '.*never evaluated"),
        ("multi_image", "obs_as_global_cond", False, "obs_as_global_cond.*not supported"),
    ],
)
def test_real_stanford_images_of_another_kind(tmp_path, name, key, value, message):
    made = json.loads((GOLDEN_STANFORD / f"{name}.json").read_text())
    *parents, last = f"policy.{key}".split(".")
    target = made["cfg"]
    for parent in parents:
        target = target[parent]
    target[last] = value
    state = real_stanford.image_policy_state(name)
    real_stanford.save_payload(tmp_path / "a.ckpt", real_stanford.payload(made["cfg"], state))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_policy(tmp_path / "a.ckpt")


def test_real_stanfords_center_crop_that_is_forgotten_is_forgotten_here(tmp_path):
    """With `random_crop: False` MultiImageObsEncoder overwrites its CenterCrop, so it does not crop at all."""
    made = json.loads((GOLDEN_STANFORD / "multi_image.json").read_text())
    made["cfg"]["policy"]["obs_encoder"]["random_crop"] = False
    state = real_stanford.image_policy_state("multi_image")
    real_stanford.save_payload(tmp_path / "a.ckpt", real_stanford.payload(made["cfg"], state))
    images = read_checkpoint(tmp_path / "a.ckpt").config.images
    assert [(image.crop, image.resize, image.pool) for image in images] == [((), (), "average")] * 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy._target_", "a.b.DiffusionUnetHybridImagePolicy", "lacks 'policy.shape_meta'"),
        ("policy._target_", "a.b.BETLowdimPolicy", "expected DiffusionUnetLowdimPolicy, DiffusionTransformerLowdim"),
        ("policy._target_", "a.b.DiffusionTransformerLowdimPolicy", "lacks 'policy.obs_as_cond'"),
        ("policy.oa_step_convention", False, "oa_step_convention.*not supported"),
        ("policy.obs_as_global_cond", False, "obs_as_global_cond.*not supported"),
        ("policy.model.down_dims", [32, 64], "says down_dims is .*but its tensors have"),
        ("policy.model.kernel_size", 3, "says kernel_size is 3"),
        ("policy.horizon", "${horizon}", "unresolved '.*never evaluated"),
        ("policy.noise_scheduler._target_", "a.EDMScheduler", "EDMScheduler.*not supported"),
        ("policy.noise_scheduler.thresholding", True, "thresholding.*not supported"),
        ("task.obs_keys", ["object", "extra"], "Pass obs_keys"),
    ],
)
def test_real_stanford_files_of_another_kind(all_originals, tmp_path, key, value, message):
    payload = torch.load(all_originals["diffusion_policy"].path, pickle_module=dill, weights_only=False)
    cfg = real_stanford.configuration(10, 20)
    *parents, last = key.split(".")
    target: Any = cfg
    for parent in parents:
        target = target[parent]
    target[last] = value
    changed = real_stanford.payload(cfg, payload["state_dicts"]["ema_model"])
    real_stanford.save_payload(tmp_path / "a.ckpt", changed)
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "a.ckpt")


def lerobot_copy(folder: Path) -> Path:
    return Path(shutil.copytree(GOLDEN_LEROBOT, folder / "lerobot"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "act"}, "type 'act'; expected 'diffusion'"),
        ({"down_dims": [16, 64]}, "says down_dims"),
        ({"n_groups": 3}, "no temporal U-Net that can be understood"),
        ({"normalization_mapping": {"STATE": "LOG"}}, "cannot normalise observation.state by LOG"),
        ({"horizon": "16"}, "horizon"),
        ({"noise_scheduler_type": None}, "expected DDPM or DDIM"),
    ],
)
def test_lerobot_configs_of_another_kind(tmp_path, change, message):
    folder = lerobot_copy(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ValueError), match=message):
        load_policy(folder)


def test_lerobot_images_and_missing_parts(tmp_path):
    folder = lerobot_copy(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["input_features"]["observation.image"] = {"type": "VISUAL", "shape": [3, 96, 96]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="encoder of 'image' has no"):
        load_policy(folder)
    config["input_features"]["observation.image"]["type"] = "STATE"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"images observation\.images\.NAME of shape"):
        load_policy(folder)
    shutil.copy(GOLDEN_LEROBOT / "config.json", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"stranger": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="no part of the policy uses: stranger"):
        load_policy(folder)
    save_file(weights, folder / "model.safetensors")
    (folder / "policy_preprocessor.json").unlink()
    with pytest.raises(CheckpointError, match="Without normalisation the policy would act wrongly"):
        load_policy(folder)


@pytest.mark.parametrize("state_file", ["../../secret.safetensors", "/etc/passwd", "..", 3])
def test_lerobot_state_files_lie_in_their_folder(tmp_path, state_file):
    folder = lerobot_copy(tmp_path)
    pipeline = json.loads((folder / "policy_preprocessor.json").read_text())
    pipeline["steps"][3]["state_file"] = state_file
    (folder / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    with pytest.raises(CheckpointError, match="state file"):
        load_policy(folder)


def test_huge_json_is_refused_unread(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**34)  # sparse
    with pytest.raises(CheckpointError, match=r"more than the .* allowed"):
        load_policy(tmp_path)


def test_numbers_of_numpy_are_no_threat(all_originals):
    payload = torch.load(all_originals["robomimic"].path, weights_only=False)
    assert isinstance(payload["variable_state"]["best_success_rate"]["NutAssemblySquare"], np.float64)


def test_an_average_has_as_many_features_as_the_resnet_has_channels():
    from asd_policy.nets.vision import ImageEncoder

    encoder = ImageEncoder(3, 512, pool="average")
    features = encoder(torch.rand(2, 5, 40, 40, 3))
    assert features.shape == (2, 5, 512)
    maps = encoder.backbone(torch.rand(1, 3, 40, 40))
    torch.testing.assert_close(encoder.pool(maps), maps.mean(dim=(2, 3)))
    with pytest.raises(ConfigError, match=r"The average of resnet18's channels is 512 features; expected 64\."):
        ImageEncoder(3, 64, pool="average")
    with pytest.raises(ConfigError, match="pool is 'max'; expected keypoints or average"):
        ImageKey("camera", (84, 84, 3), pool="max")

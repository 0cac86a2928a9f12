"""What a file says at the border of what is read: other versions, other controllers, and what no format can express."""

import json
import zipfile
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.importers import Checkpoint, detect_format, lerobot, load_policy, read_checkpoint, robomimic
from asd_policy.importers.lerobot.reading import SIDECAR
from asd_policy.policies.actions import POSE_ARM
from asd_policy.policies.recording import Recording
from tests.data.robomimic_file import env_args
from tests.importers.small import AFTER, changed_lerobot, small_real_stanford
from tests.importers.test_statistics import lerobots
from tests.tiny import tiny_checkpoint

# ---- errors that name what is wrong


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "x" * 300 + "/config.json"])
def test_a_path_that_cannot_be_looked_at(tmp_path, name):
    for path in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(CheckpointError, match=r"Cannot read the checkpoint .*too long"):
            load_policy(path)


def tiny_with(folder, **changes):
    tiny_checkpoint(folder, {"object": 5}, action_dim=2)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_newer_version_is_named_before_its_fields(tmp_path):
    path = tiny_with(tmp_path / "a", format_version=2, something_new=True)
    with pytest.raises(ConfigError, match=r"format_version 2; this package reads up to 1.*update the package"):
        read_checkpoint(path)


def test_a_folder_of_two_formats(tmp_path):
    path = tiny_with(tmp_path / "a", input_features={}, output_features={})
    with pytest.raises(CheckpointError, match="has the entries of native and lerobot at once"):
        detect_format(path)


@pytest.mark.parametrize("dim", [7.0, True, "7"])
def test_action_parts_have_whole_sizes(tmp_path, dim):
    path = changed_lerobot(tmp_path / "a")
    (path / SIDECAR).write_text(
        json.dumps({"action_parts": [{"kind": "keep", "dim": dim}] * (7 if dim is True else 1)})
    )
    with pytest.raises(ConfigError, match=f"dim is {dim!r}; expected"):
        load_policy(path)


@pytest.mark.parametrize("steps", ["20", 20.0, True])
def test_numbers_of_steps_are_shown_as_they_are(tmp_path, steps):
    with pytest.raises(CheckpointError, match=f"samples in {steps!r} steps"):
        load_policy(changed_lerobot(tmp_path / "a", {"num_inference_steps": steps}))


# ---- settings that change what is computed


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda cfg: cfg["training"].update(use_ema="False"), "use_ema is 'False'; expected true or false"),
        (lambda cfg: cfg.update(n_latency_steps=2), "n_latency_steps = 2; only 0"),
    ],
)
def test_settings_of_real_stanford_that_are_refused(tmp_path, edit, message):
    small_real_stanford(tmp_path / "a.ckpt", cfg=edit)
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "a.ckpt")


def test_each_of_lerobots_processors_has_its_own_eps(tmp_path):
    """An action that never moves is min + eps * (y + 1) / 2, with the eps of the way out."""
    path = changed_lerobot(tmp_path / "a")
    stats = load_file(path / AFTER)
    stats["action.max"] = stats["action.min"].clone()
    save_file(stats, path / AFTER)
    pipeline = json.loads((path / "policy_preprocessor.json").read_text())
    pipeline["steps"][3]["config"]["eps"] = 0.5
    (path / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    policy = load_policy(path, "ddpm")
    policy.reset(seed=0)
    action = policy.act({key: np.zeros(shape, np.float32) for key, shape in policy.config.obs_shapes.items()})
    np.testing.assert_allclose(action, stats["action.min"].numpy(), atol=1e-7)


# ---- controllers


def whole_body(kind):
    args = env_args("1.5.1")
    args["env_kwargs"]["controller_configs"] = {"type": kind, "body_parts": {}}
    return args


@pytest.mark.parametrize("kind", ["WHOLE_BODY_IK", "WHOLE_BODY_MINK_IK", "WHOLE_BODY"])
def test_a_controller_of_the_whole_body_takes_no_deltas(kind):
    recording = Recording.of(whole_body(kind), "here")
    assert (recording.env_id, recording.poses, recording.absolute) == ("NutAssemblySquare", False, False)
    assert any(f"the controller {kind}" in note for note in recording.notes)
    assert Recording.of(whole_body("BASIC"), "here").env_id == "asd/Square-v0"


@pytest.mark.parametrize(
    ("name", "frame", "env"),
    [
        ("TwoArmTransport", "world", "TwoArmTransport"),  # whose arms stand turned against each other
        ("TwoArmTransport", "base", "asd/Transport-v0"),
        ("NutAssemblySquare", "world", "asd/Square-v0"),  # whose arm stands along the world's axes
    ],
)
def test_deltas_have_a_frame_too(name, frame, env):
    recording = Recording.of(env_args("1.5.1", name=name, input_ref_frame=frame), "here")
    assert recording.env_id == env
    assert any("axes of the world" in note for note in recording.notes) == (env == name)


def test_a_note_of_control_delta_tells_of_poses_alone():
    args = env_args("1.5.1", type="JOINT_POSITION", control_delta=False)
    assert not any("control_delta" in note for note in Recording.of(args, "here").notes)


# ---- overrides


@pytest.mark.parametrize(
    ("chain", "bounds"),
    [
        (["asd/SquareWorldPose-v0", "asd/Square-v0"], [None, 1.0]),
        (["asd/ToolHang-v0", "somebody/Else-v0"], [1.0, 1.0]),
        (["asd/SquareBasePose-v0", "somebody/Else-v0"], [None, None]),
    ],
)
def test_the_bound_follows_there_and_back(tmp_path, chain, bounds):
    checkpoint = read_checkpoint(tiny_checkpoint(tmp_path / "a", {"object": 5}, action_dim=7))
    for env, bound in zip(chain, bounds, strict=True):
        checkpoint = checkpoint.with_env_id(env)
        assert checkpoint.config.action_bound == bound


def test_a_file_that_tells_no_environment_keeps_its_actions(tmp_path):
    """Its library does not clip them either; see test_parity."""
    path = changed_lerobot(tmp_path / "a")
    for env_id in (None, "asd/Square-v0"):
        assert read_checkpoint(path, env_id=env_id).config.action_bound is None


def test_a_bound_of_its_own_stays(tmp_path):
    path = tiny_with(tmp_path / "a", action_bound=0.5)
    assert read_checkpoint(path, env_id="asd/ToolHang-v0").config.action_bound == 0.5


# ---- what comes back from other formats


def through_robomimic(checkpoint, path):
    with mock.patch.object(robomimic.writing, "ROBOMIMIC_NETWORK", checkpoint.config.network):
        robomimic.write(checkpoint, path)
    return read_checkpoint(path)


def tiny(tmp_path, action_dim=7, **changes) -> Checkpoint:
    checkpoint = read_checkpoint(tiny_checkpoint(tmp_path / "tiny", {"object": 5}, action_dim=action_dim))
    return replace(checkpoint, config=replace(checkpoint.config, **changes))


ENVS = {
    "asd/Square-v0": 1.0,
    "asd/SquareBasePose-v0": None,
    "asd/SquareWorldPose-v0": None,
    "asd/Transport-v0": 1.0,
    "asd/TransportWorldPose-v0": None,
    "somebody/Else-v0": None,
    "Lift": None,
}


@pytest.mark.parametrize("parts", [(), POSE_ARM])
@pytest.mark.parametrize(("env", "bound"), ENVS.items())
def test_actions_mean_the_same_after_robomimics_format(tmp_path, env, bound, parts):
    """Deltas with rotations of six numbers stay deltas."""
    one = tiny(tmp_path, action_dim=10 if parts else 7, env_id=env, action_bound=bound, action_parts=parts)
    again = through_robomimic(one, tmp_path / "a.pth").config
    assert (again.env_id, again.action_bound, again.action_parts) == (env, bound, parts)


@pytest.mark.parametrize(
    ("env", "bound", "message"),
    [
        ("NutAssemblySquare", None, "cannot express the actions of NutAssemblySquare"),  # of joints, as imported
        ("asd/Square-v0", 0.5, r"cannot express actions in asd/Square-v0 bounded by 0\.5"),
        ("asd/Square-v0", None, "bounded by None"),
        ("Lift", 1.0, r"bounded by 1\.0"),
    ],
)
def test_actions_that_robomimic_cannot_express(tmp_path, env, bound, message):
    with pytest.raises(ConfigError, match=message):
        through_robomimic(tiny(tmp_path, env_id=env, action_bound=bound), tmp_path / "a.pth")


DOTS = {"observation.state": 9, "observation.images.front": 16, "observation.images.wrist": 16}


def test_images_with_dots_in_their_names_come_back_from_lerobots_format(all_originals, tmp_path):
    original = all_originals["lerobot image, separate"]
    plain = read_checkpoint(original.path)
    sizes = plain.config.obs_keys.values()
    dotted = plain.with_obs_keys(dict(zip(DOTS, sizes, strict=True)))
    lerobot.write(dotted, tmp_path / "out")
    again = read_checkpoint(tmp_path / "out")
    assert again.config == dotted.config
    assert dotted.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(again.tensors[name], dotted.tensors[name]) for name in again.tensors if "model" in name)
    again.policy("ddpm")


def test_a_black_camera_comes_back_from_lerobots_format(all_originals, tmp_path):
    """Its deviation is 0 in the file; the sum with 1e-8 must not come back below that."""
    checkpoint = read_checkpoint(all_originals["lerobot image"].path)
    name = next(name for name in checkpoint.tensors if "front" in name and name.endswith("scale"))
    for scale in torch.linspace(1e8 / 255 * (1 - 1e-7), 1e8 / 255 * (1 + 1e-7), 3):
        still = replace(checkpoint, tensors={**checkpoint.tensors, name: torch.full((3,), float(scale))})
        lerobot.write(still, tmp_path / f"{scale:.4f}")
        again = read_checkpoint(tmp_path / f"{scale:.4f}")
        torch.testing.assert_close(again.tensors[name], still.tensors[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX"])
def test_lerobot_makes_the_same_of_observations_that_never_move(tmp_path, mode):
    """It reads what we write in float32, where a range of 1e-8 between two bounds is lost."""
    first = torch.linspace(0.5, 0.9, 9)
    second = torch.zeros(9) if mode == "MEAN_STD" else first.clone()
    kinds = ("mean", "std") if mode == "MEAN_STD" else ("min", "max")
    stats = {f"observation.state.{kind}": value for kind, value in zip(kinds, (first, second), strict=True)}
    modes = {"STATE": mode, "ENV": "MEAN_STD", "ACTION": "MIN_MAX"}
    path = changed_lerobot(tmp_path / "a", {"normalization_mapping": modes}, stats)
    lerobot.write(read_checkpoint(path), tmp_path / "b")
    mode = json.loads((tmp_path / "b" / "config.json").read_text())["normalization_mapping"]["STATE"]
    kinds = ("mean", "std") if mode == "MEAN_STD" else ("min", "max")
    written = load_file(tmp_path / "b" / "policy_preprocessor_step_2_normalizer_processor.safetensors")
    low, high = (written[f"observation.state.{kind}"].float() for kind in kinds)
    expected = 0 if "mean" in next(iter(stats)) else -1
    for shift, gain in ((0.0, 0.0), (0.01, 1e8 if expected == 0 else 2e8)):
        ours = lerobots(mode, low, high, first + shift, inverse=False, legacy=False)
        torch.testing.assert_close(ours, expected + gain * ((first + shift) - first), rtol=1e-2, atol=0.1)


# ---- files that can be read in two ways


def test_a_record_twice(tmp_path):
    """torch reads the one, zipfile the other."""
    path = tmp_path / "a.ckpt"
    small_real_stanford(path)
    with zipfile.ZipFile(path, "a") as archive:
        record = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(record.filename, bytes(record.file_size))
    with pytest.raises(CheckpointError, match="two records of one name"):
        load_policy(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({5: torch.ones(1)}, "a tensor is called 5; expected a name"),
        (
            {f"normalizer.params_dict.obs.{kind}": torch.tensor(1.0) for kind in ("scale", "offset")},
            r"the normalisation of 'obs' has shapes \(\) and \(\); expected vectors",
        ),
    ],
)
def test_tensors_of_real_stanford_that_are_refused(tmp_path, changes, message):
    small_real_stanford(tmp_path / "a.ckpt", state=lambda state: state | changes)
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "a.ckpt")

"""What actions are comes from a file's metadata, the same for checkpoints and demonstrations, and follows overrides."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy.data.recording import Recording
from asd_policy.errors import CheckpointError, ConfigError, DataError
from asd_policy.importers import load_policy, read_checkpoint
from asd_policy.policies import tasks
from asd_policy.policies.actions import POSE_ARM
from asd_policy.policies.quaternions import Quaternion
from asd_policy.policies.tasks import env_id, takes_poses
from tests.data.robomimic_file import env_args
from tests.importers.originals import GOLDEN_LEROBOT, GOLDEN_STANFORD
from tests.importers.small import changed_lerobot, changed_robomimic, small_real_stanford, with_config
from tests.tiny import tiny_checkpoint


def old_args(version: str | None, **controller: Any) -> dict[str, Any]:
    """Metadata of a robosuite before 1.5, or of one that does not say."""
    args = env_args("1.4.1", **controller)
    if version is None:
        del args["env_version"]
    return args


def actions_file(all_originals, path, args, action_keys=("actions",), dim=10):
    """A robomimic policy whose action is one vector, trained in the environment of `args`."""

    def edit(payload):
        payload["env_metadata"] = args
        stats = {"scale": [[1.0] * dim], "offset": [[0.0] * dim]}
        payload["action_normalization_stats"] = {action_keys[0]: stats}
        change = with_config(lambda config: config["train"].update(action_keys=list(action_keys), action_config={}))
        change(payload)

    return changed_robomimic(all_originals["robomimic"].path, path, edit)


CONTROLLERS = [
    (env_args("1.5.1"), "asd/Square-v0", 1.0),
    (env_args("1.5.1", input_type="absolute"), "asd/SquareBasePose-v0", None),
    (env_args("1.5.1", input_type="absolute", input_ref_frame="world"), "asd/SquareWorldPose-v0", None),
    (env_args("1.5.1", control_delta=False), "asd/Square-v0", 1.0),  # which robosuite 1.5 ignores
    (old_args("1.4.1", control_delta=True), "asd/Square-v0", 1.0),
    (old_args("1.4.1", control_delta=False), "asd/SquareWorldPose-v0", None),
    (old_args(None, control_delta=False), "asd/SquareWorldPose-v0", None),
    (env_args("1.5.1", type="JOINT_POSITION", input_type="absolute"), "NutAssemblySquare", None),
    (env_args("1.5.1", type="JOINT_VELOCITY"), "NutAssemblySquare", None),
    (old_args("1.4.1", type="IK_POSE"), "NutAssemblySquare", None),
    (env_args("1.5.1", name="Lift", input_type="absolute"), "Lift", None),
    (env_args("1.5.1", name="TwoArmTransport", input_type="absolute"), "asd/TransportBasePose-v0", None),
]


@pytest.mark.parametrize(("args", "env", "bound"), CONTROLLERS)
def test_robomimics_controller_says_what_actions_are(all_originals, tmp_path, args, env, bound):
    config = read_checkpoint(actions_file(all_originals, tmp_path / "a.pth", args)).config
    assert (config.env_id, config.action_bound, config.action_parts) == (env, bound, ())
    assert Recording.of(args, "file").env_id == env  # as for demonstrations


@pytest.mark.parametrize(("version", "told"), [("1.4.1", "robosuite 1.4"), (None, "robosuite of an unknown version")])
def test_an_older_robosuite_is_noted(all_originals, tmp_path, version, told):
    for controller in ({"control_delta": False}, {}):
        checkpoint = read_checkpoint(actions_file(all_originals, tmp_path / "a.pth", old_args(version, **controller)))
        assert any(f"Trained in {told}, with other controllers" in note for note in checkpoint.notes)


def test_other_controllers_are_noted_and_unclipped(all_originals, tmp_path):
    args = env_args("1.5.1", type="JOINT_POSITION", input_type="absolute")
    checkpoint = read_checkpoint(actions_file(all_originals, tmp_path / "a.pth", args))
    assert any("controller JOINT_POSITION" in note for note in checkpoint.notes)
    policy = checkpoint.policy("ddpm")
    policy.normalizer.fields["action"].offset.fill_(-5)  # actions about 5
    policy.reset(seed=0)
    action = policy.act({key: np.zeros(shape, np.float32) for key, shape in policy.config.obs_shapes.items()})
    assert action.shape == (10,)
    assert (action > 2).all()


def test_robomimics_computed_actions_say_what_they_are(all_originals, tmp_path):
    """`actions_abs` are poses beside a controller of deltas, `rel_*` deltas beside one of poses."""
    for args, keys, env in (
        (env_args("1.5.1"), ("actions_abs",), "asd/SquareBasePose-v0"),
        (old_args("1.4.1"), ("actions_abs",), "asd/SquareWorldPose-v0"),
        (env_args("1.5.1", input_type="absolute"), ("action_dict/rel_all",), "asd/Square-v0"),
    ):
        config = read_checkpoint(actions_file(all_originals, tmp_path / "a.pth", args, keys)).config
        assert (config.env_id, config.action_bound) == (env, None if takes_poses(env) else 1.0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (env_args("1.5.1", input_type="absolute", input_ref_frame="eef"), "in the frame .*eef"),
        (env_args("1.5.1") | {"env_version": "new"}, "cannot be understood"),
        (env_args("1.5.1") | {"env_kwargs": []}, "cannot be understood"),
    ],
)
def test_metadata_that_makes_no_sense(all_originals, tmp_path, args, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(actions_file(all_originals, tmp_path / "a.pth", args))
    with pytest.raises(DataError, match=message):
        Recording.of(args, "file")


def test_environments_that_are_not_robosuites_stay_loadable(all_originals, tmp_path):
    path = actions_file(all_originals, tmp_path / "a.pth", {"env_name": "PushT", "type": 2, "env_kwargs": {}})
    config = read_checkpoint(path).config
    assert (config.env_id, config.action_bound) == ("PushT", None)


RUNNERS = "diffusion_policy.env_runner"


@pytest.mark.parametrize(
    ("task", "dim", "parts", "env"),
    [
        ({"name": "my_ten_joint_arm", "abs_action": True}, 10, (), "my_ten_joint_arm"),
        ({"name": "kitchen_lowdim", "abs_action": True}, 9, (), "kitchen_lowdim"),
        ({"name": "blockpush_lowdim_seed", "abs_action": True}, 2, (), "blockpush_lowdim_seed"),
        ({"name": "two_ten_joint_arms", "abs_action": True}, 20, (), "two_ten_joint_arms"),
        (
            {"name": "a", "abs_action": True, "env_runner": {"_target_": f"{RUNNERS}.kitchen.KitchenLowdimRunner"}},
            10,
            (),
            "a",
        ),
        (
            {"name": "mine", "abs_action": True, "env_runner": {"_target_": f"{RUNNERS}.x.RobomimicLowdimRunner"}},
            10,
            POSE_ARM,
            "mine",
        ),
        ({"name": "square_lowdim", "task_name": "square", "abs_action": True}, 10, POSE_ARM, "asd/SquareWorldPose-v0"),
        ({"name": "can_lowdim", "task_name": "can", "abs_action": True}, 10, POSE_ARM, "can"),
        (
            {"name": "transport_lowdim", "task_name": "transport", "abs_action": True},
            20,
            2 * POSE_ARM,
            "asd/TransportWorldPose-v0",
        ),
        ({"name": "square_lowdim", "task_name": "square", "abs_action": False}, 7, (), "asd/Square-v0"),
        ({"name": "pusht_lowdim"}, 2, (), "pusht_lowdim"),
        ({"name": "pusht_lowdim", "abs_action": None}, 2, (), "pusht_lowdim"),
    ],
)
def test_real_stanfords_tasks_say_what_actions_are(tmp_path, task, dim, parts, env):
    small_real_stanford(tmp_path / "a.ckpt", dim, cfg=lambda cfg: cfg.update(task=task))
    policy = load_policy(tmp_path / "a.ckpt", sampler="ddim", num_steps=2)
    assert (policy.config.action_parts, policy.config.env_id) == (parts, env)
    assert policy.config.action_bound == (1.0 if env == "asd/Square-v0" else None)
    policy.reset(seed=0)
    action = policy.act({"obs": np.zeros(23, np.float32)})
    assert action.shape == (policy.config.env_action_dim,) == (7 * len(parts) // 3 or dim,)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"task_name": "square", "abs_action": True, "dataset": {"rotation_rep": "quaternion"}}, "quaternion"),
        ({"task_name": "square", "abs_action": "yes"}, "abs_action is 'yes'; expected true or false"),
        ({"task_name": "square", "abs_action": "${abs}"}, "abs_action is the unresolved"),
        ({"task_name": "square", "abs_action": True}, "absolute poses of 7 entries"),
    ],
)
def test_real_stanfords_tasks_that_are_refused(tmp_path, task, message):
    small_real_stanford(tmp_path / "a.ckpt", 7, cfg=lambda cfg: cfg.update(task=task))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.ckpt")


# ---- overrides


def test_the_bound_follows_the_environment(all_originals, tmp_path):
    path = actions_file(all_originals, tmp_path / "a.pth", env_args("1.5.1"), dim=10)
    assert read_checkpoint(path).config.action_bound == 1.0
    poses = read_checkpoint(path, env_id="asd/SquareWorldPose-v0").config
    assert (poses.action_bound, poses.action_parts, poses.env_action_dim) == (None, POSE_ARM, 7)
    native = tiny_checkpoint(tmp_path / "tiny", {"object": 5}, action_dim=7)
    poses = read_checkpoint(native, env_id="asd/SquareWorldPose-v0").config
    assert (poses.action_bound, poses.action_parts) == (None, ())  # seven entries are rotation vectors already
    assert read_checkpoint(native, env_id="somebody/Else-v0").config.action_bound == 1.0


@pytest.mark.parametrize(
    ("name", "poses", "expected"),
    [
        ("square", "world", "asd/SquareWorldPose-v0"),
        ("ToolHang", "base", "asd/ToolHangBasePose-v0"),
        ("my-lab-task", "world", "my-lab-task"),
        ("my-lab/task-v0", None, "my-lab/task-v0"),
    ],
)
def test_names_of_environments(name, poses, expected):
    assert env_id(name, poses) == expected


def test_only_the_last_hyphen_is_a_versions(monkeypatch):
    monkeypatch.setitem(tasks.ENV_IDS, "peg", "my-lab/peg-hole-v0")
    assert env_id("peg", "world") == "my-lab/peg-holeWorldPose-v0"


def with_quaternion(folder, key, first):
    checkpoint = read_checkpoint(tiny_checkpoint(folder, {"object": 14, "robot0_eef_quat": 4}, action_dim=2))
    quaternions = (Quaternion(key, first, (0, 0, 0, 1)),)
    return replace(checkpoint, config=replace(checkpoint.config, quaternions=quaternions))


@pytest.mark.parametrize(
    ("key", "first", "cut", "moved"),
    [
        ("object", 3, {"state": 18}, ("state", 3)),
        ("object", 3, {"a": 3, "b": 11, "c": 4}, ("b", 0)),
        ("robot0_eef_quat", 0, {"state": 18}, ("state", 14)),
        ("robot0_eef_quat", 0, {"a": 10, "b": 8}, ("b", 4)),
    ],
)
def test_quaternions_move_with_their_entries(tmp_path, key, first, cut, moved):
    checkpoint = with_quaternion(tmp_path / "tiny", key, first)
    renamed = checkpoint.with_obs_keys(cut)
    assert [(q.key, q.first) for q in renamed.config.quaternions] == [moved]
    whole = torch.linspace(-1, -0.1, 18).numpy()

    def condition(one):
        dims = one.config.obs_keys
        pieces = np.split(whole, np.cumsum(list(dims.values()))[:-1])
        return one.policy("ddpm").condition([dict(zip(dims, pieces, strict=True))])

    assert torch.equal(condition(checkpoint), condition(renamed))


def test_quaternions_are_not_cut(tmp_path):
    checkpoint = with_quaternion(tmp_path / "tiny", "object", 3)
    with pytest.raises(ConfigError, match="cut through the quaternion of 'object'"):
        checkpoint.with_obs_keys({"a": 5, "b": 13})


@pytest.mark.parametrize("keys", [{"a": 0, "b": 18}, {"a": -2, "b": 20}, {"a": 17}, {"a": "18"}, {"a": 18.0}, {}])
def test_sizes_that_are_none(tmp_path, keys):
    checkpoint = with_quaternion(tmp_path / "tiny", "object", 3)
    with pytest.raises(ConfigError, match="obs_keys"):
        checkpoint.with_obs_keys(keys)


NAMES = {"observation.state": 9, "observation.environment_state": 14}


@pytest.mark.parametrize("names", [NAMES, {"values": 9, "a%2Eb.training": 14}, {"keys.": 9, ".type": 14}])
def test_any_name_but_action_is_an_observations(tmp_path, names):
    policy = load_policy(GOLDEN_LEROBOT, sampler="ddpm", obs_keys=names)
    plain = load_policy(GOLDEN_LEROBOT, sampler="ddpm")
    read_checkpoint(GOLDEN_LEROBOT, obs_keys=names).save(tmp_path / "native")
    saved = load_policy(tmp_path / "native", sampler="ddpm")
    assert dict(saved.config.obs_keys) == names

    def act(one):
        one.reset(seed=0)
        return one.act({key: np.full(shape, 0.3, np.float32) for key, shape in one.config.obs_shapes.items()})

    assert np.array_equal(act(policy), act(plain))
    assert np.array_equal(act(saved), act(plain))
    with pytest.raises(ConfigError, match="action"):
        load_policy(GOLDEN_LEROBOT, obs_keys={"action": 9, "rest": 14})


def test_images_may_have_dots_in_their_names(all_originals, tmp_path):
    keys = {"observation.state": 9, "observation.images.front": 16, "observation.images.wrist": 16}
    original = all_originals["lerobot image"]
    read_checkpoint(original.path, obs_keys=keys).save(tmp_path / "native")
    policy, plain = load_policy(tmp_path / "native", "ddpm"), load_policy(original.path, "ddpm")
    obs = {
        f"observation.{'state' if key == 'state' else f'images.{key}'}": value for key, value in original.obs.items()
    }
    assert torch.equal(policy.condition([obs]), plain.condition([original.obs]))


def test_cameras_of_one_last_name_keep_their_own(all_originals, tmp_path):
    path = tmp_path / "rgb"
    shutil.copytree(all_originals["lerobot image, separate"].path, path)
    for file in [path / "config.json", *path.glob("policy_*.json")]:
        text = file.read_text()
        for name in ("front", "wrist"):
            text = text.replace(f"observation.images.{name}", f"observation.images.{name}.rgb")
        file.write_text(text)
    for file in path.glob("policy_*.safetensors"):
        stats = {
            k.replace("front.", "front.rgb.").replace("wrist.", "wrist.rgb."): v for k, v in load_file(file).items()
        }
        save_file(stats, file)
    names = [image.key for image in read_checkpoint(path).config.images]
    assert len(set(names)) == 2


def test_the_processors_mode_and_the_configurations(tmp_path):
    """Where they differ it is said, and the processors' list of observations is kept to."""
    modes = {"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MEAN_STD"}
    checkpoint = read_checkpoint(changed_lerobot(tmp_path / "a", {"normalization_mapping": modes}))
    assert any("the processors by {'ACTION': 'MIN_MAX'}" in note for note in checkpoint.notes)
    path = changed_lerobot(tmp_path / "b")
    pipeline = json.loads((path / "policy_preprocessor.json").read_text())
    pipeline["steps"][3]["config"]["normalize_observation_keys"] = ["observation.state"]
    (path / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    scale, offset, center = read_checkpoint(path).affine("environment_state")
    assert (scale == 1).all()
    assert not offset.any()
    assert not center.any()


def test_golden_file_of_real_stanford_is_a_pose_policy():
    with pytest.warns(UserWarning, match="Trained in robosuite 1.2"):
        assert load_policy(GOLDEN_STANFORD / "unet.ckpt").config.env_id == "asd/SquareWorldPose-v0"

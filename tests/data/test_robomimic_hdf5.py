"""robomimic's HDF5 files: read as robomimic reads them, into a store and into training, or refused with a reason."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from asd_policy.cli import download_data, import_data
from asd_policy.cli.train import New, Resume, main
from asd_policy.data.dataset import Choice, copy_to_store
from asd_policy.data.recording import Recording
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError, UnknownNameError
from asd_policy.policies.config import NetworkConfig
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.loop import TrainSettings
from asd_policy.training.run import Machine
from tests.data.robomimic_file import OBS_DIMS, env_args, write_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_file(tmp_path / "low_dim_v15.hdf5", env_args())


@pytest.mark.parametrize("version", ["1.4.1", "1.5.1"])
def test_into_a_store(tmp_path, version):
    path = write_file(tmp_path / "low_dim.hdf5", env_args(version))
    with RobomimicFile.open(path) as file:
        store = copy_to_store(file, tmp_path / "human.zarr")
        assert file.names == ["demo_8", "demo_9", "demo_10"]
    store = EpisodeStore.open(store.path)
    assert store.obs_keys == tuple(OBS_DIMS)
    assert store.attrs["env_id"] == "asd/Square-v0"
    assert store.seeds.tolist() == [8, 9, 10]
    assert store.steps_to_success.tolist() == [28, 23, 38]
    with h5py.File(path) as raw:
        for index, name in enumerate(("demo_8", "demo_9", "demo_10")):
            episode = store.episode(index)
            np.testing.assert_array_equal(episode.action, raw[f"data/{name}/actions"][()].astype(np.float32))
            for key, values in episode.obs.items():
                np.testing.assert_array_equal(values, raw[f"data/{name}/obs/{key}"][()].astype(np.float32))


def test_robomimic_reads_the_same(file):
    """robomimic's own split makes the masks, and its own data set reads the windows."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.scripts.split_train_val import split_train_val_from_hdf5
    from robomimic.utils.dataset import SequenceDataset

    np.random.seed(0)  # noqa: NPY002  (robomimic shuffles with it)
    split_train_val_from_hdf5(str(file), val_ratio=0.34)
    obs_utils.initialize_obs_modality_mapping_from_dict({"low_dim": list(OBS_DIMS)})
    theirs = SequenceDataset(
        str(file),
        obs_keys=tuple(OBS_DIMS),
        action_keys=("actions",),
        dataset_keys=("actions",),
        action_config={"actions": {"normalization": None}},
        filter_by_attribute="train",
        hdf5_cache_mode=None,
        load_next_obs=False,
    )
    ours = Demonstrations.read(file, filter_key="train")
    assert len(theirs.demos) == len(ours.episode_ends) == 2
    assert len(theirs) == len(ours.actions)
    # Both lay the demonstrations end to end; robomimic orders them by number too.
    for step in (0, 10, 24, len(theirs) - 1):
        window = theirs[step]
        np.testing.assert_array_equal(window["actions"][0].astype(np.float32), ours.actions[step])
        for key in OBS_DIMS:
            np.testing.assert_array_equal(window["obs"][key][0].astype(np.float32), ours.obs[key][step])


def test_train_reads_it_and_resumes(file, tmp_path, capsys):
    settings = TrainSettings(steps=4, batch_size=8, log_every=2, snapshot_every=4)
    network = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)
    out = tmp_path / "run"
    command = New(file, out, settings, episodes=2, network=network, machine=Machine(device="cpu"))
    assert main(command) == 0
    assert "2 episodes" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["obs_keys"] == OBS_DIMS
    assert main(Resume(out, Machine(device="cpu"))) == 0
    with pytest.raises(UnknownNameError, match="Unknown filter"):
        main(New(file, tmp_path / "other", settings, filter_key="train", network=network))


def test_episodes_and_windows(file):
    demonstrations = Demonstrations.read(file, episodes=2)
    assert demonstrations.episode_ends.tolist() == [30, 55]
    assert demonstrations.env_id == "asd/Square-v0"
    assert demonstrations.actions.dtype == torch.float32
    with pytest.raises(DataError, match="holds 3 episodes; 4 are asked for"):
        Demonstrations.read(file, episodes=4)


@pytest.mark.parametrize(
    ("args", "absolute", "note"),
    [
        (env_args("1.5.1"), False, None),
        (env_args("1.5.1", input_type="absolute"), True, None),
        (env_args("1.4.1"), False, "Recorded with robosuite 1.4.1.*low_dim_v15"),
        (env_args("1.4.1", control_delta=False), True, "robosuite 1.5 has other controllers"),
        # robosuite 1.5 ignores control_delta: such a file was recorded with deltas, whatever was meant.
        (env_args("1.5.1", control_delta=False), False, "control_delta, which robosuite 1.5 ignores.*'delta'.*deltas"),
        (env_args("1.5.1", type="JOINT_VELOCITY"), False, "controller JOINT_VELOCITY"),
        (env_args("1.5.1", name="PickPlaceCan"), False, "no environment for PickPlaceCan"),
    ],
)
def test_traps_of_versions_and_controllers(args, absolute, note):
    recording = Recording.parse(json.dumps(args), "file")
    assert recording.absolute == absolute
    if note is None:
        assert recording.notes == ()
    else:
        assert any(re.search(note, text) for text in recording.notes)


@pytest.mark.parametrize(
    ("args", "env_id"),
    [
        (env_args("1.5.1"), "asd/SquareBasePose-v0"),
        (env_args("1.5.1", input_ref_frame="world"), "asd/SquareWorldPose-v0"),
        (env_args("1.4.1"), "asd/SquareWorldPose-v0"),
    ],
)
def test_target_poses_beside_deltas(tmp_path, args, env_id):
    path = write_file(tmp_path / "a.hdf5", args)
    with pytest.raises(DataError, match=r"no absolute actions.*robosuite_add_absolute_actions"):
        RobomimicFile.open(path, Choice(absolute=True))
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["actions_abs"] = 2.0 * demo["actions"][()]
    with RobomimicFile.open(path, Choice(absolute=True)) as poses, RobomimicFile.open(path) as deltas:
        assert (poses.env_id, deltas.env_id) == (env_id, "asd/Square-v0")
        name = poses.names[0]
        np.testing.assert_array_equal(poses.episode(name).action, 2 * deltas.episode(name).action)


def test_a_recording_with_poses_alone(tmp_path):
    with RobomimicFile.open(write_file(tmp_path / "a.hdf5", env_args("1.5.1", input_type="absolute"))) as file:
        assert file.absolute
        assert file.env_id == "asd/SquareBasePose-v0"
        assert file.episode(file.names[0]).action.shape[1] == 7


def test_control_frequency_is_noticed():
    args = env_args()
    args["env_kwargs"]["control_freq"] = 10
    assert "Recorded at 10 Hz" in Recording.parse(json.dumps(args), "file").notes[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (env_args() | {"type": 2}, "environment of type 2"),
        ({"env_name": "Lift"}, "cannot be understood.*env_kwargs"),
        ({**env_args(), "env_version": "one"}, "cannot be understood"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, args, message):
    with pytest.raises(DataError, match=message):
        RobomimicFile.open(write_file(tmp_path / "a.hdf5", args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["data/demo_8/actions"].write_direct(np.full((30, 7), 1.7)), "reach 1.70; expected deltas"),
        (lambda f: f.__delitem__("data/demo_8/obs"), "raw file.*dataset_states_to_obs"),
        (lambda f: f.__delitem__("data/demo_8/obs/object"), r"lacks the low-dimensional observations \['object'\]"),
        (lambda f: f.move("data", "elsewhere"), "lacks 'data'"),
        (lambda f: f.__delitem__("data/demo_9/obs/object"), "demo_9 lacks 'obs/object'"),
        (lambda f: f["data"].attrs.__setitem__("env_args", "{}"), "env_args cannot be understood"),
        (lambda f: f["data"].create_group("other"), "such as 'other'"),
    ],
)
def test_damaged_files(file, change, message):
    with h5py.File(file, "r+") as raw:
        change(raw)
    with pytest.raises(DataError, match=message):
        Demonstrations.read(file)


def test_truncated_and_foreign_files(file, tmp_path):
    whole = file.read_bytes()
    for keep in (0, 100, len(whole) // 2):
        file.write_bytes(whole[:keep])
        with pytest.raises(DataError, match="Cannot read"):
            Demonstrations.read(file)


def test_import_dataset(file, tmp_path, capsys):
    import_data.main(import_data.Arguments(file, inspect=True))
    assert "NutAssemblySquare -> asd/Square-v0" in capsys.readouterr().out
    import_data.main(import_data.Arguments(file, out=tmp_path / "human.zarr"))
    assert "3 episodes, 95 steps" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="either --inspect or --out"):
        import_data.main(import_data.Arguments(file))


def test_download_asks_robomimics_downloader(tmp_path, monkeypatch, capsys):
    def download(repo: str, source: str, folder: str) -> None:
        assert (repo, source) == ("robomimic/robomimic_datasets", "v1.5/square/ph/low_dim_v15.hdf5")
        (Path(folder) / "low_dim_v15.hdf5").touch()

    monkeypatch.setattr("robomimic.utils.file_utils.download_file_from_hf", download)
    arguments = download_data.Arguments(out=tmp_path)
    assert download_data.main(arguments) == 0
    target = tmp_path / "square/ph/low_dim_v15.hdf5"
    assert target.exists()
    assert f"Wrote {target}; train on it with: asd-policy train new --data {target}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="exists already"):
        download_data.main(arguments)
    with pytest.raises(ConfigError, match="Available: can"):
        download_data.main(download_data.Arguments(task="squre", out=tmp_path))

    def fail(*_: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("robomimic.utils.file_utils.download_file_from_hf", fail)
    with pytest.raises(DataError, match="no network"):
        download_data.main(download_data.Arguments(type="mh", out=tmp_path))


@pytest.mark.parametrize("lost", ["obs/object", "actions", "obs"])
def test_what_one_demonstration_lacks_is_named(file, lost):
    with h5py.File(file, "r+") as raw:
        del raw[f"data/demo_10/{lost}"]
    with pytest.raises(DataError, match=f"demo_10 lacks '{lost}"):
        Demonstrations.read(file)


@pytest.mark.parametrize("said", ["30", np.bytes_("30"), np.array([30]), 30.0])
def test_num_samples_of_any_type(file, said):
    with h5py.File(file, "r+") as raw:
        raw["data/demo_8"].attrs["num_samples"] = said
    assert Demonstrations.read(file).episode_ends.tolist() == [30, 55, 95]


@pytest.mark.parametrize("key", ["", "./object", "object/", "/object", "../actions"])
def test_names_that_are_no_observations(file, key):
    with pytest.raises(DataError, match="has the observation key"):
        Demonstrations.read(file, obs_keys=(key,))


def test_two_demonstrations_of_one_number(file):
    with h5py.File(file, "r+") as raw:
        raw.copy("data/demo_8", raw["data"], name="demo_08")
    with pytest.raises(DataError, match="each number once"):
        Demonstrations.read(file)


def test_actions_of_more_arms_than_the_environment_has(file):
    with h5py.File(file, "r+") as raw:
        for demo in raw["data"].values():
            actions = demo["actions"][()]
            del demo["actions"]
            demo["actions"] = np.tile(actions, 2)
    with pytest.raises(DataError, match=r"shape \(30, 14\); expected \(steps, 7 per arm, of which asd/Square-v0 has 1"):
        Demonstrations.read(file)


@pytest.mark.parametrize("text", ["null", "[]", "{}", '"{}"', '{"env_name": "Lift"}'])
def test_env_args_that_lack_something_say_what(text):
    with pytest.raises(DataError, match=r"they lack .*env_kwargs"):
        Recording.parse(text, "file")


@pytest.mark.parametrize(
    ("controller", "note"),
    [
        ({"input_max": 2}, "input_max is 2"),
        ({"output_max": 0.1}, "output_max is 0.1"),
        ({"output_min": [-0.1] * 6}, "output_min is"),
        ({"input_max": [1] * 6, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]}, None),
        ({"input_type": "absolute", "output_max": 0.1}, None),
    ],
)
def test_deltas_of_another_size_are_told_of(controller, note):
    notes = Recording.of(env_args(**controller), "file").controller_notes
    assert (notes == ()) if note is None else (len(notes) == 1 and note in notes[0])


def test_an_input_type_that_is_none_is_refused():
    with pytest.raises(DataError, match="input_type is 'velocity'"):
        Recording.of(env_args(input_type="velocity"), "file")


@pytest.mark.parametrize("robots", ["Sawyer", ["Sawyer"], ["Panda", "Sawyer"]])
def test_other_robots_are_told_of(robots):
    args = env_args()
    args["env_kwargs"]["robots"] = robots
    assert any("robot Sawyer" in note for note in Recording.of(args, "file").notes)


@pytest.mark.parametrize(("env", "kind"), [("asd/Square-v0", "pose"), ("asd/SquareBasePose-v0", "delta")])
def test_a_store_that_contradicts_itself_is_refused(file, tmp_path, env, kind):
    with RobomimicFile.open(file) as opened:
        copy_to_store(opened, tmp_path / "store").update_attrs(env_id=env, action_kind=kind)
    with pytest.raises(DataError, match="contradict each other"):
        Demonstrations.read(tmp_path / "store")

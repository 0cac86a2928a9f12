"""HDF5 files in robomimic's layout of other robots: no `env_args`, other sizes of actions."""

import h5py
import numpy as np
import pytest
import torch

from asd_policy.data import lazy_images
from asd_policy.data.lazy_images import LazyImages
from asd_policy.errors import DataError, UnknownNameError
from asd_policy.training import demonstrations
from asd_policy.training.demonstrations import Demonstrations
from tests.data import dataset_files as files
from tests.data.robomimic_file import env_args, write_file


@pytest.fixture
def file(tmp_path):
    return files.other_robot(tmp_path / "robot.hdf5")


def test_values(file):
    read = Demonstrations.read(file, obs_keys=("joints", "front"))
    assert (read.env_id, read.action_kind, read.episode_ends.tolist()) == ("unknown", "other", [30, 52, 77])
    with h5py.File(file) as theirs:
        demos = [theirs[f"data/demo_{number}"] for number in range(3)]
        np.testing.assert_array_equal(read.actions, np.float32(np.concatenate([demo["actions"] for demo in demos])))
        for key in ("joints", "front"):
            values = np.concatenate([demo[f"obs/{key}"][:] for demo in demos])
            np.testing.assert_array_equal(read.obs[key], values.astype(read.obs[key].numpy().dtype))


def test_all_vectors_by_default(file):
    assert Demonstrations.read(file).obs_shapes == {"cube": (7,), "joints": (9,)}


def test_env_id_and_action_key(file):
    with h5py.File(file, "r+") as edited:
        for demo in edited["data"].values():
            demo["joint_targets"] = demo["actions"][:, :4]
    read = Demonstrations.read(file, action_key="joint_targets", env_id="mine/Robot-v0")
    assert (read.env_id, read.actions.shape) == ("mine/Robot-v0", (77, 4))
    with pytest.raises(UnknownNameError, match=r"Unknown action .*Available: actions, joint_targets, obs"):
        Demonstrations.read(file, action_key="actions_abs")


def test_another_action_of_a_robosuite_file_has_no_known_kind(tmp_path):
    path = write_file(tmp_path / "low_dim.hdf5", env_args())
    with h5py.File(path, "r+") as edited:
        for demo in edited["data"].values():
            demo["joints"] = 5 * demo["actions"][:]
    read = Demonstrations.read(path, action_key="joints")
    assert (read.env_id, read.action_kind) == ("NutAssemblySquare", "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["data/demo_1/obs/cube"].__setitem__((3, 2), np.nan), "demo_1: 'cube' holds nan at step 3"),
        (lambda f: f["data/demo_1/actions"].__setitem__((3, 2), np.inf), "demo_1: 'actions' holds inf at step 3"),
        (lambda f: f.__delitem__("data/demo_1/obs/cube"), "demo_1 lacks 'obs/cube'"),
        (lambda f: f.__delitem__("data/demo_1/actions"), "demo_1 lacks 'actions'"),
    ],
)
def test_damage(file, change, message):
    with h5py.File(file, "r+") as edited:
        change(edited)
    with pytest.raises(DataError, match=message):
        Demonstrations.read(file)


def test_ragged_demonstrations(file):
    with h5py.File(file, "r+") as edited:
        del edited["data/demo_2/obs/front"]
        edited["data/demo_2/obs/front"] = files.pictures(24)
    with pytest.raises(DataError, match="demo_2 has 25 actions but 24 steps of 'front'"):
        Demonstrations.read(file, obs_keys=("joints", "front"))


def test_images_beyond_the_limit_stay_on_disk(file, tmp_path, monkeypatch):
    store, buffer = files.store(tmp_path / "store.zarr"), files.replay_buffer(tmp_path / "buffer.zarr")
    for path, key in ((file, "front"), (store, "front_image"), (buffer, "img")):
        whole = Demonstrations.read(path, obs_keys=(key,))
        monkeypatch.setattr(demonstrations, "half_of_memory", lambda: 1000)
        monkeypatch.setattr(lazy_images, "CACHE_BYTES", 1000)
        lazy = Demonstrations.read(path, obs_keys=(key,))
        monkeypatch.undo()
        assert isinstance(whole.obs[key], torch.Tensor)
        assert isinstance(lazy.obs[key], LazyImages)
        index = torch.tensor([[76, 3], [29, 30]])
        assert torch.equal(lazy.obs[key][index], whole.obs[key][index])
        assert lazy.fingerprint() == whole.fingerprint()
        learned, held_out = lazy.split(1)
        assert torch.equal(held_out.obs[key].in_memory(), whole.obs[key][52:])
        assert torch.equal(learned.obs[key][index[:, 1:]], whole.obs[key][index[:, 1:]])

"""Every dataset format: recognised, read, copied, trained on, and the policy acts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.cli import export_data, import_data
from asd_policy.cli.train import New, Resume, main
from asd_policy.data import formats
from asd_policy.data.dataset import Choice, DatasetFormat, DatasetFormats, copy_to_store
from asd_policy.data.formats import FORMATS, open_dataset, pinned
from asd_policy.data.lazy_images import LazyImages
from asd_policy.errors import ConfigError, DataError, HubError, UnknownNameError
from asd_policy.policies.config import NetworkConfig
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.loop import TrainSettings
from asd_policy.training.run import Machine
from tests.data import dataset_files as files
from tests.data.robomimic_file import env_args, write_file

NETWORK = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)


def from_lerobot(kind: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        pytest.importorskip("pyarrow", reason="LeRobotDataset needs pyarrow")
        pytest.importorskip("av", reason="videos need PyAV")
        return files.lerobot(path, kind)

    return make


MADE: dict[str, tuple[str, Callable[[Path], Path], int, tuple[str, ...]]] = {
    "store": ("store", files.store, 77, ()),
    "robomimic.hdf5": ("hdf5", lambda path: write_file(path, env_args()), 95, ()),
    "other.hdf5": ("hdf5", files.other_robot, 77, ("joints", "front")),
    "buffer.zarr": ("replay buffer", files.replay_buffer, 77, ()),
    "buffer.zarr.zip": ("replay buffer", files.replay_buffer, 77, ("state", "keypoint")),
    "v3_video": ("lerobot", from_lerobot("v3_video"), 27, ()),
    "v3_image": ("lerobot", from_lerobot("v3_image"), 27, ()),
    "v21_video": ("lerobot", from_lerobot("v21_video"), 27, ()),
}
"""File name -> its format, how it is made, its number of steps, and observations to read instead of the default."""


@pytest.fixture(params=MADE)
def made(request, tmp_path):
    name, make, steps, obs_keys = MADE[request.param]
    return name, make(tmp_path / request.param), steps, obs_keys


def test_recognised_as_one_format(made):
    name, path, _, _ = made
    assert [item.name for item in FORMATS.values() if item.recognises(path)] == [name]


def test_a_copy_equals_the_dataset(made, tmp_path):
    _, path, steps, obs_keys = made
    choice = Choice(obs_keys=obs_keys)
    copy = copy_to_store(open_dataset(path, choice), tmp_path / "copy.zarr")
    assert copy.num_steps == steps
    copy.close()
    read, copied = Demonstrations.read(path, obs_keys=obs_keys), Demonstrations.read(tmp_path / "copy.zarr")
    assert list(read.obs) == list(copied.obs)
    for key, values in read.obs.items():
        assert torch.equal(in_memory(values), in_memory(copied.obs[key]))
    assert torch.equal(read.actions, copied.actions)
    assert torch.equal(read.episode_ends, copied.episode_ends)
    assert (read.env_id, read.action_kind) == (copied.env_id, copied.action_kind)


def in_memory(values: torch.Tensor | LazyImages) -> torch.Tensor:
    return values.in_memory() if isinstance(values, LazyImages) else values


def test_training_and_acting(made, tmp_path):
    """A short run, resumed; its checkpoint acts on observations in the dataset's keys."""
    _, path, _, obs_keys = made
    out = tmp_path / "run"
    settings = TrainSettings(steps=2, batch_size=4, warmup_steps=1, snapshot_every=2)
    machine = Machine(device="cpu")
    assert main(New(path, out, settings, held_out=1, obs_keys=obs_keys, network=NETWORK, machine=machine)) == 0
    assert main(Resume(out, machine)) == 0  # reads the same data again
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (out / "config.json").rename(checkpoint / "config.json")
    (out / "ema_000002.safetensors").rename(checkpoint / "model.safetensors")
    policy = load_policy(checkpoint, sampler="ddim", num_steps=2)
    policy.reset(seed=0)
    demonstrations = Demonstrations.read(path, obs_keys=obs_keys)
    obs = {key: in_memory(values[:1]).numpy()[0] for key, values in demonstrations.obs.items()}
    action = policy.act(obs)
    assert action.shape == (policy.config.env_action_dim,)
    assert np.isfinite(action).all()


def test_unknown_observations_and_actions(made):
    _, path, _, _ = made
    with pytest.raises(UnknownNameError, match="observation"):
        Demonstrations.read(path, obs_keys=("nothing",))
    with pytest.raises(ConfigError, match="action"):
        Demonstrations.read(path, action_key="nothing")


def test_too_many_episodes(made):
    _, path, _, obs_keys = made
    with pytest.raises(DataError, match=r"holds \d+ episodes; 1000 are asked for"):
        Demonstrations.read(path, 1000, obs_keys=obs_keys)


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "file").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"Cannot read .*file: it is in no known dataset format"):
        open_dataset(tmp_path / "file")
    with pytest.raises(DataError, match=r"it holds none of the known formats. Expected one of: store: "):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="it does not exist"):
        open_dataset(tmp_path / "nowhere")


def test_formats_are_checked():
    item = FORMATS["store"]
    formats = DatasetFormats({"store": item})
    with pytest.raises(ConfigError, match="expected a DatasetFormat of this name"):
        formats["other"] = item
    with pytest.raises(ConfigError, match="expected a DatasetFormat"):
        formats["other"] = "other"
    with pytest.raises(ConfigError, match="has no function"):
        formats["other"] = DatasetFormat("other", "", None, item.open)


def test_an_object_that_is_no_dataset_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine"
    path.mkdir()
    monkeypatch.setitem(FORMATS, "mine", DatasetFormat("mine", "", lambda at: at == path, lambda at, choice: object()))
    with pytest.raises(ConfigError, match="lacks action_dim, action_kind, attrs, close, env_id, episode"):
        open_dataset(path)


def test_options_of_hdf5_files_are_refused(tmp_path):
    path = files.replay_buffer(tmp_path / "buffer.zarr")
    for options in ({"filter_key": "train"}, {"absolute": True}):
        with pytest.raises(DataError, match="is not an HDF5 file"):
            Demonstrations.read(path, **options)
    with pytest.raises(ConfigError, match="neither deltas nor poses"):
        Demonstrations.read(path, clip_actions=True)


def test_commands(tmp_path, capsys):
    path = files.other_robot(tmp_path / "other.hdf5")
    import_data.main(import_data.Arguments(path, inspect=True))
    told = capsys.readouterr().out
    assert "cube 7, joints 9" in told
    assert "9, neither deltas nor poses" in told
    assert "note: The file has no env_args" in told
    out = tmp_path / "other.zarr"
    import_data.main(import_data.Arguments(path, out=out, obs_keys=("front", "joints"), env_id="mine/Robot-v0"))
    assert "3 episodes, 77 steps" in capsys.readouterr().out
    assert Demonstrations.read(out).env_id == "mine/Robot-v0"
    with pytest.raises(ConfigError, match=r"expected a number above 0. Pass it \(--fps\)"):
        export_data.main(export_data.Arguments(out, tmp_path / "exported"))


@pytest.mark.parametrize("opened", [open_dataset, pinned])
def test_a_missing_folder_that_could_be_a_repository(monkeypatch, opened):
    def none(*args: object) -> None:
        raise HubError("The hub has no dataset data/missing.")

    monkeypatch.setattr(formats, "open_snapshot", none)
    with pytest.raises(HubError, match=r"no file or folder data/missing, nor such a repository: The hub has"):
        opened("data/missing")

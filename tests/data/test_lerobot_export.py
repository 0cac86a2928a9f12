"""Export of a store as a LeRobotDataset, and back."""

import json
import sys

import numpy as np
import pytest
import torch

from asd_policy.cli import export_data
from asd_policy.data.dataset import copy_to_store
from asd_policy.data.formats import open_dataset
from asd_policy.data.lerobot.statistics import PixelCounts, vector_statistics
from asd_policy.data.lerobot.writing import export_lerobot
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import ConfigError, DataError
from asd_policy.training.demonstrations import Demonstrations
from tests.data import dataset_files as files

pq = pytest.importorskip("pyarrow.parquet", reason="LeRobotDataset needs pyarrow")


@pytest.fixture
def store(tmp_path):
    return files.store(tmp_path / "store.zarr")


def test_there_and_back_bit_for_bit(store, tmp_path, capsys):
    export_data.main(export_data.Arguments(store, tmp_path / "exported"))
    assert "3 episodes, 77 steps" in capsys.readouterr().out
    copy_to_store(open_dataset(tmp_path / "exported"), tmp_path / "back.zarr").close()
    ours, back = EpisodeStore.open(store), EpisodeStore.open(tmp_path / "back.zarr")
    assert ours.obs_keys == back.obs_keys
    for key in ours.obs_keys:
        np.testing.assert_array_equal(ours.obs(key), back.obs(key))
    for executed in (False, True):
        np.testing.assert_array_equal(ours.actions(executed), back.actions(executed))
    for name in ("seeds", "steps_to_success", "episode_ends"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(back, name))
    added = {"action_kind": "delta", "fps": 20.0, "notes": back.attrs["notes"]}
    assert back.attrs == ours.attrs | added


def test_training_sees_the_same(store, tmp_path):
    export_lerobot(EpisodeStore.open(store), tmp_path / "exported")
    ours, theirs = Demonstrations.read(store), Demonstrations.read(tmp_path / "exported")
    assert list(ours.obs) == list(theirs.obs)
    assert torch.equal(ours.obs["front_image"], theirs.obs["front_image"].in_memory())
    for key in ("robot0_eef_pos", "object", "grip"):
        assert torch.equal(ours.obs[key], theirs.obs[key])
    assert torch.equal(ours.actions, theirs.actions)
    assert torch.equal(ours.disturbance, theirs.disturbance)
    assert (ours.env_id, ours.action_kind) == (theirs.env_id, theirs.action_kind)


def test_another_action_than_the_store_s(store, tmp_path):
    export_lerobot(EpisodeStore.open(store), tmp_path / "exported")
    read = Demonstrations.read(tmp_path / "exported", action_key="observation.state", env_id="mine/Robot-v0")
    assert (read.action_kind, read.actions.shape) == ("other", (77, 18))
    assert not read.disturbance.any()


def test_notes_are_told_once(store, tmp_path):
    export_lerobot(EpisodeStore.open(store), tmp_path / "a")
    copy_to_store(open_dataset(tmp_path / "a"), tmp_path / "b").close()
    export_lerobot(EpisodeStore.open(tmp_path / "b"), tmp_path / "c")
    notes = open_dataset(tmp_path / "c").notes
    assert len(notes) == len(set(notes)) == 1
    files.edit_json(tmp_path / "c" / "meta" / "asd_policy.json", lambda own: own["attrs"].update(notes=3))
    assert open_dataset(tmp_path / "c").notes == notes


def test_layout_is_lerobots(store, tmp_path):
    """The same files, columns and types as in a dataset that lerobot has made."""
    export_lerobot(EpisodeStore.open(store), tmp_path / "exported", task="square")
    out, made = tmp_path / "exported", files.LEROBOT / "v3_image"
    names = {path.relative_to(root).as_posix() for root in (out, made) for path in root.rglob("*") if path.is_file()}
    assert all((root / name).is_file() for name in names - {"meta/asd_policy.json"} for root in (out, made))
    data = "data/chunk-000/file-000.parquet"
    ours, theirs = (
        dict(zip(s.names, map(str, s.types), strict=True)) for s in map(pq.read_schema, (out / data, made / data))
    )
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert ours[name] == theirs[name]
    assert ours["observation.images.front"] == theirs["observation.images.top"]
    assert ours["observation.state"] == theirs["observation.state"].replace("[2]", "[18]")
    table = "meta/episodes/chunk-000/file-000.parquet"
    ours, theirs = (
        dict(zip(s.names, map(str, s.types), strict=True)) for s in map(pq.read_schema, (out / table, made / table))
    )
    own = {name for name in theirs if not name.startswith("stats/observation.environment_state")}
    renamed = {name.replace("images.top", "images.front") for name in own}
    assert renamed <= set(ours)
    for name in ("episode_index", "tasks", "length", "data/file_index", "dataset_to_index", "stats/action/mean"):
        assert ours[name] == theirs[name]
    info, reference = (json.loads((root / "meta" / "info.json").read_text()) for root in (out, made))
    assert set(info) == set(reference)
    names = info["features"]["observation.state"]["names"]
    assert names[:4] == ["robot0_eef_pos.0", "robot0_eef_pos.1", "robot0_eef_pos.2", "object.0"]
    tasks = pq.read_table(out / "meta" / "tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "__index_level_0__": ["square"]}


def test_statistics(store, tmp_path):
    export_lerobot(EpisodeStore.open(store), tmp_path / "exported")
    stats = json.loads((tmp_path / "exported" / "meta" / "stats.json").read_text())
    images = EpisodeStore.open(store).obs("front_image") / 255
    found = stats["observation.images.front"]
    for name, values in (
        ("mean", images.mean((0, 1, 2))),
        ("std", images.std((0, 1, 2))),
        ("max", images.max((0, 1, 2))),
    ):
        np.testing.assert_allclose(np.ravel(found[name]), values)
    assert found["count"] == [77]
    actions = EpisodeStore.open(store).actions()
    np.testing.assert_array_equal(np.float32(stats["action"]["min"]), actions.min(0))
    np.testing.assert_allclose(stats["action"]["std"], actions.astype(np.float64).std(0))
    rows = np.arange(12).reshape(4, 3)
    assert vector_statistics(rows)["mean"] == [4.5, 5.5, 6.5]
    counts = PixelCounts(1)
    counts.add(np.array([0, 0, 0, 255], np.uint8).reshape(1, 2, 2, 1))
    assert np.ravel(counts.statistics()["q50"]) == [0]
    assert np.ravel(counts.statistics()["q90"]) == [1]


def test_video(store, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    made = EpisodeStore.create(tmp_path / "large.zarr", {"front_image": (64, 64, 3)}, 2, {"env_id": "x", "fps": 12.5})
    for seed, steps in enumerate((5, 8)):
        frames = np.stack([np.full((64, 64, 3), 30 * seed + 9 * t, np.uint8) for t in range(steps)])
        action = np.zeros((steps, 2), np.float32)
        made.append(Demonstration(seed, {"front_image": frames}, action, action, steps))
    export_lerobot(made, tmp_path / "exported", video=True)
    back = open_dataset(tmp_path / "exported")
    assert back.fps == 12.5
    images = np.concatenate([np.asarray(back.episode(name).obs["front_image"]) for name in back.names]).astype(int)
    assert np.abs(images - made.obs("front_image")).max() <= 6  # 4:2:0 with a rate factor
    odd = EpisodeStore.create(tmp_path / "odd.zarr", {"front_image": (65, 64, 3)}, 2, {"env_id": "x", "fps": 10})
    odd.append(Demonstration(0, {"front_image": np.zeros((5, 65, 64, 3), np.uint8)}, action[:5], action[:5], 5))
    with pytest.raises(ConfigError, match="expected even sides"):
        export_lerobot(odd, tmp_path / "odd", video=True)
    assert not any(path.name.startswith("odd") for path in tmp_path.iterdir() if path.name != "odd.zarr")


def test_nothing_is_left_behind_on_failure(store, tmp_path, monkeypatch):
    opened = EpisodeStore.open(store)
    chunk = store / "data" / "obs" / "front_image" / "c" / "1" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:100])
    with pytest.raises(DataError, match="damaged"):
        export_lerobot(opened, tmp_path / "exported")
    chunk.write_bytes(whole)
    for error in (KeyboardInterrupt, OSError("disk full")):
        with monkeypatch.context() as patch:
            patch.setattr("asd_policy.data.lerobot.writing._tasks", raising(error))
            with pytest.raises(
                (KeyboardInterrupt, DataError), match=None if error is KeyboardInterrupt else "disk full"
            ):
                export_lerobot(opened, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]
    export_lerobot(opened, tmp_path / "exported")
    with pytest.raises(DataError, match="exists already"):
        export_lerobot(opened, tmp_path / "exported")


def raising(error):
    def function(*_):
        raise error

    return function


def test_what_cannot_be_exported(tmp_path, store, monkeypatch):
    empty = EpisodeStore.create(tmp_path / "empty.zarr", {"a": (2,)}, 2, {"env_id": "x"})
    with pytest.raises(DataError, match="has no episodes"):
        export_lerobot(empty, tmp_path / "exported", fps=10)
    for fps in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="expected a number above 0"):
            export_lerobot(EpisodeStore.open(store), tmp_path / "exported", fps=fps)
    for name, shapes in (
        ("state", {"observation.state": (2,), "grip": (1,)}),
        ("image", {"top": (4, 4, 3), "top_image": (4, 4, 3)}),
    ):
        clash = EpisodeStore.create(tmp_path / name, shapes, 2, {"env_id": "asd/Square-v0"})
        obs = {key: np.zeros((3, *shape), np.uint8 if len(shape) == 3 else np.float32) for key, shape in shapes.items()}
        action = np.zeros((3, 2), np.float32)
        clash.append(Demonstration(0, obs, action, action, 3))
        with pytest.raises(ConfigError, match="does not fit into the column"):
            export_lerobot(clash, tmp_path / "exported")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'asd-policy\[lerobot-data\]'"):
        export_lerobot(EpisodeStore.open(store), tmp_path / "exported")


def test_lerobots_own_dataset_survives(tmp_path):
    """lerobot -> store -> lerobot keeps columns and numbers."""
    copy = copy_to_store(open_dataset(files.LEROBOT / "v3_image"), tmp_path / "copy.zarr")
    export_lerobot(copy, tmp_path / "exported")
    once, twice = Demonstrations.read(files.LEROBOT / "v3_image"), Demonstrations.read(tmp_path / "exported")
    columns = pq.read_schema(tmp_path / "exported/data/chunk-000/file-000.parquet").names
    assert {"observation.state", "observation.environment_state", "observation.images.top"} <= set(columns)
    for key, values in once.obs.items():
        both = [x if isinstance(x, torch.Tensor) else x.in_memory() for x in (values, twice.obs[key])]
        assert torch.equal(*both)
    assert torch.equal(once.actions, twice.actions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.pop("seeds"), "seeds is missing"),
        (lambda own: own.update(seeds=[1]), "has 1 seeds for 3 episodes"),
        (lambda own: own.update(obs_keys=["object"]), "obs_keys are"),
        (lambda own: own["columns"]["observation.state"].update(object=13), "does not fit the dataset's features"),
        (lambda own: own.update(columns={"../x": {"object": 18}}), "obs_keys are|does not fit"),
        (lambda own: own.update(format_version=2), "format version 2; expected 1"),
        (lambda own: own["attrs"].update(action_kind="odd"), "action_kind is 'odd'"),
        (lambda own: own["attrs"].update(notes=3, action_kind=["delta"]), "action_kind is"),
        (lambda own: own.update(seeds=[2**70, 1, 2]), "64 bits|seeds"),
    ],
)
def test_damaged_notes_of_ours(store, tmp_path, change, message):
    export_lerobot(EpisodeStore.open(store), tmp_path / "exported")
    files.edit_json(tmp_path / "exported" / "meta" / "asd_policy.json", change)
    with pytest.raises(DataError, match=message):
        Demonstrations.read(tmp_path / "exported")

import shutil

import numpy as np
import pytest
import zarr

from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import DataError

OBS_SHAPES = {"object": (5,), "robot0_eef_pos": (3,), "camera_image": (4, 6, 3)}
ACTION_DIM = 7


def observed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32) if len(shape) == 2 else rng.integers(1, 256, shape, np.uint8)


def make_episode(seed: int, steps: int = 20) -> Demonstration:
    rng = np.random.default_rng(seed)
    return Demonstration(
        seed=seed,
        obs={key: observed(rng, (steps, *shape)) for key, shape in OBS_SHAPES.items()},
        action=rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32),
        executed_action=rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32),
        steps_to_success=steps - 3,
    )


def assert_same(a: Demonstration, b: Demonstration) -> None:
    assert (a.seed, a.steps_to_success) == (b.seed, b.steps_to_success)
    assert list(a.obs) == list(b.obs)
    for key in a.obs:
        np.testing.assert_array_equal(a.obs[key], b.obs[key])
    np.testing.assert_array_equal(a.action, b.action)
    np.testing.assert_array_equal(a.executed_action, b.executed_action)


@pytest.fixture
def store(tmp_path):
    return EpisodeStore.create(tmp_path / "demos.zarr", OBS_SHAPES, ACTION_DIM, {"env_id": "asd/Test-v0"})


def test_episodes_come_back_as_they_went_in(store):
    episodes = [make_episode(seed, steps) for seed, steps in ((0, 20), (1, 1), (5, 33))]
    for episode in episodes:
        store.append(episode)
    reader = EpisodeStore.open(store.path)
    assert (reader.num_episodes, reader.num_steps) == (3, 54)
    assert (reader.attrs["env_id"], reader.obs_keys) == ("asd/Test-v0", tuple(OBS_SHAPES))
    np.testing.assert_array_equal(reader.seeds, [0, 1, 5])
    np.testing.assert_array_equal(reader.episode_ends, [20, 21, 54])
    np.testing.assert_array_equal(reader.steps_to_success, [17, -2, 30])
    for index, episode in enumerate(episodes):
        assert_same(reader.episode(index), episode)
    np.testing.assert_array_equal(reader.actions(), np.concatenate([e.action for e in episodes]))
    np.testing.assert_array_equal(reader.obs("object"), np.concatenate([e.obs["object"] for e in episodes]))


def test_an_open_reader_sees_episodes_as_they_are_committed(store):
    reader = EpisodeStore.open(store.path)
    assert (reader.num_episodes, len(reader.actions())) == (0, 0)
    store.append(make_episode(0))
    assert (reader.num_episodes, len(reader.actions())) == (1, 20)


NUM_APPENDS = len(OBS_SHAPES) + 2 + 3


@pytest.mark.parametrize("appends_done", range(NUM_APPENDS))
@pytest.mark.parametrize("resized", [False, True], ids=["between arrays", "between growing and writing"])
def test_a_cut_off_append_leaves_no_trace(store, monkeypatch, appends_done, resized):
    store.append(make_episode(0))
    whole_append, done = zarr.Array.append, 0

    def cut_off(array, data, axis=0):
        nonlocal done
        if done == appends_done:
            if resized:
                array.resize((array.shape[0] + len(data), *array.shape[1:]))
            raise KeyboardInterrupt
        done += 1
        return whole_append(array, data, axis)

    monkeypatch.setattr(zarr.Array, "append", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store.append(make_episode(1, steps=30))
    monkeypatch.undo()

    reader = EpisodeStore.open(store.path)
    assert (reader.num_episodes, reader.seeds.tolist(), len(reader.actions())) == (1, [0], 20)
    store.close()
    writer = EpisodeStore.open(store.path, writable=True)
    writer.append(make_episode(2, steps=10))
    assert_same(writer.episode(0), make_episode(0))
    assert_same(writer.episode(1), make_episode(2, steps=10))
    assert (writer.num_episodes, writer.num_steps) == (2, 30)


def test_missing_steps_are_reported_as_damage(store):
    store.append(make_episode(0))
    store.close()
    zarr.open_group(store.path)["data/action"].resize((5, ACTION_DIM))
    with pytest.raises(DataError, match="data/action has 5 of 20 rows"):
        EpisodeStore.open(store.path, writable=True)


def test_lost_files_are_reported_as_damage(store):
    store.append(make_episode(0))
    (store.path / "data" / "action" / "c" / "0" / "0").unlink()
    with pytest.raises(DataError, match="steps are missing from data/action"):
        store.actions()
    shutil.rmtree(store.path / "data" / "action")
    with pytest.raises(DataError, match="no array data/action"):
        store.actions()


def test_there_is_one_writer_at_a_time(store):
    store.append(make_episode(0))
    with pytest.raises(DataError, match="Another process is writing"):
        EpisodeStore.open(store.path, writable=True)
    assert EpisodeStore.open(store.path).num_episodes == 1
    store.close()
    writer = EpisodeStore.open(store.path, writable=True)
    writer.append(make_episode(1))
    assert writer.num_episodes == 2


def test_create_refuses_an_existing_path(store):
    with pytest.raises(DataError, match="exists already"):
        EpisodeStore.create(store.path, OBS_SHAPES, ACTION_DIM, {})


def test_open_reports_what_is_wrong(tmp_path, store):
    with pytest.raises(DataError, match="No episode store"):
        EpisodeStore.open(tmp_path / "nowhere.zarr")
    (tmp_path / "file.zarr").write_text("not a store")
    with pytest.raises(DataError, match="No episode store"):
        EpisodeStore.open(tmp_path / "file.zarr")
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="No episode store"):
        EpisodeStore.open(tmp_path / "torn.zarr")
    store.update_attrs(format_version=99)
    with pytest.raises(DataError, match="format version 99, expected 1"):
        EpisodeStore.open(store.path)


def test_append_refuses_episodes_that_do_not_fit(store):
    good = make_episode(0)
    with pytest.raises(DataError, match="observation keys"):
        store.append(Demonstration(0, {"object": good.obs["object"]}, good.action, good.executed_action, 1))
    with pytest.raises(DataError, match="executed_action"):
        store.append(Demonstration(0, good.obs, good.action, good.executed_action[:-1], 1))
    with pytest.raises(DataError, match="finite"):
        store.append(Demonstration(0, good.obs, good.action * np.nan, good.executed_action, 1))
    assert (store.num_episodes, store.num_steps) == (0, 0)


def test_there_is_no_episode_beyond_the_last(store):
    store.append(make_episode(0))
    with pytest.raises(DataError, match=r"No episode 1 in .*: it holds 1"):
        store.episode(1)


def test_an_append_after_a_failed_one_keeps_steps_together(store, monkeypatch):
    store.append(make_episode(0))
    whole_append = zarr.Array.append

    def full_disk(array, data, axis=0):
        if array.path.endswith("action"):
            raise OSError(28, "No space left on device")
        return whole_append(array, data, axis)

    monkeypatch.setattr(zarr.Array, "append", full_disk)
    with pytest.raises(DataError, match="cannot be written"):
        store.append(make_episode(1, steps=30))
    monkeypatch.undo()
    store.append(make_episode(2, steps=10))
    assert_same(store.episode(1), make_episode(2, steps=10))
    assert (store.num_episodes, store.num_steps) == (2, 30)


@pytest.mark.parametrize("lost", ["meta/seed/c/0", "data/obs/image/c/0/0/0/0", "data/action/c/0/0"])
def test_lost_rows_are_not_appended_to(tmp_path, lost):
    store = EpisodeStore.create(tmp_path / "demos.zarr", {"image": (4, 4, 3)}, ACTION_DIM, {})
    episode = Demonstration(
        1, {"image": np.full((20, 4, 4, 3), 9, np.uint8)}, *(np.ones((20, ACTION_DIM), np.float32),) * 2, 5
    )
    store.append(episode)
    (store.path / lost).unlink()
    with pytest.raises(DataError, match="are not there"):
        store.append(episode)
    store.close()
    with pytest.raises(DataError, match="are not there"):
        EpisodeStore.open(store.path, writable=True)


def test_stores_from_before_checksums_may_lack_the_seed_0(store):
    store.append(make_episode(0))
    (store.path / "meta/seed/c/0").unlink()
    with pytest.raises(DataError, match="missing from meta/seed"):
        _ = store.seeds
    described = store.path / "meta/seed/zarr.json"
    described.write_text(described.read_text().replace('"checksum": true', '"checksum": false'))
    store.close()
    old = EpisodeStore.open(store.path, writable=True)
    assert (old.seeds.tolist(), old.episode(0).seed) == ([0], 0)
    old.append(make_episode(7))
    assert old.seeds.tolist() == [0, 7]


@pytest.mark.parametrize("kind", [[], "", 0, {}, "joints"])
def test_a_kind_of_actions_that_is_none_is_refused(store, kind):
    store.append(make_episode(0))
    store.update_attrs(action_kind=kind)
    with pytest.raises(DataError, match="its action_kind is"):
        EpisodeStore.open(store.path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Cannot make the store .*file/demos\.zarr"):
        EpisodeStore.create(tmp_path / "file" / "demos.zarr", OBS_SHAPES, ACTION_DIM, {})

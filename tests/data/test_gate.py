"""One gate for demonstrations: every format refuses the same faults, and reads the same odd but sound ones."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from asd_policy.cli import import_data
from asd_policy.data.dataset import Choice, copy_to_store
from asd_policy.data.gate import Demonstration, Gate
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError, UnknownNameError
from asd_policy.policies.config import NetworkConfig
from asd_policy.training.demonstrations import Demonstrations
from tests.data.robomimic_file import env_args, write_file

KEYS = ("object", "front_image")
STEPS = (6, 5)
IMAGE = (4, 5, 3)

Arrays = dict[str, NDArray]  # "object", "front_image" and "action" of one demonstration


def arrays(steps: int) -> Arrays:
    rng = np.random.default_rng(steps)
    return {
        "object": rng.normal(size=(steps, 4)).astype(np.float32),
        "front_image": rng.integers(0, 256, (steps, *IMAGE), np.uint8),
        "action": rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
    }


def as_hdf5(path: Path, demos: list[Arrays]) -> Demonstrations:
    write_file(path, env_args(), lengths=[len(demo["action"]) for demo in demos], obs_dims={})
    with h5py.File(path, "r+") as file:
        for number, demo in enumerate(demos):
            group = file[f"data/demo_{number + 8}"]
            del group["actions"]
            group["actions"] = demo["action"]
            for key in KEYS:
                group[f"obs/{key}"] = demo[key]
    return Demonstrations.read(path, obs_keys=KEYS)


def as_appended(path: Path, demos: list[Arrays]) -> Demonstrations:
    store = EpisodeStore.create(path, {"object": (4,), "front_image": IMAGE}, 7, {"env_id": "asd/Square-v0"})
    for number, demo in enumerate(demos):
        store.append(Demonstration(number, {key: demo[key] for key in KEYS}, demo["action"], demo["action"], 1))
    store.close()
    return Demonstrations.read(path)


def as_written_by_others(path: Path, demos: list[Arrays]) -> Demonstrations:
    """A store whose arrays were filled by a program that knows nothing of the gate."""
    as_appended(path, [arrays(len(demo["action"])) for demo in demos])
    root = zarr.open_group(path, mode="r+")
    for name, key in (("data/obs/object", "object"), ("data/action", "action"), ("data/executed_action", "action")):
        root[name][:] = np.concatenate([demo[key] for demo in demos])
    return Demonstrations.read(path)


FORMATS = {"hdf5": as_hdf5, "store": as_appended, "foreign store": as_written_by_others}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["object", "action"])
@pytest.mark.parametrize("read", FORMATS.values(), ids=FORMATS)
def test_numbers_that_are_not_finite_are_named(tmp_path, read, key, number):
    demos = [arrays(steps) for steps in STEPS]
    demos[1][key][3, 2] = number
    named = rf"(demo_9|seed 1): '{key}s?' holds {number} at step 3"
    with pytest.raises(DataError, match=rf"{named}|episode 1 holds {number} at step 3 of '(obs/)?{key}'"):
        read(tmp_path / "data", demos)


@pytest.mark.parametrize("read", FORMATS.values(), ids=FORMATS)
def test_actions_beyond_one_are_refused_in_all_digits(tmp_path, read):
    demos = [arrays(steps) for steps in STEPS]
    demos[1]["action"][2, 0] = 1.00004
    with pytest.raises(DataError, match=r"(demo_9|episode 1|seed 1).* reach 1\.00004; expected deltas.*step 2 of 'act"):
        read(tmp_path / "data", demos)


@pytest.mark.parametrize("read", [as_hdf5, as_written_by_others])
def test_actions_are_clipped_on_request_with_a_note(tmp_path, read):
    demos = [arrays(steps) for steps in STEPS]
    demos[1]["action"][2, :2] = 1.25, -3
    with pytest.raises(DataError, match="clip-actions"):
        read(tmp_path / "data", demos)
    clipped = Demonstrations.read(tmp_path / "data", obs_keys=KEYS, clip_actions=True)
    expected = np.concatenate([demo["action"] for demo in demos]).clip(-1, 1)
    np.testing.assert_array_equal(clipped.actions, expected)
    assert any("-3.00; 2 numbers were clipped" in note for note in clipped.notes)
    demos[1]["action"][2, :2] = 0.25, -1
    read(tmp_path / "sound", demos)
    sound = Demonstrations.read(tmp_path / "sound", obs_keys=KEYS, clip_actions=True)
    assert not any("clipped" in note for note in sound.notes)


@pytest.mark.parametrize("read", FORMATS.values(), ids=FORMATS)
def test_black_images_are_images(tmp_path, read):
    demos = [arrays(steps) for steps in (70, 5)]  # more than a chunk of images
    for demo in demos:
        demo["front_image"][:] = 0
    if read is not as_written_by_others:
        assert (read(tmp_path / "data", demos).obs["front_image"] == 0).all()


def test_a_lost_chunk_of_black_images_is_missed(tmp_path):
    demo = arrays(70)
    demo["front_image"][:] = 0
    as_appended(tmp_path / "store", [demo])
    (tmp_path / "store/data/obs/front_image/c/1/0/0/0").unlink()
    with pytest.raises(DataError, match=r"steps are missing from data/obs/front_image: rows 64 to 128"):
        EpisodeStore.open(tmp_path / "store").obs("front_image")


def test_a_flipped_bit_in_a_chunk_is_noticed_or_changes_nothing(tmp_path):
    sound = as_appended(tmp_path / "store", [arrays(6)])
    refused = 0
    for name in ("obs/front_image/c/0/0/0/0", "action/c/0/0"):
        file = tmp_path / "store/data" / name
        whole = file.read_bytes()
        for place in range(0, len(whole), 7):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                read = Demonstrations.read(tmp_path / "store")
            except DataError:
                refused += 1
                continue
            assert read.fingerprint() == sound.fingerprint()
        file.write_bytes(whole)
    assert refused > 50


def change(key: str, new: Callable[[NDArray], NDArray]) -> Callable[[list[Arrays]], None]:
    def edit(demos: list[Arrays]) -> None:
        for demo in demos[1:]:
            demo[key] = new(demo[key])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("front_image", lambda x: np.moveaxis(x, -1, 1)), r"front_image.*shape \(5, 3, 4, 5\).*expected"),
        (change("front_image", lambda x: x.astype(np.float32)), "front_image.*float32; expected uint8"),
        (change("front_image", lambda x: x[..., 0]), r"front_image.*\(5, 4, 5\)"),
        (change("front_image", lambda x: x[:-1]), "5 actions but 4 steps of 'front_image'"),
        (change("object", lambda x: x[:, :3]), r"object.*\(5, 3\); expected \(steps, 4\)"),
        (change("object", lambda x: x[:, 0]), r"object.*\(5,\)"),
        (change("object", lambda x: x.astype(complex)), "object.*complex128; expected real numbers"),
        (change("object", lambda x: x.astype("S8")), r"object.*\|S8; expected real numbers"),
        (change("object", lambda x: np.full(x.shape, 1e39)), "object.*holds 1e[+]39 at step 0.*float32"),
        (change("action", lambda x: x[:, :6]), r"action.*\(5, 6\); expected \(steps, 7\)"),
        (change("action", lambda x: x[:, 0]), r"action.*\(5,\)"),
        (change("action", lambda x: x[:0]), "has no steps"),
    ],
)
@pytest.mark.parametrize("read", [as_hdf5, as_appended])
def test_what_does_not_fit_is_refused(tmp_path, read, edit, message):
    demos = [arrays(steps) for steps in STEPS]
    edit(demos)
    with pytest.raises(DataError, match=rf"(demo_9|seed 1).*{message}|{message}"):
        read(tmp_path / "data", demos)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "i2", ">i8", "u1", "?"])
@pytest.mark.parametrize("read", [as_hdf5, as_appended])
def test_numbers_of_any_type_are_read(tmp_path, read, dtype):
    demos = [arrays(steps) for steps in STEPS]
    for demo in demos:
        demo["object"] = np.abs(demo["object"]).astype(dtype)
        demo["action"] = demo["action"].astype("f8")
    got = read(tmp_path / "data", demos).obs["object"]
    np.testing.assert_array_equal(got, np.concatenate([demo["object"] for demo in demos]).astype(np.float32))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_file(tmp_path / "low_dim.hdf5", env_args(), lengths=STEPS)


def edited(path: Path, edit: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def put(name: str, values: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        for demo in file["data"].values():
            demo.pop(name, None)
            demo[name] = values(len(demo["actions"])) if callable(values) else values

    return edit


def test_one_number_a_step_is_a_vector_of_one(file):
    edited(file, lambda f: put("obs/robot0_gripper_qpos", lambda steps: np.arange(steps))(f))
    read = Demonstrations.read(file)
    assert read.obs_shapes["robot0_gripper_qpos"] == (1,)
    assert read.obs["robot0_gripper_qpos"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("key", ["observation.state", "group/state", "a/b/c", "größe"])
def test_dots_and_slashes_in_keys(file, tmp_path, key):
    edited(file, put(f"obs/{key}", lambda steps: np.ones((steps, 2))))
    with RobomimicFile.open(file, Choice(obs_keys=("object", key))) as opened:
        copy_to_store(opened, tmp_path / "store").close()
    read = Demonstrations.read(tmp_path / "store")
    assert read.obs_shapes == {"object": (14,), key: (2,)}
    assert (read.obs[key] == 1).all()


@pytest.mark.parametrize("key", ["", "..", "a/../b", "/a", "a\x00b", "a//b", "x" * 1000])
def test_keys_that_are_no_names_are_refused(tmp_path, key):
    with pytest.raises(DataError, match="observation key"):
        EpisodeStore.create(tmp_path / "store", {key: (3,)}, 7, {})
    assert not (tmp_path / "store").exists()


def test_a_key_within_another_is_refused():
    with pytest.raises(DataError, match="'a' and 'a/b'"):
        Gate("x", {"a": (3,), "a/b": (3,)}, 7, "delta")


@pytest.mark.parametrize("as_text", [str, np.bytes_, lambda text: np.array([text.encode()])])
def test_env_args_as_text_or_bytes(file, as_text):
    edited(file, lambda f: f["data"].attrs.__setitem__("env_args", as_text(json.dumps(env_args()))))
    assert Demonstrations.read(file).env_id == "asd/Square-v0"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.0, "is float64; expected JSON"),
        (np.bytes_(b"\xff\xfe"), "cannot be understood"),
        ("", "cannot be understood"),
        ("[" * 100_000, "cannot be understood"),
    ],
)
def test_env_args_that_cannot_be_read(file, value, message):
    def edit(f: h5py.File) -> None:
        f["data"].attrs["env_args"] = value

    if isinstance(value, str) and len(value) > 60_000:
        value = value[:50_000]  # the most that HDF5 takes
    with pytest.raises(DataError, match=message):
        Demonstrations.read(edited(file, edit))


def test_without_env_args_actions_are_taken_as_they_are(file):
    edited(file, lambda f: f["data"].attrs.__delitem__("env_args"))
    read = Demonstrations.read(file)
    assert (read.env_id, read.action_kind) == ("unknown", "other")
    assert any("has no env_args" in note for note in read.notes)
    with pytest.raises(ConfigError, match="neither deltas nor poses"):
        Demonstrations.read(file, clip_actions=True)
    with pytest.raises(DataError, match="absolute is for the actions of robosuite's recordings"):
        Demonstrations.read(file, absolute=True)


@pytest.mark.parametrize("as_mask", [lambda names: np.array(names, "S"), lambda names: names])
def test_filters_of_bytes_and_of_text(file, as_mask):
    edited(file, lambda f: f.create_dataset("mask/train", data=as_mask(["demo_9"])))
    assert len(Demonstrations.read(file, filter_key="train").actions) == STEPS[1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([], "S8"), "'train' names no demonstrations"),
        (np.array([b"demo_7"]), "'demo_7'.*not in the file"),
        (np.array([b"\xff"]), "not text"),
        (np.arange(3), "not in the file"),
    ],
)
def test_filters_that_cannot_be_used(file, mask, message):
    edited(file, lambda f: f.create_dataset("mask/train", data=mask))
    with pytest.raises(DataError, match=message):
        Demonstrations.read(file, filter_key="train")
    with pytest.raises(UnknownNameError, match="Available: train"):
        Demonstrations.read(file, filter_key="valid")


def fill_value_bomb(f: h5py.File, chunks: bool | None) -> None:
    del f["data/demo_9/obs/object"]
    f["data/demo_9"].create_dataset("obs/object", (10**9, 14), "f4", chunks=chunks)


def many_links(f: h5py.File) -> None:
    images = f.create_dataset("one", data=np.zeros((40, 500, 500, 3), np.uint8), compression="gzip")
    f["data/demo_8/obs/front_image"] = images
    for number in range(100, 140):
        f[f"data/demo_{number}"] = f["data/demo_8"]


def virtual(f: h5py.File) -> None:
    layout = h5py.VirtualLayout((5, 14), "f8")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (5, 14))
    del f["data/demo_9/obs/object"]
    f.create_virtual_dataset("data/demo_9/obs/object", layout)


def external_bytes(f: h5py.File) -> None:
    del f["data/demo_9/obs/object"]
    f.create_dataset("data/demo_9/obs/object", (5, 14), "f8", external=[("/dev/zero", 0, 560)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: fill_value_bomb(f, None), "declares shape.*holds 0 bytes"),
        (lambda f: fill_value_bomb(f, True), "declares shape.*holds 0 bytes"),
        (virtual, "mapped onto other files"),
        (external_bytes, "mapped onto other files"),
        (put("obs/object", h5py.SoftLink("/nowhere")), "leads nowhere"),
        (lambda f: f.__setitem__("data/demo_10", h5py.SoftLink("/data/demo_10")), "leads nowhere"),
        (put("obs/object", h5py.ExternalLink("/dev/zero", "x")), "lies in another file, '/dev/zero'"),
        (put("obs/object", h5py.Empty("f4")), "is not an array"),
        (put("obs/object", 3.0), "is not an array"),
        (put("rewards", lambda steps: np.full(steps, np.nan)), "demo_8: 'rewards' holds nan at step 0"),
        (put("rewards", lambda steps: np.ones(steps + 1)), "6 actions but 7 rewards"),
        (lambda f: f["data/demo_9"].attrs.__setitem__("num_samples", 4), "demo_9 has 5 actions, but.*says 4"),
    ],
)
def test_what_a_file_does_not_hold_is_not_read(file, edit, message):
    with pytest.raises(DataError, match=message):
        Demonstrations.read(edited(file, edit))


def test_soft_links_within_the_file_are_followed(file):
    before = Demonstrations.read(file)

    def edit(f: h5py.File) -> None:
        f.move("data/demo_9/obs", "elsewhere")
        f["data/demo_9/obs"] = h5py.SoftLink("/elsewhere")

    after = Demonstrations.read(edited(file, edit))
    assert all((after.obs[key] == values).all() for key, values in before.obs.items())


def test_a_file_that_multiplies_its_data_by_links_is_refused(tmp_path):
    file = edited(write_file(tmp_path / "small.hdf5", env_args(), lengths=(40,), obs_dims={}), many_links)
    assert file.stat().st_size < 200_000  # of which 40 demonstrations of 30 MB were to be made
    with pytest.raises(DataError, match="more is declared than a file of this size can hold"):
        Demonstrations.read(file, obs_keys=("front_image",))


def write_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("data/action", {"shape": [10**12, 7]}, None),  # more was grown than committed: sound
        ("data/action", {"shape": [6, 8]}, "chunks of whole rows"),
        ("data/action", {"shape": [6, 7], "data_type": "float64"}, "float64"),
        ("data/action", {"data_type": "string"}, "damaged"),
        ("data/obs/object", {"codecs": [{"name": "vlen-utf8"}]}, "damaged"),
        (
            "data/action",
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 7]}}},
            "damaged",
        ),
        ("meta/seed", {"shape": [0]}, "steps are missing|has 0 of 2"),
        ("meta/episode_ends", {"shape": [10**12]}, "steps are missing"),
        (".", {"attributes": {}}, "format version None"),
        (".", {"attributes": {"format_version": 1, "obs_keys": ["../../x"]}}, "observation key"),
        (".", {"attributes": {"format_version": 1, "obs_keys": "object"}}, "obs_keys"),
        (".", {"attributes": {"format_version": 1, "obs_keys": ["object"]}}, "env_id is None"),
        (
            ".",
            {"attributes": {"format_version": 1, "obs_keys": ["object"], "action_kind": "no"}},
            "action_kind is 'no'",
        ),
    ],
)
def test_stores_that_declare_what_is_not_there(tmp_path, name, changes, message):
    as_appended(tmp_path / "store", [arrays(steps) for steps in STEPS])
    write_json(tmp_path / "store" / name / "zarr.json", **changes)
    if message is None:
        assert len(Demonstrations.read(tmp_path / "store").actions) == sum(STEPS)
        return
    with pytest.raises(DataError, match=message):
        read_all(tmp_path / "store")


def read_all(path: Path) -> None:
    Demonstrations.read(path)
    EpisodeStore.open(path).episode(1)


@pytest.mark.parametrize("ends", [[6, 6], [11, 6], [-1, 11], [6, 12], [6, 2**62], [0, 11]])
def test_ends_of_episodes_that_cannot_be(tmp_path, ends):
    as_appended(tmp_path / "store", [arrays(steps) for steps in STEPS])
    zarr.open_group(tmp_path / "store", mode="r+")["meta/episode_ends"][:] = ends
    with pytest.raises(DataError, match="damaged"):
        Demonstrations.read(tmp_path / "store")


def test_a_commit_that_was_cut_off_in_a_new_chunk_leaves_no_trace(tmp_path):
    store = EpisodeStore.create(tmp_path / "store", {"object": (4,)}, 7, {"env_id": "asd/Square-v0"})
    zarr.open_group(tmp_path / "store", mode="r+")["meta/episode_ends"].resize((1,))
    assert store.num_episodes == EpisodeStore.open(tmp_path / "store").num_episodes == 0


def test_a_refused_demonstration_leaves_no_store_behind(file, tmp_path, capsys):
    edited(file, lambda f: f["data/demo_9/actions"].__setitem__((0, 0), 1.5))
    arguments = import_data.Arguments(file, out=tmp_path / "human.zarr")
    with pytest.raises(DataError, match=r"demo_9: its actions reach 1\.50"):
        import_data.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    import_data.main(import_data.Arguments(file, out=tmp_path / "human.zarr", clip_actions=True))
    assert re.search(r"note: .*1 numbers were clipped", capsys.readouterr().out)
    assert Demonstrations.read(tmp_path / "human.zarr").actions.abs().max() == 1
    assert re.search("1.50; 1 numbers were clipped", Demonstrations.read(tmp_path / "human.zarr").notes[0])


def test_target_poses_have_no_range_to_clip_to(tmp_path):
    path = write_file(tmp_path / "a.hdf5", env_args("1.5.1", input_type="absolute"))
    with pytest.raises(ConfigError, match="its actions are target poses"):
        RobomimicFile.open(path, Choice(clip_actions=True))
    with RobomimicFile.open(path) as file:
        copy_to_store(file, tmp_path / "poses.zarr").close()
    with pytest.raises(ConfigError, match="its actions are target poses"):
        Demonstrations.read(tmp_path / "poses.zarr", clip_actions=True)


def test_target_poses_of_an_environment_unknown_here_are_poses(tmp_path):
    """That they are says the controller, not the name of the environment."""
    path = write_file(tmp_path / "a.hdf5", env_args("1.5.1", name="PickPlaceCan", input_type="absolute"))
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][...] *= 3.0
    with RobomimicFile.open(path) as file:
        copy_to_store(file, tmp_path / "poses.zarr").close()
    for source in (path, tmp_path / "poses.zarr"):
        read = Demonstrations.read(source)
        assert (read.env_id, read.action_kind, read.actions.shape[1]) == ("PickPlaceCan", "pose", 10)


@pytest.mark.parametrize("dim", [2, 7, 9, 10])
def test_joints_are_kept_as_they_are(tmp_path, dim):
    path = write_file(tmp_path / "a.hdf5", env_args("1.5.1", type="JOINT_POSITION"))
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            steps = len(demo.pop("actions"))
            demo["actions"] = np.full((steps, dim), 2.5)
    with RobomimicFile.open(path) as file:
        copy_to_store(file, tmp_path / "joints.zarr").close()
    for source in (path, tmp_path / "joints.zarr"):
        read = Demonstrations.read(source)
        assert (read.env_id, read.action_kind) == ("NutAssemblySquare", "other")
        assert (read.actions == 2.5).all()
        config = read.policy_config(NetworkConfig(), {})
        assert (config.action_dim, config.action_parts, config.action_bound) == (dim, (), None)
    with pytest.raises(ConfigError, match="neither deltas nor poses"):
        Demonstrations.read(path, clip_actions=True)


def test_without_file_locks_stores_are_read_but_not_written(tmp_path):
    as_appended(tmp_path / "store", [arrays(5)])
    program = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from asd_policy.data.store import EpisodeStore\n"
        "from asd_policy.errors import DataError\n"
        f"path = {str(tmp_path / 'store')!r}\n"
        "assert EpisodeStore.open(path).num_episodes == 1\n"
        "try:\n    EpisodeStore.open(path, writable=True)\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert "needs file locks (fcntl), which this system lacks" in done.stdout

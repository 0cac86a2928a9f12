"""Damaged demonstrations, in their thousands: refused with a DataError, or read as finite numbers.

The slow tests try ASD_FUZZ inputs (20,000 unless set) of each format. libhdf5 is C code that forged bytes can
crash; no check in Python contains that. Seeds 0 to 20,000 do not crash the version pinned in constraints.txt.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest
import zarr

from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import DataError
from asd_policy.training.demonstrations import Demonstrations
from tests.data.robomimic_file import env_args, write_file
from tests.fuzzing import VALUES, findings, mutated_bytes, mutated_json

INPUTS = int(os.environ.get("ASD_FUZZ", "20000"))
BATCH = 1000  # inputs to a child process
DTYPES = ("f2", "f4", "f8", ">f8", ">f4", "i1", "i8", "u1", "u8", "?", "S5", "c16", [("a", "f4"), ("b", "i2")])
BAD = (float("nan"), float("inf"), -float("inf"), 1e39, -1e300, 1.0001, 0.0)
IMAGE = (4, 5, 3)
LONGEST = 60_000  # bytes of an attribute


def read(path: Path, obs_keys: tuple[str, ...] = ()) -> None:
    """Read demonstrations; what is accepted is finite."""
    read = Demonstrations.read(path, obs_keys=obs_keys)
    assert len(read.episode_ends) > 0
    lengths = {len(values) for values in (*read.obs.values(), read.actions, read.disturbance)}
    assert lengths == {int(read.episode_ends[-1])}
    assert all(values.isfinite().all() for values in (*read.obs.values(), read.actions, read.disturbance))


@pytest.fixture(scope="module")
def golden_hdf5(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_file(tmp_path_factory.mktemp("hdf5") / "golden.hdf5", env_args(), lengths=(5, 3))
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for name in ("next_obs", "states"):
                del demo[name]
            images = rng.integers(0, 256, (len(demo["actions"]), *IMAGE), np.uint8)
            demo.create_dataset("obs/image", data=images, chunks=(2, *IMAGE), compression="gzip")
        file["mask/train"] = np.array([b"demo_8"])
    return path.read_bytes()


HDF5_KEYS = ("object", "robot0_eef_pos", "image")


def mutated_hdf5(golden: bytes, path: Path, rng: Random) -> None:
    if rng.random() < 0.5:
        path.write_bytes(mutated_bytes(golden, rng))
        return
    path.write_bytes(golden)
    with h5py.File(path, "r+") as file, suppress(Exception):  # a second change need not be possible after the first
        for _ in range(rng.choice((1, 1, 2))):
            demo = f"data/{rng.choice(('demo_8', 'demo_9'))}"
            name = rng.choice(("actions", "rewards", "obs/object", "obs/robot0_eef_pos", "obs/image", "obs"))
            change = rng.choice((change_attribute, change_link, change_array, change_array, change_array))
            change(file, f"{demo}/{name}", rng)


def change_attribute(file: h5py.File, name: str, rng: Random) -> None:
    kind = rng.randrange(10)
    if kind < 5:
        text = json.dumps(mutated_json(json.loads(file["data"].attrs["env_args"]), rng))[:LONGEST]
        file["data"].attrs["env_args"] = rng.choice((text, np.bytes_(text)))
    elif kind < 7:
        file["data"].attrs["env_args"] = rng.choice(("[" * 5000, '{"a":' * 5000, "", "NaN", "\udcff"))
    else:
        attrs, attribute = rng.choice(((file["data"].attrs, "env_args"), (file[name].parent.attrs, "num_samples")))
        value = rng.choice(VALUES)
        del attrs[attribute]
        if value is not None and not isinstance(value, dict) and np.asarray(value).dtype != object:
            attrs[attribute] = value


def change_link(file: h5py.File, name: str, rng: Random) -> None:
    kind = rng.randrange(7)
    if kind == 0:
        del file[name]
    elif kind == 1:
        file.move(name, rng.choice((f"{name}x", f"data/demo_{rng.randrange(99)}", "data/other")))
    else:
        del file[name]
        layout = h5py.VirtualLayout(shape=(5, 7), dtype="f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(5, 7))
        if kind == 2:
            file[name] = h5py.SoftLink(rng.choice(("/nowhere", name, "/data", "/data/demo_9/actions")))
        elif kind == 3:
            file[name] = h5py.ExternalLink(rng.choice(("/dev/zero", "/nowhere.hdf5")), "/x")
        elif kind == 4:
            file.create_virtual_dataset(name, layout)
        elif kind == 5:
            file.create_dataset(name, (5, 7), "f4", external=[("/dev/zero", 0, 5 * 7 * 4)])
        else:
            file.create_group(name)


def change_array(file: h5py.File, name: str, rng: Random) -> None:
    if not isinstance(file.get(name), h5py.Dataset) or file[name].ndim == 0 or file[name].size > 10**4:
        return
    values, kind = file[name][()], rng.randrange(7)
    if kind == 0:
        values = values.astype(float).astype(rng.choice(DTYPES))
    elif kind == 1:
        values = rng.choice((values.T, values.ravel(), values[:, None], values[:0], values[:1], values[:-1]))
    elif kind == 2:
        values = np.repeat(values, 2, axis=rng.randrange(values.ndim))
    elif kind == 3:
        values = rng.choice((3.5, "text", h5py.Empty("f4"), np.zeros((0,)), np.zeros((5, 0))))
    elif kind == 4:
        del file[name]
        shape = (rng.choice((10, 10**6, 10**12)), *rng.choice(((), (7,), (3,), (84, 84, 3))))
        file.create_dataset(name, shape, rng.choice(("f4", "u1")), chunks=rng.choice((None, True)))
        return
    elif values.size:
        values = values.astype(float) if values.dtype != np.uint8 else values
        values[tuple(rng.randrange(size) for size in values.shape)] = rng.choice(BAD) if values.dtype == float else 0
    del file[name]
    file[name] = values


@pytest.fixture(scope="module")
def golden_store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("zarr") / "golden.zarr"
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(folder, {"object": (4,), "image": IMAGE}, 7, {"env_id": "asd/Square-v0", "notes": []})
    for seed, steps in enumerate((5, 3)):
        obs = {"object": rng.normal(size=(steps, 4)), "image": rng.integers(0, 256, (steps, *IMAGE), np.uint8)}
        action = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
        store.append(Demonstration(seed, obs, action, action, steps))
    store.close()
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def mutated_store(golden: dict[str, bytes], folder: Path, rng: Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in golden.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(golden))
        kind = rng.randrange(8)
        if kind == 0:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
        elif kind == 1:
            (folder / name).write_bytes(golden[rng.choice(sorted(golden))])
        elif kind == 2:
            write_bad_number(folder, rng)
        elif kind == 3 or not name.endswith(".json"):
            (folder / name).write_bytes(mutated_bytes(golden[name], rng))
        else:
            (folder / name).write_text(json.dumps(mutated_json(json.loads(golden[name]), rng)))


def write_bad_number(folder: Path, rng: Random) -> None:
    """As another program would, which knows nothing of the gate."""
    name = rng.choice(("data/action", "data/executed_action", "data/obs/object", "meta/episode_ends", "meta/seed"))
    with suppress(Exception):  # damaged before
        array = zarr.open_group(folder, mode="r+")[name]
        place = tuple(rng.randrange(size) for size in array.shape)
        array[place] = rng.choice(BAD if name.startswith("data") else (0, -1, 1, 2**40, -(2**62)))


def check_hdf5(golden: bytes, folder: Path) -> Callable[[int], None]:
    def check(seed: int) -> None:
        rng = Random(seed)
        path = folder / f"{os.getpid()}.hdf5"
        mutated_hdf5(golden, path, rng)
        read(path, rng.choice(((), HDF5_KEYS)))

    return check


def check_store(golden: dict[str, bytes], folder: Path) -> Callable[[int], None]:
    def check(seed: int) -> None:
        rng = Random(seed)
        path = folder / f"{os.getpid()}.zarr"
        mutated_store(golden, path, rng)
        read(path)

    return check


def all_findings(check: Callable[[int], None], count: int) -> list[str]:
    batches = (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
    return [found for batch in batches for found in findings(check, batch)]


@pytest.mark.parametrize("count", [100, pytest.param(INPUTS, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_damaged_hdf5_files(golden_hdf5: bytes, tmp_path: Path, count: int) -> None:
    assert all_findings(check_hdf5(golden_hdf5, tmp_path), count) == []


@pytest.mark.parametrize("count", [100, pytest.param(INPUTS, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_damaged_stores(golden_store: dict[str, bytes], tmp_path: Path, count: int) -> None:
    assert all_findings(check_store(golden_store, tmp_path), count) == []


def test_the_inputs_are_damaged_and_whole_ones_are_read(
    golden_hdf5: bytes, golden_store: dict[str, bytes], tmp_path: Path
) -> None:
    """Neither is everything refused nor everything accepted, or the tests above would show nothing."""
    for check in (check_hdf5(golden_hdf5, tmp_path), check_store(golden_store, tmp_path)):
        refused = 0
        for seed in range(40):
            try:
                check(seed)
            except DataError:
                refused += 1
        assert 10 < refused < 40

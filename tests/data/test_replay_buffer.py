"""Replay buffers of real-stanford's: read as zarr reads them; damaged and hostile ones are refused."""

import json
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr

from asd_policy.data.paths import Folder
from asd_policy.data.zarr2 import DECODERS, Zarr2Array
from asd_policy.errors import DataError
from asd_policy.training.demonstrations import Demonstrations
from tests.data import dataset_files as files


@pytest.fixture
def buffer(tmp_path):
    return files.replay_buffer(tmp_path / "buffer.zarr")


def test_equal_to_what_zarr_reads(buffer, tmp_path):
    theirs = zarr.open_group(buffer, mode="r")
    for path in (buffer, files.replay_buffer(tmp_path / "buffer.zarr.zip")):
        read = Demonstrations.read(path, obs_keys=("state", "keypoint", "img"))
        np.testing.assert_array_equal(read.obs["state"], theirs["data/state"][:])
        np.testing.assert_array_equal(read.obs["keypoint"], theirs["data/keypoint"][:].reshape(-1, 18))
        np.testing.assert_array_equal(read.obs["img"], theirs["data/img"][:])
        np.testing.assert_array_equal(read.actions, theirs["data/action"][:])
        np.testing.assert_array_equal(read.episode_ends, theirs["meta/episode_ends"][:])


def test_default_observations(buffer):
    read = Demonstrations.read(buffer)
    assert read.obs_shapes == {"img": (40, 40, 3), "state": (5,)}
    assert any("No observations: keypoint, timestamp" in note for note in read.notes)


@pytest.mark.parametrize("action_key", ["action", "action_abs"])
def test_other_actions_are_no_observations(buffer, action_key):
    add(buffer, "action_abs", np.ones((77, 2), np.float32))
    read = Demonstrations.read(buffer, action_key=action_key)
    assert read.obs_shapes == {"img": (40, 40, 3), "state": (5,)}
    other = {"action": "action_abs", "action_abs": "action"}[action_key]
    assert any("No observations: " in note and other in note for note in read.notes)
    assert Demonstrations.read(buffer, obs_keys=("action_abs",)).obs_shapes == {"action_abs": (2,)}


@pytest.mark.parametrize("obs_keys", [(), ("chw",)])
def test_channels_first(buffer, obs_keys):
    add(buffer, "chw", np.ones((77, 3, 40, 40), np.uint8))
    with pytest.raises(DataError, match=r"'chw' has steps of shape \(3, 40, 40\), an image whose channels come first"):
        Demonstrations.read(buffer, obs_keys=obs_keys)


def add(buffer, name, rows):
    """Add an array to a replay buffer."""
    root = zarr.open_group(buffer, mode="r+")
    root.create_array(f"data/{name}", shape=rows.shape, chunks=rows.shape, dtype=rows.dtype)[:] = rows


def test_pixels_as_floats(buffer, tmp_path):
    floats = files.replay_buffer(tmp_path / "floats.zarr", "float32")
    assert Demonstrations.read(floats).fingerprint() == Demonstrations.read(buffer).fingerprint()
    root = zarr.open_group(floats, mode="r+")
    root["data/img"][40, 3, 3, 1] = 0.5
    with pytest.raises(DataError, match=r"episode 1 has pixels of data/img at step 10 that are no whole numbers"):
        Demonstrations.read(floats)


@pytest.mark.parametrize("packed", [None, "blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_every_codec(tmp_path, packed, separator):
    assert packed in DECODERS
    codec = None if packed is None else numcodecs.get_codec({"id": packed})
    root = zarr.open_group(tmp_path / "a", mode="w", zarr_format=2)
    values = np.random.default_rng(0).normal(size=(33, 7, 5)).round(1).astype(np.float32)
    key_encoding = {"name": "v2", "separator": separator}
    array = root.create_array(
        "x", shape=values.shape, chunks=(8, 3, 5), dtype="f4", compressors=codec, chunk_key_encoding=key_encoding
    )
    array[:] = values
    mine = Zarr2Array(Folder(tmp_path / "a"), "a", "x")
    mine.check_whole()
    np.testing.assert_array_equal(mine.read(), values)
    np.testing.assert_array_equal(mine.read(np.array([0, 7, 8, 20, 32])), values[[0, 7, 8, 20, 32]])


def test_damage_names_the_episode_and_step(buffer):
    root = zarr.open_group(buffer, mode="r+")
    root["data/state"][35, 2] = np.nan
    with pytest.raises(DataError, match=r"episode 1: 'state' holds nan at step 5"):
        Demonstrations.read(buffer)
    root["data/state"][35, 2] = 0
    root["data/action"][76, 0] = np.inf
    with pytest.raises(DataError, match=r"episode 2: 'action' holds inf at step 24"):
        Demonstrations.read(buffer)
    with pytest.raises(DataError, match="episode 2"):
        Demonstrations.read(buffer, obs_keys=("keypoint",))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([30, 30, 77], "episode 1 ends at step 30; expected increasing ends"),
        ([0, 30, 77], "episode 0 ends at step 0"),
        ([-5, 30, 77], "episode 0 ends at step -5"),
        ([30, 52, 76], "data/action has 77 steps, but episode 2 ends at step 76"),
        ([30, 52, 900], "data/action has 77 steps, but episode 2 ends at step 900"),
    ],
)
def test_wrong_ends(buffer, ends, message):
    zarr.open_group(buffer, mode="r+")["meta/episode_ends"][:] = ends
    with pytest.raises(DataError, match=message):
        Demonstrations.read(buffer)


def test_missing_and_torn_files(buffer, tmp_path):
    chunk = buffer / "data" / "state" / "2.0"
    data = chunk.read_bytes()
    for damaged in (data[:40], b"", b"\xff" * len(data)):
        chunk.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            Demonstrations.read(buffer)
    chunk.unlink()
    with pytest.raises(DataError, match=r"steps 32 to 48 of data/state are not there"):
        Demonstrations.read(buffer)
    zipped = files.replay_buffer(tmp_path / "buffer.zarr.zip")
    whole = zipped.read_bytes()
    zipped.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="Cannot read"):
        Demonstrations.read(zipped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compressor": {"id": "pickle"}}, "compressor 'pickle'; expected none or one of blosc"),
        ({"compressor": {"id": "imagecodecs_jpegxl"}}, "compressor 'imagecodecs_jpegxl'.*Recompress"),
        ({"compressor": {"id": ["blosc"]}}, r"compressor .*; expected none or one of blosc"),
        ({"compressor": ["blosc"]}, r"compressor .*; expected none or one of blosc"),
        ({"dtype": "|O"}, r"type '\|O'; expected real numbers"),
        ({"dtype": [["a", "<f4"]]}, "expected real numbers"),
        ({"filters": [{"id": "pickle"}]}, "filters .*expected none"),
        ({"order": "F"}, "order 'F'"),
        ({"shape": [77, 10**12]}, "shape"),
        ({"shape": [77, 10**6], "chunks": [16, 10**6]}, "damaged"),
        ({"chunks": [0, 3]}, "chunks"),
        ({"chunks": [16]}, "one size for each axis"),
        ({"zarr_format": 3}, "no metadata of zarr format 2"),
        ({"shape": [77.0, 5]}, "expected integers"),
    ],
)
def test_hostile_metadata(buffer, change, message):
    path = buffer / "data" / "state" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        Demonstrations.read(buffer)


def test_bombs(tmp_path):
    """Chunks that declare, or hold, more than their array."""
    shape, size = (4, 1000), 16000
    for packed, bomb in {
        "zlib": numcodecs.Zlib().encode(bytes(10**7)),
        "bz2": numcodecs.BZ2().encode(bytes(10**7)),
        "zstd": numcodecs.Zstd().encode(bytes(10**7)),
        "blosc": bytes(numcodecs.Blosc().encode(bytes(10**7))),
        "lz4": (2**31 - 1).to_bytes(4, "little") + bytes(100),
    }.items():
        with pytest.raises(ValueError, match=f"expected {size}"):
            DECODERS[packed](bomb, size)
    path = tmp_path / "bomb.zip"
    meta = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "<f4", "order": "C", "filters": None}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(".zgroup", '{"zarr_format": 2}')
        for name in ("data/action", "meta/episode_ends"):
            file.writestr(f"{name}/.zarray", json.dumps(meta | {"compressor": None}))
            file.writestr(f"{name}/0.0", bytes(10**8))
    with pytest.raises(DataError, match="episode_ends has shape"):
        Demonstrations.read(path)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(".zgroup", "{}")
        file.writestr("data/action/.zarray", bytes(10**7))
    with pytest.raises(DataError, match="longer than the 1048576 bytes"):
        Demonstrations.read(tmp_path / "c.zip")


def test_links_out_of_the_folder(buffer, tmp_path):
    chunk, outside = buffer / "data" / "state" / "0.0", tmp_path / "secret"
    chunk.rename(outside)
    chunk.symlink_to(outside)
    with pytest.raises(DataError, match="outside of the dataset"):
        Demonstrations.read(buffer)


def test_a_zip_file_with_a_folder_in_it(buffer, tmp_path):
    zipped = tmp_path / "nested.zarr.zip"
    with zipfile.ZipFile(zipped, "w") as file:
        for path in sorted(buffer.rglob("*")):
            if path.is_file():
                file.write(path, f"inner/{path.relative_to(buffer)}")
    assert Demonstrations.read(zipped).fingerprint() == Demonstrations.read(buffer).fingerprint()

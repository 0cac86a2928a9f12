"""LeRobotDatasets: read as lerobot reads them; damaged ones are refused with their episode and frame."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy.data import lazy_images
from asd_policy.data.dataset import Choice
from asd_policy.data.formats import open_dataset, pinned
from asd_policy.data.lazy_images import LazyImages
from asd_policy.errors import ConfigError, DataError
from asd_policy.training.demonstrations import Demonstrations
from tests.data import dataset_files as files
from tests.fake_hub import serving

pytest.importorskip("pyarrow", reason="LeRobotDataset needs pyarrow")
av = pytest.importorskip("av", reason="videos need PyAV")

ROWS = torch.tensor([0, 11, 12, 26])
"""Rows of expected.npz; see lerobot/make.py."""
TOP = "observation.images.top"
VECTORS = ("observation.state", "observation.environment_state", "action")
LENGTHS = (12, 15)


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return files.lerobot(tmp_path / "v3")


@pytest.fixture
def v21(tmp_path: Path) -> Path:
    return files.lerobot(tmp_path / "v21", "v21_video")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return files.lerobot(tmp_path / "images", "v3_image")


@pytest.mark.parametrize("kind", ["v3_video", "v3_image", "v21_video"])
def test_equal_to_what_lerobot_reads(kind: str) -> None:
    expected = np.load(files.LEROBOT / f"{kind}.npz")
    read = Demonstrations.read(files.LEROBOT / kind)
    assert (read.episode_ends.tolist(), read.env_id, read.action_kind) == ([12, 27], "toy", "other")
    np.testing.assert_array_equal(read.obs[TOP][ROWS].numpy(), expected[TOP])
    for name in set(VECTORS) & set(expected.files):
        values = read.actions if name == "action" else read.obs[name]
        np.testing.assert_array_equal(values[ROWS].numpy(), expected[name])


def test_versions_hold_the_same(v3: Path, v21: Path) -> None:
    """lerobot 0.4.4 and 0.3.3 were given the same numbers."""
    new, old = Demonstrations.read(v3), Demonstrations.read(v21)
    for name in VECTORS[:2]:
        assert torch.equal(new.obs[name], old.obs[name])
    assert torch.equal(new.actions, old.actions)


@pytest.mark.parametrize("kind", ["v3_video", "v3_image"])
def test_normalisation_equals_lerobots_statistics(kind: str) -> None:
    expected = np.load(files.LEROBOT / f"{kind}.npz")
    normalizer = Demonstrations.read(files.LEROBOT / kind).fit_normalizer({})
    for name in VECTORS:
        for statistic, end in (("min", -1), ("max", 1)):
            value = torch.from_numpy(expected[f"{name} {statistic}"]).float()
            torch.testing.assert_close(normalizer.normalize(name, value), torch.full_like(value, end))


def test_key_choice(v3: Path) -> None:
    read = Demonstrations.read(v3, obs_keys=("observation.environment_state",), action_key="observation.state")
    assert read.obs_shapes == {"observation.environment_state": (3,)}
    assert read.actions.shape == (27, 2)
    with pytest.raises(ConfigError, match="Unknown vector"):
        Demonstrations.read(v3, action_key=TOP)


def test_notes_tell_the_rate_and_the_tasks(v3: Path) -> None:
    notes = Demonstrations.read(v3).notes
    assert any("Recorded at 10 Hz. Steps are not resampled" in note for note in notes)
    assert any("has 2 tasks" in note for note in notes)


def test_images_are_decoded_when_they_are_used(v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Demonstrations.read(v3).obs[TOP]
    assert isinstance(images, LazyImages)
    whole, reads = images.in_memory(), []
    read = type(images.reader).read
    monkeypatch.setattr(type(images.reader), "read", lambda self, rows: reads.append(rows.tolist()) or read(self, rows))
    index = torch.tensor([[3, 3], [20, 1]])
    assert torch.equal(images[index], whole[index])
    assert torch.equal(images[index], whole[index])
    assert reads == [[1, 3, 20]]  # each once; then from the cache
    part = images[12:]
    assert torch.equal(part[torch.tensor([8])], whole[[20]])
    assert len(reads) == 1  # parts share the cache
    monkeypatch.setattr(lazy_images, "CACHE_BYTES", 2 * 64 * 64 * 3)
    images[torch.arange(10)]
    assert len(images._cache) == 2


def test_random_access_equals_reading_in_order(v3: Path) -> None:
    images = Demonstrations.read(v3).obs[TOP]
    whole = images.in_memory()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        index = torch.randint(27, (9,), generator=generator)
        fresh = LazyImages(images.reader, images._rows)
        assert torch.equal(fresh[index], whole[index])


def test_fingerprint(v3: Path) -> None:
    before = Demonstrations.read(v3).fingerprint()
    assert Demonstrations.read(v3).fingerprint() == before
    video = v3 / "videos" / TOP / "chunk-000" / "file-000.mp4"
    write_video(video, [np.full((64, 64, 3), t, np.uint8) for t in range(27)], 10)
    assert Demonstrations.read(v3).fingerprint() != before


def test_hub(v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    held = {path.relative_to(v3).as_posix(): path.read_bytes() for path in v3.rglob("*") if path.is_file()}
    with serving(tmp_path / "cache", monkeypatch) as hub:
        commit = hub.commit("user/made", held | {"secret.pkl": b"x"}, kind="datasets")
        read = Demonstrations.read("user/made")
        assert Demonstrations.read(f"user/made@{commit}").fingerprint() == read.fingerprint()
        assert pinned("user/made") == f"user/made@{commit}"
        assert not any("secret" in request for request in hub.requests)
    assert read.fingerprint() == Demonstrations.read(v3).fingerprint()
    assert Demonstrations.read("user/made").fingerprint() == read.fingerprint()  # from the cache


def test_missing_packages(v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"Videos need PyAV \(pip install 'asd-policy\[lerobot-data\]'\)"):
        Demonstrations.read(v3)
    assert Demonstrations.read(v3, obs_keys=("observation.state",)).obs_shapes == {"observation.state": (2,)}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"LeRobotDataset needs pyarrow \(pip install 'asd-policy\[lerobot-data\]'\)"):
        Demonstrations.read(v3)


def write_video(path: Path, frames: list[np.ndarray], fps: int) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", fps, options={"g": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


FRAMES = [np.full((64, 64, 3), 5 * t, np.uint8) for t in range(27)]


def test_a_video_that_is_too_short(v3: Path, v21: Path) -> None:
    write_video(v3 / "videos" / TOP / "chunk-000" / "file-000.mp4", FRAMES[:20], 10)
    with pytest.raises(DataError, match=r"episode 1 has 15 steps at 10 Hz, but its video .* has no image for frame 8"):
        Demonstrations.read(v3)
    write_video(v21 / "videos/chunk-000" / TOP / "episode_000000.mp4", FRAMES[:1], 10)
    with pytest.raises(DataError, match=r"episode 0 has 12 steps at 10 Hz, .* has no image for frame 1"):
        Demonstrations.read(v21)


def test_a_video_of_another_rate(v3: Path) -> None:
    write_video(v3 / "videos" / TOP / "chunk-000" / "file-000.mp4", FRAMES, 15)
    with pytest.raises(DataError, match=r"episode 0 .* no image for frame 1: .* another frame rate"):
        Demonstrations.read(v3)


def test_a_longer_video_is_taken_by_its_times(v3: Path) -> None:
    """A video at three times the rate holds a frame at each step's time."""
    write_video(v3 / "videos" / TOP / "chunk-000" / "file-000.mp4", [frame for frame in FRAMES for _ in range(3)], 30)
    images = Demonstrations.read(v3).obs[TOP]
    assert (images.in_memory()[:, 0, 0, 0].int() - torch.arange(27) * 5).abs().max() <= 3


def test_videos_that_are_missing_or_damaged(v3: Path) -> None:
    video = v3 / "videos" / TOP / "chunk-000" / "file-000.mp4"
    whole = video.read_bytes()
    for data in (b"", whole[:500], b"\xff" * 3000):
        video.write_bytes(data)
        with pytest.raises(DataError, match=f"episode 0, '{TOP}': .* is damaged"):
            Demonstrations.read(v3)
    video.unlink()
    with pytest.raises(DataError, match=f"episode 0, '{TOP}': Cannot read .*there is no such file"):
        Demonstrations.read(v3)
    write_video(video, [np.zeros((64, 128, 3), np.uint8)] * 27, 10)
    with pytest.raises(DataError, match=r"frames of shape \(64, 128, 3\); expected \(64, 64, 3\)"):
        Demonstrations.read(v3)


def test_a_frame_that_cannot_be_decoded_is_named(v3: Path) -> None:
    """The index is sound, so the damage shows when the frame is used."""
    video = v3 / "videos" / TOP / "chunk-000" / "file-000.mp4"
    data, size = bytearray(video.read_bytes()), video.stat().st_size
    begin = data.index(b"mdat")
    data[begin + 200 : size - 20] = b"\x00" * (size - 20 - begin - 200) if data.index(b"moov") < begin else data[200:]
    video.write_bytes(data)
    images = Demonstrations.read(v3).obs[TOP]
    with pytest.raises(DataError, match=r"from episode \d, frame \d+ on: .*frame \d+ cannot be decoded"):
        images.in_memory()


def cell(column: str, row: int, value: object):
    def change(columns):
        columns[column][row] = value

    return change


def without(column: str):
    return lambda columns: columns.pop(column)


def drop_row(row: int):
    def change(columns):
        for values in columns.values():
            del values[row]

    return change


def convert(column: str, kind: type):
    def change(columns):
        columns[column] = [kind(value) for value in columns[column]]

    return change


DATA_CHANGES = {
    "nan": (cell("observation.state", 15, [float("nan"), 0.0]), r"episode 1: 'observation.state' holds nan at step 3"),
    "inf action": (cell("action", 2, [0.0, float("inf")]), r"episode 0: 'action' holds inf at step 2"),
    "gap in frame_index": (cell("frame_index", 14, 3), "episode 1 has frame_index 3 at frame 2; expected 2"),
    "other episode": (cell("episode_index", 14, 0), "episode 1 has episode_index 0 at frame 2; expected 1"),
    "gap in index": (cell("index", 3, 30), "episode 0 has index 30 at frame 3; expected 3"),
    "time": (cell("timestamp", 13, 0.2), "episode 1 has timestamp 0.2 s at frame 1; expected 0.1 s at the 10 Hz"),
    "nan time": (cell("timestamp", 13, float("nan")), "episode 1 has timestamp nan s at frame 1"),
    "task": (cell("task_index", 3, 2), "episode 0 has task_index 2 at frame 3; its tasks are 0 to 1"),
    "float task": (convert("task_index", float), "episode 0: task_index has type float64; expected integers"),
    "ragged": (cell("observation.state", 4, [1.0]), "row 4 has 1 numbers of 'observation.state'; expected 2"),
    "empty cell": (cell("action", 4, None), "row 4 has no 'action'"),
    "empty number": (cell("action", 4, [None, 1.0]), "'action' has type"),
    "text": (convert("timestamp", str), "'timestamp' has type .*string.*; expected 1 numbers"),
    "missing column": (without("action"), "lacks the column 'action'"),
    "missing row": (drop_row(16), r"has 26 rows, but its episodes have 27: episode 1 has 14 of 15, so frame 14"),
}


@pytest.mark.parametrize(("change", "message"), DATA_CHANGES.values(), ids=DATA_CHANGES)
def test_damaged_rows(v3: Path, tmp_path: Path, change, message: str) -> None:
    files.edit_table(v3 / "data" / "chunk-000" / "file-000.parquet", change)
    with pytest.raises(DataError, match=message):
        Demonstrations.read(v3, obs_keys=("observation.state",))


INFO_CHANGES = {
    "version": ({"codebase_version": "v1.6"}, "expected v2.0, v2.1 or v3.0"),
    "fps": ({"fps": 20}, "episode 0 has timestamp 0.1 s at frame 1; expected 0.05 s at the 20 Hz"),
    "no fps": ({"fps": None}, "fps is 'None'; expected a number above 0"),
    "features": ({"features": {}}, "expected 1 to 1000 features"),
    "shape": ({"features": {"action": {"dtype": "float32", "shape": ["2"]}}}, "expected a dtype and a shape"),
    "path": ({"data_path": "../../secret/{chunk_index}.parquet"}, "data_path is .*; expected lerobot's"),
    "format string": ({"video_path": "{video_key.__class__}"}, "video_path is .*; expected lerobot's"),
    "key": ({"features": {"../x": {"dtype": "float32", "shape": [2]}}}, "expected a printable name"),
    "episodes": ({"total_episodes": 3}, "total_episodes is 3, but its episodes have 2. Is it complete"),
    "frames": ({"total_frames": 28}, "total_frames is 28, but its episodes have 27"),
}


@pytest.mark.parametrize(("change", "message"), INFO_CHANGES.values(), ids=INFO_CHANGES)
def test_damaged_info(v3: Path, change, message: str) -> None:
    files.edit_json(v3 / "meta" / "info.json", lambda values: values.update(change))
    with pytest.raises(DataError, match=message):
        Demonstrations.read(v3, obs_keys=("observation.state",))


EPISODES_CHANGES = {
    "gap": (cell("episode_index", 1, 2), "episode_index 2 stands where 1 is expected"),
    "length": (cell("length", 1, 0), "episode 1 has length 0"),
    "place": (cell("data/file_index", 1, -1), "episode 1 lies in data"),
    "start": (cell(f"videos/{TOP}/from_timestamp", 1, -1.0), "episode 1 begins at -1.0 s"),
    "file": (cell("data/file_index", 1, 7), "file-007.parquet: there is no such file|file-000.parquet has 27 rows"),
    "column": (without("length"), "lacks the column 'length'"),
}


@pytest.mark.parametrize(("change", "message"), EPISODES_CHANGES.values(), ids=EPISODES_CHANGES)
def test_damaged_table_of_episodes(v3: Path, change, message: str) -> None:
    files.edit_table(v3 / "meta" / "episodes" / "chunk-000" / "file-000.parquet", change)
    with pytest.raises(DataError, match=message):
        Demonstrations.read(v3, obs_keys=("observation.state",))


def test_empty_and_missing_files(v3: Path, v21: Path) -> None:
    (v21 / "meta" / "episodes.jsonl").write_text("")
    with pytest.raises(DataError, match="the dataset has no episodes"):
        Demonstrations.read(v21)
    (v21 / "meta" / "episodes.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="line 1 holds no JSON"):
        Demonstrations.read(v21)
    for name in ("meta/tasks.parquet", "meta/episodes", "data/chunk-000/file-000.parquet"):
        root = v3.with_name("copy")
        shutil.copytree(v3, root)
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
        with pytest.raises(DataError, match="Cannot read"):
            Demonstrations.read(root)
        shutil.rmtree(root)
    table = v3 / "data" / "chunk-000" / "file-000.parquet"
    table.write_bytes(table.read_bytes()[:3000])
    with pytest.raises(DataError, match="is damaged"):
        Demonstrations.read(v3)


def test_links_out_of_the_folder(v3: Path, tmp_path: Path) -> None:
    table = v3 / "data" / "chunk-000" / "file-000.parquet"
    table.rename(tmp_path / "elsewhere.parquet")
    table.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(DataError, match="outside of the dataset"):
        Demonstrations.read(v3)


def test_images_that_are_damaged(images: Path) -> None:
    def torn(columns):
        columns[TOP][14]["bytes"] = columns[TOP][14]["bytes"][:60]

    def outside(columns):
        columns[TOP][14] = {"bytes": None, "path": "/etc/passwd"}

    def larger(columns):
        columns[TOP][14]["bytes"] = png(np.zeros((128, 64, 3), np.uint8))

    table = images / "data" / "chunk-000" / "file-000.parquet"
    whole = table.read_bytes()
    for change, message in (
        (torn, f"the image '{TOP}' of episode 1, frame 2 cannot be read"),
        (outside, f"has no bytes of '{TOP}'"),
        (larger, r"episode 1, frame 2 cannot be read: it has 128 x 64 pixels; expected 64 x 64"),
    ):
        table.write_bytes(whole)
        files.edit_table(table, change)
        with pytest.raises(DataError, match=message):
            Demonstrations.read(images).obs[TOP].in_memory()


def png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_rows_beyond_the_file_are_not_read(v3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asd_policy.data.lerobot.parquet.ALWAYS", 100)
    monkeypatch.setattr("asd_policy.data.lerobot.parquet.MAX_RATIO", 0)
    with pytest.raises(DataError, match=r"declares 2 rows; its .* bytes cannot hold them"):
        open_dataset(v3, Choice())

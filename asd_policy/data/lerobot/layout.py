"""The metadata of a LeRobotDataset from an untrusted folder: features, episodes, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asd_policy.checks import is_count, is_number
from asd_policy.data.gate import CHANNELS, MAX_KEYS, check_key
from asd_policy.data.lerobot.parquet import read_table
from asd_policy.data.paths import check_inside
from asd_policy.errors import DataError

MAX_JSON_BYTES = 1 << 28  # episodes.jsonl of version 2 has a line for each episode
MAX_STEPS = 1 << 30
OBSERVATION = "observation."

PATHS = {
    2: (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    3: (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
"""Version -> lerobot's templates of data and video files. Templates of strangers are not formatted."""


@dataclass(frozen=True)
class Feature:
    """One column.

    Attributes:
        dtype: "image", "video", or numpy's name of a type.
        shape: of one step; (H, W, C) for images and videos.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        return self.dtype in ("image", "video")


@dataclass(frozen=True)
class Episode:
    """One episode and where it lies.

    Attributes:
        index: its number.
        length: number of steps.
        data: the Parquet file with its rows, relative to the dataset.
        videos: video key -> the file and the time of its first frame there, in seconds.
    """

    index: int
    length: int
    data: str
    videos: Mapping[str, tuple[str, float]]

    @property
    def name(self) -> str:
        return f"episode {self.index}"


@dataclass(frozen=True)
class Layout:
    """The metadata of a dataset.

    Attributes:
        root: its folder.
        version: 2 or 3.
        fps: steps per second.
        robot_type: the robot, if named.
        features: columns by name.
        episodes: the episodes in order.
        tasks: number of tasks.
    """

    root: Path
    version: int
    fps: float
    robot_type: str | None
    features: Mapping[str, Feature]
    episodes: tuple[Episode, ...]
    tasks: int

    @classmethod
    def read(cls, root: Path) -> Layout:
        """Read the files in `meta`.

        Raises:
            DataError: if one is missing or damaged, or the version is not supported.
            ConfigError: if pyarrow is not installed.
        """
        info = read_json(root, "meta/info.json")
        where = f"{root}/meta/info.json"
        version = _version(where, info.get("codebase_version"))
        fps = info.get("fps")
        if not isinstance(fps, int | float) or not is_number(fps) or not 0 < fps < 1e6:
            raise DataError(f"{where}: fps is {str(fps)[:80]!r}; expected a number above 0.")
        features = _features(where, info.get("features"))
        for name, expected in zip(("data_path", "video_path"), PATHS[version], strict=True):
            videos = any(feature.dtype == "video" for feature in features.values())
            if (name == "data_path" or videos) and info.get(name) != expected:
                raise DataError(f"{where}: {name} is {str(info.get(name))[:200]!r}; expected lerobot's {expected!r}.")
        episodes = _episodes_2(root, info, features) if version == 2 else _episodes_3(root, features)
        _check_counts(where, info, episodes)
        robot = info.get("robot_type")
        return cls(
            root,
            version,
            float(fps),
            robot if isinstance(robot, str) else None,
            features,
            episodes,
            _tasks(root, version),
        )


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of the dataset. Raises DataError if it is missing, too large, or holds none."""
    text = _text(root, name)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{root}/{name} holds no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{root}/{name} holds no JSON object but {type(values).__name__}.")
    return values


def _text(root: Path, name: str) -> str:
    path = check_inside(root, name)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_JSON_BYTES}.")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}. Is the dataset complete?") from error


def _version(where: str, said: Any) -> int:
    for version in PATHS:
        if isinstance(said, str) and said.startswith(f"v{version}."):
            return version
    raise DataError(
        f"{where}: codebase_version is {str(said)[:80]!r}; expected v2.0, v2.1 or v3.0. Convert it with lerobot."
    )


def _features(where: str, said: Any) -> dict[str, Feature]:
    if not isinstance(said, dict) or not 1 <= len(said) <= MAX_KEYS:
        raise DataError(f"{where}: features is {type(said).__name__}; expected 1 to {MAX_KEYS} features by name.")
    features = {}
    for name, values in said.items():
        check_key(where, name)
        dtype, shape = (values.get("dtype"), values.get("shape")) if isinstance(values, dict) else (None, None)
        sound = isinstance(dtype, str) and isinstance(shape, list) and all(is_count(n) and n < 2**31 for n in shape)
        if not sound or not isinstance(shape, list) or not isinstance(dtype, str):
            raise DataError(f"{where}: feature {name!r} is {str(values)[:200]}; expected a dtype and a shape.")
        sizes = tuple(shape)
        if dtype in ("image", "video"):
            sizes = _image_shape(where, name, sizes, values.get("names"))
        features[name] = Feature(dtype, sizes)
    return features


def _image_shape(where: str, name: str, shape: tuple[int, ...], names: Any) -> tuple[int, ...]:
    """(H, W, C), whichever order the shape has: `names` says it."""
    if len(shape) == 3:
        first = isinstance(names, list) and len(names) == 3 and str(names[0]).startswith("channel")
        last = isinstance(names, list) and len(names) == 3 and str(names[2]).startswith("channel")
        if (first or (not last and shape[2] not in CHANNELS)) and shape[0] in CHANNELS:
            return shape[1], shape[2], shape[0]
        if shape[2] in CHANNELS:
            return shape
    raise DataError(f"{where}: image {name!r} has shape {shape} and names {str(names)[:100]}; expected (H, W, C).")


def _episodes_2(root: Path, info: Mapping[str, Any], features: Mapping[str, Feature]) -> tuple[Episode, ...]:
    where, size = f"{root}/meta/episodes.jsonl", info.get("chunks_size")
    if not is_count(size):
        raise DataError(f"{root}/meta/info.json: chunks_size is {str(size)[:80]!r}; expected at least 1.")
    episodes = []
    for number, line in enumerate(_text(root, "meta/episodes.jsonl").splitlines()):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: line {number + 1} holds no JSON: {error}.") from error
        index, length = (entry.get("episode_index"), entry.get("length")) if isinstance(entry, dict) else (None, None)
        _check_episode(where, number, index, length)
        places = {"episode_chunk": number // int(str(size)), "episode_index": number}
        videos = {
            key: (PATHS[2][1].format(video_key=key, **places), 0.0)
            for key, feature in features.items()
            if feature.dtype == "video"
        }
        episodes.append(Episode(number, int(str(length)), PATHS[2][0].format(**places), videos))
    return tuple(episodes)


def _episodes_3(root: Path, features: Mapping[str, Feature]) -> tuple[Episode, ...]:
    folder = root / "meta" / "episodes"
    files = sorted(path.relative_to(root).as_posix() for path in folder.glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"Cannot read {folder}: there are no files. Is the dataset complete?")
    videos = [key for key, feature in features.items() if feature.dtype == "video"]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{name}" for key in videos for name in ("chunk_index", "file_index", "from_timestamp")]
    episodes: list[Episode] = []
    for file in files:
        table = read_table(root, file, dict.fromkeys(columns, 1))
        for values in zip(*(table[name].tolist() for name in columns), strict=True):
            entry = dict(zip(columns, values, strict=True))
            _check_episode(f"{root}/{file}", len(episodes), entry["episode_index"], entry["length"])
            episodes.append(_episode_3(f"{root}/{file}", entry, videos))
    return tuple(episodes)


def _episode_3(where: str, entry: Mapping[str, Any], videos: list[str]) -> Episode:
    def path(template: str, prefix: str, **more: str) -> str:
        numbers = {name: entry[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
        if not all(is_count(number, least=0) for number in numbers.values()):
            raise DataError(f"{where}: episode {entry['episode_index']} lies in {prefix} {numbers}; expected numbers.")
        return template.format(**numbers, **more)

    data, template = path(PATHS[3][0], "data"), PATHS[3][1]
    places = {}
    for key in videos:
        start = entry[f"videos/{key}/from_timestamp"]
        if not is_number(start) or start < 0:
            raise DataError(
                f"{where}: episode {entry['episode_index']} begins at {start} s of {key!r}; expected 0 or more."
            )
        places[key] = path(template, f"videos/{key}", video_key=key), float(start)
    return Episode(entry["episode_index"], entry["length"], data, places)


def _check_episode(where: str, number: int, index: Any, length: Any) -> None:
    if index != number or not is_count(index, least=0):
        raise DataError(
            f"{where}: episode_index {str(index)[:40]} stands where {number} is expected; episodes must be numbered "
            "without gaps."
        )
    if not is_count(length) or length > MAX_STEPS:
        raise DataError(f"{where}: episode {number} has length {str(length)[:40]}; expected at least 1.")


def _check_counts(where: str, info: Mapping[str, Any], episodes: tuple[Episode, ...]) -> None:
    """Raise DataError unless the episodes are as many as the dataset says."""
    got = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    if not episodes:
        raise DataError(f"{where}: the dataset has no episodes; expected at least one.")
    for name, count in got.items():
        if info.get(name) != count:
            raise DataError(
                f"{where}: {name} is {str(info.get(name))[:40]}, but its episodes have {count}. Is it complete?"
            )


def _tasks(root: Path, version: int) -> int:
    """The number of tasks."""
    if version == 3:
        return len(read_table(root, "meta/tasks.parquet", {"task_index": 1})["task_index"])
    return len(_text(root, "meta/tasks.jsonl").splitlines())

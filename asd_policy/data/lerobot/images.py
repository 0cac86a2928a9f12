"""Images of a LeRobotDataset, decoded when they are used: from MP4 files, or from images inside of Parquet files."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.lazy_images import CACHE_BYTES
from asd_policy.data.lerobot.layout import Episode, Layout
from asd_policy.data.lerobot.parquet import open_parquet, read_bytes, reading
from asd_policy.data.lerobot.video import VideoFile
from asd_policy.data.paths import check_inside
from asd_policy.errors import ConfigError, DataError

TOLERANCE = 1e-3
"""Seconds by which a frame's time may differ from its row's; MP4 files round times to ticks."""
MAX_OPEN = 16  # video files
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> Pillow's mode."""


def place_of(episodes: Sequence[Episode], starts: Sequence[int], row: int) -> str:
    """The episode and frame of a row, for messages."""
    at = bisect_right(starts, row) - 1
    return f"{episodes[at].name}, frame {row - starts[at]}"


class VideoImages:
    """Frames of one video key. It implements `asd_policy.data.lazy_images.ImageReader`.

    Args:
        layout: the dataset.
        key: the video key.

    Raises:
        DataError: if a video is missing or damaged, or lacks a frame for a row of its episode; the message names the
            episode and the frame.
    """

    compressed = True

    def __init__(self, layout: Layout, key: str):
        self._layout, self._key = layout, key
        height, width, channels = layout.features[key].shape
        self.shape = height, width, channels
        self._files: dict[str, VideoFile] = {}
        self._open: OrderedDict[str, VideoFile] = OrderedDict()
        self._starts, total = list[int](), 0
        frames = []
        for episode in layout.episodes:
            self._starts.append(total)
            total += episode.length
            frames.append(self._find(episode))
        self._frames = np.concatenate(frames)  # number of each row's frame in its file

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `ImageReader.read`."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        names = [self._layout.episodes[episode].videos[self._key][0] for episode in which]
        for name in dict.fromkeys(names):
            mine = np.flatnonzero([other == name for other in names])
            # Rows of one file have increasing frames, because episodes lie in it one after the other.
            order = mine[np.argsort(self._frames[rows[mine]], kind="stable")]
            try:
                images[order] = self._file(name).frames(self._frames[rows[order]])
            except DataError as error:
                first = place_of(self._layout.episodes, self._starts, int(rows[order[0]]))
                raise DataError(f"{self._layout.root}: {self._key!r} from {first} on: {error}") from error
        return images

    def fingerprint(self) -> str:
        """A hash of the encoded frames and of their assignment to rows."""
        digest = hashlib.sha256(self._frames.tobytes())
        for name, file in self._files.items():
            digest.update(f"{name} {file.digest}".encode())
        return digest.hexdigest()

    def _find(self, episode: Episode) -> NDArray[np.int64]:
        """The number of each step's frame in the episode's video."""
        name, start = episode.videos[self._key]
        if name not in self._files:
            try:
                self._files[name] = VideoFile(check_inside(self._layout.root, name), self.shape)
            except DataError as error:
                raise DataError(f"{self._layout.root}: {episode.name}, {self._key!r}: {error}") from error
        times, fps = self._files[name].times, self._layout.fps
        wanted = start + np.arange(episode.length) / fps
        after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
        nearest = after - (np.abs(wanted - times[after - 1]) <= np.abs(times[after.clip(max=len(times) - 1)] - wanted))
        off = np.abs(times[nearest] - wanted)
        if (bad := np.flatnonzero(off > min(TOLERANCE, 0.25 / fps))).size:
            frame = int(bad[0])
            raise DataError(
                f"{self._layout.root}: {episode.name} has {episode.length} steps at {fps:g} Hz, but its video {name} "
                f"has no image for frame {frame}: the nearest of {len(times)} is {off[frame]:.4g} s off. The video is "
                "too short, or of another frame rate."
            )
        numbers: NDArray[np.int64] = nearest.astype(np.int64)
        return numbers

    def _file(self, name: str) -> VideoFile:
        """A video file, of which the last few stay open."""
        self._open[name] = self._files[name]
        self._open.move_to_end(name)
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return self._files[name]


class Group(NamedTuple):
    """A row group of a Parquet file."""

    file: str
    number: int
    rows: int


class ParquetImages:
    """Images inside of Parquet files. It implements `asd_policy.data.lazy_images.ImageReader`.

    Args:
        layout: the dataset.
        key: the image key.

    Raises:
        ConfigError: if Pillow is not installed.
        DataError: if a file is missing or damaged.
    """

    compressed = True

    def __init__(self, layout: Layout, key: str):
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"Images need Pillow (pip install 'asd-policy[lerobot-data]'): {error}.") from error
        self._layout, self._key = layout, key
        height, width, channels = layout.features[key].shape
        self.shape = height, width, channels
        self._groups: list[Group] = []
        for name in dict.fromkeys(episode.data for episode in layout.episodes):
            with open_parquet(layout.root, name) as file, reading(layout.root / name):
                sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._groups += [Group(name, number, rows) for number, rows in enumerate(sizes)]
        self._begins = np.cumsum([0, *(group.rows for group in self._groups)])[:-1]
        self._starts = np.cumsum([0, *(episode.length for episode in layout.episodes)])[:-1].tolist()
        self._encoded: OrderedDict[int, list[bytes]] = OrderedDict()

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `ImageReader.read`."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        groups = np.searchsorted(self._begins, rows, side="right") - 1
        for place, (row, group) in enumerate(zip(rows.tolist(), groups.tolist(), strict=True)):
            images[place] = self._decoded(row, self._group(group)[row - int(self._begins[group])])
        return images

    def fingerprint(self) -> str:
        """A hash of the files that hold the images."""
        digest = hashlib.sha256()
        for name in dict.fromkeys(group.file for group in self._groups):
            with check_inside(self._layout.root, name).open("rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _group(self, number: int) -> list[bytes]:
        """The encoded images of a row group, of which the last ones stay in memory."""
        if number not in self._encoded:
            group = self._groups[number]
            self._encoded[number] = read_bytes(self._layout.root, group.file, self._key, group.number)
        self._encoded.move_to_end(number)
        while len(self._encoded) > 1 and sum(len(x) for xs in self._encoded.values() for x in xs) > CACHE_BYTES:
            self._encoded.popitem(last=False)
        return self._encoded[number]

    def _decoded(self, row: int, data: bytes) -> NDArray[np.uint8]:
        from PIL import Image

        height, width, channels = self.shape
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if (image.height, image.width) != (height, width):  # before anything is decoded
                    raise DataError(f"it has {image.height} x {image.width} pixels; expected {height} x {width}")
                pixels = np.asarray(image.convert(MODES[channels]), np.uint8)
        except Exception as error:  # Pillow raises many types on damage
            where = place_of(self._layout.episodes, self._starts, row)
            raise DataError(
                f"{self._layout.root}: the image {self._key!r} of {where} cannot be read: {error!s:.300}."
            ) from error
        return pixels.reshape(self.shape)


def image_reader(layout: Layout, key: str) -> VideoImages | ParquetImages:
    """The reader of an image key."""
    return VideoImages(layout, key) if layout.features[key].dtype == "video" else ParquetImages(layout, key)

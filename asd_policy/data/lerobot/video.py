"""Frames of untrusted MP4 files, decoded one by one with PyAV; and new AV1 files."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.errors import AsdPolicyError, ConfigError, DataError

CODEC = "libsvtav1"
FORWARD = 16
"""Frames that are decoded and dropped rather than looked for from the previous key frame."""


def import_av() -> Any:
    """PyAV. Raises ConfigError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"Videos need PyAV (pip install 'asd-policy[lerobot-data]'): {error}.") from error
    return av


class VideoFile:
    """An MP4 file. Its frames are numbered in the order in which they are shown.

    Args:
        path: the file.
        shape: H, W and C of a frame as the dataset declares it.

    Attributes:
        times: (N,) float64, the time of each frame in seconds.
        digest: a hash of the encoded frames.

    Raises:
        ConfigError: if PyAV is not installed.
        DataError: if the file is missing, damaged, or has frames of another shape.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        self.path, self.shape = path, shape
        self._av = import_av()
        self._container: Any = None
        self._frames: Any = None
        self._next = 0  # number of the frame that `_frames` gives next
        if not path.is_file():
            raise DataError(f"Cannot read {path}: there is no such file. Is the dataset complete?")
        try:
            self._index()
        except AsdPolicyError:
            raise
        except Exception as error:  # PyAV raises many types on damage
            raise DataError(f"{path} is damaged: {type(error).__name__}: {error!s:.300}.") from error
        finally:
            self.close()

    def frames(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode frames.

        Args:
            numbers: (n,) increasing.

        Returns:
            (n, H, W, 3).

        Raises:
            DataError: naming the first frame that cannot be decoded.
        """
        images = np.empty((len(numbers), *self.shape), np.uint8)
        for place, number in enumerate(numbers.tolist()):
            try:
                images[place] = self._frame(number)
            except Exception as error:
                self.close()
                raise DataError(
                    f"{self.path}: frame {number} cannot be decoded: {type(error).__name__}: {error!s:.300}."
                ) from error
        return images

    def close(self) -> None:
        """Close the file. `frames` opens it again."""
        if self._container is not None:
            self._container.close()
        self._container = self._frames = None

    def _open(self) -> Any:
        self._container = self._av.open(str(self.path), format="mp4")
        if not self._container.streams.video:
            raise DataError(f"{self.path} holds no video.")
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1  # many files may be open; threads do not help with single frames
        return stream

    def _index(self) -> None:
        """Find the time of each frame and the key frames, without decoding."""
        stream = self._open()
        height, width, channels = self.shape
        got = stream.codec_context.height, stream.codec_context.width, 3
        if got != self.shape:
            raise DataError(f"{self.path} has frames of shape {got}; expected {(height, width, channels)}.")
        digest, stamps, keys = hashlib.sha256(), list[int](), list[int]()
        for packet in self._container.demux(stream):
            if packet.pts is None or packet.is_discard:  # the last packet is empty
                continue
            digest.update(packet.pts.to_bytes(8, "little", signed=True) + bytes(packet))
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        if not keys:
            raise DataError(f"{self.path} holds {len(stamps)} frames and no key frame; expected at least one.")
        self._stamps = np.sort(np.array(stamps, np.int64))
        self._keys = np.searchsorted(self._stamps, np.sort(np.array(keys, np.int64)))  # numbers of the key frames
        self.times = self._stamps * float(stream.time_base)
        self.digest = digest.hexdigest()

    def _frame(self, number: int) -> NDArray[np.uint8]:
        key = int(self._keys[max(0, int(np.searchsorted(self._keys, number, side="right")) - 1)])
        ahead = self._container is not None and self._next <= number
        if not ahead or key > self._next + FORWARD:
            self._seek(int(self._stamps[key]))
        for frame in self._frames:
            got = int(np.searchsorted(self._stamps, frame.pts))
            self._next = got + 1
            if frame.pts == self._stamps[number]:
                image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
                return image
            if got > number:
                break
        raise DataError("it is not where the file's index says")

    def _seek(self, stamp: int) -> None:
        stream = self._container.streams.video[0] if self._container is not None else self._open()
        self._container.seek(stamp, stream=stream, backward=True)
        self._frames = self._container.decode(stream)


class VideoWriter:
    """Writes an AV1 video as lerobot does: 4:2:0, a key frame every 2 frames, constant rate factor 30.

    Args:
        root: the dataset's folder.
        name: the file in it.
        number: of the file among those of its key.
        fps: frames per second.
        shape: H, W and C of a frame.

    Raises:
        ConfigError: if PyAV is not installed or lacks the encoder, or frames have odd sides or other than 3 channels.
    """

    def __init__(self, root: Path, name: str, number: int, fps: float, shape: tuple[int, ...]):
        av = import_av()
        self.name, self.number, self.frames = name, number, 0
        self._av, self._fps, self._shape = av, fps, shape
        if shape[0] % 2 or shape[1] % 2 or shape[2] != 3:
            raise ConfigError(f"Frames of shape {shape} cannot be a video; expected even sides and 3 channels.")
        self._path = root / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._path), "w")
        try:
            rate = Fraction(fps).limit_denominator(1001)
            self._stream = self._container.add_stream(
                CODEC, rate, options={"g": "2", "crf": "30", "svtav1-params": "lp=1"}
            )
        except Exception as error:  # PyAV raises several types if the codec is missing
            self._container.close()
            raise ConfigError(f"PyAV cannot encode {CODEC}: {error}. Leave --video out.") from error
        self._stream.height, self._stream.width, self._stream.pix_fmt = shape[0], shape[1], "yuv420p"

    @property
    def size(self) -> int:
        """Bytes written so far. The file appears with the first encoded frame."""
        return self._path.stat().st_size if self._path.exists() else 0

    def add(self, images: NDArray[np.uint8]) -> None:
        """Append frames (n, H, W, 3)."""
        for image in images:
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.frames, 1 / self._stream.codec_context.framerate
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
        self._container = None

    def info(self) -> dict[str, Any]:
        """lerobot's description of the video."""
        height, width, channels = self._shape
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "av1",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": channels,
            "has_audio": False,
        }

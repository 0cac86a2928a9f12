"""JSON-lines files: append-only, locked by their writer, and readable after a kill at any point."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from asd_policy.errors import ConfigError, DataError
from asd_policy.files import write_atomically

Entry = dict[str, Any]


def read_json_lines(path: str | Path) -> list[Entry]:
    """The objects of a file, in order. Text after the last newline is an unfinished append, and is left out.

    Raises:
        DataError: if the file cannot be read, or naming the line that is not a JSON object.
    """
    path = Path(path)
    return _parse(path, _content(path))


def clear(path: Path) -> None:
    """Empty a file, or make an empty one.

    Raises:
        ConfigError: if another process is writing it.
        OSError: if it cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file, path)
        os.ftruncate(file, 0)
    finally:
        os.close(file)


class JsonLines:
    """Appends objects to a file. It is locked until `close`: one process at a time may write it.

    Args:
        path: the file. It and its folder are made if missing; an existing file is continued, without an unfinished last
            line.

    Attributes:
        entries: the file's objects, in order.

    Raises:
        ConfigError: if another process is writing the file.
        DataError: if the file cannot be read, written or locked, or is not a regular file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise DataError(f"Cannot write to {self.path}: {error.strerror}.") from error
        try:
            _lock(self._file, self.path)
            content = _content(self.path)
            self.entries = _parse(self.path, content)
            os.ftruncate(self._file, content.rfind(b"\n") + 1)
        except BaseException:
            self.close()
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append the object and flush it to disk. When this returns, it survives a power cut.

        Raises:
            DataError: if the file is closed or the disk is full. The file then ends with the previous object.
        """
        self._check_open()
        end = os.fstat(self._file).st_size
        try:
            left = memoryview(_line(entry))
            while left:  # a write may be partial; the next one then reports a full disk
                left = left[_write(self._file, left) :]
            os.fsync(self._file)
        except BaseException as error:
            try:
                os.ftruncate(self._file, end)
            except OSError:
                self.close()  # readers leave out an unfinished last line, but no line may follow it
            if not isinstance(error, OSError):
                raise
            raise DataError(
                f"Cannot write to {self.path}: {error.strerror}. It keeps the {len(self.entries)} entries before this "
                "one. Make room and run the same command again to continue."
            ) from error
        self.entries.append(dict(entry))

    def replace(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file's objects atomically, and close the file.

        Raises:
            DataError: if the file is closed or cannot be written. It is then unchanged.
        """
        self._check_open()
        new = [dict(entry) for entry in entries]
        try:
            write_atomically(self.path, lambda path: path.write_bytes(b"".join(map(_line, new))))
        except OSError as error:
            raise DataError(f"Cannot replace {self.path}: {error.strerror}. It stays as it was.") from error
        self.entries = new
        self.close()

    def close(self) -> None:
        """Unlock the file for other writers. Does nothing if it is closed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _check_open(self) -> None:
        if self._file < 0:
            raise DataError(f"Cannot write to {self.path}: it was closed.")

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


def _parse(path: Path, content: bytes) -> list[Entry]:
    return [_entry(path, number, line) for number, line in enumerate(content.split(b"\n")[:-1], start=1)]


def _entry(path: Path, number: int, line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is not a JSON object: {error}.") from error
    if not isinstance(entry, dict):
        raise DataError(f"{path}, line {number} is not a JSON object: it is {entry!r:.80}.")
    return entry


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _write(file: int, data: memoryview) -> int:
    """Write at least one byte, and return the number written. Raises OSError if none was."""
    written = os.write(file, data)
    if written < 1:
        raise OSError(errno.EIO, "a write took nothing")
    return written


def _lock(file: int, path: Path) -> None:
    """Lock the open file against other writers until it is closed."""
    try:
        import fcntl  # imported here because Windows lacks it
    except ImportError as error:
        raise ConfigError(
            f"Writing {path} needs a system where files can be locked: Linux or macOS. On Windows, run this in WSL."
        ) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):  # reading a device may never end
        raise DataError(f"Cannot write to {path}: it is not a regular file.")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.path.samestat(os.fstat(file), os.stat(path))  # another writer may just have replaced it
    except (BlockingIOError, FileNotFoundError):
        locked = False
    except OSError as error:
        raise DataError(f"Cannot lock {path}: {error.strerror}. Write to another file system.") from error
    if not locked:
        raise ConfigError(f"Another process is writing {path}. Wait for it, or choose another file.")

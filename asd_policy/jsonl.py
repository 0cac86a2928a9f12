"""Files of JSON objects, one a line, to which lines are appended, and which a kill at any point leaves readable."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from asd_policy.errors import ConfigError, DataError
from asd_policy.files import write_atomically

Entry = dict[str, Any]


def read_json_lines(path: str | Path) -> list[Entry]:
    """The objects of a file, in its order. What follows the last newline was cut off by a kill, and is left out.

    Raises:
        DataError: if the file cannot be read, or naming the line that is no JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    return [_read(path, number, line) for number, line in enumerate(lines, start=1)]


class JsonLines:
    """Appends objects to a file that one process at a time may write.

    Args:
        path: an existing file is continued; a last line that was cut off is removed.

    Attributes:
        entries: what the file holds, in its order.

    Raises:
        ConfigError: if another process is writing the file.
        DataError: if the file cannot be written or locked, or exists and cannot be read.
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
            self.entries = read_json_lines(self.path)
            os.ftruncate(self._file, self.path.read_bytes().rfind(b"\n") + 1)
        except BaseException:
            self.close()
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Put the object on disk before returning.

        Raises:
            DataError: if that fails (a full disk); the file then ends with the object before.
        """
        if self._file < 0:
            raise DataError(f"Cannot write to {self.path}: it was closed.")
        end = os.fstat(self._file).st_size
        try:
            left = memoryview(_line(entry))
            while left:  # a write may take less than it is given; a full disk says so at the next try
                left = left[_write(self._file, left) :]
            os.fsync(self._file)
        except BaseException as error:
            try:
                os.ftruncate(self._file, end)
            except OSError:
                self.close()  # readers leave out a last line that was cut off, but nothing may follow it
            if not isinstance(error, OSError):
                raise
            raise DataError(
                f"Cannot write to {self.path}: {error.strerror}. It holds {len(self.entries)} entries, without the "
                "last one: make room and start again, and it is continued."
            ) from error
        self.entries.append(dict(entry))

    def replace(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write the file anew, in one step: a kill leaves the old file or the new one. Appending ends with it.

        Raises:
            DataError: if that fails; the file stays as it was.
        """
        self.entries = [dict(entry) for entry in entries]
        try:
            write_atomically(self.path, lambda path: path.write_bytes(b"".join(map(_line, self.entries))))
        except OSError as error:
            raise DataError(f"Cannot write {self.path} anew: {error.strerror}. It stays as it was.") from error
        self.close()

    def close(self) -> None:
        """Let others write the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(path: Path, number: int, line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is no JSON object: {error}.") from error
    if not isinstance(entry, dict):
        raise DataError(f"{path}, line {number} is no JSON object: it is {entry!r:.80}.")
    return entry


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _write(file: int, data: memoryview) -> int:
    """Bytes written, at least one. Raises OSError if none was."""
    written = os.write(file, data)
    if written < 1:
        raise OSError(errno.EIO, "a write took nothing")
    return written


def _lock(file: int, path: Path) -> None:
    """Keep other writers out of the open file until it is closed."""
    try:
        import fcntl  # here: of POSIX systems alone
    except ImportError as error:
        raise ConfigError(
            f"{path} is written where files can be locked, which Python does on Linux and macOS. On Windows, run this "
            "in WSL."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.path.samestat(os.fstat(file), os.stat(path))  # or it was replaced meanwhile
    except (BlockingIOError, FileNotFoundError):
        locked = False
    except OSError as error:
        raise DataError(f"Cannot lock {path}: {error.strerror}. Write to another file system.") from error
    if not locked:
        raise ConfigError(f"Another process is writing {path}. Wait for it, or choose another file.")

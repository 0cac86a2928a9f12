"""A file of episodes, one JSON line each, that holds every finished one whatever was killed and when."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any, get_origin, get_type_hints

from asd_policy.errors import ConfigError, DataError


@dataclass(frozen=True)
class Job:
    """One episode to run."""

    task: str
    sampler: str  # its label, as `parse_sampler` reads it
    env_seed: int
    repeat: int  # which noise the policy gets


@dataclass(frozen=True)
class Record:
    """One finished episode with C sampled chunks. All of it is JSON."""

    task: str
    sampler: str
    env_seed: int
    repeat: int
    noise_seed: int
    success: bool
    length: int  # control steps
    latency: list[float]  # (C,) seconds per chunk
    rounds: list[int]  # (C,)
    evaluations: list[int]  # (C,)
    acceptance: list[float]  # (K,) mean over the chunks
    action_sha256: str  # of the action stream
    error: str | None  # "ErrorName: message" of an episode that broke: a failure, whose lists are cut or empty
    checkpoint_sha256: str
    settings: dict[str, Any]  # device, threads, batch (how many environments one policy served)
    software: dict[str, str]  # versions

    @property
    def job(self) -> Job:
        return Job(self.task, self.sampler, self.env_seed, self.repeat)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Record:
        """Raises DataError unless the record has exactly the fields above, of their types."""
        if not isinstance(record, dict) or record.keys() != _TYPES.keys():
            got = ", ".join(sorted(record)) if isinstance(record, dict) else repr(record)
            raise DataError(f"got the fields {got}; expected {', '.join(_TYPES)}")
        for name, kind in _TYPES.items():
            if not isinstance(record[name], kind) or (kind is int and isinstance(record[name], bool)):
                raise DataError(f"{name} is {record[name]!r}; expected {getattr(kind, '__name__', kind)}")
        return cls(**record)


_TYPES: dict[str, Any] = {
    name: hint if isinstance(hint, UnionType) else get_origin(hint) or hint
    for name, hint in get_type_hints(Record).items()
}


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """The episodes in the files, in their order. A last line that a kill has torn is ignored.

    Raises:
        DataError: naming the file and the line that cannot be read.
    """
    return [record for path in paths for record in _read(Path(path))]


def _read(path: Path) -> list[Record]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was torn
    except OSError as error:
        raise DataError(f"Cannot read the results {path}: {error.strerror}.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record.from_json(json.loads(line)))
        except (ValueError, RecursionError, DataError) as error:
            raise DataError(f"{path}, line {number} is no episode's record: {error}.") from error
    return records


class ResultsFile:
    """Appends records to a file that one process at a time may write, and that a kill at any point leaves readable.

    Args:
        path: an existing file is continued; a torn last line is cut off.

    Attributes:
        records: what the file holds, in its order.

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
            raise DataError(f"Cannot write the results {self.path}: {error.strerror}.") from error
        try:
            self._lock()
            self.records = _read(self.path)
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(self._file, whole)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl  # here: of POSIX systems alone
        except ImportError as error:
            raise ConfigError(
                "Results are written where files can be locked, which Python does on Linux and macOS. On Windows, run "
                "this in WSL."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = os.path.samestat(os.fstat(self._file), os.stat(self.path))  # or it was replaced meanwhile
        except (BlockingIOError, FileNotFoundError):
            locked = False
        except OSError as error:
            raise DataError(f"Cannot lock {self.path}: {error.strerror}. Write to another file system.") from error
        if not locked:
            raise ConfigError(f"Another process is writing {self.path}. Wait for it, or choose another file.")

    def append(self, record: Record) -> None:
        """Put the record on disk before returning.

        Raises:
            DataError: if that fails (a full disk); the file then ends with the record before.
        """
        line = _line(record)
        if self._file < 0:
            raise DataError(f"Cannot write to {self.path}: it was closed. {record.job} is not recorded.")
        end = os.fstat(self._file).st_size
        try:
            left = memoryview(line)
            while left:  # a write may take less than it is given; a full disk says so at the next try
                left = left[_write(self._file, left) :]
            os.fsync(self._file)
        except BaseException as error:
            try:
                os.ftruncate(self._file, end)
            except OSError:
                self.close()  # readers ignore a torn last line, but nothing may follow it
            if not isinstance(error, OSError):
                raise
            raise DataError(
                f"Cannot write to {self.path}: {error.strerror}. It holds {len(self.records)} episodes, without "
                f"{record.job}: make room and start again, and it is continued."
            ) from error
        self.records.append(record)

    def order(self, key: Callable[[Record], int]) -> None:
        """Sort the file by the key, in one step: a kill leaves the old file or the new one. Appending ends with it."""
        self.records.sort(key=key)
        temporary = self.path.with_name(f".{self.path.name}.ordered")
        try:
            with temporary.open("wb") as file:
                file.writelines(map(_line, self.records))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(f"Cannot order {self.path}: {error.strerror}. It is complete as it is.") from error
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write(file: int, data: memoryview) -> int:
    """Bytes written, at least one.

    Raises:
        OSError: if none was.
    """
    written = os.write(file, data)
    if written < 1:
        raise OSError(errno.EIO, "a write took nothing")
    return written


def _line(record: Record) -> bytes:
    return json.dumps(record.to_json()).encode() + b"\n"


def check_same_settings(records: Sequence[Record], checkpoints: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the records were made with these settings and, per task, this checkpoint.

    Args:
        checkpoints: task -> SHA-256.
    """
    for record in records:
        expected = checkpoints.get(record.task, record.checkpoint_sha256)
        if record.checkpoint_sha256 != expected:
            raise ConfigError(
                f"The file holds episodes of another checkpoint for {record.task}: SHA-256 "
                f"{record.checkpoint_sha256[:12]}, now {expected[:12]}. Write to another file."
            )
        if record.settings != settings:
            raise ConfigError(
                f"The file holds episodes made with {record.settings}, now {dict(settings)}. Write to another file."
            )

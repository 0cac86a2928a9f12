"""Files of finished episodes, one JSON line for each, appended as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from asd_policy.errors import ConfigError, DataError
from asd_policy.jsonl import Entry, JsonLines, read_json_lines
from asd_policy.records import read_record


@dataclass(frozen=True)
class EpisodeKey:
    """The identity of an episode in a sweep."""

    task: str
    sampler: str  # its label, as on a command line
    env_seed: int
    repeat: int  # chooses the policy's noise


@dataclass(frozen=True)
class Record:
    """One finished episode with C sampled chunks; a line of a results file."""

    task: str
    sampler: str
    env_seed: int
    repeat: int
    noise_seed: int
    success: bool
    length: int  # control steps
    latency: list[float]  # (C,) seconds per chunk
    rounds: list[int]  # (C,) sequential network calls
    evaluations: list[int]  # (C,) states that the network was evaluated on
    acceptance: list[float]  # (K,) share of drafts kept, mean over the chunks
    action_sha256: str  # of the action stream
    error: str | None  # "ErrorName: message" of an episode that raised: a failure, whose lists are cut short or empty
    checkpoint_sha256: str
    settings: dict[str, Any]  # device, threads, batch (environments per policy), and the others of Plan.settings
    software: dict[str, str]  # versions

    @property
    def key(self) -> EpisodeKey:
        return EpisodeKey(self.task, self.sampler, self.env_seed, self.repeat)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """The episodes of the files, in order. An unfinished last line is left out.

    Raises:
        DataError: naming the file, and the line that is not an episode's record.
    """
    return [record for path in paths for record in _records(path, read_json_lines(path))]


class ResultsFile:
    """Appends records to a file. It survives kills; see `JsonLines`.

    Args:
        path: an existing file is continued.

    Attributes:
        records: the file's records, in order.

    Raises:
        ConfigError: if another process is writing the file.
        DataError: if the file cannot be read, written or locked.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lines = JsonLines(self.path)
        try:
            self.records = _records(self.path, self._lines.entries)
        except BaseException:
            self._lines.close()
            raise

    def append(self, record: Record) -> None:
        """Append the record and flush it to disk.

        Raises:
            DataError: naming the episode, if that fails. The file then ends with the previous record.
        """
        try:
            self._lines.append(record.to_json())
        except DataError as error:
            raise DataError(f"{error} Not recorded: {record.key}.") from error
        self.records.append(record)

    def order(self, rank: Callable[[Record], int]) -> None:
        """Sort the file by rank and close it. If killed, it leaves either the old file or the new one."""
        ordered = sorted(self.records, key=rank)
        self._lines.replace(record.to_json() for record in ordered)
        self.records = ordered

    def close(self) -> None:
        """Close the file and unlock it for other writers."""
        self._lines.close()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


def _records(path: str | Path, entries: Iterable[Entry]) -> list[Record]:
    return [
        read_record(Record, entry, f"{path}, line {number} is not an episode's record", DataError)
        for number, entry in enumerate(entries, start=1)
    ]

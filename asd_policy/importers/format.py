"""The `Format` of a checkpoint, and the registry type `Formats`, which checks its entries."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asd_policy.errors import ConfigError
from asd_policy.importers.checkpoint import Checkpoint

Place = Literal["folder", "file"]
Reader = Callable[[Path], Checkpoint]
Writer = Callable[[Checkpoint, Path], None]


@dataclass(frozen=True)
class Format:
    """A checkpoint format: how its files are recognised, read and written.

    Attributes:
        name: the format's name in `FORMATS`, in messages and on the command line.
        place: "folder" for a folder with `config.json`, "file" for a file written by `torch.save`.
        marks: a checkpoint is in this format if its `config.json` has all of these keys, or if its pickle contains all
            of these strings. No two formats may both match.
        read: reads a checkpoint without running code from it. Raises CheckpointError or ConfigError.
        read_trusted: reads a pickled checkpoint by running its pickle; None if the format does not use pickle.
        write: writes a checkpoint to a path that does not exist yet. Raises ConfigError if the format cannot express
            it. None if this package does not write the format.
    """

    name: str
    place: Place
    marks: frozenset[str]
    read: Reader
    read_trusted: Reader | None = None
    write: Writer | None = None


class Formats(UserDict[str, Format]):
    """Formats by name. Add one with `FORMATS[format.name] = format`.

    Raises:
        ConfigError: on assigning an object that is not a format; the message names the missing or wrong member.
    """

    def __setitem__(self, name: str, item: Format) -> None:
        _check(name, item)
        super().__setitem__(name, item)

    def writable(self) -> dict[str, Writer]:
        """The formats that this package can write."""
        return {name: item.write for name, item in self.items() if item.write is not None}


CHECKS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("its key in FORMATS", lambda value: isinstance(value, str)),
    "place": ("'folder' or 'file'", lambda value: value in ("folder", "file")),
    "marks": ("a frozenset of at least one string", lambda value: _is_marks(value)),
    "read": ("a function", callable),
    "read_trusted": ("a function or None", lambda value: value is None or callable(value)),
    "write": ("a function or None", lambda value: value is None or callable(value)),
}
"""Member of a format -> the expected value in words, and its test."""


def _is_marks(value: object) -> bool:
    return isinstance(value, frozenset) and len(value) > 0 and all(isinstance(mark, str) for mark in value)


def _check(name: str, item: object) -> None:
    """Raise ConfigError unless the object has the members of a `Format`, and `name` as its name."""
    what = f"The format {name!r} ({type(item).__name__})"
    missing = [member for member in CHECKS if not hasattr(item, member)]
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}; see asd_policy.importers.format.Format.")
    for member, (expected, fits) in CHECKS.items():
        value = getattr(item, member)
        if not fits(value) or (member == "name" and value != name):
            raise ConfigError(f"{what} has {member} = {value!r:.80}; expected {expected}.")

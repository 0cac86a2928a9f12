"""Files of untrusted folders and zip files, bounded before they are read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Protocol

from asd_policy.errors import DataError

MAX_MEMBERS = 1 << 24  # files of a zip file


def check_inside(root: Path, name: str) -> Path:
    """The path of a file in a folder. Links may lead to files of the folder, or of the hub's cache that it lies in.

    Raises:
        DataError: if the file lies elsewhere.
    """
    path, folder = root / name, root.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    real = path.resolve()
    if not any(real.is_relative_to(place) for place in allowed):
        raise DataError(f"{path} leads to {real}, outside of the dataset. Copy the file into the dataset.")
    return path


class Files(Protocol):
    """Files by name, with "/" between folders."""

    def names(self, folder: str) -> list[str]:
        """The names of the folders and files in a folder, sorted."""
        ...

    def size(self, name: str) -> int | None:
        """The bytes that a file takes on disk; None if there is no such file."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """A file's content. Raises DataError if it is missing, damaged, or longer than `limit` bytes."""
        ...


class Folder:
    """The files of a folder. It implements `Files`."""

    def __init__(self, root: Path):
        self.root = root

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(check_inside(self.root, folder)))
        except OSError as error:
            raise DataError(f"Cannot read {self.root}/{folder}: {error}.") from error

    def size(self, name: str) -> int | None:
        path = check_inside(self.root, name)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str, limit: int) -> bytes:
        try:
            with check_inside(self.root, name).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise DataError(f"Cannot read {self.root}/{name}: {error}.") from error
        return _limited(f"{self.root}/{name}", data, limit)


class Zip:
    """The files of a zip file, below the folder with the first `.zgroup`. It implements `Files`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DataError(f"Cannot read {path}: {error}. Is it complete?") from error
        if len(members) > MAX_MEMBERS:
            raise DataError(f"{path} has {len(members)} files; expected at most {MAX_MEMBERS}.")
        roots = sorted(
            (info.filename.removesuffix(".zgroup") for info in members if f"/{info.filename}".endswith("/.zgroup")),
            key=len,
        )
        self._prefix = roots[0] if roots else ""
        self._members = {
            info.filename.removeprefix(self._prefix): info for info in members if info.filename.startswith(self._prefix)
        }
        self._folders: dict[str, set[str]] = {}
        for name in self._members:
            folder, _, leaf = name.rstrip("/").rpartition("/")
            while True:
                self._folders.setdefault(folder, set()).add(leaf)
                if not folder:
                    break
                folder, _, leaf = folder.rpartition("/")

    def names(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, ()))

    def size(self, name: str) -> int | None:
        return self._members[name].compress_size if name in self._members else None

    def read(self, name: str, limit: int) -> bytes:
        if name not in self._members:
            raise DataError(f"{self.path} has no {name}.")
        try:
            with self._zip.open(self._members[name]) as file:
                data = file.read(limit + 1)  # the size in the zip's directory may be a lie
        except Exception as error:  # zipfile and its codecs raise many types on damage
            raise DataError(f"{self.path} is damaged at {name}: {error}.") from error
        return _limited(f"{self.path}/{name}", data, limit)


def _limited(where: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise DataError(f"{where} is longer than the {limit} bytes that are expected.")
    return data

"""Reads HDF5 files from untrusted sources.

A file may link to other files, map its datasets onto them, or declare petabytes that it does not hold. All of this is
refused before any data is read. No check here can prevent a fault of libhdf5 itself on forged bytes: read untrusted
files in a separate process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from asd_policy.errors import AsdPolicyError, DataError

MAX_RATIO = 1032  # compression ratio of deflate, HDF5's densest filter: https://zlib.net/zlib_tech.html
SMALL = 1 << 24  # bytes that are always allowed
MAX_LINKS = 16


class UntrustedHdf5:
    """An open file. On a damaged or hostile file, every method raises DataError and no other error."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise DataError(f"Cannot read {path}: there is no such file. Expected a robomimic HDF5 file.")
        try:
            self._file = h5py.File(path, "r")
        except Exception as error:
            raise DataError(f"Cannot read {path}: {error}. Expected a robomimic HDF5 file. Is it complete?") from error
        self._budget = SMALL + MAX_RATIO * path.stat().st_size
        self._sizes, self._declared = dict[str, int](), 0  # of each dataset read so far, and of all
        self._groups: dict[str, Any] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def names(self, group: str) -> list[str]:
        """The names in a group. Raises DataError if the group does not exist."""
        with self._reading(group):
            return [str(name) for name in self._group(group)]

    def has(self, name: str) -> bool:
        """Whether the file has a group or a dataset of this name."""
        with self._reading(name):
            return self._find(name) is not None

    def attribute(self, name: str, attribute: str) -> Any:
        """An attribute of a group or dataset; None if it does not exist."""
        with self._reading(f"{name}, attribute {attribute}"):
            return self._node(name).attrs.get(attribute)

    def layout(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and dtype of a dataset, without reading it."""
        with self._reading(name):
            dataset = self._dataset(name)
            return tuple(dataset.shape), dataset.dtype

    def read(self, name: str, check_dtype: Callable[[np.dtype[Any]], None] = lambda dtype: None) -> NDArray[Any]:
        """Read a whole dataset. `check_dtype` may raise DataError on its dtype before anything is read."""
        with self._reading(name):
            dataset = self._dataset(name)
            check_dtype(dataset.dtype)
            self._check_held(name, dataset)
            return np.asarray(dataset[()])

    def check_whole(self, name: str) -> None:
        """Raise DataError unless the file holds all rows of a dataset."""
        with self._reading(name):
            self._check_held(name, self._dataset(name))

    def rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Some rows of a dataset that `check_whole` has checked; `rows` are increasing."""
        with self._reading(name):
            return np.asarray(self._dataset(name)[rows])

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn every error of h5py on a damaged file, from RuntimeError to MemoryError, into a DataError."""
        try:
            yield
        except AsdPolicyError:
            raise
        except Exception as error:
            raise DataError(f"{self.path} is damaged at {name}: {error}.") from error

    def _dataset(self, name: str) -> h5py.Dataset:
        node = self._node(name)
        if not isinstance(node, h5py.Dataset) or node.shape is None or node.ndim == 0:
            raise DataError(f"{self.path}: {name} is not an array; expected one with a row for each step.")
        return node

    def _group(self, name: str) -> h5py.Group:
        node = self._node(name)
        if not isinstance(node, h5py.Group):
            raise DataError(f"{self.path}: {name} is not a group.")
        return node

    def _node(self, name: str) -> Any:
        node = self._find(name)
        if node is None:
            raise DataError(f"{self.path} lacks {name!r}: it is not a robomimic file; it has {', '.join(self._file)}.")
        return node

    def _find(self, name: str) -> Any:
        """The group or dataset `name`, or None."""
        folder, _, leaf = name.rpartition("/")
        if folder not in self._groups:
            self._groups[folder] = self._follow(self._file, folder, MAX_LINKS)
        return self._follow(self._groups[folder], leaf, MAX_LINKS)

    def _follow(self, start: Any, path: str, links: int) -> Any:
        """The group or dataset at `path` below `start`, or None.

        Raises:
            DataError: if the path leaves the file, follows more than `links` links, or ends in a broken link.
        """
        node = self._file if path.startswith("/") else start
        for part in filter(None, path.split("/")):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                return None
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{self.path}: {path} lies in another file, {link.filename!r}, which is not opened.")
            if isinstance(link, h5py.SoftLink):
                target = self._follow(node, link.path, links - 1) if links else None
                if target is None:
                    raise DataError(f"{self.path}: {path} is a link to {link.path!r}, which leads nowhere.")
                node = target
            else:
                node = node[part]
        return node

    def _check_held(self, name: str, dataset: h5py.Dataset) -> None:
        """Raise DataError if the dataset declares more than the file holds: the rest would read as fill values."""
        creation = dataset.id.get_create_plist()
        if creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count():
            raise DataError(f"{self.path}: {name} is mapped onto other files, which are not opened. Copy it in.")
        stored, declared = dataset.id.get_storage_size(), prod(dataset.shape) * dataset.dtype.itemsize
        whole = stored >= declared
        if dataset.chunks is not None:
            chunks = prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
            largest = max(declared, prod(dataset.chunks) * dataset.dtype.itemsize)
            whole = dataset.id.get_num_chunks() == chunks and largest <= SMALL + MAX_RATIO * stored
        if not whole:
            raise DataError(
                f"{self.path}: {name} declares shape {dataset.shape} of {dataset.dtype}, of which the file holds "
                f"{stored} bytes: steps were never written, or are lost."
            )
        self._declared += declared - self._sizes.get(name, 0)
        self._sizes[name] = declared
        if self._declared > self._budget:
            raise DataError(f"{self.path}: up to {name}, more is declared than a file of this size can hold.")

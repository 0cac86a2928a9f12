"""Images that are read from disk when they are used, with a bounded cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import DataError

CACHE_BYTES = 1 << 30
"""Most bytes of images that are kept in memory for one observation key."""
BLOCK = 64  # images read at a time when all are read
UNKNOWN_MEMORY = 1 << 33  # bytes assumed on systems that do not tell


def half_of_memory() -> int:
    """Half of this machine's memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return UNKNOWN_MEMORY // 2


class ImageReader(Protocol):
    """Reads the images of one observation key from a dataset's files.

    Attributes:
        shape: H, W and C of an image.
        compressed: whether images are compressed one by one or as a video. Such images are decoded when they are used,
            even if all of them fit in memory.
    """

    shape: tuple[int, int, int]
    compressed: bool

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read images.

        Args:
            rows: (n,) increasing numbers of images.

        Returns:
            (n, H, W, C).

        Raises:
            DataError: if an image cannot be read; the message names it.
        """
        ...

    def fingerprint(self) -> str | None:
        """A hash of the files that hold the images; None to hash the images themselves."""
        ...


class LazyImages:
    """N images (N, H, W, C) uint8 of one observation key, read when they are indexed.

    Args:
        reader: reads them.
        rows: (N,) the number of each image in the reader.
        device: the device of the tensors returned.
    """

    def __init__(self, reader: ImageReader, rows: NDArray[np.int64], device: torch.device | str = "cpu"):
        self.reader, self._rows, self._device = reader, rows, device
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    @classmethod
    def joined(cls, parts: Sequence[LazyImages]) -> LazyImages:
        """The images of several parts with the same reader."""
        return parts[0]._view(np.concatenate([part._rows for part in parts]))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self._rows), *self.reader.shape

    @property
    def ndim(self) -> int:
        return 4

    @property
    def nbytes(self) -> int:
        """Size in memory, if all were read."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor) -> Any:
        """A part of the images (for a slice), or tensors (*S, H, W, C) for indices (*S,)."""
        if isinstance(index, slice):
            return self._view(self._rows[index])
        rows, places = np.unique(self._rows[index.cpu().numpy()], return_inverse=True)
        images = torch.from_numpy(self._images(rows))[torch.from_numpy(places.reshape(-1))]
        return images.view(*index.shape, *self.reader.shape).to(self._device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All images in one array."""
        return np.asarray(self.in_memory().numpy(), dtype)

    def to(self, device: torch.device | str) -> LazyImages:
        """The same images with tensors on another device."""
        moved = self._view(self._rows)
        moved._device = device
        return moved

    def in_memory(self) -> Tensor:
        """All images as one tensor."""
        images = np.empty(self.shape, np.uint8)
        start = 0
        for block in self.blocks():
            images[start : start + len(block)] = block
            start += len(block)
        return torch.from_numpy(images)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """All images, a few at a time, without the cache."""
        for start in range(0, len(self), BLOCK):
            rows, places = np.unique(self._rows[start : start + BLOCK], return_inverse=True)
            yield self.reader.read(rows)[places.reshape(-1)]

    def _view(self, rows: NDArray[np.int64]) -> LazyImages:
        view = LazyImages(self.reader, rows, self._device)
        view._cache = self._cache  # one cache for all parts, because it bounds the memory
        return view

    def _images(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (n, H, W, C) of increasing rows, from the cache or from disk."""
        wanted = rows.tolist()
        new = [row for row in wanted if row not in self._cache]
        if new:
            read = self.reader.read(np.array(new, np.int64))
            if read.shape != (len(new), *self.reader.shape) or read.dtype != np.uint8:
                raise DataError(
                    f"Read images of shape {read.shape}, {read.dtype}; expected {self.reader.shape}, uint8."
                )
            self._cache.update(zip(new, (image.copy() for image in read), strict=True))
        for row in wanted:
            self._cache.move_to_end(row)
        images = np.stack([self._cache[row] for row in wanted])
        size = int(np.prod(self.reader.shape))
        while len(self._cache) * size > CACHE_BYTES:
            self._cache.popitem(last=False)
        return images

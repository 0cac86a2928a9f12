"""Reads arrays of the zarr 2 layout from untrusted folders and zip files.

An array may name any codec, even one that unpickles. Here only the codecs in `DECODERS` are known. What a chunk
declares is compared with what its array declares before memory is allocated.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from itertools import product
from math import prod
from typing import Any

import numcodecs
import numpy as np
from numpy.typing import NDArray

from asd_policy.checks import is_count
from asd_policy.data.paths import Files
from asd_policy.errors import DataError

MAX_RATIO = 1 << 15  # zstd's largest
SMALL = 1 << 24  # bytes that are always allowed
MAX_JSON_BYTES = 1 << 20
MAX_ROWS = 1 << 34


class Zarr2Array:
    """One array.

    Args:
        files: the dataset's files.
        source: the dataset's name in messages.
        name: the array's folder.

    Attributes:
        shape, dtype: as numpy's.

    Raises:
        DataError: if it is missing, damaged, or of an unsupported kind.
    """

    def __init__(self, files: Files, source: str, name: str):
        self._files, self._source, self.name = files, source, name
        values = self._metadata()
        self.shape, self._chunks = self._sizes(values, "shape", 0), self._sizes(values, "chunks", 1)
        if len(self.shape) != len(self._chunks) or not self.shape:
            raise self._damaged(f"shape {self.shape} and chunks {self._chunks}; expected one size for each axis")
        self.dtype = self._dtype(values)
        self._decode, self._separator = self._decoder(values), values.get("dimension_separator", ".")
        if values.get("filters") or values.get("order") != "C" or self._separator not in (".", "/"):
            raise self._damaged(
                f"filters {str(values.get('filters'))[:100]} and order {values.get('order')!r}; expected none and 'C'"
            )
        self._chunk_bytes = prod(self._chunks) * self.dtype.itemsize

    def check_whole(self) -> None:
        """Raise DataError unless all chunks are there and large enough for what they declare."""
        for place in product(*(range(-(-size // chunk)) for size, chunk in zip(self.shape, self._chunks, strict=True))):
            self._check_chunk(place)

    def read(self, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Rows of the array, in increasing order; all if None. Raises DataError if a chunk is lost or damaged."""
        rows = np.arange(self.shape[0]) if rows is None else rows
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        which = rows // self._chunks[0]
        counts = [-(-size // chunk) for size, chunk in zip(self.shape[1:], self._chunks[1:], strict=True)]
        for first in np.unique(which).tolist():
            mine = which == first
            inside = rows[mine] - first * self._chunks[0]
            for rest in product(*map(range, counts)):
                chunk = self._chunk((first, *rest))
                spans = [
                    slice(at * step, min((at + 1) * step, size))
                    for at, step, size in zip(rest, self._chunks[1:], self.shape[1:], strict=True)
                ]
                part = chunk[(inside, *(slice(0, span.stop - span.start) for span in spans))]
                result[(np.flatnonzero(mine), *spans)] = part
        return result

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        name = self._check_chunk(place)
        data = self._files.read(name, 2 * self._chunk_bytes + SMALL)
        try:
            decoded = self._decode(data, self._chunk_bytes)
            return np.frombuffer(decoded, self.dtype, prod(self._chunks)).reshape(self._chunks)
        except Exception as error:  # the codecs raise many types on damage
            raise DataError(f"{self._source} is damaged at {name}: {type(error).__name__}: {error!s:.200}.") from error

    def _check_chunk(self, place: tuple[int, ...]) -> str:
        """The name of a chunk's file. A missing one would read as the fill value, whatever its declared size."""
        name = f"{self.name}/{self._separator.join(map(str, place))}"
        size, first = self._files.size(name), place[0] * self._chunks[0]
        if size is None or self._chunk_bytes > SMALL + MAX_RATIO * size:
            held = "are not there" if size is None else f"take {size} bytes, too few for {self._chunk_bytes}"
            raise DataError(
                f"{self._source} is damaged: steps {first} to {min(first + self._chunks[0], self.shape[0])} of "
                f"{self.name} {held} ({name})."
            )
        return name

    def _metadata(self) -> Mapping[str, Any]:
        try:
            values = json.loads(self._files.read(f"{self.name}/.zarray", MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"no JSON in .zarray ({error})") from error
        if not isinstance(values, dict) or values.get("zarr_format") != 2:
            raise self._damaged("no metadata of zarr format 2")
        return values

    def _sizes(self, values: Mapping[str, Any], key: str, least: int) -> tuple[int, ...]:
        sizes = values.get(key)
        if not isinstance(sizes, list) or not all(is_count(size, least) and size < MAX_ROWS for size in sizes):
            raise self._damaged(f"{key} {str(sizes)[:100]}; expected integers")
        return tuple(sizes)

    def _dtype(self, values: Mapping[str, Any]) -> np.dtype[Any]:
        said = values.get("dtype")
        try:
            dtype = np.dtype(said) if isinstance(said, str) else None
        except TypeError:
            dtype = None
        if dtype is None or dtype.kind not in "fiub":
            raise self._damaged(f"type {str(said)[:100]!r}; expected real numbers")
        return dtype

    def _decoder(self, values: Mapping[str, Any]) -> Callable[[bytes, int], bytes]:
        said = values.get("compressor")
        name = said.get("id") if isinstance(said, dict) else said
        if not isinstance(name, str | None) or name not in DECODERS:
            known = ", ".join(str(key) for key in DECODERS if key)
            raise self._damaged(
                f"compressor {str(name)[:100]!r}; expected none or one of {known}. Recompress the array"
            )
        return DECODERS[name]

    def _damaged(self, has: str) -> DataError:
        return DataError(f"{self._source}: the array {self.name} has {has}.")


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"it holds {len(data)} bytes; expected {size}")
    return data


def _bounded(make: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    """A decoder of the standard library, which stops at a length."""
    return lambda data, size: _exactly(make().decompress(data, size + 1), size)


def _declared(codec: Any, declares: Callable[[bytes], int]) -> Callable[[bytes, int], bytes]:
    """A decoder of numcodecs, which allocates what the data declare: a length that must be right."""

    def decode(data: bytes, size: int) -> bytes:
        if declares(data) != size:
            raise ValueError(f"it declares {declares(data)} bytes; expected {size}")
        return _exactly(bytes(codec.decode(data)), size)

    return decode


def _blosc_size(data: bytes) -> int:
    """The content size in a blosc header; 0 if the header declares more or fewer bytes than there are, which blosc
    would read beyond the buffer's end."""
    whole = int.from_bytes(data[12:16], "little") == len(data) >= 16
    return int.from_bytes(data[4:8], "little") if whole else 0


def _zstd_size(data: bytes) -> int:
    """The content size in a zstd frame's header (RFC 8878, 3.1.1.1); 0 if it is not there."""
    if len(data) < 6:
        return 0
    flag, single, dictionary = data[4] >> 6, data[4] >> 5 & 1, data[4] & 3
    begin = 5 + (1 - single) + (0, 1, 2, 4)[dictionary]
    width = (single, 2, 4, 8)[flag]
    return int.from_bytes(data[begin : begin + width], "little") + (256 if width == 2 else 0)


DECODERS: Mapping[str | None, Callable[[bytes, int], bytes]] = {
    None: _exactly,
    "blosc": _declared(numcodecs.Blosc(), _blosc_size),
    "zstd": _declared(numcodecs.Zstd(), _zstd_size),
    "lz4": _declared(numcodecs.LZ4(), lambda data: int.from_bytes(data[:4], "little")),
    "zlib": _bounded(zlib.decompressobj),
    "gzip": _bounded(lambda: zlib.decompressobj(wbits=31)),
    "bz2": _bounded(bz2.BZ2Decompressor),
    "lzma": _bounded(lzma.LZMADecompressor),
}
"""The id of a compressor -> its decoder: (data, the length of the result) -> the result."""

"""Checks of arrays in untrusted zarr stores: the files must hold the declared data before memory is allocated."""

import os
import stat
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from asd_policy.errors import DataError

MAX_RATIO = 1 << 15  # zstd's largest ratio: a block of 128 KiB takes four bytes
SMALL = 1 << 24  # bytes that are always allowed
COMPRESSORS = BloscCodec, GzipCodec, ZstdCodec


def no_array(where: str, name: str) -> DataError:
    return DataError(f"{where} is damaged: it has no array {name}.")


def check_array(where: str, name: str, array: zarr.Array, dtype: str) -> None:
    """Raise DataError unless an array has the layout of `EpisodeStore`: whole rows, compressed at most once."""
    codecs: Any = getattr(array.metadata, "codecs", ())
    plain = len(codecs) > 0 and isinstance(codecs[0], BytesCodec)
    packed = [codec for codec in codecs[1:] if not isinstance(codec, Crc32cCodec)]
    plain = plain and len(packed) <= 1 and all(isinstance(codec, COMPRESSORS) for codec in packed)
    rows = array.ndim > 0 and array.chunks[0] > 0 and tuple(array.chunks[1:]) == tuple(array.shape[1:])
    if array.dtype != np.dtype(dtype) or not (plain and rows):
        raise DataError(
            f"{where} is damaged: {name} has type {array.dtype}, shape {array.shape}, chunks {array.chunks} and codecs "
            f"{[type(codec).__name__ for codec in codecs]}; expected {dtype} in chunks of whole rows, compressed once."
        )


def has_checksum(array: zarr.Array) -> bool:
    """Whether an array's chunks have zstd's checksum, as in newer stores."""
    return any(isinstance(codec, ZstdCodec) and codec.checksum for codec in getattr(array.metadata, "codecs", ()))


def chunk_file(folder: Path, name: str, array: zarr.Array, row: int) -> Path:
    """The file with a given row of an array."""
    return Path(folder / name, array.metadata.encode_chunk_key((row // array.chunks[0],) + (0,) * (array.ndim - 1)))


def check_chunks(where: str, name: str, array: zarr.Array, folder: Path, start: int, end: int) -> None:
    """Raise DataError unless the files of rows `start` to `end` of an array exist and are large enough for them.

    A missing file would read as the fill value, whatever its declared size, so this is checked before allocating.
    """
    if end > array.shape[0]:
        raise DataError(
            f"{where} is damaged: {name} has {array.shape[0]} of {end} rows; steps are missing from {name}."
        )
    rows = array.chunks[0]
    chunk_bytes = rows * prod(array.shape[1:]) * array.dtype.itemsize
    for first in range(start - start % rows, end, rows):
        file = chunk_file(folder, name, array, first)
        try:
            found = os.stat(file)
        except OSError as error:
            raise DataError(
                f"{where} is damaged: steps are missing from {name}: rows {first} to {first + rows} are "
                f"not there ({error.strerror}: {file.name})."
            ) from error
        if not stat.S_ISREG(found.st_mode) or chunk_bytes > SMALL + MAX_RATIO * found.st_size:
            raise DataError(
                f"{where} is damaged: rows {first} to {first + rows} of {name} are {chunk_bytes} bytes; "
                f"their file has {found.st_size}."
            )

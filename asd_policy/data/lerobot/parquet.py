"""Reads Parquet files of untrusted datasets. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.paths import check_inside
from asd_policy.errors import AsdPolicyError, ConfigError, DataError

MAX_RATIO = 1 << 15  # a column of equal numbers shrinks further, hence the next limit
ALWAYS = 1 << 28  # bytes that are always allowed


def open_parquet(root: Path, name: str) -> Any:
    """An open `pyarrow.parquet.ParquetFile`.

    Raises:
        ConfigError: if pyarrow is not installed.
        DataError: if the file is missing or damaged.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"LeRobotDataset needs pyarrow (pip install 'asd-policy[lerobot-data]'): {error}.") from error
    path = check_inside(root, name)
    if not path.is_file():
        raise DataError(f"Cannot read {path}: there is no such file. Is the dataset complete?")
    with reading(path):
        return pq.ParquetFile(path)


def read_table(root: Path, name: str, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Columns of a Parquet file as arrays.

    Args:
        sizes: the columns, and the numbers that a row of each has.

    Returns:
        For each column (N,) if its size is 1, else (N, size).

    Raises:
        DataError: if the file is missing or damaged, or a column is missing, ragged, not numeric, or has empty entries.
    """
    path = root / name
    with open_parquet(root, name) as file, reading(path):
        found = file.schema_arrow.names
        if lacking := [column for column in sizes if column not in found]:
            raise DataError(f"{path} lacks the column {lacking[0]!r}; it has {', '.join(found[:40])}.")
        rows = file.metadata.num_rows
        declared, size = rows * sum(sizes.values()) * 8, path.stat().st_size
        if declared > ALWAYS + MAX_RATIO * size:
            raise DataError(f"{path} declares {rows} rows; its {size} bytes cannot hold them.")
        table = file.read(columns=list(sizes), use_threads=False)
    return {column: _numbers(path, column, table[column], size) for column, size in sizes.items()}


def read_bytes(root: Path, name: str, column: str, row_group: int) -> list[bytes]:
    """The encoded images of one row group of a column.

    Raises:
        DataError: if the column is none of images, or an image lies outside of the file.
    """
    path = root / name
    with open_parquet(root, name) as file, reading(path):
        if column not in file.schema_arrow.names:
            raise DataError(f"{path} lacks the column {column!r}; it has {', '.join(file.schema_arrow.names[:40])}.")
        group = file.metadata.row_group(row_group)
        declared = sum(
            group.column(i).total_uncompressed_size
            for i in range(group.num_columns)
            if group.column(i).path_in_schema.startswith(f"{column}.")
        )
        if declared > ALWAYS + MAX_RATIO * path.stat().st_size:
            raise DataError(f"{path}: {column!r} declares {declared} bytes, more than the file can hold.")
        values = file.read_row_group(row_group, columns=[column], use_threads=False)[column].combine_chunks()
        kind = str(values.type)
        if not kind.startswith("struct<") or "bytes: binary" not in kind:
            raise DataError(f"{path}: {column!r} has type {kind:.100}; expected images, as struct<bytes, path>.")
        images: list[bytes] = values.field("bytes").to_pylist()
    for row, image in enumerate(images):
        if image is None:
            raise DataError(
                f"{path}: row {row} of group {row_group} has no bytes of {column!r}; expected each image inside of the "
                "file."
            )
    return images


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn every error of pyarrow on a damaged file into a DataError."""
    try:
        yield
    except AsdPolicyError:
        raise
    except Exception as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error!s:.300}.") from error


def _numbers(path: Path, column: str, values: Any, size: int) -> NDArray[Any]:
    import pyarrow as pa

    if values.null_count:
        row = values.is_null().to_numpy().argmax()
        raise DataError(f"{path}: row {row} has no {column!r}; expected {size} numbers.")
    array = values.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    listed = (
        pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)
    )
    if listed:
        array = _flat(path, column, array, size)
    numeric = pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)
    if not numeric or array.null_count:
        raise DataError(f"{path}: {column!r} has type {array.type}; expected {size} numbers in each row.")
    numbers: NDArray[Any] = np.asarray(array.to_numpy(zero_copy_only=False))
    if not listed and size != 1:
        raise DataError(f"{path}: {column!r} has 1 number in each row; expected {size}.")
    return numbers if size == 1 else numbers.reshape(-1, size)


def _flat(path: Path, column: str, array: Any, size: int) -> Any:
    """The numbers of all rows. Raises DataError naming the first row that is ragged."""
    lengths = np.asarray(array.value_lengths().to_numpy(zero_copy_only=False))
    odd = np.flatnonzero(lengths != size)
    if len(odd):
        raise DataError(
            f"{path}: row {odd[0]} has {lengths[odd[0]]:.0f} numbers of {column!r}; expected {size} in each row."
        )
    return array.flatten()

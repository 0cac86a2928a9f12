"""What a LeRobotDataset cannot express of our episode stores, kept beside it in `meta/asd_policy.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from asd_policy.data.gate import check_key
from asd_policy.data.lerobot.layout import Layout, read_json
from asd_policy.errors import DataError
from asd_policy.records import read_record

FILE = "meta/asd_policy.json"
EXECUTED = "executed_action"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Own:
    """The file.

    Attributes:
        obs_keys: the store's observations in order.
        columns: column of a vector observation -> the store's keys in it and their sizes, in order.
        images: image column -> the store's key.
        seeds: of each episode.
        steps_to_success: of each episode.
        attrs: the store's attributes.
        format_version: of this file.
    """

    obs_keys: tuple[str, ...]
    columns: Mapping[str, Mapping[str, int]]
    images: Mapping[str, str]
    seeds: tuple[int, ...]
    steps_to_success: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, layout: Layout) -> Own | None:
        """Read the file; None if there is none. Raises DataError if it does not fit the dataset."""
        if not (layout.root / FILE).is_file():
            return None
        where = f"{layout.root}/{FILE}"
        own = read_record(cls, read_json(layout.root, FILE), where, DataError, complete=True)
        if own.format_version != FORMAT_VERSION:
            raise DataError(f"{where} has format version {own.format_version}; expected {FORMAT_VERSION}.")
        own._check(where, layout)
        return own

    def _check(self, where: str, layout: Layout) -> None:
        count = len(layout.episodes)
        if (len(self.seeds), len(self.steps_to_success)) != (count, count):
            raise DataError(f"{where} has {len(self.seeds)} seeds for {count} episodes; expected as many.")
        keys = [key for parts in self.columns.values() for key in parts] + list(self.images.values())
        for key in keys:
            check_key(where, key)
        if sorted(keys) != sorted(self.obs_keys):
            raise DataError(f"{where}: obs_keys are {list(self.obs_keys)[:20]}, but its columns hold {keys[:20]}.")
        sizes = {column: (sum(parts.values()),) for column, parts in self.columns.items()}
        for column in (*self.columns, *self.images):
            feature = layout.features.get(column)
            fits = feature is not None and (
                feature.is_image if column in self.images else feature.shape == sizes[column]
            )
            if not fits or any(size < 1 for size in self.columns.get(column, {}).values()):
                raise DataError(f"{where}: {column!r} does not fit the dataset's features; they are {feature}.")

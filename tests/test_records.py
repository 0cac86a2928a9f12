"""Dataclasses from strangers' JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.records import read_record, read_record_file


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if 0 in self.sizes:
            raise ConfigError(f"sizes is {self.sizes}; expected no zeros.")


@dataclass(frozen=True)
class Outer:
    keys: Mapping[str, int]
    inner: Inner = field(default_factory=Inner)
    bound: float | None = 1.0


def test_reads_nested_dataclasses():
    assert read_record(Outer, {"keys": {"a": 1}, "inner": {"sizes": [3]}, "bound": 2}, "config") == Outer(
        {"a": 1}, Inner((3,)), 2.0
    )
    assert read_record(Outer, {"keys": {}}, "config") == Outer({})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "config: keys is missing"),
        ([1], "config: it is [1]; expected an object"),
        ({"keys": {"a": True}}, "keys.a is True; expected a valid integer"),
        ({"keys": {"a": 1.0}}, "keys.a is 1.0; expected a valid integer"),
        ({"keys": {}, "inner": {"sizes": ["3"]}}, "inner.sizes.0 is '3'; expected a valid integer"),
        ({"keys": {}, "inner": {"size": [3]}}, "inner.size is no field of it (its value is [3])"),
        ({"keys": {}, "inner": {"sizes": [0]}}, "sizes is (0,); expected no zeros"),
        ({"keys": {}, "bound": "1"}, "bound is '1'; expected a valid number"),
        ({"keys": {"\ud800": 1}}, "it is no JSON"),
        ({"keys": object()}, "it is no JSON"),
    ],
)
def test_refusals_name_the_field_and_what_was_got_and_expected(data, told):
    with pytest.raises(ConfigError) as refused:
        read_record(Outer, data, "config")
    assert told in str(refused.value)


def test_many_problems_are_counted():
    with pytest.raises(ConfigError, match="and 95 more"):
        read_record(Outer, {"keys": {str(number): "x" for number in range(100)}}, "config")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_damaged_files_are_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_record_file(Outer, tmp_path / "config.json", "policy config", CheckpointError)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_record_file(Outer, tmp_path / "config.json", "policy config", CheckpointError)

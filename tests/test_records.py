"""Dataclasses from strangers' JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.records import LATER, ByName, read_record, read_record_file


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
        ([1], "config: it is [1]; expected a JSON object"),
        ({"keys": {"a": True}}, "keys.a is True; expected a valid integer"),
        ({"keys": {"a": 1.0}}, "keys.a is 1.0; expected a valid integer"),
        ({"keys": {}, "inner": {"sizes": ["3"]}}, "inner.sizes.0 is '3'; expected a valid integer"),
        ({"keys": {}, "inner": {"size": [3]}}, "inner.size is an unknown field (its value is [3])"),
        ({"keys": {}, "inner": {"sizes": [0]}}, "sizes is (0,); expected no zeros"),
        ({"keys": {}, "bound": "1"}, "bound is '1'; expected a valid number"),
        ({"keys": {"\ud800": 1}}, "it is not JSON"),
        ({"keys": object()}, "it is not JSON"),
    ],
)
def test_refusals_name_the_field_and_what_was_got_and_expected(data, told):
    with pytest.raises(ConfigError) as refused:
        read_record(Outer, data, "config")
    assert told in str(refused.value)


def test_many_problems_are_counted():
    with pytest.raises(ConfigError, match="and 95 more"):
        read_record(Outer, {"keys": {str(number): "x" for number in range(100)}}, "config")


def test_records_of_a_great_many_values_are_refused():
    for keys in ({str(number): "x" for number in range(200_001)}, {"a": [[["x"] * 70_000]] * 3}):
        with pytest.raises(ConfigError, match=r"config: it holds over 200000 values\."):
            read_record(Outer, {"keys": keys}, "config")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_damaged_files_are_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_record_file(Outer, tmp_path / "config.json", "policy config", CheckpointError)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_record_file(Outer, tmp_path / "config.json", "policy config", CheckpointError)


@dataclass(frozen=True)
class Round:
    radius: float
    name: str = "round"

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ConfigError(f"radius is {self.radius}; expected 0 or more.")


@dataclass(frozen=True)
class Square:
    side: float = 1.0
    name: str = "square"


@dataclass(frozen=True)
class Drawing:
    shape: Annotated[Any, ByName("shape", {"round": Round, "square": Square})]
    inner: tuple[Inner, ...] = ()
    title: str = field(default="", metadata=LATER)


def test_a_field_is_read_as_the_dataclass_that_its_name_says():
    assert read_record(Drawing, {"shape": {"name": "round", "radius": 2}}, "drawing") == Drawing(Round(2.0))
    assert read_record(Drawing, {"shape": {"name": "square"}}, "drawing") == Drawing(Square())


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ({"name": "rond", "radius": 1}, "Unknown shape.name 'rond'. Did you mean 'round'? Available: round, square"),
        ({"radius": 1}, "Unknown shape.name 'None'"),
        ({"name": ["round"]}, "Unknown shape.name \"['round']\""),
        ([1], "shape is [1]; expected a JSON object"),
        ({"name": "round"}, "shape.radius is missing"),
        ({"name": "round", "radius": "1"}, "shape.radius is '1'; expected a valid number"),
        ({"name": "round", "radius": 1, "side": 1}, "shape.side is an unknown field (its value is 1)"),
        ({"name": "round", "radius": -1}, "radius is -1.0; expected 0 or more"),
    ],
)
def test_a_named_record_is_refused_with_its_place(shape, told):
    with pytest.raises(ConfigError) as refused:
        read_record(Drawing, {"shape": shape}, "drawing")
    assert str(refused.value).startswith("drawing: ")
    assert told in str(refused.value)


def test_a_complete_record_lacks_only_what_came_later():
    whole = {"shape": {"name": "square", "side": 2}, "inner": [{"sizes": [1]}]}
    assert read_record(Drawing, whole, "drawing", complete=True) == Drawing(Square(2.0), (Inner((1,)),))
    cut = {"shape": {"name": "square"}, "inner": [{"sizes": [1]}, {}]}
    assert read_record(Drawing, cut, "drawing") == Drawing(Square(), (Inner((1,)), Inner()))
    with pytest.raises(ConfigError, match=r"drawing: shape\.side is missing; inner\.1\.sizes is missing\."):
        read_record(Drawing, cut, "drawing", complete=True)

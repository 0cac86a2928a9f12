"""Reads dataclasses from untrusted JSON, strictly, with pydantic."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from asd_policy.errors import AsdPolicyError, ConfigError, UnknownNameError

T = TypeVar("T")

MAX_PROBLEMS = 5
"""Most problems that an error message lists."""
MAX_VALUES = 200_000
"""Most values of a record, nested ones included. Each may be a problem, which takes time and memory to report."""

LATER: Mapping[str, Any] = {"later": True}
"""Metadata of a dataclass field added in a later version: older records lack it."""


def read_record(
    kind: type[T], data: Any, what: str, error: type[AsdPolicyError] = ConfigError, complete: bool = False
) -> T:
    """Read a dataclass from JSON values, with exactly its fields and exactly their types.

    Args:
        kind: the dataclass. Its `__post_init__` may raise ConfigError on invalid values.
        data: values as from `json.loads`; tuples pass for lists.
        what: the name of the record in error messages.
        error: the type of error to raise.
        complete: whether every field must be present, here and in nested records, except those with metadata `LATER`.
            Otherwise fields with defaults may be missing.

    Raises:
        error: naming each missing, unknown or wrong field, its value and the expected one.
    """
    try:
        record = _read(kind, data)
        missing = [f"{name} is missing" for name in _missing(record, data)] if complete else []
        if missing:
            raise _RefusedError(missing[:MAX_PROBLEMS], len(missing) - MAX_PROBLEMS)
    except _RefusedError as refused:
        raise error(f"{what}: {refused}.") from None
    return record


def read_record_file(kind: type[T], path: str | Path, what: str, error: type[AsdPolicyError] = ConfigError) -> T:
    """`read_record` of a JSON file. Raises `error` also if the file cannot be read."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as found:
        raise error(f"Cannot read the {what} {path}: {found}") from found
    return read_record(kind, data, f"The {what} {path}", error)


class ByName:
    """Annotates a field whose value is one of several dataclasses: `Annotated[Protocol, ByName(field, kinds)]`.

    Args:
        field: the field's name, for error messages.
        kinds: value of the dataclasses' field `name` -> dataclass.
    """

    def __init__(self, field: str, kinds: Mapping[str, type[Any]]):
        self._field, self._kinds = field, kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self._validated)

    def _validated(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(f"{self._field} is {data!r:.80}; expected a JSON object")
        name = data.get("name")
        if not isinstance(name, str) or name not in self._kinds:
            raise UnknownNameError(f"{self._field}.name", str(name), self._kinds)
        return _read(self._kinds[name], data, f"{self._field}.")


class _RefusedError(ValueError):
    """The problems of a record."""

    def __init__(self, problems: Sequence[str], more: int = 0):
        super().__init__("; ".join(problems) + (f"; and {more} more" if more > 0 else ""))


def _read(kind: type[T], data: Any, within: str = "") -> T:
    """Read the dataclass or raise _RefusedError; `within` is the prefix of field names."""
    import pydantic  # slow to import, and the core does not need it
    import pydantic_core

    if _holds_more_values(data, MAX_VALUES):
        raise _RefusedError([f"it holds over {MAX_VALUES} values"])
    try:
        text = pydantic_core.to_json(data, inf_nan_mode="constants")
        [record] = _adapter(cast(Hashable, kind)).validate_json(b"[" + text + b"]")
    except pydantic.ValidationError as found:
        described = [_described(problem, within) for problem in found.errors(include_url=False)[:MAX_PROBLEMS]]
        raise _RefusedError(described, found.error_count() - MAX_PROBLEMS) from None
    except (pydantic_core.PydanticSerializationError, RecursionError, ValueError) as found:
        raise _RefusedError([f"it is not JSON: {found!s:.200}"]) from None
    value: T = record
    return value


@cache
def _adapter(kind: Hashable) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # A dataclass itself ignores this configuration, but a dataclass within a tuple inherits the tuple's.
    return TypeAdapter(tuple[kind], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]


def _described(problem: Mapping[str, Any], within: str) -> str:
    """A problem in words: the field, its value and the expected one."""
    field = within + ".".join(map(str, problem["loc"][1:])) or "it"
    kind, got = problem["type"], f"{problem['input']!r:.80}"
    if kind == "missing":
        return f"{field} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{field} is an unknown field (its value is {got})"
    if kind == "value_error":
        return str(problem["ctx"]["error"]).rstrip(".")
    if kind == "dataclass_type":
        return f"{field} is {got}; expected a JSON object"
    return f"{field} is {got}; expected {problem['msg'].removeprefix('Input should be ')}"


def _holds_more_values(data: Any, most: int) -> bool:
    left, count = [data], 1
    while left and count <= most:
        value = left.pop()
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        count += len(parts)
        left += [part for part in parts if isinstance(part, Mapping | list | tuple)] if count <= most else []
    return count > most


def _missing(record: Any, data: Any, within: str = "") -> Iterator[str]:
    """Fields without `LATER` that are missing in the data of a valid record."""
    if is_dataclass(record) and isinstance(data, Mapping):
        for field in fields(record):
            if field.name in data:
                yield from _missing(getattr(record, field.name), data[field.name], f"{within}{field.name}.")
            elif not field.metadata.get("later"):
                yield within + field.name
    elif isinstance(record, list | tuple) and isinstance(data, list | tuple):
        for number, (part, values) in enumerate(zip(record, data, strict=False)):
            yield from _missing(part, values, f"{within}{number}.")

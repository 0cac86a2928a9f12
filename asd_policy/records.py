"""Dataclasses from strangers' JSON, checked strictly by pydantic."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from asd_policy.errors import AsdPolicyError, ConfigError

T = TypeVar("T")

MAX_PROBLEMS = 5
"""Problems that an error message lists."""


def read_record(kind: type[T], data: Any, what: str, error: type[AsdPolicyError] = ConfigError) -> T:
    """A dataclass from JSON values with exactly its fields, of exactly their types; its defaults may be left out.

    Args:
        kind: the dataclass. Its `__post_init__` may raise ConfigError on values that do not fit.
        data: as `json.loads` returns it; tuples pass for lists.
        what: the name of the record in error messages.
        error: what is raised.

    Raises:
        error: naming each field that is missing, unknown or wrong, with what was got and what was expected.
    """
    import pydantic  # takes a while to import, and the core does without it
    import pydantic_core

    try:
        text = pydantic_core.to_json(data, inf_nan_mode="constants")
        [record] = _adapter(cast(Hashable, kind)).validate_json(b"[" + text + b"]")
    except pydantic.ValidationError as found:
        problems = [_told(problem) for problem in found.errors(include_url=False)]
    except (pydantic_core.PydanticSerializationError, RecursionError, ValueError) as found:
        problems = [f"it is no JSON: {found!s:.200}"]
    else:
        value: T = record
        return value
    more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
    raise error(f"{what}: {'; '.join(problems[:MAX_PROBLEMS])}{more}.") from None


def read_record_file(kind: type[T], path: str | Path, what: str, error: type[AsdPolicyError] = ConfigError) -> T:
    """`read_record` of a JSON file. Raises `error` also if the file cannot be read."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as found:
        raise error(f"Cannot read the {what} {path}: {found}") from found
    return read_record(kind, data, f"The {what} {path}", error)


@cache
def _adapter(kind: Hashable) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # A dataclass takes no settings from here by itself; within a tuple it inherits them, as those within it do.
    return TypeAdapter(tuple[kind], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]


def _told(problem: Mapping[str, Any]) -> str:
    """One problem: the field, what was got and what was expected."""
    field = ".".join(map(str, problem["loc"][1:])) or "it"
    kind, got = problem["type"], f"{problem['input']!r:.80}"
    if kind == "missing":
        return f"{field} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{field} is no field of it (its value is {got})"
    if kind == "value_error":
        return str(problem["ctx"]["error"]).rstrip(".")
    return f"{field} is {got}; expected {problem['msg'].removeprefix('Input should be ')}"

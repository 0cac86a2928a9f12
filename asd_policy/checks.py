"""Checks of configuration values."""

from __future__ import annotations

from typing import Any

from asd_policy.errors import ConfigError

MAX_NUMBER = 2**62
"""Bound on the magnitude of configuration numbers: torch's integers have 64 bits."""


def expect(condition: bool, name: str, got: Any, expected: str) -> None:
    """Raise ConfigError unless the condition holds. The message is "`name` is `got`; expected `expected`."."""
    if not condition:
        raise ConfigError(f"{name} is {got!r}; expected {expected}.")


def is_count(value: object, least: int = 1) -> bool:
    """Whether the value is an integer of at least `least`. A bool is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether the value is a finite number below `MAX_NUMBER` in magnitude. A bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER

"""Checks of objects that users pass, such as drafts, captures, networks, backends and policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from asd_policy.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def plug_in(kind: str, value: str | T, registry: Mapping[str, Callable[[], T]], protocol: type[Any]) -> T:
    """Return the object `value`, or make the object registered under the name `value`.

    Args:
        kind: the argument's name in error messages, such as "draft".
        registry: name -> factory of the object.
        protocol: the Protocol class that the object must implement.

    Raises:
        UnknownNameError: if `value` is neither a registered name nor such an object. The message lists the names.
        ConfigError: if the object lacks members of the protocol. The message names them.
    """
    if not isinstance(value, str):
        check_members(kind, value, protocol, registry)
        return value
    if value not in registry:
        raise UnknownNameError(kind, value, registry)
    made = registry[value]()
    check_members(kind, made, protocol, registry)
    return made


def check_members(kind: str, value: object, protocol: type[Any], available: Mapping[str, object] | None = None) -> None:
    """Raise unless an object has every member of a Protocol class.

    Args:
        kind: the argument's name in error messages.
        available: the names that the user could pass instead; None if there are none.

    Raises:
        UnknownNameError: if there are names, and the object has none of the members.
        ConfigError: if it lacks some of them, or is a class.
    """
    if isinstance(value, type):
        raise ConfigError(f"{kind} is the class {value.__name__}; expected an object, such as {value.__name__}().")
    expected = protocol_members(protocol)
    missing = [name for name, is_method in expected.items() if not _has(value, name, is_method)]
    if available is not None and len(missing) == len(expected):
        raise UnknownNameError(kind, value, available)
    if missing:
        raise ConfigError(
            f"{kind} is a {type(value).__name__}, which lacks {', '.join(missing)} of the protocol "
            f"{protocol.__name__}; expected {', '.join(expected)}."
        )


def protocol_members(protocol: type[Any]) -> dict[str, bool]:
    """The public members of a Protocol class and `__call__`, sorted by name -> whether each is a method."""
    found: dict[str, bool] = {}
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False) and base is not Protocol:
            own = {**dict.fromkeys(vars(base).get("__annotations__", ())), **vars(base)}
            found |= {
                name: callable(member) or isinstance(member, classmethod)
                for name, member in own.items()
                if not name.startswith("_") or name == "__call__"
            }
    return dict(sorted(found.items()))


def _has(value: object, name: str, is_method: bool) -> bool:
    return hasattr(value, name) and (not is_method or callable(getattr(value, name)))

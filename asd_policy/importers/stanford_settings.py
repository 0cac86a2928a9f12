"""Reads single settings of real-stanford's configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError
from asd_policy.importers.files import entry


def setting(cfg: Any, path: str | tuple[str, ...], where: str) -> Any:
    """An entry of the configuration.

    Raises:
        CheckpointError: if it is missing, or an unresolved interpolation: evaluating one could run code.
    """
    value = entry(cfg, path, where)
    if isinstance(value, str) and "${" in value:
        name = path if isinstance(path, str) else ".".join(path)
        raise CheckpointError(
            f"{where}: {name} is the unresolved {value[:200]!r}; such strings are never evaluated here."
        )
    return value


def flag(settings: Mapping[str, Any], name: str, where: str, required: bool = False) -> bool:
    """A boolean setting. A null, or a missing one that is not required, counts as false."""
    value = setting(settings, (name,), where) if required or name in settings else False
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name} is {value!r:.200}; expected true or false.")
    return bool(value)


def class_name(cfg: Any, path: str, where: str) -> str:
    """The name of the class or function that makes the object at `path` ("" for the whole) of the configuration."""
    return str(setting(cfg, f"{path}._target_".lstrip("."), where)).rpartition(".")[2]

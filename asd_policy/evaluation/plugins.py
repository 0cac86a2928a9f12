"""Objects that callers bring: a backend, a worker, a policy."""

from __future__ import annotations

from collections.abc import Sequence

from asd_policy.errors import ConfigError


def require_members(plugin: object, kind: str, members: Sequence[str]) -> None:
    """Raise ConfigError unless the object has these attributes; the message names the missing ones."""
    missing = [name for name in members if not hasattr(plugin, name)]
    if missing:
        raise ConfigError(
            f"The {kind} {plugin!r:.80} lacks {', '.join(missing)}; expected an object with {', '.join(members)}."
        )

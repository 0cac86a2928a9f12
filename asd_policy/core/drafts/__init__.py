"""Drafts by name."""

from __future__ import annotations

from asd_policy.core.drafts.frozen import Frozen
from asd_policy.core.drafts.path import Path
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.drafts.reuse import Reuse
from asd_policy.errors import UnknownNameError

DRAFTS: dict[str, type[Draft]] = {"frozen": Frozen, "reuse": Reuse, "path": Path}


def make_draft(name: str) -> Draft:
    """The draft called `name`. Raises UnknownNameError, which lists them all."""
    if name not in tuple(DRAFTS):  # a name may be anything, hashable or not
        raise UnknownNameError("draft", name, DRAFTS)
    return DRAFTS[name]()

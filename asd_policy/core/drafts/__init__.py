"""Drafts by name."""

from __future__ import annotations

from asd_policy.core.drafts.frozen import FrozenDraft
from asd_policy.core.drafts.path import PathDraft
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.drafts.reuse import ReuseDraft
from asd_policy.plugins import plug_in

DRAFTS: dict[str, type[Draft]] = {"frozen": FrozenDraft, "reuse": ReuseDraft, "path": PathDraft}
"""Name -> class of drafts. Add an entry to use a draft of your own by name: `DRAFTS["mine"] = MyDraft`."""


def make_draft(draft: str | Draft) -> Draft:
    """The draft of that name, or the one that is given.

    Raises:
        UnknownNameError: on a name that is not in DRAFTS. The message lists those that are.
        ConfigError: on an object that lacks members of `Draft`. The message names them.
    """
    return plug_in("draft", draft, DRAFTS, Draft)

"""The registry of drafts."""

from __future__ import annotations

from asd_policy.core.drafts.frozen import FrozenDraft
from asd_policy.core.drafts.path import PathDraft
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.drafts.reuse import ReuseDraft
from asd_policy.plugins import plug_in

DRAFTS: dict[str, type[Draft]] = {"frozen": FrozenDraft, "reuse": ReuseDraft, "path": PathDraft}
"""Name -> class of drafts. Add an entry to register a draft of your own: `DRAFTS["mine"] = MyDraft`."""


def make_draft(draft: str | Draft) -> Draft:
    """Return the draft registered under a name, or the given draft object.

    Raises:
        UnknownNameError: on an unknown name. The message lists the names in DRAFTS.
        ConfigError: on an object that lacks members of `Draft`. The message names them.
    """
    return plug_in("draft", draft, DRAFTS, Draft)

"""Signatures of thinking: clients keep them and hand them back, without reading them.

A shown thought's is its hash. A hidden thought's is the thought itself, so that the next request
can bring it back to the model. Neither proves anything: a conversation is what its client says.
"""

from __future__ import annotations

import base64
import hashlib

HIDDEN = "hidden."


def signature(thinking: str, hidden: bool) -> str:
    """What comes with a thought."""
    data = thinking.encode("utf-8", "replace")
    if hidden:
        return HIDDEN + base64.b64encode(data).decode("ascii")
    return base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")


def recalled(thinking: str, signed: str) -> str:
    """The thought, out of its signature if it was hidden; empty if that is nothing of ours."""
    if thinking or not signed.startswith(HIDDEN):
        return thinking
    try:
        return base64.b64decode(signed.removeprefix(HIDDEN), validate=True).decode("utf-8")
    except ValueError:
        return ""

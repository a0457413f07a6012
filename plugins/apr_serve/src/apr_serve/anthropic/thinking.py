"""Signatures of thinking: clients keep them and hand them back, without reading them.

The signature of shown thinking is its hash. That of hidden thinking is the thinking itself, so
that the next request can bring it back to the model. Neither proves anything: the server takes
a conversation as its client sends it.
"""

from __future__ import annotations

import base64
import hashlib

HIDDEN = "hidden."


def signature(thinking: str, hidden: bool) -> str:
    """Return the signature that is sent with a block of thinking."""
    data = thinking.encode("utf-8", "replace")
    if hidden:
        return HIDDEN + base64.b64encode(data).decode("ascii")
    return base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")


def recalled(thinking: str, signed: str) -> str:
    """Return the thinking, decoded from its signature if it was hidden; "" if that is not ours."""
    if thinking or not signed.startswith(HIDDEN):
        return thinking
    try:
        return base64.b64decode(signed.removeprefix(HIDDEN), validate=True).decode("utf-8")
    except ValueError:
        return ""

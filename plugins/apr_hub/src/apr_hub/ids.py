"""Names of models: hf://ORG/NAME[@REVISION]."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr_core.plugin import UsageError

_ID = re.compile(r"(?:hf://)?([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,128}))?")


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository, and the requested branch, tag or commit."""

    repo: str
    revision: str

    def __str__(self) -> str:
        ending = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{ending}"


def parse_id(text: str) -> HubId:
    """Read hf://ORG/NAME[@REVISION]. Raises UsageError."""
    match = _ID.fullmatch(text)
    if match is None or ".." in text or "--" in match[1]:
        raise UsageError(
            f"{text!r} is no model id", "Write hf://ORG/NAME or hf://ORG/NAME@REVISION."
        )
    return HubId(match[1], match[2] or "main")

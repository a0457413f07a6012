"""The result of one part of the examination."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Finding:
    """The result of one part.

    `rows` are (label, text) for people, `facts` the same for programs. A problem makes commands
    fail; a warning does not, or only for users of the thing it is about.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    facts: Any = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of the examination."""

    name: str
    finding: Finding

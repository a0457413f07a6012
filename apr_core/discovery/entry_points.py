"""Entry points of the group `apr`, as packaging metadata has them. Imports no plugin."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

GROUP = "apr"


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """An entry point of a distribution. `problem`: what is wrong with its metadata."""

    distribution: str  # normalized
    version: str
    entry_point: str
    value: str  # the hooks module
    problem: str = ""

    @property
    def name(self) -> str:
        """`distribution:entry point`, unique."""
        return f"{self.distribution}:{self.entry_point}"

    @property
    def names(self) -> set[str]:
        """Everything a user may call it."""
        return {self.distribution, self.entry_point, self.name}


def normalized(name: str) -> str:
    """A distribution name as the packaging rules compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def normalized_id(name: str) -> str:
    """`Dist_Name:entry` with the distribution part normalized; bare names are left alone."""
    dist, colon, entry = name.partition(":")
    return f"{normalized(dist)}:{entry}" if colon else name


def installed() -> list[EntryPoint]:
    """All entry points of the group, sorted by (distribution, name); the first on the path wins."""
    from importlib.metadata import distributions

    first: dict[tuple[str, str], EntryPoint] = {}
    for dist in distributions():
        for each in _of_distribution(dist):
            first.setdefault((each.distribution, each.entry_point), each)
    return [first[key] for key in sorted(first)]


def _of_distribution(dist: object) -> list[EntryPoint]:
    """A distribution's entry points of the group. Half an installation is one that says so."""
    folder = str(getattr(dist, "_path", "unknown")).rpartition(os.sep)[2]
    try:
        text = dist.read_text("entry_points.txt") or ""  # type: ignore[attr-defined]
        if f"[{GROUP}]" not in text.replace(" ", ""):
            return []
    except (OSError, UnicodeDecodeError):
        return []
    try:
        entries = [e for e in dist.entry_points if e.group == GROUP]  # type: ignore[attr-defined]
        name, version = dist.metadata["Name"], dist.version  # type: ignore[attr-defined]
        if not name or not version:
            raise ValueError("its METADATA has no Name or Version")
    except Exception as error:
        name = normalized(folder.partition("-")[0]) or "unknown"
        reason = f"half installed ({folder}): {type(error).__name__}: {error}"
        return [EntryPoint(name, "?", name, "", f"{reason}; reinstall or remove it")]
    return [EntryPoint(normalized(name), version, e.name, e.value.strip()) for e in entries]

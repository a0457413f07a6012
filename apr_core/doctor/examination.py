"""What an examination is: parts, each with facts, and with problems that say what will fail."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Finding:
    """What one part found out.

    `rows` are (label, text) for people, `facts` the same for programs. A problem makes commands
    fail; a warning does not, or only for who uses the thing it is about.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    facts: Any = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the examination, once it was made."""

    name: str
    finding: Finding


def _parts() -> dict[str, Callable[[], Finding]]:
    from apr_core.doctor import configuration, machine, plugins, storage

    return {
        "system": machine.system,
        "processor": machine.processor,
        "memory": machine.memory,
        "devices": plugins.devices,
        "plugins": plugins.plugins,
        "libraries": plugins.libraries,
        "storage": storage.storage,
        "configuration": configuration.configuration,
    }


def examine(parts: dict[str, Callable[[], Finding]] | None = None) -> Iterator[Part]:
    """Each part as it is done; one that cannot be examined says so itself."""
    for name, look in (parts or _parts()).items():
        yield Part(name, _careful(name, look))


def _careful(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a backend that prints must not break --json
            return look()
    except (Exception, SystemExit) as error:
        if os.environ.get("APR_DEBUG") == "1":
            traceback.print_exc()
        reason = f"cannot be examined: {type(error).__name__}: {error}"
        return Finding([("", reason)], {"error": reason}, warnings=[f"{name} {reason}"])

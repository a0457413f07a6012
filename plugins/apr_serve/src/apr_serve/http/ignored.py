"""Unknown fields of a request: ignored, and named in a header and in the log."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

MOST, LONGEST = 16, 64  # names that are listed, and characters of one
HEADER = "x-apr-ignored"


class Ignored:
    """The unknown fields of one request. With `strict` they are errors instead."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._names: dict[str, None] = {}

    def add(self, names: Iterable[str]) -> None:
        """Note more unknown fields."""
        for name in names:
            if len(self._names) > MOST:
                return
            self._names[_printable(name)] = None

    def __str__(self) -> str:
        """Return the names, separated by commas; the last one is `...` if there are more."""
        names = list(self._names)
        return ", ".join([*names[:MOST], *(["..."] if len(names) > MOST else [])])


def _printable(name: str) -> str:
    """Return the name in a form that a header may hold."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in name[:LONGEST])


IGNORED: ContextVar[Ignored] = ContextVar("ignored")  # of the current request

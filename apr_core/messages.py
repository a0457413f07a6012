"""Messages that are no errors: hints, and notices of slow work that nobody asked for.

A hint names what comes close, or the package that provides what is missing. A notice comes from a
plugin at work. Nothing is printed by default: `apr` shows notices on stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

Notice = Callable[[str, int, int], None]  # (what is being done, done, total)
LONGEST = 200  # characters of foreign text shown at most
_shown_by: Notice | None = None


@cache
def index() -> dict[str, Any]:
    """Return `apr_index`: published plugins, and the format ids that APR v2 fixes."""
    content: dict[str, Any] = json.loads(files("apr_index").joinpath("index.json").read_bytes())
    return content


def published(kind: str) -> dict[str, str]:
    """Return {name: distribution} of well-known plugins of a kind, for hints only."""
    names: dict[str, str] = index()["plugins"].get(kind, {})
    return names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the names that come close, in any case; empty if none does."""
    import difflib  # slow to import, and needed for mistakes only

    lower = {each.lower(): each for each in sorted(known)}
    close = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, 3)]
    return f"Did you mean {' or '.join(close)}?" if close else ""


def one_line(text: str) -> str:
    """Return foreign text fit for one line of a terminal."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def show_with(function: Notice | None) -> None:
    """Pass notices to a function from now on; None silences them."""
    global _shown_by
    _shown_by = function


def working(text: str, done: int, total: int) -> None:
    """Send a notice of slow work. `total` may be an estimate; done == total ends it."""
    if _shown_by is not None:
        _shown_by(text, done, total)

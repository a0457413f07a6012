"""What a message can add: names that come close, the package that has what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

LONGEST = 200  # characters of somebody else's text that are worth a line


@cache
def index() -> dict[str, Any]:
    """What is published, and the format ids that APR v2 fixes: the data of `apr_index`."""
    content: dict[str, Any] = json.loads(files("apr_index").joinpath("index.json").read_bytes())
    return content


def published(kind: str) -> dict[str, str]:
    """{name: distribution} of well-known plugins of a kind, for hints only."""
    names: dict[str, str] = index()["plugins"].get(kind, {})
    return names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the names that come close, whatever their case; empty if none does."""
    import difflib  # takes time, and is for mistakes only

    lower = {each.lower(): each for each in sorted(known)}
    close = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, 3)]
    return f"Did you mean {' or '.join(close)}?" if close else ""


def one_line(text: str) -> str:
    """Text of somebody else, fit for one line of a terminal."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."

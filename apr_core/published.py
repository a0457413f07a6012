"""The index of what is published (apr_index): for hints, and for ids that APR v2 fixes."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def index() -> dict[str, Any]:
    """The whole index, as it is in the file."""
    found: dict[str, Any] = json.loads(files("apr_index").joinpath("index.json").read_text("utf-8"))
    return found


def published(kind: str) -> dict[str, str]:
    """{name: distribution} of well-known plugins of a kind, for hints only."""
    found: dict[str, str] = index()["plugins"].get(kind, {})
    return found

"""The source hf://ORG/NAME[@REVISION]: checkpoints that `apr pull` has downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apr_core.plugin import NotFound, UsageError
from apr_hub.pulling import resolve_local


def fetch(
    url: str, *, progress: Callable[[str, int], None] | None = None, force: bool = False
) -> Path:
    """Return the directory of a model that was pulled. Uses no network.

    Raises NotFound for an invalid id, and for a model that is missing or incomplete.
    """
    try:
        local = resolve_local(url)
    except UsageError as error:
        raise NotFound(error.message, error.hint) from error
    if local is None:
        raise NotFound(f"{url} is not on this machine", f"Pull it first: apr pull {url}")
    return local

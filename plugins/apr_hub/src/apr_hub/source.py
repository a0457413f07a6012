"""hf://ORG/NAME[@REVISION] as a source of checkpoints: what `apr pull` has brought here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apr_core.plugin import NotFound
from apr_hub.pulling import resolve_local


def fetch(
    url: str, *, progress: Callable[[str, int], None] | None = None, force: bool = False
) -> Path:
    """Return the directory of a model that was pulled. The network is not asked.

    Raises UsageError for what is no id, and NotFound for what is not here, or not all of it.
    """
    local = resolve_local(url)
    if local is None:
        raise NotFound(f"{url} is not on this machine", f"Pull it first: apr pull {url}")
    return local

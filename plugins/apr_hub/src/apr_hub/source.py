"""hf://ORG/NAME[@REVISION] as a source of checkpoints: what `apr pull` has brought here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apr_core.plugin import NotFound, UsageError
from apr_hub.pulling import resolve_local


def fetch(
    url: str, *, progress: Callable[[str, int], None] | None = None, force: bool = False
) -> Path:
    """Return the directory of a model that was pulled. The network is not asked.

    Raises NotFound for what is no id, and for what is not here, or not all of it.
    """
    try:
        local = resolve_local(url)
    except UsageError as error:
        raise NotFound(error.message, error.hint) from error
    if local is None:
        raise NotFound(f"{url} is not on this machine", f"Pull it first: apr pull {url}")
    return local

"""The source hf://ORG/NAME[@REVISION]: checkpoints that were pulled, or are pulled now."""

from __future__ import annotations

from pathlib import Path

from apr_core.plugin import NotFound, UsageError
from apr_hub.pulling import Progress, pull, resolve_local


def fetch(url: str, *, progress: Progress | None = None, force: bool = False) -> Path:
    """Return the directory of a model. What is missing is pulled; without `progress`, nothing.

    Raises NotFound for an invalid id or a model that is not there, and as `pull`.
    """
    try:
        local = resolve_local(url)
    except UsageError as error:
        raise NotFound(error.message, error.hint) from error
    if progress and (force or local is None):
        return pull(url, force=force, progress=progress).path
    if local is None:
        raise NotFound(f"{url} is not on this machine", f"Pull it first: apr pull {url}")
    return local

"""Numba options of the codecs, and where their compiled code is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.caching import UserProvidedCacheLocator

from apr_core.cache_folder import usable_folder
from apr_core.settings import cache_dir


def _cache_dir() -> str:
    """Named after this package's sources: Numba looks only at the file a function stands in."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    named = os.environ.get("NUMBA_CACHE_DIR")
    found = usable_folder(
        Path(named) if named else cache_dir() / "numba",
        f"quant-{digest.hexdigest()[:12]}",
        "compiled code",
        "NUMBA_CACHE_DIR" if named else "APR_CACHE",
    )
    return str(found or "")


CACHE_DIR = _cache_dir()  # empty: nothing is kept


class ByContent(UserProvidedCacheLocator):
    """Where Numba keeps a function's code: named by the sources, wherever the package lies."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """One folder for all modules; their names are part of the files'."""
        return "functions"


def serial(function: Callable[..., Any]) -> Any:
    """njit without the GIL, its disk cache in this package's folder whoever imported what first.

    No fastmath: the same bytes must come out on every processor.
    """
    config = numba.config
    before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = CACHE_DIR, f"{__name__}.{ByContent.__name__}"
    try:
        return njit(nogil=True, cache=bool(CACHE_DIR), error_model="numpy")(function)
    finally:
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before

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

from apr_core.plugin import cache_dir, usable_folder


def _folder() -> Path | None:
    """Return a folder named after this package's sources.

    Numba itself checks only the file of a function.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR")
    return usable_folder(
        Path(root) if root else cache_dir() / "numba",
        f"quant-{digest.hexdigest()[:12]}",
        "compiled code",
        "NUMBA_CACHE_DIR" if root else "APR_CACHE",
    )


CACHE_DIR = str(_folder() or "")  # empty: no code is kept


class ByContent(UserProvidedCacheLocator):
    """Where Numba keeps a function's code: named after the sources, wherever the package is."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """Return one folder for all modules; file names tell them apart."""
        return "functions"


def serial(function: Callable[..., Any]) -> Any:
    """Compile with njit, without the GIL, and with its disk cache in this package's folder.

    No fastmath: the same bytes must come out on every processor.
    """
    config = numba.config
    before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = CACHE_DIR, f"{__name__}.{ByContent.__name__}"
    try:
        return njit(nogil=True, cache=bool(CACHE_DIR), error_model="numpy")(function)
    finally:
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before

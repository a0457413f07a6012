"""Numba options of the codecs, and where their compiled code is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit

from apr_core.settings import cache_dir


def _cache_dir() -> str:
    """Named after this package's sources: Numba looks only at the file a function stands in."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return str(cache_dir() / "numba" / f"quant-{digest.hexdigest()[:12]}")


CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR") or _cache_dir()


def serial(function: Callable[..., Any]) -> Any:
    """njit without the GIL, its disk cache in this package's folder whoever imported what first.

    No fastmath: the same bytes must come out on every processor.
    """
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, CACHE_DIR
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before

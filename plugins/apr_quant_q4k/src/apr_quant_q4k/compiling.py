"""Numba options of the codecs, where their compiled code is kept, and rounding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _cache_dir() -> str:
    """Named after this package's sources: Numba looks only at the file a function stands in."""
    root = os.environ.get("APR_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "apr"
    )
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return str(Path(root) / "numba" / f"quant-{digest.hexdigest()[:12]}")


CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR") or _cache_dir()


def _compiler(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """njit with options, its disk cache in this package's folder whoever imported what first."""

    def decorate(function: Callable[..., Any]) -> Any:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, CACHE_DIR
        try:
            return njit(nogil=True, cache=True, error_model="numpy", **options)(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


# sums may be reordered: they only rank candidates, the same way in every build of the same code
serial = _compiler()
serial_sums = _compiler(fastmath={"reassoc", "contract", "nsz"})
threaded = _compiler(parallel=True)


@intrinsic
def nearest(typing: Any, x: Any) -> Any:
    """The nearest integer, ties to even, as float32."""

    def codegen(context: Any, b: Any, _: Any, args: Any) -> Any:
        name, single = "llvm.rint.f32", ir.FloatType()
        function = b.module.globals.get(name) or ir.Function(
            b.module, ir.FunctionType(single, [single]), name
        )
        return b.call(function, args)

    return types.float32(types.float32), codegen

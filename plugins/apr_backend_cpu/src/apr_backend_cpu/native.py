"""The compiled kernels of this processor's level: a shared library and its functions by name.

The library comes with the package, or was built beside the sources by `python -m
apr_backend_cpu.build`. If there is none - an unknown processor, sources that changed - Numba
compiles the same sources now, and the machine code is kept in the cache folder.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from apr_backend_cpu.levels import GENERIC, Level, possible
from apr_backend_cpu.shipped import library_path, source_hash
from apr_core.plugin import BackendError, cache_dir, usable_folder, working

CACHE = "cpu"  # folder in the cache, for code compiled at first use
VARIABLE = "APR_CPU_LEVEL"  # forces a lower level
Function = Callable[..., Any]


def chosen() -> Level:
    """Return the best possible level, or the one $APR_CPU_LEVEL names. Raises BackendError."""
    levels = possible()
    forced = os.environ.get(VARIABLE, "")
    for level in levels:
        if level.name == (forced or levels[0].name):
            return level
    names = ", ".join(level.name for level in levels)
    raise BackendError(f"{VARIABLE}={forced} is not possible here", f"This processor runs {names}.")


class Library:
    """Addresses of functions. `origin` is the file they come from, or says how they were made."""

    def __init__(self, level: Level, find: Callable[[str], int], origin: str, owner: Any) -> None:
        self.level, self.origin = level, origin
        self._find, self._owner = find, owner
        self._known: dict[str, int] = {}

    def address(self, name: str) -> int:
        """Return a function's address. Raises AttributeError if there is none of that name."""
        address = self._known.get(name)
        if address is None:
            address = self._known[name] = self._find(name)
            if not address:
                raise AttributeError(f"the CPU kernels have no function {name!r}")
        return address

    def function(self, name: str, arguments: int) -> Function:
        """Return a function of `arguments` words that returns one; it releases the GIL."""
        kind = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * arguments)
        return kind(self.address(name))


def _opened(level: Level, path: Path) -> Library:
    handle = ctypes.CDLL(str(path))

    def find(name: str) -> int:
        pointer = ctypes.cast(getattr(handle, name), ctypes.c_void_p)
        return pointer.value or 0

    return Library(level, find, path.name, handle)


def _compiled(level: Level) -> Library:
    """Compile the kernels with Numba and LLVM in this process, or read the cached code."""
    from apr_backend_cpu.build.loading import loaded, processor

    name = f"{level.name}-{source_hash()}"
    if level is GENERIC:  # LLVM picks the instructions: not for other processors sharing the folder
        name += f"-{processor()}"
    folder = usable_folder(cache_dir() / CACHE, name, "compiled code", "APR_CACHE")
    file = folder / "kernels.o" if folder else None
    if file and file.exists():
        code = file.read_bytes()
    else:
        from apr_backend_cpu.build.emit import object_code

        working("compiling kernels for this processor", 0, 1)
        code = object_code(level)
        working("compiling kernels for this processor", 1, 1)
        if file:
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(code)
            part.replace(file)
    engine = loaded(code)
    return Library(level, engine.get_function_address, "compiled here", engine)


@cache
def library() -> Library:
    """Return the kernels of this process, opened on first use. Raises BackendError."""
    level = chosen()
    path = library_path(level)
    return _opened(level, path) if path.exists() else _compiled(level)


def cache_folders() -> list[tuple[str, str]]:
    """List the caches on disk, for `apr doctor`: (label, folder)."""
    folder = cache_dir() / CACHE
    return [("compiled kernels", str(folder))] if folder.exists() else []


def address(name: str) -> int:
    """Return the address of a kernel."""
    return library().address(name)


def function(name: str, arguments: int) -> Function:
    """Return a kernel that Python calls; see `Library.function`."""
    return library().function(name, arguments)

"""Where the library of a level is, and its name, which ties it to its sources.

Nothing here or in what it imports needs `apr_core`: packages are built where that is not installed.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from apr_backend_cpu.levels import Level

HERE = Path(__file__).parent
LIBRARIES = HERE / "libraries"
SOURCES = ("*constants.py", "levels.py", "build/emit.py", "kernels/**/*.py")


@cache
def source_hash() -> str:
    """Return a hash of all sources of the machine code; others mean a library is out of date."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in HERE.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library_path(level: Level, folder: Path = LIBRARIES) -> Path:
    """Return the path of a level's library."""
    return folder / f"{level.name}-{source_hash()}.so"

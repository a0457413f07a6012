"""Linking object files into shared libraries: by this system's C compiler, or zig for others."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from apr_backend_cpu.build.platforms import Platform


class LinkError(Exception):
    """There is no linker, or it failed."""


def linker(platform: Platform | None = None) -> list[str]:
    """Return the linker command for a platform, None being this system. Raises LinkError."""
    compiler = None if platform else shutil.which(os.environ.get("CC", "cc"))
    if compiler:
        return [compiler]
    if importlib.util.find_spec("ziglang") is None:
        needed = "the package ziglang" if platform else "a C compiler, or the package ziglang,"
        raise LinkError(f"{needed} is needed to link for {platform.name if platform else 'here'}")
    target = ["-target", platform.zig] if platform else []
    return [sys.executable, "-m", "ziglang", "cc", *target]


def link(code: bytes, out: Path, platform: Platform | None = None) -> None:
    """Link an object file's bytes into a shared library at `out`. Raises LinkError."""
    command = linker(platform)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        source, library = Path(folder) / "kernels.o", Path(folder) / out.name
        source.write_bytes(code)
        macos = "macos" in platform.name if platform else sys.platform == "darwin"
        name = [f"-Wl,-install_name,@rpath/{out.name}"] if macos else []
        done = subprocess.run(
            [*command, "-shared", "-s", *name, "-o", str(library), str(source), "-lm"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise LinkError(f"{out.name} could not be linked: {done.stderr.strip()[-500:]}")
        library.replace(out)

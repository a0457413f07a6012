"""Object files to shared libraries: by the C compiler of this system, or by zig's for another."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from apr_core.errors import BackendError

ZIG_TARGETS = {"linux": "{}-linux-gnu.2.17", "macos": "{}-macos.11.0"}


def linker(arch: str, system: str) -> list[str] | None:
    """The command that links for a system, "" being this one; None: there is none here."""
    if not system:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        return [compiler] if compiler else None
    if importlib.util.find_spec("ziglang") is None:
        return None
    return [sys.executable, "-m", "ziglang", "cc", "-target", ZIG_TARGETS[system].format(arch)]


def link(code: bytes, out: Path, arch: str, system: str = "") -> None:
    """Write the shared library of an object file. Raises BackendError."""
    command = linker(arch, system)
    if command is None:
        raise BackendError(
            f"nothing here links for {system or 'this system'}",
            "Install a C compiler, or the package ziglang.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.o"
        source.write_bytes(code)
        part = out.with_suffix(f".{os.getpid()}.part")
        made = subprocess.run(
            [*command, "-shared", "-s", "-o", str(part), str(source), "-lm"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if made.returncode:
        part.unlink(missing_ok=True)
        raise BackendError(f"{out.name} could not be linked: {made.stderr.strip()[-500:]}")
    part.replace(out)

"""The build hook of the package: it compiles the kernels to machine code.

An editable install gets the library of this processor, beside the sources. A wheel gets those of
all levels of a platform: this one, or the one $APR_CPU_PLATFORM names, for which zig links
(`make wheels`). Where there is no linker, a wheel holds none and runs everywhere: its kernels are
then compiled at first use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "APR_CPU_PLATFORM"
SOURCES = Path(__file__).parent / "src"


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Builds the libraries, and sets the platform tag of a wheel that holds them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the package is put together; `version` is standard or editable."""
        if version == "editable":
            build()
            return
        name = os.environ.get(VARIABLE, "")
        build("--platform", name or "here")
        tag, libraries = contents(name)
        if libraries:
            build_data["pure_python"], build_data["tag"] = False, f"py3-none-{tag}"
        for library in libraries:
            build_data["force_include"][str(library)] = f"apr_backend_cpu/libraries/{library.name}"


def build(*arguments: str) -> None:
    """Run `python -m apr_backend_cpu.build` of these sources, with its output shown."""
    path = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "apr_backend_cpu.build", *arguments]
    if subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode:
        raise RuntimeError("the CPU kernels could not be built; the reason stands above")


def contents(name: str) -> tuple[str, list[Path]]:
    """Return a platform's tag and libraries; "" means this system at its own OS version."""
    sys.path.insert(0, str(SOURCES))
    from apr_backend_cpu.build.platforms import PLATFORMS, here
    from apr_backend_cpu.shipped import LIBRARIES, library_path

    platform = PLATFORMS[name] if name else here()
    own = sysconfig.get_platform().replace("universal2", "arm64")
    tag = platform.tag if name and platform else own.replace("-", "_").replace(".", "_")
    paths = [library_path(v, LIBRARIES / name) for v in (platform.levels() if platform else [])]
    return tag, [path for path in paths if path.exists()]

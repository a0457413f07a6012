"""Build the kernels' libraries: `python -m apr_backend_cpu.build [LEVEL ...] [--system SYSTEM]`.

Without a level, the best one of this processor is built beside the sources, unless it is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from apr_backend_cpu.levels import LEVELS, Level, possible
from apr_backend_cpu.native import LIBRARIES, library_path
from apr_core.errors import AprError


def build(level: Level, system: str, folder: Path) -> str:
    """Build one library; returns a line that says what came of it."""
    from apr_backend_cpu.build.emit import object_code
    from apr_backend_cpu.build.link import link

    out, started = library_path(level, folder), time.perf_counter()
    link(object_code(level, system), out, level.arch, system)
    return f"{out.name}: {out.stat().st_size / 1024:.0f} KiB, {time.perf_counter() - started:.0f} s"


def levels_of(names: list[str], system: str) -> list[Level]:
    """The levels of these names, or all that `system` may have, or this processor's best."""
    if names:
        return [LEVELS[name] for name in names]
    if not system:
        return [level for level in possible() if level.name in LEVELS][:1]
    return [v for v in LEVELS.values() if system != "macos" or v.arch == "aarch64"]


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments and build; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("levels", nargs="*", choices=[[], *LEVELS])
    parser.add_argument("--system", choices=["linux", "macos"], default="", help="cross-build")
    parser.add_argument("--out", type=Path, default=LIBRARIES)
    options = parser.parse_args(arguments)
    wanted = levels_of(options.levels, options.system)
    missing = [v for v in wanted if not library_path(v, options.out).exists()]
    stale = {path for v in wanted for path in options.out.glob(f"{v.name}-*.so")}
    try:
        with ProcessPoolExecutor(min(2, len(missing)) or 1) as pool:
            jobs = [pool.submit(build, v, options.system, options.out) for v in missing]
            for job in jobs:
                print(job.result())
    except AprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in stale - {library_path(v, options.out) for v in wanted}:
        path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

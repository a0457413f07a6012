"""Build the kernels' libraries.

    python -m apr_backend_cpu.build [LEVEL ...] [--platform PLATFORM] [--out FOLDER]

The named levels, or all levels of a platform (`here` for this one), or this processor's best one.
They lie beside the sources, where they are found, those of another platform in a folder of its own.
What is there already is not built again. Without a linker the levels of this system are left out:
their kernels are then compiled at first use.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

from apr_backend_cpu.build.link import LinkError, link, linker
from apr_backend_cpu.build.platforms import PLATFORMS, Platform, here
from apr_backend_cpu.levels import LEVELS, Level, possible
from apr_backend_cpu.shipped import LIBRARIES, library_path

PROCESSES = 2  # one takes up to 1 GB
LATER = "the kernels are compiled at first use, which takes half a minute, once"


def build(level: Level, platform: Platform | None, folder: Path) -> str:
    """Build one library; return a line that says how it went."""
    from apr_backend_cpu.build.emit import object_code

    out, started = library_path(level, folder), time.perf_counter()
    link(object_code(level, platform.triple if platform else ""), out, platform)
    return f"{out.name}: {out.stat().st_size / 1024:.0f} KiB, {time.perf_counter() - started:.0f} s"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, after waiting for any other build in it to finish."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows, for which nothing is built
        yield
        return
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_missing(levels: list[Level], platform: Platform | None, folder: Path) -> Iterator[str]:
    """Build missing libraries and remove outdated ones; yield a line for each."""
    with alone(folder):
        missing = [level for level in levels if not library_path(level, folder).exists()]
        if missing:
            linker(platform)  # before minutes of work
        if len(missing) > 1:
            with ProcessPoolExecutor(min(PROCESSES, len(missing))) as pool:
                yield from pool.map(build, missing, repeat(platform), repeat(folder))
        else:
            yield from (build(level, platform, folder) for level in missing)
        remove_old(levels, folder)


def remove_old(levels: Iterable[Level], folder: Path) -> None:
    """Remove libraries of these levels that were built from other sources."""
    for level in levels:
        for path in folder.glob(f"{level.name}-{'[0-9a-f]' * 16}.so"):
            if path != library_path(level, folder):
                path.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments and build; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=", ".join(LEVELS))
    parser.add_argument("--platform", choices=["here", *PLATFORMS])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if unknown := set(options.levels) - set(LEVELS):
        parser.error(f"no level is called {', '.join(sorted(unknown))}: {', '.join(LEVELS)}")
    platform = PLATFORMS.get(options.platform)
    levels = [LEVELS[name] for name in options.levels]
    if not levels and options.platform:
        machine = platform or here()
        levels = machine.levels() if machine else []
    elif not levels:
        levels = [level for level in possible() if level.name in LEVELS][:1]
    folder = options.out or (LIBRARIES / platform.name if platform else LIBRARIES)
    if not levels:
        print(f"note: there are no levels for this processor and system; {LATER}")
    try:
        for line in build_missing(levels, platform, folder):
            print(line, flush=True)
    except LinkError as error:
        if platform or options.levels:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"note: {error}; without it {LATER}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Remembers what plugins declared, so that no command imports a hooks module twice.

One JSON file for each Python environment, in the cache folder. It counts as long as the same
distributions are installed, and a row as long as the plugin's own files are what they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apr_core import hookspecs
from apr_core.plugin_rows import Found, PluginRow, as_plain, from_plain
from apr_core.settings import cache_dir

VERSION = 1  # of the file; another one is read as if there were none
Stamp = tuple[str, int, int]  # path, mtime in ns, size


@dataclass(frozen=True, slots=True)
class Scanned:
    """A row, and the files it depends on."""

    row: PluginRow
    files: tuple[Stamp, ...] = ()
    stopped: bool = False  # it ended the process that looked at it, or had to be ended


@dataclass(slots=True)
class Memory:
    """What is remembered. `founds` None: nothing, or of an environment that has changed."""

    path: Path
    environment: list[Any]
    founds: list[Found] | None = None
    scanned: dict[str, Scanned] = field(default_factory=dict)


def environment() -> list[Any]:
    """What decides which distributions there are: interpreter, API, and every metadata folder."""
    folders = [_metadata(Path(entry or ".").absolute()) for entry in sys.path]
    return [VERSION, hookspecs.API_VERSION, sys.version, sys.executable, folders]


def _metadata(folder: Path) -> list[Any]:
    """The metadata folders on one entry of the path, and when they were changed."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((".dist-info", ".egg-info")):
                    found.append([entry.name, entry.stat().st_mtime_ns, _points(entry.path)])
    except OSError:
        return [str(folder), 0]
    return [str(folder), sorted(found)]


def _points(folder: str) -> int:
    """When the list of entry points was changed; 0 if there is none."""
    try:
        return Path(folder, "entry_points.txt").stat().st_mtime_ns
    except OSError:
        return 0


def recall(env: Mapping[str, str], refresh: bool = False) -> Memory:
    """What is remembered of this environment."""
    now = environment()
    key = zlib.crc32(f"{sys.prefix} {sys.version} {sys.path}".encode())
    memory = Memory(cache_dir(env) / "plugins" / f"{key:08x}.json", now)
    if refresh:
        return memory
    try:
        content = json.loads(memory.path.read_text("utf-8"))
        if content["environment"] != json.loads(json.dumps(now)):
            return memory
        memory.scanned = {r["name"]: _scanned(r) for r in content["rows"]}
        memory.founds = [Found(**f) for f in content["founds"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        memory.scanned.clear()  # whatever is wrong with the file, it can be written again
    return memory


def _scanned(record: dict[str, Any]) -> Scanned:
    row = record["row"]
    declarations = tuple(from_plain(d) for d in row.pop("declarations"))
    return Scanned(
        PluginRow(**row, declarations=declarations), tuple((p, m, s) for p, m, s in record["files"])
    )


def rows(
    memory: Memory, founds: Sequence[Found], wanted: Sequence[Found], env: Mapping[str, str]
) -> dict[str, PluginRow]:
    """The rows of the wanted plugins: remembered, or looked at now and then remembered."""
    current = {
        name: scanned for name, scanned in memory.scanned.items()
        if stamps({Path(path) for path, _, _ in scanned.files}) == scanned.files
    }  # fmt: skip
    unknown = [found for found in wanted if found.name not in current]
    if unknown:
        from apr_core.plugin_scan import scan

        current |= scan(unknown)
    if unknown or memory.founds is None:
        _write(memory, founds, current)
    return {found.name: current[found.name].row for found in wanted}


def _write(memory: Memory, founds: Sequence[Found], scanned: Mapping[str, Scanned]) -> None:
    """Remember, if there is a place for it: a cache that cannot be written costs time only."""
    content = {
        "environment": memory.environment,
        "founds": [asdict(found) for found in founds],
        "rows": [
            {"name": name, "files": each.files, "row": _row(each.row)}
            for name, each in scanned.items()
        ],
    }
    import tempfile

    with contextlib.suppress(OSError):
        memory.path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=memory.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file)
            Path(beside).replace(memory.path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def _row(row: PluginRow) -> dict[str, Any]:
    record = {name: getattr(row, name) for name in PluginRow.__slots__ if name != "declarations"}
    return record | {"declarations": [as_plain(d) for d in row.declarations]}


def stamps(files: Iterable[Path]) -> tuple[Stamp, ...]:
    """When files were changed last, and their sizes; those that are gone count as (path, 0, 0)."""
    found = []
    for file in sorted(files):
        try:
            state = file.stat()
            found.append((str(file), state.st_mtime_ns, state.st_size))
        except OSError:
            found.append((str(file), 0, 0))
    return tuple(found)

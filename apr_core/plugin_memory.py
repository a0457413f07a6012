"""Remembers what plugins declared, so that no command imports a hooks module twice.

One JSON file for each Python environment, in the cache folder. It counts as long as the same
distributions are installed, and a row as long as the plugin's own files are what they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from apr_core import hookspecs
from apr_core.plugin_rows import Found, PluginRow, Status, as_plain, checked_plain
from apr_core.settings import cache_dir

VERSION = 2  # of the file; another one is read as if there were none
FIRST_WAIT, LAST_WAIT = 60.0, 86400.0  # seconds until one that hung is given another chance
T = TypeVar("T")
Stamp = tuple[str, int, int]  # path, mtime in ns, size


@dataclass(frozen=True, slots=True)
class Scanned:
    """A row, and the files it depends on."""

    row: PluginRow
    files: tuple[Stamp, ...] = ()
    stops: int = 0  # in a row: it ended the process that looked at it, or had to be ended
    until: float = 0.0  # in s since 1970: when one that stopped is looked at again


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
        memory.founds = [_found(record) for record in content["founds"]]
        by_name = {found.name: found for found in memory.founds}
        for record in content["rows"]:
            found = by_name[record["name"]]
            memory.scanned[found.name] = scanned_from(found, record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        memory.scanned.clear()  # whatever is wrong with the file, it can be written again
        memory.founds = None
    return memory


def _found(record: Mapping[str, Any]) -> Found:
    if not all(type(value) is str for value in record.values()):
        raise TypeError("an entry point is described by text")
    return Found(**record)


def scanned_from(found: Found, record: Mapping[str, Any]) -> Scanned:
    """What `as_record` wrote of a plugin. Raises KeyError, TypeError or ValueError for the rest."""
    status, reason = record["status"], record["reason"]
    if status not in get_args(Status) or type(reason) is not str:
        raise ValueError(f"status {status!r}, reason {reason!r}")
    declarations = tuple(checked_plain(each) for each in record["declarations"])
    files = tuple((_is(str, p), _is(int, m), _is(int, s)) for p, m, s in record["files"])
    row = found.row(status, reason, declarations)
    return Scanned(row, files, _is(int, record["stops"]), _is(float, record["until"]))


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def as_record(scanned: Scanned) -> dict[str, Any]:
    """A plugin's row as JSON has it; `scanned_from` reads it."""
    return {
        "status": scanned.row.status,
        "reason": scanned.row.reason,
        "declarations": [as_plain(d) for d in scanned.row.declarations],
        "files": scanned.files,
        "stops": scanned.stops,
        "until": scanned.until,
    }


def rows(
    memory: Memory, founds: Sequence[Found], wanted: Sequence[Found], env: Mapping[str, str]
) -> dict[str, PluginRow]:
    """The rows of the wanted plugins: remembered, or looked at now and then remembered."""
    now = time.time()
    current = {
        name: scanned for name, scanned in memory.scanned.items()
        if (not scanned.stops or now < scanned.until <= now + LAST_WAIT)
        and stamps({Path(path) for path, _, _ in scanned.files}) == scanned.files
    }  # fmt: skip
    unknown = [found for found in wanted if found.name not in current]
    if unknown:
        from apr_core.plugin_scan import scan

        current |= {
            name: _patient(scanned, memory.scanned.get(name), now)
            for name, scanned in scan(unknown).items()
        }
    if unknown or memory.founds is None:
        _write(memory, founds, current)
    return {found.name: current[found.name].row for found in wanted}


def _patient(scanned: Scanned, before: Scanned | None, now: float) -> Scanned:
    """One that stopped is looked at again in a minute, then in two, and so on up to a day."""
    if not scanned.stops:
        return scanned
    stops = 1 + (before.stops if before else 0)
    wait = min(FIRST_WAIT * 2.0 ** (min(stops, 20) - 1), LAST_WAIT)
    return replace(scanned, stops=stops, until=now + wait)


def _write(memory: Memory, founds: Sequence[Found], scanned: Mapping[str, Scanned]) -> None:
    """Remember, if there is a place for it: a cache that cannot be written costs time only."""
    content = {
        "environment": memory.environment,
        "founds": [asdict(found) for found in founds],
        "rows": [
            {"name": found.name, **as_record(scanned[found.name])}
            for found in founds
            if found.name in scanned
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

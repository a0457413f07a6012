"""Which plugins are installed, what each one provides, and why one cannot be used.

Hooks modules are imported in this process, once after something changed. Whatever one raises,
SystemExit included, becomes the reason of its row. One that hangs is ended by Ctrl-C, which names
it and says how to leave it out. Declarations are remembered in one JSON file per Python
environment, in the cache folder, until a plugin's version or files change.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from apr_core.declarations import API_VERSION, Backend, Declaration, from_record, record_of
from apr_core.messages import one_line
from apr_core.settings import Settings, cache_dir, write_whole

GROUP = "apr"  # of entry points
Status = Literal["ok", "broken", "disabled", "incompatible", "unavailable"]


@dataclass(frozen=True, slots=True)
class PluginRow:
    """An entry point of a distribution: what it provides, or why it cannot be used."""

    distribution: str  # normalized
    version: str
    entry_point: str
    module: str  # the hooks module
    status: Status = "ok"
    reason: str = ""
    declarations: tuple[Declaration, ...] = ()

    @property
    def name(self) -> str:
        """`distribution:entry point`, which is unique."""
        return f"{self.distribution}:{self.entry_point}"

    @property
    def names(self) -> set[str]:
        """Every name a user may call it by."""
        return {self.distribution, self.entry_point, self.name}


def normalized(name: str) -> str:
    """Return a distribution name normalized as the packaging rules compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def normalized_id(name: str) -> str:
    """Return `Dist_Name:entry` with the distribution normalized; bare names are unchanged."""
    dist, colon, entry = name.partition(":")
    return f"{normalized(dist)}:{entry}" if colon else name


def installed() -> list[PluginRow]:
    """Return the group's entry points, sorted by (distribution, name); the first on the path wins.

    Reads packaging metadata alone: rows declare nothing yet; an unreadable one is `broken`.
    """
    from importlib.metadata import distributions

    first: dict[tuple[str, str], PluginRow] = {}
    for dist in distributions():
        for each in _of_distribution(dist):
            first.setdefault((each.distribution, each.entry_point), each)
    return [first[key] for key in sorted(first)]


def _of_distribution(dist: object) -> list[PluginRow]:
    """Return a distribution's entry points of the group; a row says if its metadata is damaged."""
    folder = str(getattr(dist, "_path", "unknown")).rpartition(os.sep)[2]
    try:
        text = dist.read_text("entry_points.txt") or ""  # type: ignore[attr-defined]
        if f"[{GROUP}]" not in text.replace(" ", ""):
            return []
    except (OSError, UnicodeDecodeError):
        return []
    try:
        entries = [e for e in dist.entry_points if e.group == GROUP]  # type: ignore[attr-defined]
        name, version = dist.metadata["Name"], dist.version  # type: ignore[attr-defined]
        if not name or not version:
            raise ValueError("its METADATA has no Name or Version")
    except Exception as error:
        name = normalized(folder.partition("-")[0]) or "unknown"
        reason = f"half installed ({folder}): {type(error).__name__}: {error}"
        return [PluginRow(name, "?", name, "", "broken", f"{reason}; reinstall or remove it")]
    return [PluginRow(normalized(name), version, e.name, e.value.strip()) for e in entries]


def discover(
    settings: Settings, env: Mapping[str, str] = os.environ, refresh: bool = False
) -> tuple[PluginRow, ...]:
    """Return the rows of all installed plugins; `refresh` ignores the cache."""
    looking = env.get("APR_DEBUG") == "1" or env.get("APR_TRACE_PLUGINS") == "1"
    memory = Memory(env, refresh or looking)
    rows = [allowed(each, settings, env) for each in installed()]
    rows = [_used(row, memory, env) if row.status == "ok" else row for row in rows]
    memory.save()
    return tuple(rows)


def allowed(row: PluginRow, settings: Settings, env: Mapping[str, str]) -> PluginRow:
    """Return the row, as `disabled` if the user's settings leave the plugin out."""
    only = env.get("APR_PLUGINS")
    reason = ""
    if only is not None and not row.names & listed(only):
        reason = f"APR_PLUGINS={only} does not name it"
    elif row.names & listed(env.get("APR_PLUGINS_BLOCK", "")):
        reason = "APR_PLUGINS_BLOCK names it"
    elif any(row.names & listed(name) for name in settings.disable):
        enable = f"apr plugins enable {row.distribution}"
        reason = f"the configuration file disables it ({enable})"
    return replace(row, status="disabled", reason=reason) if reason and row.status == "ok" else row


def listed(value: str) -> set[str]:
    """Return the names of a comma-separated list, each in every form a plugin's name may have."""
    parts = {part.strip() for part in value.split(",") if part.strip()}
    return parts | {normalized(part) for part in parts} | {normalized_id(part) for part in parts}


def _used(row: PluginRow, memory: Memory, env: Mapping[str, str]) -> PluginRow:
    """Return the row of a plugin that may be imported, from the cache or by importing it."""
    declarations = memory.recall(row)
    if declarations is None:
        from apr_core.discovery.collecting import Incompatible, Refused, collect

        try:
            declarations = tuple(collect(row.module))
        except Refused as refusal:
            status: Status = "incompatible" if isinstance(refusal, Incompatible) else "broken"
            return replace(row, status=status, reason=one_line(str(refusal)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"while plugin {row.name} was imported; to leave it out: "
                f"APR_PLUGINS_BLOCK={row.distribution}, or APR_NO_PLUGINS=1"
            ) from None
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            if env.get("APR_DEBUG") == "1":
                import traceback

                traceback.print_exc(file=sys.stderr)
            reason = one_line(f"{type(error).__name__}: {error}".rstrip(": "))
            return replace(row, status="broken", reason=reason)
        memory.remember(row, declarations)
    row = replace(row, declarations=declarations)
    if missing := missing_requirements(declarations):
        return replace(row, status="unavailable", reason=f"not installed: {', '.join(missing)}")
    return row


def missing_requirements(declarations: Iterable[Declaration]) -> list[str]:
    """Return modules that declared backends need and that are not found. Imports nothing."""
    needed = [m for d in declarations if isinstance(d, Backend) for m in d.requires]
    return [name for name in dict.fromkeys(needed) if not _exists(name)]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


class Memory:
    """The cache of this environment's declarations; empty with `refresh`."""

    def __init__(self, env: Mapping[str, str], refresh: bool = False) -> None:
        key = zlib.crc32(f"{API_VERSION} {sys.prefix} {sys.version}".encode())
        self._path = cache_dir(env) / "plugins" / f"{key:08x}.json"
        self._records: dict[str, Any] = {} if refresh else self._read()
        self._changed = refresh

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(self._path.read_text("utf-8"))
            if isinstance(content, dict):
                return content
        return {}

    def recall(self, plugin: PluginRow) -> tuple[Declaration, ...] | None:
        """Return what the plugin declared, or None if it changed since."""
        try:
            record = self._records[plugin.name]
            if [plugin.version, plugin.module] != record["plugin"]:
                return None
            if any(_stamp(path) != [path, *state] for path, *state in record["files"]):
                return None
            return tuple(from_record(each) for each in record["declarations"])
        except (KeyError, TypeError, ValueError, AttributeError):  # absent, or damaged
            return None

    def remember(self, plugin: PluginRow, declarations: tuple[Declaration, ...]) -> None:
        """Remember what a plugin declared that was just imported."""
        self._changed = True
        self._records[plugin.name] = {
            "plugin": [plugin.version, plugin.module],
            "files": _files(plugin.module),
            "declarations": [record_of(d) for d in declarations],
        }

    def save(self) -> None:
        """Write new entries if the cache folder is writable; without one, only time is lost."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_whole(self._path, json.dumps(self._records).encode())


def _files(module: str) -> list[list[Any]]:
    """Return the stamps of the files of all imported modules of the plugin's package."""
    package = module.partition(":")[0].partition(".")[0]
    files = {
        getattr(loaded, "__file__", None)
        for name, loaded in list(sys.modules.items())
        if name.partition(".")[0] == package
    }
    return [_stamp(path) for path in sorted(file for file in files if isinstance(file, str))]


def _stamp(path: str) -> list[Any]:
    """Return [path, time of the last change in ns, size]; zeros if the file is gone."""
    try:
        state = Path(path).stat()
        return [path, state.st_mtime_ns, state.st_size]
    except OSError:
        return [path, 0, 0]

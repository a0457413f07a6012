"""Which plugins are installed, what each one provides, and why one cannot be used.

Hooks modules are imported in this process, once after something changed. Whatever one raises,
SystemExit included, becomes the reason of its row. One that hangs is ended by Ctrl-C, which says
whose it was and how to leave it out. What they declared is remembered in one JSON file for each
Python environment, in the cache folder, as long as a plugin's version and files are what they were.
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
        """`distribution:entry point`, unique."""
        return f"{self.distribution}:{self.entry_point}"

    @property
    def names(self) -> set[str]:
        """Everything a user may call it."""
        return {self.distribution, self.entry_point, self.name}


def normalized(name: str) -> str:
    """A distribution name as the packaging rules compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def normalized_id(name: str) -> str:
    """`Dist_Name:entry` with the distribution part normalized; bare names are left alone."""
    dist, colon, entry = name.partition(":")
    return f"{normalized(dist)}:{entry}" if colon else name


def installed() -> list[PluginRow]:
    """All entry points of the group, sorted by (distribution, name); the first on the path wins.

    From packaging metadata alone: they declare nothing yet, and what cannot be read is broken.
    """
    from importlib.metadata import distributions

    first: dict[tuple[str, str], PluginRow] = {}
    for dist in distributions():
        for each in _of_distribution(dist):
            first.setdefault((each.distribution, each.entry_point), each)
    return [first[key] for key in sorted(first)]


def _of_distribution(dist: object) -> list[PluginRow]:
    """A distribution's entry points of the group. Half an installation is one that says so."""
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
    """The rows of all installed plugins; with `refresh`, nothing that is remembered counts."""
    looking = env.get("APR_DEBUG") == "1" or env.get("APR_TRACE_PLUGINS") == "1"
    memory = Memory(env, refresh or looking)
    rows = [allowed(each, settings, env) for each in installed()]
    rows = [_used(row, memory, env) if row.status == "ok" else row for row in rows]
    memory.save()
    return tuple(rows)


def allowed(row: PluginRow, settings: Settings, env: Mapping[str, str]) -> PluginRow:
    """The row, `disabled` if its user does not want the plugin to be imported."""
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
    """Entries of a list with commas, each in every form that a plugin's names may have."""
    parts = {part.strip() for part in value.split(",") if part.strip()}
    return parts | {normalized(part) for part in parts} | {normalized_id(part) for part in parts}


def _used(row: PluginRow, memory: Memory, env: Mapping[str, str]) -> PluginRow:
    """The row of a plugin that may be imported: as it is remembered, or looked at here and now."""
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
        except BaseException as error:  # a plugin may raise anything, also what nobody should catch
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
    """Modules that declared backends need and that cannot be found. Imports nothing."""
    needed = [m for d in declarations if isinstance(d, Backend) for m in d.requires]
    return [name for name in dict.fromkeys(needed) if not _exists(name)]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


class Memory:
    """What is remembered of this environment; with `refresh`, nothing is."""

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
        """What the plugin declared, if it is the same plugin still."""
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
        """Note what a plugin declared that was just imported."""
        self._changed = True
        self._records[plugin.name] = {
            "plugin": [plugin.version, plugin.module], "files": _files(plugin.module),
            "declarations": [record_of(d) for d in declarations],
        }  # fmt: skip

    def save(self) -> None:
        """Write what is new, if there is a place for it: without one, it costs time only."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_whole(self._path, json.dumps(self._records).encode())


def _files(module: str) -> list[list[Any]]:
    """Stamps of the files of all modules of the plugin's package that are imported."""
    package = module.partition(":")[0].partition(".")[0]
    files = {
        getattr(loaded, "__file__", None)
        for name, loaded in list(sys.modules.items())
        if name.partition(".")[0] == package
    }
    return [_stamp(path) for path in sorted(file for file in files if isinstance(file, str))]


def _stamp(path: str) -> list[Any]:
    """[path, time of the last change in ns, size]; zeros if the file is gone."""
    try:
        state = Path(path).stat()
        return [path, state.st_mtime_ns, state.st_size]
    except OSError:
        return [path, 0, 0]

"""Which plugins are installed, and what each one provides: a row for every entry point.

Plugins are code, and code may raise, hang, print, or end the process. So hooks modules are imported
in a process of their own (`plugin_scan`), once after something was installed or changed, and what
they declared is remembered (`plugin_memory`). A plugin that misbehaves becomes a row with a reason;
it never takes a command or another plugin down.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace

from apr_core import plugin_memory
from apr_core.declarations import Backend, Declaration
from apr_core.plugin_rows import Found, PluginRow, checked_collection
from apr_core.settings import Settings

GROUP = "apr"


def normalized(name: str) -> str:
    """A distribution name as the packaging rules compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def normalized_id(name: str) -> str:
    """`Dist_Name:entry` with the distribution part normalized; bare names are left alone."""
    dist, colon, entry = name.partition(":")
    return f"{normalized(dist)}:{entry}" if colon else name


def installed() -> list[Found]:
    """All entry points of the group, sorted by (distribution, name), first on the path wins."""
    from importlib.metadata import distributions

    found: dict[tuple[str, str], Found] = {}
    for dist in distributions():
        for each in _entry_points(dist):
            found.setdefault((each.distribution, each.entry_point), each)
    return [found[key] for key in sorted(found)]


def _entry_points(dist: object) -> list[Found]:
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
        return [Found(name, "?", name, "", f"{reason}; reinstall or remove it")]
    return [Found(normalized(name), version, e.name, e.value) for e in entries]


def discover(
    settings: Settings, env: Mapping[str, str] = os.environ, refresh: bool = False
) -> tuple[PluginRow, ...]:
    """A row for every installed plugin; with `refresh`, nothing that is remembered counts."""
    if env.get("APR_DEBUG") == "1" or env.get("APR_TRACE_PLUGINS") == "1":
        return tuple(_here(found, settings, env) for found in installed())
    memory = plugin_memory.recall(env, refresh)
    founds = memory.founds if memory.founds is not None else installed()
    refusals = {found.name: refused(found, settings, env) for found in founds}
    wanted = [found for found in founds if not refusals[found.name]]
    rows = plugin_memory.rows(memory, founds, wanted, env)
    return tuple(
        _with_status(refusals[found.name] or rows[found.name]) for found in founds
    )  # fmt: skip


def _with_status(row: PluginRow) -> PluginRow:
    """The row, unavailable if a module is missing that its backends need."""
    missing = missing_requirements(row.declarations) if row.status == "ok" else []
    if not missing:
        return row
    return replace(row, status="unavailable", reason=f"not installed: {', '.join(missing)}")


def _here(found: Found, settings: Settings, env: Mapping[str, str]) -> PluginRow:
    """The row of a plugin loaded in this process: for its author, with traceback or tracing."""
    row = refused(found, settings, env)
    if row:
        return row

    def show() -> None:
        if env.get("APR_DEBUG") == "1":
            traceback.print_exc(file=sys.stderr)

    return _with_status(checked_collection(found, on_error=show))


def refused(found: Found, settings: Settings, env: Mapping[str, str]) -> PluginRow | None:
    """The row of a plugin that may not be loaded: broken metadata, or disabled by its user."""
    if found.problem:
        return found.row("broken", found.problem)
    names = {found.distribution, found.entry_point, found.name}
    only = env.get("APR_PLUGINS")
    if only is not None and not names & _listed(only):
        return found.row("disabled", f"APR_PLUGINS={only} does not name it")
    if names & _listed(env.get("APR_PLUGINS_BLOCK", "")):
        return found.row("disabled", "APR_PLUGINS_BLOCK names it")
    if any(names & _listed(name) for name in settings.disable):
        enable = f"apr plugins enable {found.distribution}"
        return found.row("disabled", f"the configuration file disables it ({enable})")
    return None


def _listed(value: str) -> set[str]:
    parts = {part.strip() for part in value.split(",") if part.strip()}
    return parts | {normalized(part) for part in parts} | {normalized_id(part) for part in parts}


def missing_requirements(declarations: Iterable[Declaration]) -> list[str]:
    """Modules that declared backends need and that cannot be found. Imports nothing."""
    needed = [m for d in declarations if isinstance(d, Backend) for m in d.requires]
    return [name for name in dict.fromkeys(needed) if not _exists(name)]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False

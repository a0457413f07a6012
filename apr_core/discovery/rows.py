"""A row for every installed plugin: what it provides, or why it cannot be used.

Hooks modules are imported in this process, once after something changed (see `memory`). Whatever
one raises, SystemExit included, becomes the reason of its row. One that hangs is ended by Ctrl-C,
which says whose it was and how to leave it out.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from apr_core.declarations import Backend, Declaration
from apr_core.discovery.collecting import Refused, Status, collect, one_line
from apr_core.discovery.entry_points import EntryPoint, installed, normalized, normalized_id
from apr_core.discovery.memory import Memory
from apr_core.settings import Settings


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One entry point: what it provides, or why not."""

    distribution: str
    version: str
    entry_point: str
    module: str
    status: Status
    reason: str = ""
    declarations: tuple[Declaration, ...] = ()

    @property
    def name(self) -> str:
        """`distribution:entry point`, unique."""
        return f"{self.distribution}:{self.entry_point}"


def row(
    plugin: EntryPoint, status: Status, reason: str = "", provided: tuple[Declaration, ...] = ()
) -> PluginRow:
    """The row of an entry point."""
    names = (plugin.distribution, plugin.version, plugin.entry_point, plugin.value)
    return PluginRow(*names, status, reason, provided)


def discover(
    settings: Settings, env: Mapping[str, str] = os.environ, refresh: bool = False
) -> tuple[PluginRow, ...]:
    """The rows of all installed plugins; with `refresh`, nothing that is remembered counts."""
    looking = env.get("APR_DEBUG") == "1" or env.get("APR_TRACE_PLUGINS") == "1"
    memory = Memory(env, refresh or looking)
    rows = [refused(each, settings, env) or _used(each, memory, env) for each in installed()]
    memory.save()
    return tuple(rows)


def _used(plugin: EntryPoint, memory: Memory, env: Mapping[str, str]) -> PluginRow:
    """The row of a plugin that may be loaded: as it is remembered, or imported here and now."""
    declarations = memory.recall(plugin)
    if declarations is None:
        try:
            declarations = tuple(collect(plugin.value))
        except Refused as refusal:
            return row(plugin, refusal.status, one_line(refusal.reason))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"while plugin {plugin.name} was imported; to leave it out: "
                f"APR_PLUGINS_BLOCK={plugin.distribution}, or apr --no-plugins"
            ) from None
        except BaseException as error:  # a plugin may raise anything, also what nobody should catch
            if env.get("APR_DEBUG") == "1":
                traceback.print_exc(file=sys.stderr)
            return row(plugin, "broken", one_line(f"{type(error).__name__}: {error}".rstrip(": ")))
        memory.keep(plugin, declarations)
    missing = missing_requirements(declarations)
    found = row(plugin, "ok", "", declarations)
    if missing:
        return replace(found, status="unavailable", reason=f"not installed: {', '.join(missing)}")
    return found


def refused(plugin: EntryPoint, settings: Settings, env: Mapping[str, str]) -> PluginRow | None:
    """The row of a plugin that may not be loaded: broken metadata, or disabled by its user."""
    if plugin.problem:
        return row(plugin, "broken", plugin.problem)
    only = env.get("APR_PLUGINS")
    if only is not None and not plugin.names & _listed(only):
        return row(plugin, "disabled", f"APR_PLUGINS={only} does not name it")
    if plugin.names & _listed(env.get("APR_PLUGINS_BLOCK", "")):
        return row(plugin, "disabled", "APR_PLUGINS_BLOCK names it")
    if any(plugin.names & _listed(name) for name in settings.disable):
        enable = f"apr plugins enable {plugin.distribution}"
        return row(plugin, "disabled", f"the configuration file disables it ({enable})")
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

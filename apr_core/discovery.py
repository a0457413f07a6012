"""Finds plugins through entry points and asks each one, by itself, what it provides.

A plugin that raises, exits, prints or declares nonsense becomes a row with a reason; it never
takes another one down. Nothing but hooks modules is imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from typing import Any, Literal

from apr_core import hookspecs
from apr_core.declarations import HOOKS, KINDS, Backend, Declaration, Kernel, Quantizer
from apr_core.settings import Settings

Status = Literal["ok", "broken", "disabled", "incompatible", "unavailable"]
GROUP = "apr"


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


@dataclass(frozen=True, slots=True)
class Found:
    """An entry point with the distribution that installed it."""

    distribution: str
    version: str
    entry: EntryPoint


class Refused(Exception):
    """A plugin that may not be used; carries the row's status and reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def normalized(name: str) -> str:
    """A distribution name as the packaging rules compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def installed() -> list[Found]:
    """All entry points of the group, sorted by (distribution, name), first on the path wins."""
    found: dict[tuple[str, str], Found] = {}
    for dist in distributions():
        for entry in dist.entry_points:
            if entry.group == GROUP:
                name = normalized(dist.metadata["Name"] or "unknown")
                found.setdefault((name, entry.name), Found(name, dist.version, entry))
    return [found[key] for key in sorted(found)]


def discover(settings: Settings, env: Mapping[str, str] = os.environ) -> tuple[PluginRow, ...]:
    """A row for every installed plugin."""
    return tuple(examine(found, settings, env) for found in installed())


def examine(found: Found, settings: Settings, env: Mapping[str, str]) -> PluginRow:
    """Load one plugin's hooks module and collect its declarations."""
    status: Status = "ok"
    reason = ""
    declarations: tuple[Declaration, ...] = ()
    try:
        _refuse_disabled(found, settings, env)
        declarations = tuple(collect(found.entry))
        missing = missing_requirements(declarations)
        if missing:
            status, reason = "unavailable", f"not installed: {', '.join(missing)}"
    except Refused as refusal:
        status, reason = refusal.status, refusal.reason
    except (Exception, SystemExit) as error:
        if env.get("APR_DEBUG") == "1":
            traceback.print_exc(file=sys.stderr)
        status, reason = "broken", f"{type(error).__name__}: {error}".rstrip(": ")
    return PluginRow(
        found.distribution, found.version, found.entry.name, found.entry.value, status, reason,
        declarations,
    )  # fmt: skip


def _refuse_disabled(found: Found, settings: Settings, env: Mapping[str, str]) -> None:
    names = {found.distribution, found.entry.name, f"{found.distribution}:{found.entry.name}"}
    only = env.get("APR_PLUGINS")
    if only is not None and not names & _listed(only):
        raise Refused("disabled", f"APR_PLUGINS={only} does not name it")
    if names & _listed(env.get("APR_PLUGINS_BLOCK", "")):
        raise Refused("disabled", "APR_PLUGINS_BLOCK names it")
    if names & {normalized_id(n) for n in settings.disable}:
        raise Refused("disabled", "the configuration file disables it ([plugins] disable)")


def normalized_id(name: str) -> str:
    """`Dist_Name:entry` with the distribution part normalized; bare names are left alone."""
    dist, colon, entry = name.partition(":")
    return f"{normalized(dist)}:{entry}" if colon else name


def _listed(value: str) -> set[str]:
    parts = {part.strip() for part in value.split(",") if part.strip()}
    return parts | {normalized(part) for part in parts} | {normalized_id(part) for part in parts}


def collect(entry: EntryPoint) -> Iterable[Declaration]:
    """The declarations of one hooks module. Raises Refused, or whatever the module raises."""
    import pluggy

    with contextlib.redirect_stdout(sys.stderr):  # a plugin that prints must not break --json
        module = entry.load()
        manager = pluggy.PluginManager("apr")
        manager.add_hookspecs(hookspecs)
        if os.environ.get("APR_TRACE_PLUGINS") == "1":
            manager.trace.root.setwriter(sys.stderr.write)
            manager.enable_tracing()
        manager.register(module)
        manager.check_pending()
        found: list[Declaration] = []
        for hook, kind in HOOKS.items():
            for result in getattr(manager.hook, hook)():
                found += [checked(d, hook, kind) for d in result]
    return found


def checked(declaration: Any, hook: str, kind: str) -> Declaration:
    """One declaration, if it is of the hook's kind and makes sense. Raises Refused."""
    if not isinstance(declaration, KINDS[kind]):
        raise Refused(
            "broken", f"{hook} returned {declaration!r}, expected {KINDS[kind].__name__} records"
        )
    where = f"{kind} {declaration.name!r}"
    if type(declaration.api) is not int or declaration.api not in hookspecs.SUPPORTED_APIS:
        raise Refused(
            "incompatible",
            f"{where} targets API {declaration.api}, this apr-core has API "
            f"{hookspecs.API_VERSION}: {_upgrade(declaration.api)}",
        )
    if not isinstance(declaration.name, str) or not declaration.name.strip():
        raise Refused("broken", f"{hook} declares a {kind} without a name")
    module, _, attribute = str(declaration.target).partition(":")
    if not module or not attribute:
        raise Refused(
            "broken", f"{where}: target must be 'module:Attr', found {declaration.target!r}"
        )
    if isinstance(declaration, Quantizer) and (
        declaration.block <= 0 or declaration.bytes_per_block <= 0
    ):
        raise Refused("broken", f"{where}: block and bytes_per_block must be positive")
    if isinstance(declaration, Kernel) and not (declaration.backend and declaration.op):
        raise Refused("broken", f"{where}: backend and op must be named")
    return declaration


def _upgrade(api: Any) -> str:
    newer = type(api) is int and api > hookspecs.API_VERSION
    return "upgrade apr-core" if newer else "upgrade the plugin"


def missing_requirements(declarations: Iterable[Declaration]) -> list[str]:
    """Modules that declared backends need and that cannot be found. Imports nothing."""
    needed = [m for d in declarations if isinstance(d, Backend) for m in d.requires]
    return [name for name in dict.fromkeys(needed) if not _exists(name)]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

"""Looks up declared names and loads their targets. A name with two owners is an error when used."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

from apr_core.declarations import Backend, Declaration, Mlp
from apr_core.discovery import PluginRow, Status, discover, missing_requirements, normalized_id
from apr_core.errors import (
    BackendUnavailable,
    ConfigError,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginNotFound,
)
from apr_core.messages import did_you_mean, one_line, published
from apr_core.settings import KNOWN, TYPES, Sections, Settings, check_settings, read_settings

NUMBERED = re.compile(r"(.+):([0-9]+)")  # a backend and one of its devices
SWIGLU = Mlp("swiglu", "apr_core.model.decoder:SwiGLU", summary="gated by silu")


@dataclass(frozen=True, slots=True)
class Owned:
    """A declaration and the distribution it comes from."""

    declaration: Any  # a Declaration; Any, as callers know which kind they asked for
    distribution: str

    @property
    def qualified(self) -> str:
        """`distribution:name`, which is never ambiguous."""
        return f"{self.distribution}:{self.declaration.name}"


class Registry:
    """Everything usable plugins provide, by kind and name."""

    def __init__(self, plugins: Iterable[PluginRow], prefer: Iterable[str] = ()) -> None:
        self.plugins = tuple(plugins)
        self._prefer = {normalized_id(name) for name in prefer}
        self._objects: dict[tuple[str, str], Any] = {}
        self._by_kind: dict[str, list[Owned]] = {"mlp": [Owned(SWIGLU, "apr-core")]}
        for row in self.plugins:
            if row.status in ("ok", "unavailable"):
                for d in row.declarations:
                    owned = Owned(d, row.distribution)
                    self._by_kind.setdefault(d.kind, []).append(owned)
        for owners in self._by_kind.values():
            owners.sort(key=lambda o: (o.declaration.name, o.distribution))

    @classmethod
    def from_declarations(
        cls, declarations: Mapping[str, Iterable[Declaration]], prefer: Iterable[str] = ()
    ) -> Registry:
        """Make a registry from {distribution: declarations}, for tests and embedding."""
        rows = [
            PluginRow(dist, "0", dist, "", "ok", "", tuple(records))
            for dist, records in declarations.items()
        ]
        return cls(rows, prefer)

    def declarations(self, kind: str) -> list[Owned]:
        """Return all declarations of a kind, sorted by name and distribution."""
        return list(self._by_kind.get(kind, ()))

    def get(self, kind: str, name: str) -> Owned:
        """Return the declaration: a bare name if one distribution has it, else `dist:name`.

        Raises PluginNotFound or PluginConflict.
        """
        qualified = normalized_id(name)
        matches = [o for o in self.declarations(kind) if name == o.declaration.name]
        matches = matches or [o for o in self.declarations(kind) if qualified == o.qualified]
        if not matches:
            raise self._not_found(kind, name)
        if len(matches) > 1:
            matches = [o for o in matches if o.qualified in self._prefer] or matches
        if len(matches) > 1:
            names = ", ".join(o.qualified for o in matches)
            raise PluginConflict(
                f"{kind} {name!r} is provided by {len(matches)} plugins: {names}",
                f"Say which one: use {matches[0].qualified}, or put into the configuration file\n"
                f'  [plugins]\n  prefer = ["{matches[0].qualified}"]',
            )
        return matches[0]

    def backend(self, name: str) -> tuple[Owned, str | None]:
        """Return the backend, and the device number as text, that `NAME` or `NAME:NUMBER` means.

        A name that is declared means what it says, so `a:1` is device 1 of `a` only if no
        distribution `a` has a backend called `1`. Raises PluginNotFound or PluginConflict.
        """
        numbered = NUMBERED.fullmatch(name)
        try:
            return self.get("backend", name), None
        except PluginNotFound:
            if not numbered:
                raise
            return self.get("backend", numbered[1]), numbered[2]

    def best_backend(self) -> str:
        """Return the backend whose probe scores highest on this machine; without a probe, 1.

        Raises PluginNotFound if there is none, and PluginConflict if the best are equally good.
        """
        scores = self._backend_scores()
        best = [name for name, score in scores.items() if score == max(scores.values())]
        if not best:
            packages = sorted(set(published("backend").values()))
            raise PluginNotFound(
                "no installed backend can run on this machine",
                f"Install one: pip install {packages[0]}" if packages else "apr plugins list",
            )
        best = [name for name in best if name in self._prefer] or best
        if len(best) > 1:
            raise PluginConflict(
                f"backends {' and '.join(best)} are equally good here",
                "Choose with `backend`, or put one into the configuration file:\n"
                f'  [plugins]\n  prefer = ["{best[0]}"]',
            )
        return self._shortest(best[0])

    def backends_by_score(self) -> list[str]:
        """Return the backends that can run here, the best first."""
        scores = self._backend_scores()
        return [self._shortest(name) for name in sorted(scores, key=lambda n: (-scores[n], n))]

    def _backend_scores(self) -> dict[str, float]:
        """Return {qualified name: score} of the backends that can run here."""
        scores = {}
        for owned in self.declarations("backend"):
            with suppress(PluginBroken):  # a broken probe: not chosen unless named
                scores[owned.qualified] = self.probe(owned)[0]
        return {name: score for name, score in scores.items() if score > 0}

    def _shortest(self, qualified: str) -> str:
        """Return the bare name if one distribution has it, else the qualified name."""
        bare = qualified.partition(":")[2]
        alone = sum(o.declaration.name == bare for o in self.declarations("backend")) == 1
        return bare if alone else qualified

    def probe(self, owned: Owned) -> tuple[float, str]:
        """Return a backend's (score, reason) on this machine: 0 cannot run, 1 has no probe.

        Raises PluginBroken if its probe raises or returns anything else.
        """
        missing = missing_requirements([owned.declaration])
        if missing:
            return 0, f"not installed: {', '.join(missing)}"
        if not owned.declaration.probe:
            return 1, ""
        try:
            score, reason = self.load_target(owned.declaration.probe, owned.distribution)()
            return float(score), one_line(str(reason))
        except PluginBroken:
            raise
        except (Exception, SystemExit) as error:
            raise PluginBroken(
                f"the probe of backend {owned.declaration.name!r} of {owned.distribution} raised "
                f"{type(error).__name__}: {error}",
                "It should return (score, reason). Tell the plugin's author.",
            ) from error

    def rows_here(self) -> tuple[PluginRow, ...]:
        """Return all rows: `unavailable` if no backend can run here, `broken` if the probes fail.

        This runs every probe, which is plugins' code and may wake a driver. It is for lists:
        commands that run a model ask only backends they may choose.
        """
        return tuple(self._row_here(row) for row in self.plugins)

    def _row_here(self, row: PluginRow) -> PluginRow:
        backends = [d for d in row.declarations if isinstance(d, Backend)]
        if row.status != "ok" or not backends:
            return row
        status: Status = "broken"
        reasons = []
        for backend in backends:
            try:
                score, reason = self.probe(Owned(backend, row.distribution))
                if score > 0:
                    return row
                status = "unavailable"
            except PluginBroken as error:
                reason = error.message
            reasons.append(f"{backend.name}: {reason}" if len(backends) > 1 else reason)
        return replace(row, status=status, reason=one_line("; ".join(reasons)))

    def recommended_recipe(self) -> str | None:
        """Return the first recipe, by name, that its plugin recommends; None if none does."""
        recipes = (o.declaration for o in self.declarations("recipe"))
        return next((recipe.name for recipe in recipes if recipe.recommended), None)

    def family_for(self, architectures: object, model_type: object) -> Owned:
        """Return the family that reads a config.json with this `architectures` and `model_type`."""
        listed = architectures if isinstance(architectures, list) else []
        wanted, model_type = [a for a in listed if isinstance(a, str)], str(model_type or "")
        families = self.declarations("family")
        matches = [o for o in families if set(wanted) & set(o.declaration.architectures)]
        matches = matches or [o for o in families if model_type in o.declaration.model_types]
        names = {o.declaration.name for o in matches}
        if len(names) == 1:
            return self.get("family", names.pop())
        what = ", ".join(wanted) or model_type or "nothing"
        if names:
            raise PluginConflict(
                f"architecture {what} is claimed by the families {', '.join(sorted(names))}",
                "Choose one with `arch`.",
            )
        error = self._not_found("family", next(iter([*wanted, model_type]), ""))
        raise PluginNotFound(f"no installed plugin reads architecture {what}", error.hint)

    def _not_found(self, kind: str, name: str) -> PluginNotFound:
        known = [o.declaration.name for o in self.declarations(kind)]
        unusable = [r for r in self.plugins if r.status in ("broken", "incompatible", "disabled")]
        hints = []
        package = published(kind).get(name)
        if package and package not in {row.distribution for row in unusable}:
            hints.append(f"Install the package that provides it: pip install {package}")
        if question := did_you_mean(name, known):
            hints.append(question)
        for row in unusable:
            hints.append(f"{row.name} is {row.status} ({row.reason}) and may have provided it.")
        if not hints:
            listed = ", ".join(sorted(set(known))) or "none"
            hints.append(f"Installed: {listed}. `apr plugins list` shows all plugins.")
        return PluginNotFound(f"no installed plugin provides {kind} {name!r}", "\n".join(hints))

    def settings(self) -> Sections:
        """Return the configuration file's sections: the core's, and those of commands."""
        declared = {
            o.declaration.name: {key: TYPES[kind] for key, kind in o.declaration.settings}
            for o in self.declarations("command")
            if o.declaration.settings
        }
        return {**KNOWN, **declared}

    def may_be_a_section(self, name: str) -> bool:
        """Return True if a plugin that is unusable or not installed may have this section."""
        usable = all(row.status in ("ok", "unavailable") for row in self.plugins)
        return not usable or name in published("command")

    def owner_of(self, module: str) -> str:
        """Return the distribution a module is from, by the targets that plugins declare."""
        package = module.partition(".")[0]
        for row in self.plugins:
            targets = (row.module, *(d.target for d in row.declarations))
            if any(target.split(":")[0].split(".")[0] == package for target in targets):
                return row.distribution
        return package.replace("_", "-")

    def load(self, owned: Owned) -> Any:
        """Import a declaration's target. Raises PluginBroken or BackendUnavailable."""
        missing = missing_requirements([owned.declaration])
        if missing:
            raise BackendUnavailable(
                f"{owned.declaration.kind} {owned.declaration.name!r} of {owned.distribution} "
                f"needs {', '.join(missing)}, which is not installed",
                f"pip install {' '.join(missing)}",
            )
        return self.load_target(owned.declaration.target, owned.distribution)

    def load_target(self, target: str, distribution: str = "") -> Any:
        """Import "module:Attr". Raises PluginBroken naming what is missing."""
        module, _, attribute = target.partition(":")
        origin = f" of {distribution}" if distribution else ""
        hint = f"Reinstall {distribution or 'the plugin'}, or disable it: APR_PLUGINS_BLOCK=..."
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise PluginBroken(
                f"{target}{origin} cannot be imported: no module named {error.name!r}",
                hint if error.name == module else f"pip install {error.name}",
            ) from error
        except (Exception, SystemExit) as error:
            raise PluginBroken(
                f"{target}{origin} cannot be loaded: {type(error).__name__}: {error}", hint
            ) from error

    def make(self, kind: str, name: str) -> Any:
        """Get, load and call a target without arguments; the object is made once per name."""
        if (kind, name) not in self._objects:
            owned = self.get(kind, name)
            factory = self.load(owned)
            try:
                self._objects[kind, name] = factory()
            except PluginError:
                raise
            except Exception as error:
                raise PluginBroken(
                    f"{owned.declaration.target} of {owned.distribution} raised "
                    f"{type(error).__name__}: {error}"
                ) from error
        return self._objects[kind, name]


_current: Registry | None = None
_making = threading.Lock()


def get_registry(refresh: bool = False) -> Registry:
    """Return the process-wide registry of installed plugins, made on first use.

    With `refresh` it is made again from freshly imported hooks modules.
    """
    global _current
    with _making:
        if _current is None or refresh:
            if refresh:
                _discovered.cache_clear()
            registry = _discovered(read_settings(), refresh)
            if not _without_plugins():
                check_settings(registry.settings(), registry.may_be_a_section)
            _current = registry
        return _current


def tolerant_registry() -> Registry:
    """Return the process-wide registry; one without settings if the configuration file is wrong.

    This lets `apr doctor` say what is wrong. Commands that need the file refuse it themselves.
    """
    try:
        return get_registry()
    except ConfigError:
        return _discovered(Settings())


@cache  # a wrong file is met several times in one command
def _discovered(settings: Settings, refresh: bool = False) -> Registry:
    rows = () if _without_plugins() else discover(settings, refresh=refresh)
    return Registry(rows, settings.prefer)


def _without_plugins() -> bool:
    return os.environ.get("APR_NO_PLUGINS") == "1"

"""Devices, plugins, and the libraries that the core and the plugins say they need."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any

from apr_core.plugin import AprError, ConfigError
from apr_core.runtime import Owned, Registry, installed, read_settings, tolerant_registry
from apr_devkit.doctor.finding import Finding
from apr_devkit.doctor.unmatched import unmatched

CORE = "apr-core"


def devices() -> Finding:
    """Report every declared backend: whether it can run here, and how it describes its device."""
    registry = tolerant_registry()
    facts = [_device(registry, owned) for owned in registry.declarations("backend")]
    finding = Finding([(d["name"], _device_line(d)) for d in facts] or [("", "none")], facts)
    if not any(d["status"] == "ok" for d in facts):
        finding.problems.append("no backend can run here: no model can be run")
    finding.warnings += [
        f"backend {d['name']}: {d['reason']}" for d in facts if d["status"] == "broken"
    ]
    return finding


def _device_line(device: dict[str, Any]) -> str:
    if device["status"] != "ok":
        return f"{device['status']}: {device['reason']}"
    return str(device["description"]) + (f" ({device['reason']})" if device["reason"] else "")


def _device(registry: Registry, owned: Owned) -> dict[str, Any]:
    """Return name, distribution, status (ok, unavailable, broken), reason, score, description."""
    declaration = owned.declaration
    facts: dict[str, Any] = {
        "name": declaration.name, "distribution": owned.distribution, "status": "unavailable",
        "reason": "", "score": None, "description": "",
    }  # fmt: skip
    try:
        score, reason = registry.probe(owned)
        facts |= {"score": score, "reason": reason}
        if score <= 0:
            return facts
        backend = registry.load(owned)(threads=None)
        return facts | {"status": "ok", "description": str(backend.describe())}
    except (Exception, SystemExit) as error:
        return facts | {"status": "broken", "reason": explained(error)}


def explained(error: BaseException) -> str:
    """Return an error as one line: apr's own by message, others with their type."""
    return error.message if isinstance(error, AprError) else f"{type(error).__name__}: {error}"


def plugins() -> Finding:
    """Report every plugin with its status and reason, and names that are claimed twice."""
    registry = tolerant_registry()
    here = registry.rows_here()
    facts = [
        {
            "name": row.name,
            "version": row.version,
            "status": row.status,
            "reason": row.reason,
            "provides": dict(Counter(d.kind for d in row.declarations)),
        }
        for row in here
    ]
    rows = [
        (row.distribution, f"{row.version}  {row.status}{': ' + row.reason if row.reason else ''}")
        for row in here
    ]
    finding = Finding(rows or [("", "none")], facts)
    finding.warnings += [
        f"plugin {row.name} is {row.status}: {row.reason}"
        for row in here
        if row.status in ("broken", "incompatible")
    ]
    finding.warnings += _claimed_twice(registry)
    finding.warnings += _without_effect(registry)
    if not registry.declarations("family"):
        finding.problems.append("no plugin provides a family: nothing can be imported or run")
    return finding


def _without_effect(registry: Registry) -> Iterator[str]:
    """Yield entries of the configuration file that match nothing, if plugins are in use."""
    try:
        settings = read_settings()
    except ConfigError:  # reported by the part about configuration
        return
    if os.environ.get("APR_NO_PLUGINS") != "1":
        yield from unmatched(settings, installed(), registry)


def _claimed_twice(registry: Registry) -> Iterator[str]:
    kinds = {d.kind for row in registry.plugins for d in row.declarations}
    for kind in sorted(kinds):
        owners: dict[str, list[str]] = {}
        for owned in registry.declarations(kind):
            owners.setdefault(owned.declaration.name, []).append(owned.qualified)
        for name, claims in owners.items():
            if len(claims) > 1:
                yield f"{kind} {name!r} is claimed by {', '.join(claims)}: see [plugins] prefer"


def libraries(version_of: Callable[[str], str] = version) -> Finding:
    """Report versions of what core and plugins require, from packaging metadata alone."""
    wanted: dict[str, list[str]] = {}
    for owner in [CORE, *dict.fromkeys(f.distribution for f in installed() if f.status == "ok")]:
        for name in requirements(owner):
            wanted.setdefault(name, []).append(owner)
    finding = Finding(facts=[])
    for name, owners in sorted(wanted.items()):
        release = _version(name, version_of)
        finding.facts.append({"name": name, "version": release, "required_by": owners})
        finding.rows.append((name, release or f"NOT INSTALLED, required by {', '.join(owners)}"))
        if release is None:
            kind = finding.problems if CORE in owners else finding.warnings
            kind.append(f"{name} is not installed; {', '.join(owners)} requires it")
    return finding


def _version(name: str, version_of: Callable[[str], str]) -> str | None:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None


def requirements(owner: str) -> Sequence[str]:
    """Return the distributions that `owner` requires here, without extras and markers."""
    try:
        lines = distribution(owner).requires or []
    except PackageNotFoundError:
        return []
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines if ";" not in line]
    packages = [match[0].lower().replace("_", "-") for match in names if match]
    return [name for name in packages if name != CORE]

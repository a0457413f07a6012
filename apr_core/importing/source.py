"""Finds a checkpoint: a directory, or a URL whose scheme a plugin knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from apr_core.errors import NotFound, UsageError
from apr_core.messages import published
from apr_core.registry import Registry

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)")


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A checkpoint's directory, and the name its user gave."""

    directory: Path
    origin: str


def find_source(source: str, registry: Registry) -> CheckpointSource:
    """Return the directory of a path, or of what a plugin fetches for `scheme://...`.

    Raises NotFound, UsageError or PluginError.
    """
    match = _SCHEME.fullmatch(source)
    if match is None:
        return CheckpointSource(_directory(Path(source), registry).resolve(), source)
    fetch = registry.load(registry.get("source", match[1]))
    return CheckpointSource(Path(fetch(source)), source)


def _directory(path: Path, registry: Registry) -> Path:
    if path.is_dir():
        return path
    if path.is_file():
        raise UsageError(
            f"{path} is a file, expected the directory of a checkpoint",
            f"Give the directory where config.json and safetensors are: apr import {path.parent}",
        )
    declared = {o.declaration.name for o in registry.declarations("source")}
    schemes = [f"{name}://" for name in sorted(declared | set(published("source")))]
    hint = f"Give a directory, or a URL that begins with {' or '.join(schemes)}."
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(path)):
        hint += f" If that is a model of a hub, write {schemes[-1]}{path}."
    raise NotFound(f"{path}: no such directory", hint)

"""Where a checkpoint comes from: a directory, something pulled from the hub, a plugin's scheme."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from apr_core.errors import FormatError, NotFound, UsageError
from apr_core.registry import Registry

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)")
HUB = "hf"


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A checkpoint's directory, and how its user called it."""

    directory: Path
    origin: str


def find_source(source: str, registry: Registry) -> FoundSource:
    """The directory a source means: a path, `hf://ORG/NAME[@REV]` already pulled, `scheme://...`.

    Raises NotFound, UsageError or PluginError.
    """
    match = _SCHEME.fullmatch(source)
    if match is None:
        return FoundSource(_directory(Path(source)).resolve(), source)
    scheme = match[1]
    if scheme == HUB:
        return FoundSource(_pulled(source), source)
    fetch = registry.load(registry.get("source", scheme))
    return FoundSource(Path(fetch(source)), source)


def _directory(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise FormatError(
            f"{path}: GGUF is not imported", "Import the original checkpoint in safetensors."
        )
    if path.is_file():
        raise UsageError(
            f"{path} is a file, expected the directory of a checkpoint",
            f"Give its directory: apr import {path.parent}",
        )
    hint = "Give a directory, hf://ORG/NAME or demo://sums."
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(path)):
        hint = f"If that is a model of the hub: apr pull hf://{path}, then import hf://{path}"
    raise NotFound(f"{path}: no such directory", hint)


def _pulled(source: str) -> Path:
    from apr_core.hub import resolve_local

    found = resolve_local(source)
    if found is None:
        raise NotFound(f"{source} is not on this machine", f"Pull it first: apr pull {source}")
    return Path(found)

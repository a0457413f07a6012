"""Finds a checkpoint: a directory, or a URL whose scheme a plugin knows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apr_core.errors import NotFound, PluginNotFound, UsageError
from apr_core.importing.checkpoint import Checkpoint
from apr_core.messages import Notice, did_you_mean, published
from apr_core.registry import Owned, Registry

URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)")


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A checkpoint's directory, and the name its user gave.

    `checkpoint` is there if a plugin opened it; else the directory holds safetensors.
    """

    directory: Path
    origin: str
    checkpoint: Checkpoint | None = None

    def open(self) -> Checkpoint:
        """Return the checkpoint with its tensors. Raises as `Checkpoint.open`."""
        return self.checkpoint or Checkpoint.open(self.directory)


def find_source(
    source: str, registry: Registry, progress: Notice | None = None
) -> CheckpointSource:
    """Return what is at a path, or what a plugin fetches for `scheme://...`.

    Files, and directories of them without safetensors, are opened by the plugin that knows their
    suffix. Without `progress` nothing is downloaded. Raises NotFound, UsageError or PluginError.
    """
    match = URL.fullmatch(source)
    if match is None:
        return _opened(_existing(Path(source), registry).resolve(), source, registry)
    owned = registry.get("source", match[1])
    if suffixes := owned.declaration.suffixes:
        raise UsageError(
            f"{source}: {match[1]} is no place to fetch from, but a kind of file",
            f"Give the path of a file that ends with {' or '.join(suffixes)}.",
        )
    return _opened(Path(registry.load(owned)(source, progress=progress)), source, registry)


def _opened(path: Path, origin: str, registry: Registry) -> CheckpointSource:
    """Return the source at a path, opened if a plugin knows the suffix of what is there."""
    file = openable(path, registry)
    if file is None:
        return CheckpointSource(path, origin)
    (reader,) = _readers(file, registry)
    checkpoint = registry.load(reader)(str(file))
    return CheckpointSource(checkpoint.directory, origin, checkpoint)


def _readers(file: Path, registry: Registry) -> list[Owned]:
    """Return the declared source that opens files of this suffix, if there is one."""
    suffix, declared = file.suffix.lower(), registry.declarations("source")
    return [owned for owned in declared if suffix in owned.declaration.suffixes][:1]


def openable(path: Path, registry: Registry) -> Path | None:
    """Return what a plugin can open: the file, or the first of a directory without safetensors."""
    if not path.is_dir():
        return path if _readers(path, registry) else None
    if any(path.glob("*.safetensors")):
        return None
    return next((f for f in sorted(path.glob("*")) if _readers(f, registry)), None)


def _existing(path: Path, registry: Registry) -> Path:
    if path.is_dir() or (path.is_file() and openable(path, registry)):
        return path
    if path.is_file():
        if package := published("source").get(path.suffix.lower()):
            raise PluginNotFound(
                f"{path}: no installed plugin opens such files", f"pip install {package}"
            )
        raise UsageError(
            f"{path} is a file, expected the directory of a checkpoint",
            f"Give the directory where config.json and safetensors are: apr import {path.parent}",
        )
    raise nowhere(path, registry)


def nowhere(path: Path, registry: Registry, near: Iterable[str] = ()) -> NotFound:
    """Return the error for a name that means nothing; `near` are names it could mean."""
    declared = [o.declaration for o in registry.declarations("source")]
    names = {d.name for d in declared if not d.suffixes} | set(published("source"))
    schemes = [f"{name}://" for name in sorted(names) if name[0] != "."]  # no suffix
    hint = f"Give a path, or a URL that begins with {' or '.join(schemes)}."
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(path)):
        hint += f" If that is a model of a hub, write {schemes[-1]}{path}."
    return NotFound(f"{path}: no such file or directory", did_you_mean(str(path), near) or hint)

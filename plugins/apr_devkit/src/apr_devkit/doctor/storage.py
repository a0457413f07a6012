"""Cache folders: where they are, their size, and the free disk space. Deletes nothing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apr_core.plugin import cache_dir, store_dir
from apr_core.runtime import human_bytes, tolerant_registry
from apr_devkit.doctor.finding import Finding

LITTLE = 1 << 30  # bytes left, below which a pull or an import is likely to fail


def storage() -> Finding:
    """Report the model store and every cache with its size, and the free space of their disks."""
    finding = Finding(facts={"caches": [], "free": []})
    for label, folder in _caches(finding):
        used = _size(folder)
        finding.facts["caches"].append({"label": label, "path": str(folder), "bytes": used})
        there = human_bytes(used) if folder.exists() else "not there yet"
        finding.rows.append((label, f"{there}  {folder}"))
    existing = [_existing(folder) for folder in (*hub_caches(), store_dir(), cache_dir())]
    for folder in {path.stat().st_dev: path for path in existing}.values():
        _free(folder, finding)
    finding.problems += [
        f"{folder} cannot be written: nothing can be pulled or kept there"
        for folder in dict.fromkeys(existing)
        if not folder.is_dir() or not os.access(folder, os.W_OK)
    ]
    return finding


def hub_caches() -> list[Path]:
    """Return the folder of pulled models: the hub client's own, if it is installed."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return []
    return [Path(HF_HUB_CACHE)]


def _caches(finding: Finding) -> Iterator[tuple[str, Path]]:
    """Yield (label, folder): the hub client's, the store, apr's own, and those of backends."""
    yield from (("pulled models", folder) for folder in hub_caches())
    yield "model store", store_dir()
    yield "apr", cache_dir()
    registry = tolerant_registry()
    for owned in registry.declarations("backend"):
        name = owned.declaration.name
        try:
            if registry.probe(owned)[0] <= 0:  # it caches nothing here, and may be slow to import
                continue
            for label, folder in _told(registry.load(owned)):
                yield f"{name}: {label}", Path(folder)
        except (Exception, SystemExit) as error:
            finding.warnings.append(f"backend {name} cannot say what it keeps: {error}")


def _told(factory: Any) -> list[tuple[str, str]]:
    """Return a backend's cache folders. One without `caches` is not made: that may be slow."""
    from apr_core.plugin import BackendPlugin

    says = isinstance(factory, type) and issubclass(factory, BackendPlugin)
    if not (says and factory.has("caches")):
        return []
    backend: BackendPlugin = factory(threads=None)
    return backend.caches()


def _size(folder: Path) -> int:
    """Return the bytes of all files below, links not followed; unreadable files count as 0."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                status = Path(root, name).lstat()
            except OSError:
                continue
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _free(folder: Path, finding: Finding) -> None:
    free = shutil.disk_usage(folder).free
    finding.facts["free"].append({"path": str(folder), "bytes": free})
    finding.rows.append(("free", f"{human_bytes(free)}  {folder}"))
    if free < LITTLE:
        finding.warnings.append(f"only {human_bytes(free)} are free in {folder}")

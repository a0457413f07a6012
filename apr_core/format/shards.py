"""Sets of shards: each a complete file, joined by the `sharding` object of its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apr_core.errors import FormatError, NotFound

MAX_SHARDS = 99_999
SET_KEY = "apr.shard_set"  # the same text in all shards of one set, so that sets are not mixed


def shard_path(path: Path, index: int, count: int) -> Path:
    """Return a shard's path: model.apr -> model-00001-of-00003.apr for index 0 of 3."""
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}{path.suffix}")


def shard_metadata(path: Path, index: int, count: int, total: int, set_id: str) -> dict[str, Any]:
    """Return the metadata keys of a shard. `total` is the bytes of all tensors of the set."""
    return {
        "sharding": {
            "shard_count": count,
            "shard_index": index,
            "total_size": total,
            "pattern": f"{path.stem}-{{:05d}}-of-{{:05d}}{path.suffix}",
        },
        SET_KEY: set_id,
    }


def set_id(parts: Iterable[str]) -> str:
    """Return an id computed from a set's content: the same model gives the same files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def sharding(path: Path, metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Return (index, count) of a shard. Raises FormatError if the metadata does not say."""
    info = metadata.get("sharding")
    index = info.get("shard_index") if isinstance(info, dict) else None
    count = info.get("shard_count") if isinstance(info, dict) else None
    if type(index) is not int or type(count) is not int:
        raise FormatError(f"{path}: flagged as a shard, but metadata `sharding` does not say which")
    if not 0 <= index < count <= MAX_SHARDS:
        raise FormatError(f"{path}: shard {index} of {count} is impossible")
    return index, count


def sibling_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Return all files of the set that `path` belongs to. Raises NotFound naming a missing one."""
    index, count = sharding(path, metadata)
    ending = f"-{index + 1:05d}-of-{count:05d}"
    if not path.stem.endswith(ending):
        raise FormatError(
            f"{path}: shard {index + 1} of {count} must be named *{ending}{path.suffix}",
            "Give the file its old name back: the others of the set are found by it.",
        )
    base = path.with_name(path.stem.removesuffix(ending) + path.suffix)
    paths = [shard_path(base, i, count) for i in range(count)]
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise NotFound(
            f"{missing[0]}: shard missing ({len(missing)} of {count} are)",
            "Put all shards of the set into one directory.",
        )
    return paths


def check_shard(
    path: Path, metadata: Mapping[str, Any], index: int, count: int, first: Mapping[str, Any]
) -> None:
    """Check that a file is shard `index` of `count` in the set of the first shard's metadata.

    Raises FormatError.
    """
    if sharding(path, metadata) != (index, count):
        raise FormatError(f"{path}: holds another shard than its name says")
    total = first["sharding"].get("total_size"), first.get(SET_KEY)
    if (metadata["sharding"].get("total_size"), metadata.get(SET_KEY)) != total:
        raise FormatError(
            f"{path}: belongs to another set than shard 1",
            "Copy all shards of one set into a directory of their own.",
        )

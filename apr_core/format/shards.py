"""Sets of shards: each a complete file, joined by the `sharding` object of its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_core.errors import FormatError, NotFound

MAX_SHARDS = 99_999


def shard_path(path: Path, index: int, count: int) -> Path:
    """model.apr -> model-00001-of-00003.apr for index 0 of 3."""
    return path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}{path.suffix}")


def sharding(path: Path, metadata: Mapping[str, Any]) -> tuple[int, int]:
    """(index, count) of a shard. Raises FormatError if the metadata does not say."""
    info = metadata.get("sharding")
    values = [
        info.get(k) if isinstance(info, dict) else None for k in ("shard_index", "shard_count")
    ]
    if any(type(v) is not int for v in values):
        raise FormatError(f"{path}: flagged as a shard, but metadata `sharding` does not say which")
    index, count = values
    if not 0 <= index < count <= MAX_SHARDS:
        raise FormatError(f"{path}: shard {index} of {count} is impossible")
    return index, count


def sibling_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """All files of the set that `path` belongs to. Raises NotFound naming a missing one."""
    index, count = sharding(path, metadata)
    ending = f"-{index + 1:05d}-of-{count:05d}"
    if not path.stem.endswith(ending):
        raise FormatError(f"{path}: shard {index + 1} of {count} must be named *{ending}.apr")
    base = path.with_name(path.stem.removesuffix(ending) + path.suffix)
    paths = [shard_path(base, i, count) for i in range(count)]
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise NotFound(
            f"{missing[0]}: shard missing ({len(missing)} of {count})",
            "Put all shards of the set into one directory.",
        )
    return paths


def check_shard(path: Path, metadata: Mapping[str, Any], index: int, count: int) -> None:
    """Whether a file is the shard its name says. Raises FormatError."""
    if sharding(path, metadata) != (index, count):
        raise FormatError(f"{path}: holds another shard than its name says")

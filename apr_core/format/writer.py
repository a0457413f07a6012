"""Writes .apr files in one streaming pass, beside their target, and renames them when whole."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from apr_core.errors import AprError, FormatError, InputOutputError, NotFound, UsageError
from apr_core.format.dtypes import FormatSpec, format_table, tensor_nbytes
from apr_core.format.header import (
    HEADER_SIZE,
    MAX_METADATA,
    ROW_MAJOR,
    SHARDED,
    Header,
    IndexEntry,
    align,
)
from apr_core.format.shards import shard_path


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    format: FormatSpec
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file, without padding."""
        return tensor_nbytes(self.format, self.shape)


def check_target(path: Path, force: bool) -> None:
    """Whether `path` may be written. Raises NotFound or UsageError, before any work."""
    if not path.parent.is_dir():
        raise NotFound(
            f"directory {path.parent} does not exist", f"Create it: mkdir -p {path.parent}"
        )
    if path.is_dir():
        raise UsageError(f"{path} is a directory, expected a file to write")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", "Give --force to replace it, or another -o.")


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Compact UTF-8 JSON. Raises FormatError over 16 MiB or for values JSON does not have."""
    try:
        raw = json.dumps(
            metadata, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        ).encode()
    except (ValueError, TypeError) as error:
        raise FormatError(f"metadata cannot be written as JSON: {error}") from None
    if len(raw) > MAX_METADATA:
        raise FormatError(f"metadata would take {len(raw)} bytes, APR v2 allows {MAX_METADATA}")
    return raw


def disk_error(path: Path, error: OSError) -> InputOutputError:
    """An OSError while writing, with the free space if that is the matter."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(path.parent).free
        return InputOutputError(
            f"{path}: the disk is full ({free >> 20} MiB free)",
            "Nothing was left behind. Free some space or write elsewhere with -o.",
        )
    return InputOutputError(f"{path}: cannot be written: {error.strerror or error}")


class AprWriter:
    """Writes one file. Tensors are added in the order of `names`; leaving the context ends it.

    On any exception the part file is removed and the target is left as it was.
    """

    def __init__(
        self, path: str | os.PathLike[str], metadata: Mapping[str, Any],
        specs: Sequence[TensorSpec], *, force: bool = False, flags: int = ROW_MAJOR,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        check_target(self.path, force)
        self._specs = sorted(specs, key=lambda s: s.name.encode())
        self.names = [spec.name for spec in self._specs]
        if len(set(self.names)) != len(self.names):
            raise FormatError("a tensor name appears twice")
        table = format_table([s.format for s in self._specs])
        full = {**metadata, "apr.formats": table} if table else dict(metadata)
        self._prologue = self._lay_out(encode_metadata(full), flags | ROW_MAJOR)
        self._part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self._next, self._crc = 0, 0
        self._file: BinaryIO | None = None

    def _lay_out(self, metadata: bytes, flags: int) -> bytes:
        """Header, metadata and index: everything before the data."""
        entries, offset = [], 0
        for s in self._specs:
            entries.append(IndexEntry(s.name, s.format.dtype_id, s.shape, offset, s.nbytes).pack())
            offset = align(offset + s.nbytes)
        index = b"".join(entries)
        index_at = align(HEADER_SIZE + len(metadata))
        data_at = index_at + align(len(index))
        self.nbytes = data_at + offset + 4
        header = Header(flags, len(self._specs), len(metadata), index_at, data_at).pack()
        head = (header + metadata).ljust(index_at, b"\0")
        return (head + index).ljust(data_at, b"\0")

    def __enter__(self) -> AprWriter:
        try:
            self._file = self._part.open("xb")
            self._write(self._prologue)
        except OSError as error:
            self._discard()
            raise disk_error(self.path, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def _write(self, data: Any) -> int:
        assert self._file is not None
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        return memoryview(data).nbytes

    def add(self, name: str, chunks: Iterable[Any]) -> None:
        """Write the next tensor from bytes-like chunks. Raises FormatError, InputOutputError."""
        if self._next >= len(self._specs) or name != self.names[self._next]:
            expected = self.names[self._next] if self._next < len(self.names) else "nothing"
            raise FormatError(f"tensor {name!r} is out of turn: expected {expected!r}")
        spec, written = self._specs[self._next], 0
        try:
            for chunk in chunks:
                written += self._write(chunk)
            if written == spec.nbytes:
                self._write(bytes(align(written) - written))
        except OSError as error:
            raise disk_error(self.path, error) from error
        if written != spec.nbytes:
            raise FormatError(
                f"tensor {name!r}: {written} bytes were given, {spec.nbytes} expected"
            )
        self._next += 1

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except OSError as error:
            self._discard()
            raise disk_error(self.path, error) from error
        except BaseException:
            self._discard()
            raise

    def _finish(self) -> None:
        if self._next != len(self._specs):
            raise FormatError(f"tensor {self.names[self._next]!r} was never written")
        assert self._file is not None
        self._file.write(self._crc.to_bytes(4, "little"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._part.unlink(missing_ok=True)


class ShardedWriter:
    """The same interface over several files of at most about `max_bytes` of data each.

    All shards are written under part names first; a failure leaves none of them.
    """

    def __init__(
        self, path: str | os.PathLike[str], metadata: Mapping[str, Any],
        specs: Sequence[TensorSpec], max_bytes: int, *, force: bool = False,
        flags: int = ROW_MAJOR,
    ) -> None:  # fmt: skip
        ordered = sorted(specs, key=lambda s: s.name.encode())
        groups: list[list[TensorSpec]] = [[]]
        room = max_bytes
        for spec in ordered:
            if groups[-1] and spec.nbytes > room:
                groups.append([])
                room = max_bytes
            groups[-1].append(spec)
            room -= align(spec.nbytes)
        self.names = [spec.name for spec in ordered]
        total = sum(spec.nbytes for spec in ordered)
        count = len(groups)
        self.paths = [shard_path(Path(path), i, count) for i in range(count)]
        self._writers = [
            AprWriter(p, self._metadata(metadata, i, count, total), group, force=force,
                      flags=flags | SHARDED)
            for i, (p, group) in enumerate(zip(self.paths, groups, strict=True))
        ]  # fmt: skip
        self.nbytes = sum(writer.nbytes for writer in self._writers)
        self._owner = {n: w for w in self._writers for n in w.names}

    @staticmethod
    def _metadata(
        metadata: Mapping[str, Any], index: int, count: int, total: int
    ) -> dict[str, Any]:
        info = {"shard_count": count, "shard_index": index, "total_size": total,
                "pattern": "model-{:05d}-of-{:05d}.apr"}  # fmt: skip
        kept = dict(metadata) if index == 0 else {}  # the first shard describes the model
        return {**kept, "sharding": info}

    def __enter__(self) -> ShardedWriter:
        entered: list[AprWriter] = []
        try:
            for writer in self._writers:
                entered.append(writer.__enter__())
        except BaseException:
            for writer in entered:
                writer.__exit__(AprError)
            raise
        return self

    def add(self, name: str, chunks: Iterable[Any]) -> None:
        """Write the next tensor."""
        if name not in self._owner:
            raise FormatError(f"tensor {name!r} was not announced")
        self._owner[name].add(name, chunks)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for done, writer in enumerate(self._writers):
            try:
                writer.__exit__(kind)
            except BaseException:
                for later in self._writers[done + 1 :]:
                    later.__exit__(AprError)
                for path in self.paths[:done]:
                    path.unlink(missing_ok=True)
                raise

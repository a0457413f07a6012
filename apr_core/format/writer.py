"""Writes .apr files in one streaming pass, beside their target, and renames them when whole."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from apr_core.errors import FormatError, InputOutputError, NotFound, UsageError
from apr_core.format.dtypes import (
    LEGACY,
    TABLE,
    FormatSpec,
    format_table,
    number_formats,
    tensor_nbytes,
)
from apr_core.format.header import (
    HAS_VOCAB,
    HEADER_SIZE,
    MAX_METADATA,
    QUANTIZED,
    ROW_MAJOR,
    SHARDED,
    Header,
    IndexEntry,
    align,
)
from apr_core.format.shards import MAX_SHARDS, set_id, shard_metadata, shard_path

ELSEWHERE = "Write elsewhere: give another `out`; for the model store, set APR_STORE."


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written. A format without an id gets one that the file defines."""

    name: str
    format: FormatSpec
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The tensor's bytes in the file, without padding."""
        return tensor_nbytes(self.format, self.shape)


def check_target(path: Path, force: bool) -> None:
    """Check that `path` may be written. Raises NotFound or UsageError, before any work."""
    with naming(path):  # a name too long, a directory without permission
        folder, directory, exists = path.parent.is_dir(), path.is_dir(), path.exists()
    if not folder:
        raise NotFound(
            f"directory {path.parent} does not exist", f"Create it: mkdir -p {path.parent}"
        )
    if directory:
        raise UsageError(f"{path} is a directory, expected a file to write")
    if exists and not force:
        raise UsageError(f"{path} exists", "Give `force` to replace it, or another `out`.")


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Encode compact UTF-8 JSON. Raises FormatError over 16 MiB or for values JSON lacks."""
    try:
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        raw = text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"metadata cannot be written as JSON: {error}") from None
    if len(raw) > MAX_METADATA:
        raise FormatError(f"metadata takes {len(raw)} bytes, APR v2 allows {MAX_METADATA} (16 MiB)")
    return raw


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise an OSError from inside as InputOutputError, with the free space if that is missing."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = error.strerror or error
            raise InputOutputError(f"{path}: cannot be written: {reason}", ELSEWHERE) from error
        free = shutil.disk_usage(path.parent).free
        raise InputOutputError(
            f"{path}: the disk is full ({free >> 20} MiB free)",
            f"Nothing was left behind. Free some space. {ELSEWHERE}",
        ) from error


def check_space(path: Path, nbytes: int) -> None:
    """Raise InputOutputError if the disk cannot hold that many bytes, before any work."""
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise InputOutputError(
            f"{path}: needs {nbytes >> 20} MiB, {free >> 20} MiB are free",
            f"Free some space. {ELSEWHERE}",
        )


def in_index_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Return specs in index order, formats numbered. Raises FormatError for a repeated name."""
    ordered = sorted(specs, key=lambda s: s.name.encode("utf-8", "surrogatepass"))
    for before, spec in pairwise(ordered):
        if before.name == spec.name:
            raise FormatError(f"tensor {spec.name!r} is given twice")
    for spec in ordered:
        if spec.format.name in LEGACY:
            raise FormatError(f"tensor {spec.name!r}: format {spec.format.name!r} is only read")
    formats = number_formats(spec.format for spec in ordered)
    return [replace(spec, format=formats[spec.format.name]) for spec in ordered]


class _Part:
    """One file being written: `.<name>.<random>.part` beside its target, until published."""

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], specs: Sequence[TensorSpec], flags: int
    ) -> None:
        self.path, self.specs = path, specs
        self._prologue, self.nbytes = _lay_out(encode_metadata(metadata), specs, flags)
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._next, self._crc, self._begun = 0, 0, False
        self._file: BinaryIO | None = None

    def open(self) -> None:
        self._begun = True  # a signal may come before the file has been assigned
        with naming(self.path):
            self._file = self._part.open("xb")
        self._write(memoryview(self._prologue))
        self._prologue = b""

    def _write(self, data: memoryview) -> None:
        assert self._file is not None
        with naming(self.path):
            self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)

    def add(self, name: str, chunks: Iterable[Any]) -> None:
        spec, written = self.specs[self._next], 0
        for chunk in chunks:
            data = memoryview(chunk)
            written += data.nbytes
            if written > spec.nbytes:
                break
            self._write(data)
        if written != spec.nbytes:
            given = "more" if written > spec.nbytes else str(written)
            raise FormatError(f"tensor {name!r}: {given} bytes given, {spec.nbytes} expected")
        self._write(memoryview(bytes(align(written) - written)))
        self._next += 1

    def seal(self) -> None:
        """Write the footer and flush to disk; the file keeps its part name."""
        assert self._file is not None
        with naming(self.path):
            self._file.write(self._crc.to_bytes(4, "little"))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        with naming(self.path):
            self._part.replace(self.path)
        _sync_directory(self.path.parent)

    def discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk makes the last flush fail again
                self._file.close()
        if self._begun:
            self._part.unlink(missing_ok=True)


def _lay_out(metadata: bytes, specs: Sequence[TensorSpec], flags: int) -> tuple[bytes, int]:
    """Return everything before the data (header, metadata, index), and the file's size in bytes."""
    entries, offset = [], 0
    for s in specs:
        assert s.format.dtype_id is not None
        entries.append(IndexEntry(s.name, s.format.dtype_id, s.shape, offset, s.nbytes).pack())
        offset = align(offset + s.nbytes)
    index = b"".join(entries)
    index_at = align(HEADER_SIZE + len(metadata))
    data_at = index_at + align(len(index))
    header = Header(flags, len(specs), len(metadata), index_at, data_at).pack()
    head = (header + metadata).ljust(index_at, b"\0")
    return (head + index).ljust(data_at, b"\0"), data_at + offset + 4


def _sync_directory(path: Path) -> None:
    with suppress(OSError):  # not every filesystem can; the file itself is safe
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class AprWriter:
    """Writes one file, or its shards. Tensors are added in the order of `names`.

    Leaving the context ends it; on any exception the part files are removed and the targets are
    left as they were. With `shard_bytes`, `paths` are files of about that many bytes of data at
    most: `model-00001-of-00003.apr` beside the `model.apr` that was asked for. A larger tensor gets
    a shard of its own, and all shards keep their part names until the last is whole. `nbytes` is
    the size of all files. Flags that follow from the contents are set in addition to `flags`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Any],
        specs: Iterable[TensorSpec],
        *,
        shard_bytes: int | None = None,
        force: bool = False,
        flags: int = ROW_MAJOR,
    ) -> None:
        ordered = in_index_order(specs)
        rows = format_table(spec.format for spec in ordered)
        full = {key: value for key, value in metadata.items() if key != TABLE}
        full |= {TABLE: rows} if rows else {}
        flags |= ROW_MAJOR | (QUANTIZED if rows else 0)
        flags |= HAS_VOCAB if metadata.get("tokenizer.vocabulary") else 0
        if shard_bytes is None:
            self._parts = [_Part(Path(path), full, ordered, flags)]
        else:
            groups = split(ordered, shard_bytes)
            self._parts = list(_shards(Path(path), full, groups, flags))
        self.paths = [part.path for part in self._parts]
        for each in self.paths:
            check_target(each, force)
        self._force = force
        self.names = [spec.name for spec in ordered]
        self.nbytes = sum(part.nbytes for part in self._parts)
        self._owners = [part for part in self._parts for _ in part.specs]
        self._next, self._current = 0, 0
        check_space(self.paths[0], self.nbytes)

    def __enter__(self) -> AprWriter:
        try:
            self._parts[0].open()
        except BaseException:
            self._discard()
            raise
        return self

    def add(self, name: str, chunks: Iterable[Any]) -> None:
        """Write the next tensor from C-contiguous bytes-like chunks.

        Raises FormatError for another name than the next of `names` or a wrong number of bytes,
        InputOutputError if the disk refuses. Errors of `chunks` itself pass through.
        """
        expected = self.names[self._next] if self._next < len(self.names) else None
        if name != expected:
            raise FormatError(f"tensor {name!r} is out of turn: expected {expected!r}")
        part = self._owners[self._next]
        if part is not self._parts[self._current]:
            self._parts[self._current].seal()
            self._current += 1
            part.open()
        part.add(name, chunks)
        self._next += 1

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with ExitStack() as undo:
            undo.callback(self._discard)
            if kind is None:
                self._publish()
                undo.pop_all()

    def _publish(self) -> None:
        if self._next != len(self.names):
            raise FormatError(f"tensor {self.names[self._next]!r} was never written")
        self._parts[self._current].seal()
        for part in self._parts:
            check_target(part.path, self._force)  # again: another process may have been faster
        published: list[_Part] = []
        try:
            for part in self._parts:
                part.publish()
                published.append(part)
        except BaseException:
            for part in published:
                part.path.unlink(missing_ok=True)  # an incomplete set is of no use
            raise

    def _discard(self) -> None:
        for part in self._parts:
            part.discard()


def _shards(
    path: Path, metadata: dict[str, Any], groups: Sequence[Sequence[TensorSpec]], flags: int
) -> Iterator[_Part]:
    """Yield the shards as part files; only the first has the model's metadata."""
    if len(groups) > MAX_SHARDS:
        raise UsageError(f"{len(groups)} shards, at most {MAX_SHARDS}", "Make the shards larger.")
    specs = [spec for group in groups for spec in group]
    identity = set_id([encode_metadata(metadata).decode(), *map(str, specs)])
    total = sum(spec.nbytes for spec in specs)
    table = {TABLE: metadata[TABLE]} if TABLE in metadata else {}
    for i, group in enumerate(groups):
        own = shard_metadata(path, i, len(groups), total, identity)
        shard = shard_path(path, i, len(groups))
        yield _Part(shard, (table if i else metadata) | own, group, flags | SHARDED)


def split(specs: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """Split specs into consecutive groups of at most `max_bytes` of data, one tensor at least."""
    groups: list[list[TensorSpec]] = [[]]
    remaining = max_bytes
    for spec in specs:
        if groups[-1] and align(spec.nbytes) > remaining:
            groups.append([])
            remaining = max_bytes
        groups[-1].append(spec)
        remaining -= align(spec.nbytes)
    return groups

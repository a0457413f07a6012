"""Maps an .apr file and checks everything that is cheap to check. Decodes nothing."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import FormatError, InputOutputError, NotFound
from apr_core.format.dtypes import FormatSpec, file_formats, tensor_nbytes
from apr_core.format.header import (
    HEADER_SIZE,
    SHARDED,
    IndexEntry,
    parse_header,
    parse_index,
)

MAX_ELEMENTS = 2**48
CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a file. `offset` is absolute in `path`; `spec` is None for unknown ids."""

    name: str
    format: str
    dtype_id: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    spec: FormatSpec | None
    path: Path


class _Mapped:
    """One mapped file with its header, metadata and entries, all checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        self.size = len(self._map)
        try:
            self.header = parse_header(self._map[:HEADER_SIZE], self.size)
            self.metadata = self._read_metadata()
            self.entries = self._read_entries()
        except FormatError as error:
            self.close()
            raise FormatError(f"{path}: {error.message}", error.hint) from None

    def _read_metadata(self) -> dict[str, Any]:
        start = self.header.metadata_offset
        raw = self._map[start : start + self.header.metadata_size]
        try:
            metadata = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise FormatError(f"metadata is not JSON: {error}") from None
        if not isinstance(metadata, dict):
            raise FormatError("metadata is not a JSON object")
        return metadata

    def _read_entries(self) -> dict[str, TensorEntry]:
        header = self.header
        raw = self._map[header.index_offset : header.data_offset]
        parsed, _ = parse_index(raw, header.tensor_count)
        formats = file_formats(self.metadata)
        entries = {e.name: self._entry(e, formats.get(e.dtype_id)) for e in parsed}
        end_before, before = header.data_offset, ""
        for entry in sorted(entries.values(), key=lambda e: (e.offset, e.nbytes)):
            if entry.offset < end_before and entry.nbytes:
                raise FormatError(f"tensors {before!r} and {entry.name!r} overlap")
            end_before, before = max(end_before, entry.offset + entry.nbytes), entry.name
        return entries

    def _entry(self, e: IndexEntry, spec: FormatSpec | None) -> TensorEntry:
        offset = self.header.data_offset + e.offset
        elements = 1
        for dim in e.shape:
            elements *= dim
            if dim > MAX_ELEMENTS or elements > MAX_ELEMENTS:
                raise FormatError(f"tensor {e.name!r}: impossible shape {list(e.shape)}")
        if offset + e.nbytes > self.size - 4:
            raise FormatError(
                f"tensor {e.name!r} ends at byte {offset + e.nbytes}, the data ends at "
                f"{self.size - 4}: the file is cut off or damaged"
            )
        if e.offset % 64:
            raise FormatError(f"tensor {e.name!r}: offset {e.offset} is not a multiple of 64")
        if e.dtype_id == 129:  # one f32 scale for the whole tensor: no block format
            spec = FormatSpec("apr_q8", 129, max(1, elements), 4 + elements)
        if spec and e.nbytes != tensor_nbytes(spec, e.shape):
            raise FormatError(
                f"tensor {e.name!r}: {e.nbytes} bytes, {spec.name} of shape {list(e.shape)} takes "
                f"{tensor_nbytes(spec, e.shape)}"
            )
        name = spec.name if spec else f"unknown:{e.dtype_id}"
        return TensorEntry(e.name, name, e.dtype_id, e.shape, offset, e.nbytes, spec, self.path)

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._map, np.uint8, nbytes, offset)

    def crc(self, progress: Callable[[int], None] | None) -> tuple[int, int]:
        stored = int.from_bytes(self._map[self.size - 4 :], "little")
        crc, view = 0, memoryview(self._map)
        try:
            for start in range(0, self.size - 4, CHUNK):
                part = view[start : min(start + CHUNK, self.size - 4)]
                crc = zlib.crc32(part, crc)
                if progress:
                    progress(len(part))
                part.release()
        finally:
            view.release()
        return stored, crc

    def close(self) -> None:
        with suppress(BufferError):  # arrays may still look at it: it ends with the last of them
            self._map.close()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < HEADER_SIZE + 4:
                raise FormatError(f"{path}: file too small for APR v2 ({size} bytes)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", "`apr import` makes an .apr file.") from None
    except IsADirectoryError:
        raise FormatError(f"{path} is a directory, expected an .apr file") from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from error


class AprFile:
    """An open .apr file, or all shards of one. Close it, or use it as a context manager.

    `tensors` are sorted by name. Array views stay valid after `close`.
    """

    def __init__(self, parts: list[_Mapped]) -> None:
        self._parts = {part.path: part for part in parts}
        first = parts[0]
        self.path, self.header = first.path, first.header
        self.metadata: dict[str, Any] = first.metadata
        self.size = sum(part.size for part in parts)
        merged = {n: e for part in parts for n, e in part.entries.items()}
        self.tensors: dict[str, TensorEntry] = dict(
            sorted(merged.items(), key=lambda item: item[0].encode())
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> AprFile:
        """Open and check a file; any shard opens the whole set.

        Raises NotFound, InputOutputError or FormatError.
        """
        part = _Mapped(Path(path))
        if not part.header.flags & SHARDED:
            return cls([part])
        from apr_core.format.shards import sibling_paths

        try:
            paths = sibling_paths(part.path, part.metadata)
        except BaseException:
            part.close()
            raise
        part.close()
        return cls._join(paths)

    @classmethod
    def _join(cls, paths: list[Path]) -> AprFile:
        from apr_core.format.shards import check_shard

        parts: list[_Mapped] = []
        try:
            for index, path in enumerate(paths):
                parts.append(_Mapped(path))
                check_shard(path, parts[-1].metadata, index, len(paths))
            names = [name for part in parts for name in part.entries]
            twice = sorted({n for n in names if names.count(n) > 1}) if _repeats(names) else []
            if twice:
                raise FormatError(f"{paths[0]}: tensor {twice[0]!r} is in two shards")
        except BaseException:
            for part in parts:
                part.close()
            raise
        return cls(parts)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes [nbytes], read-only, in place. Raises NotFound."""
        entry = self.tensors.get(name)
        if entry is None:
            raise NotFound(f"{self.path}: no tensor named {name!r}")
        return self._parts[entry.path].view(entry.offset, entry.nbytes)

    @property
    def flags(self) -> int:
        """The header's flags."""
        return self.header.flags

    @property
    def paths(self) -> list[Path]:
        """The files, one or one a shard."""
        return list(self._parts)

    def footer_crcs(
        self, progress: Callable[[int], None] | None = None
    ) -> dict[Path, tuple[int, int]]:
        """(stored, computed) footer CRC of each file; reads all bytes."""
        return {path: part.crc(progress) for path, part in self._parts.items()}

    def padding_errors(self) -> list[str]:
        """Places between sections and tensors that should be zero and are not."""
        found = []
        for path, part in self._parts.items():
            spans = sorted((e.offset, e.offset + e.nbytes) for e in part.entries.values())
            at = part.header.data_offset
            meta_end = part.header.metadata_offset + part.header.metadata_size
            gaps = [(meta_end, part.header.index_offset)]
            for start, end in [*spans, (part.size - 4, part.size - 4)]:
                gaps.append((at, start))
                at = max(at, end)
            for start, end in gaps:
                if end > start and part.view(start, end - start).any():
                    found.append(f"{path.name}: bytes {start}..{end} are padding but not zero")
        return found

    def close(self) -> None:
        """Unmap the file as soon as no array looks at it."""
        for part in self._parts.values():
            part.close()

    def __enter__(self) -> AprFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _repeats(names: list[str]) -> bool:
    return len(set(names)) != len(names)

"""Maps an .apr file and checks everything that is cheap to check. Decodes no tensor."""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import FormatError, InputOutputError, NotFound
from apr_core.format.dtypes import LEGACY_IDS, FormatSpec, file_formats, legacy_spec, tensor_nbytes
from apr_core.format.header import HEADER_SIZE, SHARDED, IndexEntry, parse_header, parse_index

MAX_ELEMENTS = 2**48
CHUNK = 4 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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
            start = self.header.metadata_offset
            stop = start + self.header.metadata_size
            with memoryview(self._map) as whole, whole[start:stop] as raw:
                self.metadata = parse_metadata(raw)
            self.entries = self._read_entries()
        except FormatError as error:
            self.close()
            raise FormatError(f"{path}: {error.message}", error.hint) from None
        except BaseException:
            self.close()
            raise

    def _read_entries(self) -> dict[str, TensorEntry]:
        header = self.header
        # A view: the section may be as large as the file, whatever it really holds.
        with memoryview(self._map) as whole, whole[header.index_offset : header.data_offset] as raw:
            parsed, length = parse_index(raw, header.tensor_count)
        self.index_end = header.index_offset + length
        formats = file_formats(self.metadata)
        entries = {e.name: self._entry(e, formats.get(e.dtype_id)) for e in parsed}
        end_before, before = header.data_offset, ""
        for entry in sorted(entries.values(), key=lambda e: (e.offset, e.nbytes)):
            if not entry.nbytes:
                continue
            if entry.offset < end_before:
                raise FormatError(f"tensors {before!r} and {entry.name!r} overlap")
            end_before, before = entry.offset + entry.nbytes, entry.name
        return entries

    def _entry(self, e: IndexEntry, spec: FormatSpec | None) -> TensorEntry:
        offset = self.header.data_offset + e.offset
        elements = prod(e.shape)
        if max(elements, *e.shape, 0) > MAX_ELEMENTS:
            raise FormatError(f"tensor {e.name!r}: impossible shape {list(e.shape)}")
        if offset + e.nbytes > self.size - 4:
            raise FormatError(
                f"tensor {e.name!r} ends at byte {offset + e.nbytes}, the data ends at "
                f"{self.size - 4}: the file is cut off or damaged"
            )
        if e.dtype_id in LEGACY_IDS:
            spec = legacy_spec(e.dtype_id, elements)
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
        crc, end = 0, self.size - 4
        for start in range(0, end, CHUNK):
            count = min(CHUNK, end - start)
            crc = zlib.crc32(self.view(start, count).data, crc)
            self.drop(start, count)
            if progress:
                progress(count)
        return int.from_bytes(self._map[end:], "little"), crc

    def drop(self, start: int, nbytes: int) -> None:
        """Release the memory of these pages; they are read again when needed."""
        if nbytes and hasattr(mmap, "MADV_DONTNEED"):
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, start + nbytes - first)

    def gaps(self) -> list[tuple[int, int]]:
        """Return the spans [start, end) that belong to no section or tensor."""
        header = self.header
        spans = [
            (0, HEADER_SIZE),
            (header.metadata_offset, header.metadata_offset + header.metadata_size),
            (header.index_offset, self.index_end),
            *((e.offset, e.offset + e.nbytes) for e in self.entries.values() if e.nbytes),
            (self.size - 4, self.size),
        ]
        pairs = pairwise(sorted(spans))
        return [(end, start) for (_, end), (start, _) in pairs if end < start]

    def close(self) -> None:
        with suppress(BufferError):  # arrays still view it: it is unmapped with the last
            self._map.close()


def parse_metadata(raw: bytes | memoryview) -> dict[str, Any]:
    """Parse metadata. Raises FormatError for anything but a JSON object of finite numbers."""
    try:
        metadata = json.loads(str(raw, "utf-8"), parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(raw):  # a lone surrogate cannot be printed or stored
            json.dumps(metadata, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise FormatError("metadata is nested too deeply") from None
    except (UnicodeError, ValueError) as error:
        raise FormatError(f"metadata is not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise FormatError("metadata is not a JSON object")
    return metadata


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if value - value == 0 else float(_refuse(text))


def _map_file(path: Path) -> mmap.mmap:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            hint = f"If it is a checkpoint, import it first: apr import {path} -o model.apr"
            raise FormatError(f"{path} is a directory, expected an .apr file", hint)
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise FormatError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < HEADER_SIZE + 4:
                raise FormatError(f"{path}: file too small for APR v2 ({size} bytes)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
        hint = "`apr import` makes an .apr file; `find_model` of apr_core finds or makes one."
        raise NotFound(f"{path}: no such file", hint) from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from error


class AprFile:
    """An open .apr file, or all shards of one. Close it, or use it as a context manager.

    `tensors` are sorted by name, `metadata` and `header` those of the first shard. Array views
    stay valid after `close`.
    """

    def __init__(self, parts: list[_Mapped]) -> None:
        self._parts = {part.path: part for part in parts}
        first = parts[0]
        self.path, self.header = first.path, first.header
        self.metadata: dict[str, Any] = first.metadata
        self.size = sum(part.size for part in parts)
        merged = {n: e for part in parts for n, e in part.entries.items()}
        self.tensors = {name: merged[name] for name in sorted(merged, key=str.encode)}

    def __repr__(self) -> str:
        return f"<AprFile {str(self.path)!r}: {len(self.tensors)} tensors, {self.size} bytes>"

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
        finally:
            part.close()
        return cls._join(paths)

    @classmethod
    def _join(cls, paths: list[Path]) -> AprFile:
        from apr_core.format.shards import check_shard

        parts: list[_Mapped] = []
        with ExitStack() as undo:
            for index, path in enumerate(paths):
                parts.append(_Mapped(path))
                undo.callback(parts[-1].close)
                if not parts[-1].header.flags & SHARDED:
                    raise FormatError(f"{path}: named like a shard, but not flagged as one")
                check_shard(path, parts[-1].metadata, index, len(paths), parts[0].metadata)
            names = Counter(name for part in parts for name in part.entries)
            twice = next((name for name, times in names.items() if times > 1), None)
            if twice is not None:
                raise FormatError(f"{paths[0]}: tensor {twice!r} is in two shards")
            undo.pop_all()
        return cls(parts)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return the tensor's bytes [nbytes], read-only and mapped. Raises NotFound."""
        entry = self.tensors.get(name)
        if entry is None:
            raise NotFound(f"{self.path}: no tensor named {name!r}")
        return self._parts[entry.path].view(entry.offset, entry.nbytes)

    def drop_pages(self, name: str) -> None:
        """Release the memory of a tensor's pages; they are read again when needed."""
        entry = self.tensors[name]
        self._parts[entry.path].drop(entry.offset, entry.nbytes)

    @property
    def paths(self) -> list[Path]:
        """The file, or all files of a set of shards."""
        return list(self._parts)

    def footer_crcs(
        self, progress: Callable[[int], None] | None = None
    ) -> dict[Path, tuple[int, int]]:
        """Return (stored, computed) footer CRCs by file; reads all bytes, reporting each chunk."""
        return {path: part.crc(progress) for path, part in self._parts.items()}

    def padding_errors(self) -> list[str]:
        """Return the places between sections and tensors that should be zero and are not."""
        return [
            f"{path.name}: bytes {start}..{end} are padding but not zero"
            for path, part in self._parts.items()
            for start, end in part.gaps()
            if part.view(start, end - start).any()
        ]

    def close(self) -> None:
        """Unmap the file once no array views it."""
        for part in self._parts.values():
            part.close()

    def __enter__(self) -> AprFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

"""The 64-byte header and the tensor index of APR v2, byte for byte."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from apr_core.errors import FormatError

MAGIC = b"APR\0"
HEADER_SIZE = 64
ALIGNMENT = 64
MAX_METADATA = 16 << 20
MAX_NAME = 256
MAX_DIMS = 8
MIN_ENTRY = 21  # bytes of an index entry with a one-letter name and no dimensions
_HEADER = struct.Struct("<4sBBHIQIQQI20s")

FLAGS = {
    0x0001: "lz4", 0x0002: "zstd", 0x0004: "encrypted", 0x0008: "signed", 0x0010: "sharded",
    0x0020: "quantized", 0x0040: "has_filterbank", 0x0080: "has_model_card", 0x0100: "streaming",
    0x0200: "has_vocab", 0x0400: "row_major", 0x0800: "column_major",
}  # fmt: skip
SHARDED, QUANTIZED, HAS_VOCAB, ROW_MAJOR, COLUMN_MAJOR = 0x10, 0x20, 0x200, 0x400, 0x800
UNREADABLE = {0x0001: "LZ4-compressed", 0x0002: "zstd-compressed", 0x0004: "encrypted"}


def align(offset: int) -> int:
    """Return the offset rounded up to a multiple of 64."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of the header. Offsets are absolute, sizes in bytes."""

    flags: int
    tensor_count: int
    metadata_size: int
    index_offset: int
    data_offset: int
    metadata_offset: int = HEADER_SIZE
    version: tuple[int, int] = (2, 0)

    def pack(self) -> bytes:
        """Return the header as 64 bytes, with their CRC."""
        places = (self.metadata_offset, self.metadata_size, self.index_offset, self.data_offset)
        head = (MAGIC, *self.version, self.flags, self.tensor_count, *places)
        crc = header_crc(_HEADER.pack(*head, 0, bytes(20)))
        return _HEADER.pack(*head, crc, bytes(20))

    def flag_names(self) -> list[str]:
        """Return the names of the flags that are set."""
        return [name for bit, name in FLAGS.items() if self.flags & bit]


def header_crc(raw: bytes | bytearray) -> int:
    """Return the CRC-32 of the header without its checksum field."""
    return zlib.crc32(raw[44:64], zlib.crc32(raw[:40]))


def parse_header(raw: bytes, file_size: int) -> Header:
    """Parse and check the header of a file of `file_size` bytes. Raises FormatError."""
    if file_size < HEADER_SIZE + 4 or len(raw) < HEADER_SIZE:
        raise FormatError(f"file too small: {file_size} bytes, an APR v2 file has at least 68")
    (magic, major, minor, flags, count, meta_at, meta_size, index_at, data_at, crc, reserved) = (
        _HEADER.unpack(raw[:HEADER_SIZE])
    )
    if magic != MAGIC:
        raise FormatError(
            f"not an APR v2 file: it starts with {magic!r}, expected {MAGIC!r}",
            "`apr import` makes one from a checkpoint.",
        )
    if major != 2:
        raise FormatError(f"APR version {major}.{minor}, this reader knows version 2")
    if crc != header_crc(raw):
        raise FormatError(
            f"header checksum is {crc:#010x}, computed {header_crc(raw):#010x}: damaged file",
            "Copy or import it again.",
        )
    header = Header(flags, count, meta_size, index_at, data_at, meta_at, (major, minor))
    _check_layout(header, file_size)
    if any(reserved):
        raise FormatError("reserved header bytes are not zero: written by a newer version?")
    return header


def _check_layout(header: Header, file_size: int) -> None:
    if header.flags & COLUMN_MAJOR:
        raise FormatError("column-major layout (flag 0x0800) is not supported")
    for bit, what in UNREADABLE.items():
        if header.flags & bit:
            raise FormatError(f"the file is {what}, which this reader does not support")
    if header.metadata_size > MAX_METADATA:
        raise FormatError(f"metadata of {header.metadata_size} bytes, at most {MAX_METADATA}")
    end = file_size - 4
    steps = (
        ("metadata", HEADER_SIZE, header.metadata_offset),
        ("tensor index", header.metadata_offset + header.metadata_size, header.index_offset),
        ("tensor data", header.index_offset, header.data_offset),
        ("footer", header.data_offset, end),
    )
    for what, lowest, offset in steps:
        if not lowest <= offset <= end:
            raise FormatError(
                f"{what} offset {offset} is outside {lowest}..{end}: the file is damaged or cut off"
            )
    for what, offset in (("index", header.index_offset), ("data", header.data_offset)):
        if offset % ALIGNMENT:
            raise FormatError(f"{what} offset {offset} is not a multiple of {ALIGNMENT}")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One tensor of the index; `offset` is relative to the data section."""

    name: str
    dtype_id: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def pack(self) -> bytes:
        """Return the entry's bytes. Raises FormatError if the format cannot hold it."""
        try:
            name = self.name.encode()
        except UnicodeEncodeError:
            raise FormatError(f"tensor {self.name!r}: the name does not fit UTF-8") from None
        if not 0 < len(name) <= MAX_NAME or len(self.shape) > MAX_DIMS:
            raise FormatError(
                f"tensor {self.name!r}: names have 1..{MAX_NAME} bytes, shapes {MAX_DIMS} dims"
            )
        if any(not 0 <= n < 2**64 for n in (*self.shape, self.offset, self.nbytes)):
            raise FormatError(f"tensor {self.name!r}: impossible shape {list(self.shape)}")
        tail = struct.pack(f"<{len(self.shape)}Q2Q", *self.shape, self.offset, self.nbytes)
        return struct.pack("<H", len(name)) + name + bytes((self.dtype_id, len(self.shape))) + tail


def parse_index(raw: memoryview, count: int) -> tuple[list[IndexEntry], int]:
    """Return the entries and the bytes they take. Raises FormatError naming the entry."""
    if count > len(raw) // MIN_ENTRY:
        raise FormatError(f"{count} tensors cannot fit into an index of {len(raw)} bytes")
    entries: list[IndexEntry] = []
    at = 0
    for number in range(count):
        entry, at = _parse_entry(raw, at, number)
        if entries and entries[-1].name.encode() >= entry.name.encode():
            kind = "appears twice" if entries[-1].name == entry.name else "is out of order"
            raise FormatError(f"tensor index: {entry.name!r} {kind}")
        if entry.offset % ALIGNMENT:
            where = f"offset {entry.offset} is no multiple of {ALIGNMENT}"
            raise FormatError(f"tensor {entry.name!r}: {where}")
        entries.append(entry)
    return entries, at


def _parse_entry(raw: memoryview, at: int, number: int) -> tuple[IndexEntry, int]:
    where = f"tensor index entry {number}"
    try:
        (length,) = struct.unpack_from("<H", raw, at)
        if not 0 < length <= MAX_NAME:
            raise FormatError(f"{where}: a name of {length} bytes")
        if at + 2 + length > len(raw):
            raise FormatError(f"{where}: cut off in the name")
        name = bytes(raw[at + 2 : at + 2 + length]).decode("utf-8")
        at += 2 + length
        dtype_id, ndim = struct.unpack_from("<2B", raw, at)
        if ndim > MAX_DIMS:
            raise FormatError(f"{where} ({name!r}): {ndim} dims, at most {MAX_DIMS}")
        *shape, offset, nbytes = struct.unpack_from(f"<{ndim}Q2Q", raw, at + 2)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: the name is not UTF-8") from error
    except struct.error as error:
        raise FormatError(f"{where}: cut off") from error
    return IndexEntry(name, dtype_id, tuple(shape), offset, nbytes), at + 2 + 8 * (ndim + 2)

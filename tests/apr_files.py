"""Small .apr files made by hand, byte by byte, independently of the writer under test."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from apr_core.format import FormatSpec
from apr_core.format.writer import AprWriter, TensorSpec


def align(n: int) -> int:
    return (n + 63) // 64 * 64


def entry(name: str | bytes, dtype: int, shape: tuple[int, ...], offset: int, size: int) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        struct.pack("<H", len(raw)) + raw + bytes((dtype, len(shape))) + dims
        + struct.pack("<QQ", offset, size)
    )  # fmt: skip


def header(**fields: Any) -> bytes:
    """A header with its CRC; every field may be overridden."""
    f = {
        "magic": b"APR\0", "major": 2, "minor": 0, "flags": 0x400, "count": 0, "meta_at": 64,
        "meta_size": 2, "index_at": 128, "data_at": 128, "reserved": bytes(20),
    } | fields  # fmt: skip
    head = struct.pack(
        "<4sBBHIQIQQ",
        f["magic"],
        f["major"],
        f["minor"],
        f["flags"],
        f["count"],
        f["meta_at"],
        f["meta_size"],
        f["index_at"],
        f["data_at"],
    )
    crc = zlib.crc32(f["reserved"], zlib.crc32(head)) if "crc" not in f else f["crc"]
    return head + struct.pack("<I", crc) + f["reserved"]


def build(
    metadata: dict[str, Any] | bytes = b"{}",
    entries: tuple[bytes, ...] = (),
    data: bytes = b"",
    **fields: Any,
) -> bytes:
    """A file whose parts are given and need not make sense."""
    meta = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    index = b"".join(entries)
    index_at = 64 + align(len(meta))
    data_at = index_at + align(len(index))
    fields = {
        "count": len(entries), "meta_size": len(meta), "index_at": index_at, "data_at": data_at,
    } | fields  # fmt: skip
    body = (header(**fields) + meta).ljust(index_at, b"\0")
    body = (body + index).ljust(data_at, b"\0") + data.ljust(align(len(data)), b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


def seal(raw: bytearray) -> bytes:
    """Correct both checksums after an edit, so that deeper checks are reached."""
    if len(raw) >= 64:
        struct.pack_into("<I", raw, 40, zlib.crc32(raw[44:64], zlib.crc32(raw[:40])))
    if len(raw) >= 68:
        struct.pack_into("<I", raw, len(raw) - 4, zlib.crc32(raw[:-4]))
    return bytes(raw)


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, Any], **options: Any) -> Path:
    """A file by the writer. A tensor is an f32 array or (FormatSpec, shape, bytes)."""
    from apr_core.format import NATIVE

    full: dict[str, tuple[FormatSpec, tuple[int, ...], bytes]] = {
        name: t if isinstance(t, tuple) else (NATIVE["f32"], t.shape, np.float32(t).tobytes())
        for name, t in tensors.items()
    }
    specs = [TensorSpec(name, spec, shape) for name, (spec, shape, _) in full.items()]
    with AprWriter(path, metadata, specs, **options) as writer:
        for name in writer.names:
            writer.add(name, [full[name][2]])
    return path

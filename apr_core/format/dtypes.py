"""Number formats by name: APR v2 ids, block sizes, byte counts. Knows no encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from apr_core.errors import FormatError

FIRST_FILE_ID = 192  # ids from here up mean what the file's own `apr.formats` table says


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """A number format: `block` values take `bytes_per_block` bytes. Native types have block 1."""

    name: str
    dtype_id: int
    block: int
    bytes_per_block: int
    distribution: str = ""  # who decodes it, "" for native types

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row, padded to whole blocks."""
        return -(-cols // self.block) * self.bytes_per_block


NATIVE: dict[str, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec("f32", 0, 1, 4), FormatSpec("f16", 1, 1, 2), FormatSpec("bf16", 30, 1, 2),
        FormatSpec("f64", 3, 1, 8), FormatSpec("i32", 4, 1, 4), FormatSpec("i64", 5, 1, 8),
        FormatSpec("i8", 6, 1, 1), FormatSpec("u8", 7, 1, 1),
    )
}  # fmt: skip

# Block formats whose ids APR v2 itself fixes, so that files of other writers can be measured.
SPECIFIED: dict[int, FormatSpec] = {
    12: FormatSpec("q4_k", 12, 256, 144),
    14: FormatSpec("q6_k", 14, 256, 210),
    128: FormatSpec("apr_q4", 128, 32, 18),
}


def tensor_nbytes(spec: FormatSpec, shape: Sequence[int]) -> int:
    """Bytes of a tensor: 2-D tensors pad each row to whole blocks, others are encoded flat."""
    if len(shape) == 2:
        return shape[0] * spec.row_bytes(shape[1])
    return spec.row_bytes(prod(shape))


def file_formats(metadata: Mapping[str, Any]) -> dict[int, FormatSpec]:
    """All ids that mean something in a file: native, fixed by APR v2, and its own table.

    Raises FormatError if `apr.formats` is not a table of formats.
    """
    table = {spec.dtype_id: spec for spec in NATIVE.values()} | SPECIFIED
    rows = metadata.get("apr.formats", [])
    if not isinstance(rows, list):
        raise FormatError("metadata `apr.formats` must be a list of formats")
    for row in rows:
        spec = _spec(row)
        fixed = table.get(spec.dtype_id)
        if fixed and (fixed.name, fixed.block, fixed.bytes_per_block) != (
            spec.name, spec.block, spec.bytes_per_block,
        ):  # fmt: skip
            raise FormatError(f"metadata `apr.formats` redefines format id {spec.dtype_id}")
        table[spec.dtype_id] = spec
    return table


def _spec(row: Any) -> FormatSpec:
    fields = {"id": int, "name": str, "distribution": str, "block": int, "bytes_per_block": int}
    if not isinstance(row, dict) or any(type(row.get(k)) is not t for k, t in fields.items()):
        raise FormatError(
            "metadata `apr.formats` holds a row without id, name, distribution, block and "
            "bytes_per_block"
        )
    if not (
        0 <= row["id"] < 256 and 0 < row["block"] < 2**20 and 0 < row["bytes_per_block"] < 2**24
    ):
        raise FormatError(f"metadata `apr.formats`: impossible sizes for format {row['name']!r}")
    return FormatSpec(
        row["name"], row["id"], row["block"], row["bytes_per_block"], row["distribution"]
    )


def format_table(specs: Sequence[FormatSpec]) -> list[dict[str, Any]]:
    """The `apr.formats` rows for the block formats among `specs`."""
    blocks = {spec.dtype_id: spec for spec in specs if spec.name not in NATIVE}
    return [
        {"id": s.dtype_id, "name": s.name, "distribution": s.distribution, "block": s.block,
         "bytes_per_block": s.bytes_per_block}
        for s in sorted(blocks.values(), key=lambda s: s.dtype_id)
    ]  # fmt: skip

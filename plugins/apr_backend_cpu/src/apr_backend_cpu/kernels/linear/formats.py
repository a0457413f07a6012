"""How the weights of each packed format are read, as vector IR.

Block layouts are GGML's (ggml-common.h: block_q4_K, block_q5_K, block_q6_K, block_q8_0). A code is
an unsigned number. Its value:

    q4_k, q5_k   d * scale[g] * code - dmin * min[g]   g: 32 values, both 6-bit integers
    q6_k         d * scale[g] * (code - 32)            g: 16 values, int8
    q8_0         d * (code - 128)                      a block: 32 values, d float16

Superblocks are 256 values with integer scales; blocks are 32 values with one scale. Codes are read
in two ways: along a row, where a vector is 32 neighbours (`row`), and across rows, where a lane is
a weight row and has four neighbours of it (`chunk`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from apr_backend_cpu.constants import VECTOR
from apr_backend_cpu.kernels.linear.levels import (
    chunk_codes4,
    chunk_codes5,
    chunk_levels4,
    chunk_levels8,
    codes4,
    codes5,
    four_codes4,
    four_codes5,
    four_levels4,
    levels4,
    levels8,
)
from apr_backend_cpu.kernels.linear.packed import (
    V32B,
    Chunk,
    Codes,
    bytes_of,
    columns8,
    halves,
    lazy,
    nibble,
    nibbles,
    packed_columns,
)
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I16, I32, Value, const, vector_of
from apr_backend_cpu.kernels.vector.rows import Rows, Values, number

# The buffer for reading superblocks across rows: a vector for each group's scale, for pairs of
# minima or of scales, for d and dmin; then, while a superblock is read, the upper bits of codes.
SCALES, PAIRS, D, DMIN, HEAD, TOPS = 0, 1024, 1536, 1600, 1664, 1664
HEAD_AND_TOPS = TOPS + 16 * VECTOR


@dataclass(frozen=True, slots=True)
class Format:
    """A packed format. A block has `nbytes` bytes: 256 values, or 32 where there is no `group`.

    A code has `bits`; `group` values share an integer scale. `row(b, p, r)` returns the codes of
    run r of the block at p; `chunk(b, rows, workspace, j)` those of the j-th of 4 chunks (or of the
    only one) of a block in several rows. `head(b, rows, workspace, sums_only)` writes what HEAD
    lists, or only what finishes sums: pairs, d and dmin. In formats without a group `zero` is the
    code of 0, and `minimum` says that blocks have one. In `declared` layouts, a table says
    where blocks and their numbers are; with `fifth` bits, r and j are the bytes from codes to them.
    Where codes are numbers of 4 or 5 bits (`has_zero`), the code of 0 is a parameter of the weight.
    `four(b, places)` returns the first halves of four blocks' codes, and the second ones; a place
    is the p and r of `row`.
    """

    name: str
    nbytes: int
    bits: int
    row: Callable[[Builder, Value, Any], Value]
    chunk: Callable[[Builder, Rows, Value, Value], Chunk]
    group: int = 0
    head: Callable[[Builder, Values, Value, bool], None] | None = None
    zero: int = 0
    minimum: bool = False
    declared: bool = False
    fifth: bool = False
    four: Callable[[Builder, list[tuple[Value, Value]]], tuple[Value, Value]] | None = None

    @property
    def has_minima(self) -> bool:
        """Whether a superblock's head has minima."""
        return self.group == 32

    @property
    def has_zero(self) -> bool:
        """Whether a weight says what the code of 0 is."""
        return self.declared and not self.zero

    @property
    def code_nbytes(self) -> int:
        """Bytes of a declared layout's 32 codes, without fifth bits."""
        return self.nbytes - 4 * self.fifth

    @property
    def dense_nbytes(self) -> int:
        """Bytes of a block that is scale, any minimum, any fifth bits, and then codes."""
        return 2 + 2 * self.minimum + self.nbytes

    def is_wide(self, b: Builder) -> bool:
        """Return whether sums of two products in 16 bits leave no room for a third."""
        return self.bits == 8 and b.sums_pairs


def _moved(b: Builder, packed: Value, first: int, mask: int) -> Value:
    """Return the bits of every byte from `first` on, moved to bit 4 and masked by `mask`."""
    halves = vector_of(I16, packed.type.count // 2)  # bytes cannot be shifted
    wide, distance = b.bitcast(packed, halves), const(halves, abs(first - 4))
    wide = b.shl(wide, distance) if first < 4 else b.lshr(wide, distance)
    return b.and_(b.bitcast(wide, packed.type), const(packed.type, mask))


def six_bit(b: Builder, s0: Value, s1: Value, s2: Value) -> tuple[Values, Values]:
    """Unpack 8 scales and 8 mins of q4_k and q5_k from 12 bytes, as two words of 4 bytes each.

    The three words may be vectors, one lane per weight row.
    """
    c = lambda v: const(s0.type, v)
    low = c(0x3F3F3F3F)
    scales = [
        b.and_(s0, low),
        b.or_(b.and_(s2, c(0x0F0F0F0F)), b.lshr(b.and_(s0, c(0xC0C0C0C0)), c(2))),
    ]
    mins = [
        b.and_(s1, low),
        b.or_(b.and_(b.lshr(s2, c(4)), c(0x0F0F0F0F)), b.lshr(b.and_(s1, c(0xC0C0C0C0)), c(2))),
    ]
    return scales, mins


# Along a row


def _q4_k(b: Builder, p: Value, r: int) -> Value:
    """Read 144 bytes: d, dmin, 12 bytes of scales, 4 chunks of 32 low then 32 high nibbles."""
    return nibble(b, b.read(b.at(p, 16 + r // 2 * 32), V32B), r % 2)


def _q5_k(b: Builder, p: Value, r: int) -> Value:
    """Read 176 bytes: q4_k with 32 bytes of fifth bits before the nibbles, bit r of each."""
    low = nibble(b, b.read(b.at(p, 48 + r // 2 * 32), V32B), r % 2)
    return b.or_(low, _moved(b, b.read(b.at(p, 16), V32B), r, 0x10))


def _q6_k(b: Builder, p: Value, r: int) -> Value:
    """Read 210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 int8 scales, d."""
    half, k = r // 4, r % 4
    low = nibble(b, b.read(b.at(p, 64 * half + k % 2 * 32), V32B), k // 2)
    return b.or_(low, _moved(b, b.read(b.at(p, 128 + 32 * half), V32B), 2 * k, 0x30))


def _q8_0(b: Builder, p: Value, r: int) -> Value:
    """Read 34 bytes: d and 32 int8, made unsigned by adding 128."""
    return b.xor(b.read(b.at(p, 2), V32B), const(V32B, 0x80))


# Across rows


def _with_tops(
    b: Builder, columns: Values, tops: Callable[[int], Value], high: int, left: int, mask: int
) -> Codes:
    """Return codes of four bits with bits of `tops` above: byte & `mask`, after a left shift."""

    def code(c: int) -> Value:
        top = tops(c)
        moved = b.shl(top, const(top.type, left)) if left else top
        upper = b.and_(moved, const(top.type, mask * 0x01010101))
        return bytes_of(b, b.or_(nibbles(b, columns[c], high), upper))

    return [partial(code, c) for c in range(len(columns))]


def _tops(b: Builder, workspace: Value, first: Value, shift: Value) -> Callable[[int], Value]:
    """Return a function of c: the (first + c)-th upper-bit vector from `head`, shifted right."""
    kind = vector_of(I32, b.lanes)
    here, right = b.advance(workspace, first, VECTOR), b.splat(b.trunc(shift, I32), b.lanes)
    return lambda c: b.lshr(b.read(b.at(here, TOPS + VECTOR * c), kind), right)


def _half_bytes(b: Builder, half: int) -> Callable[[Value], Value]:
    return lambda column: bytes_of(b, nibbles(b, column, half))


def _chunk_q4_k(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns, first = columns8(b, rows, j, 16), b.shl(j, number(1))
    return [(b.or_(first, number(h)), lazy(_half_bytes(b, h), columns)) for h in (0, 1)]


def _chunk_q5_k(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns, first = columns8(b, rows, j, 48), b.shl(j, number(1))
    tops = _tops(b, workspace, number(0), first)
    return [(b.or_(first, number(h)), _with_tops(b, columns, tops, h, 4 - h, 0x10)) for h in (0, 1)]


def _chunk_q6_k(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns, half = columns8(b, rows, j, 0), b.lshr(j, number(1))
    odd = b.and_(j, number(1))
    tops = _tops(b, workspace, b.shl(half, number(3)), b.shl(odd, number(1)))
    first = b.or_(b.shl(half, number(2)), odd)  # run: 0, 1, 4, 5; high nibbles: 2 further
    return [
        (b.or_(first, number(2 * h)), _with_tops(b, columns, tops, h, 4 - 4 * h, 0x30))
        for h in (0, 1)
    ]


def _chunk_q8_0(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns = [bytes_of(b, c) for c in columns8(b, rows, number(0), 2)]
    return [(number(0), lazy(lambda c: b.xor(c, const(c.type, 0x80)), columns))]


# Heads of superblocks


def _put(b: Builder, values: Values, workspace: Value, offset: int) -> None:
    for k, value in enumerate(values):
        b.write(value, b.at(workspace, offset + VECTOR * k))


def byte(b: Builder, words: Values, index: int) -> Value:
    """Return the index-th unsigned byte of words, which may be vectors, as int32."""
    kind = words[0].type
    return b.and_(b.lshr(words[index // 4], const(kind, index % 4 * 8)), const(kind, 0xFF))


def _byte_pairs(b: Builder, words: Values) -> Values:
    """Return the unsigned bytes of vectors of words in pairs: int16 [..][2] in each lane."""
    kind, pairs = words[0].type, []
    low, high = const(kind, 0x00FF), const(kind, 0xFF00)
    for word in words:
        for value in (word, b.lshr(word, const(kind, 16))):
            above = b.shl(b.and_(value, high), const(kind, 8))
            pairs.append(b.or_(b.and_(value, low), above))
    return pairs


def _head_affine(b: Builder, rows: Values, workspace: Value, sums_only: bool) -> None:
    ds, *words = packed_columns(b, rows, 0)
    scales, mins = six_bit(b, *words)
    if not sums_only:
        _put(b, [b.pair_of(byte(b, scales, g)) for g in range(8)], workspace, SCALES)
    _put(b, _byte_pairs(b, mins), workspace, PAIRS)
    half = vector_of(I16, b.lanes)
    b.write(b.from_half(b.trunc(ds, half)), b.at(workspace, D))
    dmin = b.from_half(b.trunc(b.lshr(ds, const(ds.type, 16)), half))
    b.write(b.fneg(dmin), b.at(workspace, DMIN))


def _head_q5_k(b: Builder, rows: Values, workspace: Value, sums_only: bool) -> None:
    _head_affine(b, rows, workspace, sums_only)
    if not sums_only:
        _put(b, packed_columns(b, rows, 16) + packed_columns(b, rows, 32), workspace, TOPS)


def _head_q6_k(b: Builder, rows: Values, workspace: Value, sums_only: bool) -> None:
    words = packed_columns(b, rows, 192)
    kind = words[0].type
    c = lambda v: const(kind, v)
    scales = [b.ashr(b.shl(words[g // 4], c(24 - g % 4 * 8)), c(24)) for g in range(16)]
    pairs = [
        b.or_(b.and_(scales[g], c(0xFFFF)), b.shl(scales[g + 1], c(16))) for g in range(0, 16, 2)
    ]
    _put(b, pairs, workspace, PAIRS)
    b.write(halves(b, [b.at(p, 208) for p in rows]), b.at(workspace, D))
    if sums_only:
        return
    _put(b, [b.pair_of(scale) for scale in scales], workspace, SCALES)
    tops: Values = []
    for offset in range(128, 192, 16):
        tops += packed_columns(b, rows, offset)
    _put(b, tops, workspace, TOPS)


FORMATS = {
    f.name: f
    for f in (
        Format("q4_k", 144, 4, _q4_k, _chunk_q4_k, 32, _head_affine),
        Format("q5_k", 176, 5, _q5_k, _chunk_q5_k, 32, _head_q5_k),
        Format("q6_k", 210, 6, _q6_k, _chunk_q6_k, 16, _head_q6_k),
        Format("q8_0", 34, 8, _q8_0, _chunk_q8_0, zero=128),
        *(
            Format(
                f"{name}_minima" if low else name,
                nbytes,
                bits,
                row,
                chunk,
                zero=128 if bits == 8 else 0,
                minimum=low,
                declared=True,
                fifth=bits == 5,
                four=four,
            )
            for name, nbytes, bits, row, chunk, four in (
                ("codes4", 16, 4, codes4, chunk_codes4, four_codes4),
                ("codes5", 20, 5, codes5, chunk_codes5, four_codes5),
                ("levels4", 16, 8, levels4, chunk_levels4, four_levels4),
                ("levels8", 32, 8, levels8, chunk_levels8, None),
            )
            for low in (False, True)
        ),
    )
}

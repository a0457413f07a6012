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

from llvmlite import ir

from apr_backend_cpu.constants import VECTOR
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, I8, I16, I32, I64, Value, const, vector_of
from apr_backend_cpu.kernels.vector.lanes import columns4
from apr_backend_cpu.kernels.vector.rows import Rows, Values, number
from apr_backend_cpu.layout_constants import HIGH, LEVELS, OFFSETS

V32B, V16S, V4I = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 4)
# shuffles of bytes within 16, by register size in bytes
SHUFFLES = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}
# The buffer for reading superblocks across rows: a vector for each group's scale, for pairs of
# minima or of scales, for d and dmin; then, while a superblock is read, the upper bits of codes.
SCALES, PAIRS, D, DMIN, HEAD, TOPS = 0, 1024, 1536, 1600, 1664, 1664
HEAD_AND_TOPS = TOPS + 16 * VECTOR


# Functions that make a vector on demand, as registers are few: 8 for the codes of 32 values.
Codes = list[Callable[[], Value]]
Chunk = list[tuple[Value, Codes]]  # number of a run, and its codes


@dataclass(frozen=True, slots=True)
class Format:
    """A packed format. A block has `nbytes` bytes: 256 values, or 32 where there is no `group`.

    A code has `bits`; `group` values share an integer scale. `row(b, p, r)` returns the codes of
    run r of the block at p; `chunk(b, rows, workspace, j)` those of the j-th of 4 chunks (or of the
    only one) of a block in several rows. `head(b, rows, workspace, sums_only)` writes what HEAD
    lists, or only what finishes sums: pairs, d and dmin. In formats without a group `zero` is the
    code of 0, and `minimum` says that blocks have one. In `declared` layouts, a table says
    where blocks and their numbers are; with `fifth` bits, r and j are the bytes from codes to them.
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

    @property
    def has_minima(self) -> bool:
        """Whether a superblock's head has minima."""
        return self.group == 32


def superblocks(b: Builder, runs: Value) -> Value:
    """Return the superblocks in `runs` runs of 32 values; the last may have fewer than 8."""
    return b.lshr(b.add(runs, number(7)), number(3))


def blocks_in(b: Builder, format: Format, runs: Value) -> Value:
    """Return how many of the format's blocks, of 256 values or of 32, `runs` runs have."""
    return superblocks(b, runs) if format.group else runs


class Blocks:
    """Where a weight's blocks of 32 values are, with their scales and minima.

    For a declared layout, `args` are addresses of its parameters and of a tile's scales and minima,
    float32 [blocks][16 rows].
    """

    def __init__(self, b: Builder, format: Format, args: tuple[Value, ...]) -> None:
        self._b, self._format = b, format
        if format.declared:
            params, *self._numbers = args
            self._offsets, self._high = (b.read(b.at(params, 8 * k), I64) for k in (OFFSETS, HIGH))
            levels = b.read(b.read(b.at(params, 8 * LEVELS), I64), vector_of(I8, 16))
            b.levels = b.shuffle(levels, list(range(16)) * 4)

    def offset(self, g: Value) -> Value:
        """Return the bytes from a row's start to its g-th block."""
        b = self._b
        if self._format.declared:
            return b.read(b.advance(self._offsets, g, 8), I64)
        return b.mul(g, number(self._format.nbytes))

    def fifth(self, g: Value) -> Value:
        """Return the bytes from the codes of a row's g-th block to its fifth bits, if any."""
        b = self._b
        return b.read(b.advance(self._high, g, 8), I64) if self._format.fifth else number(0)

    def numbers(self, g: Value, rows: Values, first: Value) -> tuple[Value, Value | None]:
        """Return scales, and minima or None, of the g-th block of rows at these addresses.

        `first` is the first row's number in its tile.
        """
        b, vectors = self._b, []
        if not self._format.declared:
            return halves(b, rows), None
        for table in self._numbers[: 1 + self._format.minimum]:
            here = b.advance(b.advance(table, g, VECTOR), first, 4)
            vectors.append(b.read(here, vector_of(F32, len(rows))))
        return vectors[0], vectors[1] if self._format.minimum else None


def nibble(b: Builder, packed: Value, high: int) -> Value:
    """Return the low or the high four bits of each byte."""
    return b.lshr(packed, const(packed.type, 4)) if high else b.and_(packed, const(packed.type, 15))


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


def packed_columns(b: Builder, rows: Values, offset: int) -> Values:
    """Return 16 bytes of every row, transposed: 4 vectors of 4 bytes per row."""
    return columns4(b, [b.read(b.at(p, offset), V4I) for p in rows])


def _columns(b: Builder, rows: Rows, j: Value, offset: int) -> Values:
    """Return 32 bytes of every row, from j * 32 + offset on."""
    here = rows.advance(b, j, 32)(b)
    return packed_columns(b, here, offset) + packed_columns(b, here, offset + 16)


def _nibbles(b: Builder, column: Value, high: int) -> Value:
    moved = b.lshr(column, const(column.type, 4)) if high else column
    return b.and_(moved, const(column.type, 0x0F0F0F0F))


def _bytes(b: Builder, column: Value) -> Value:
    return b.bitcast(column, vector_of(I8, 4 * column.type.count))


def _lazy(function: Callable[[Value], Value], columns: Values) -> Codes:
    return [partial(function, column) for column in columns]


def _with_tops(
    b: Builder, columns: Values, tops: Callable[[int], Value], high: int, left: int, mask: int
) -> Codes:
    """Return codes of four bits with bits of `tops` above: byte & `mask`, after a left shift."""

    def code(c: int) -> Value:
        top = tops(c)
        moved = b.shl(top, const(top.type, left)) if left else top
        upper = b.and_(moved, const(top.type, mask * 0x01010101))
        return _bytes(b, b.or_(_nibbles(b, columns[c], high), upper))

    return [partial(code, c) for c in range(len(columns))]


def _tops(b: Builder, workspace: Value, first: Value, shift: Value) -> Callable[[int], Value]:
    """Return a function of c: the (first + c)-th upper-bit vector from `head`, shifted right."""
    kind = vector_of(I32, b.lanes)
    here, right = b.advance(workspace, first, VECTOR), b.splat(b.trunc(shift, I32), b.lanes)
    return lambda c: b.lshr(b.read(b.at(here, TOPS + VECTOR * c), kind), right)


def _half_bytes(b: Builder, half: int) -> Callable[[Value], Value]:
    return lambda column: _bytes(b, _nibbles(b, column, half))


def _chunk_q4_k(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns, first = _columns(b, rows, j, 16), b.shl(j, number(1))
    return [(b.or_(first, number(h)), _lazy(_half_bytes(b, h), columns)) for h in (0, 1)]


def _chunk_q5_k(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns, first = _columns(b, rows, j, 48), b.shl(j, number(1))
    tops = _tops(b, workspace, number(0), first)
    return [(b.or_(first, number(h)), _with_tops(b, columns, tops, h, 4 - h, 0x10)) for h in (0, 1)]


def _chunk_q6_k(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns, half = _columns(b, rows, j, 0), b.lshr(j, number(1))
    odd = b.and_(j, number(1))
    tops = _tops(b, workspace, b.shl(half, number(3)), b.shl(odd, number(1)))
    first = b.or_(b.shl(half, number(2)), odd)  # run: 0, 1, 4, 5; high nibbles: 2 further
    return [
        (b.or_(first, number(2 * h)), _with_tops(b, columns, tops, h, 4 - 4 * h, 0x30))
        for h in (0, 1)
    ]


def _chunk_q8_0(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns = [_bytes(b, c) for c in _columns(b, rows, number(0), 2)]
    return [(number(0), _lazy(lambda c: b.xor(c, const(c.type, 0x80)), columns))]


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


def halves(b: Builder, addresses: Values) -> Value:
    """Load a float16 at each address as float32, one per lane."""
    bits = ir.Constant(vector_of(I16, len(addresses)), ir.Undefined)
    for r, address in enumerate(addresses):
        bits = b.insert_element(bits, b.read(address, I16), ir.Constant(I32, r))
    return b.from_half(bits)


# Codes of declared layouts: `b.levels` is their table of levels, 64 bytes


def look_up(b: Builder, codes: Value) -> Value:
    """Return the levels of codes below 16."""
    if b.level.dot == "sdot":
        name = "llvm.aarch64.neon.tbl1.v16i8"
    elif b.level.dot:
        name = SHUFFLES[b.level.vector if codes.type.count >= b.level.vector else codes.type.count]
    else:
        result = const(codes.type, 0)
        for code in range(16):
            level = b.extract_element(b.levels, ir.Constant(I32, code))
            is_it = b.icmp_unsigned("==", codes, const(codes.type, code))
            result = b.select(is_it, b.splat(level, codes.type.count), result)
        return result
    wide = b.shuffle(b.levels, list(range(codes.type.count)))
    return b.in_registers(lambda w, c: b.intrinsic(name, w.type, w, c), wide, codes)


def _levels4(b: Builder, p: Value, r: int) -> Value:
    """Read 16 bytes: low nibbles, then high ones."""
    packed = b.read(p, vector_of(I8, 16))
    return look_up(b, b.join(nibble(b, packed, 0), nibble(b, packed, 1)))


def _levels5(b: Builder, p: Value, r: Value) -> Value:
    """Read 16 bytes of nibbles and, r bytes further on, 32 fifth bits."""
    packed = b.read(p, vector_of(I8, 16))
    low = b.join(nibble(b, packed, 0), nibble(b, packed, 1))
    return _with_fifth(b, low, b.bitcast(b.read(b.add(p, r), I32), vector_of(ir.IntType(1), 32)))


def _with_fifth(b: Builder, low: Value, fifth: Value) -> Value:
    """Return the levels of codes, from their low four bits and whether the fifth is set."""
    level = b.add(low, b.shuffle(b.levels, list(range(low.type.count))))
    return b.add(level, b.select(fifth, const(low.type, 16), const(low.type, 0)))


def _levels8(b: Builder, p: Value, r: int) -> Value:
    return b.add(b.read(p, V32B), b.shuffle(b.levels, list(range(32))))


def _chunk_levels4(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns = [_bytes(b, c) for c in packed_columns(b, rows(b), 0)]
    return [(number(0), [partial(lambda c, h: look_up(b, nibble(b, c, h)), c, h)
                         for h in (0, 1) for c in columns])]  # fmt: skip


def _chunk_levels5(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    here = rows(b)
    columns = [_bytes(b, c) for c in packed_columns(b, here, 0)]
    words = ir.Constant(vector_of(I32, len(here)), ir.Undefined)
    for r, p in enumerate(here):
        words = b.insert_element(words, b.read(b.add(p, j), I32), ir.Constant(I32, r))

    def code(c: int, h: int) -> Value:
        low, k = nibble(b, columns[c], h), 4 * h + c  # values 4 k to 4 k + 3 of each row
        lanes = [4 * (lane // 4) + k // 2 for lane in range(low.type.count)]
        bits = ir.Constant(low.type, [1 << k % 2 * 4 + lane % 4 for lane in range(len(lanes))])
        fifth = b.and_(b.shuffle(_bytes(b, words), lanes), bits)
        return _with_fifth(b, low, b.icmp_unsigned("!=", fifth, const(low.type, 0)))

    return [(number(0), [partial(code, c, h) for h in (0, 1) for c in range(4)])]


def _chunk_levels8(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    columns = [_bytes(b, c) for c in _columns(b, rows, number(0), 0)]
    wide = b.shuffle(b.levels, list(range(b.level.vector)))
    return [(number(0), _lazy(lambda c: b.add(c, wide), columns))]


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
                8,
                row,
                chunk,
                zero=128,
                minimum=low,
                declared=True,
                fifth=name == "levels5",
            )
            for name, nbytes, row, chunk in (
                ("levels4", 16, _levels4, _chunk_levels4),
                ("levels5", 20, _levels5, _chunk_levels5),
                ("levels8", 32, _levels8, _chunk_levels8),
            )
            for low in (False, True)
        ),
    )
}

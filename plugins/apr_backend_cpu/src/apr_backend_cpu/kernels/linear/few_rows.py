"""16 weight rows times a few rows of activations, as when eight sequences are decoded at once.

Lanes are weight rows, as in `matmul`, but no unpacked code is ever stored: 16 bytes of every row
are transposed while they are still packed, and the codes that these four vectors hold meet all
rows of activations in registers. Sums equal `matvec`'s and `matmul`'s bit for bit: within a
superblock they are integers, and over superblocks they run in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import (
    AT_D,
    AT_GROUP_D,
    AT_SCALE32,
    AT_SHIFT16,
    AT_SHIFT32,
    AT_SUM32,
    LANES,
    RECORD,
)
from apr_backend_cpu.kernels.linear.formats import FORMATS, Packed, six_bit
from apr_backend_cpu.kernels.linear.one_row import byte, byte_pairs, halves, low_half
from apr_backend_cpu.kernels.source import Builder, vector
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I32,
    I64,
    V16F,
    V16I,
    V64B,
    Value,
    advance,
    at,
    const,
    count_loop,
    dot,
    fma,
    load,
    pair_dot,
    prefetch,
    splat,
    store,
)
from apr_backend_cpu.kernels.vector.lanes import columns4, transpose

Values = list[Value]
V4I = ir.VectorType(I32, 4)
VECTOR = 4 * LANES
SCALES, TOPS, ROOM = 0, 8 * VECTOR, 24  # of `Block.room`; 24 vectors in all


def _index(value: int) -> Value:
    return ir.Constant(I64, value)


def opaque(b: Builder, value: Value) -> Value:
    """The value, about which LLVM is told nothing.

    Else it would derive each row's address from the one before, or count 24 addresses up in memory
    instead of one offset in a register; products would wait, up to twice as long.
    """
    return b.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


@dataclass(frozen=True, slots=True)
class Rows:
    """Addresses: where rows begin, and an offset that all of them share."""

    starts: Values
    offset: Value

    def advance(self, b: Builder, index: Value, stride: int) -> Rows:
        """index * stride bytes further on."""
        return Rows(self.starts, advance(b, self.offset, index, stride))

    def __call__(self, b: Builder) -> Values:
        """The address in each row."""
        offset = opaque(b, self.offset)
        return [b.add(start, offset) for start in self.starts]


@dataclass(frozen=True, slots=True)
class Block:
    """A superblock of 16 weight rows, and all that it meets."""

    packed: Packed
    rows: Rows  # [16]
    xs: Rows  # [T] records
    room: Value  # scales, then transposed bytes of the codes' top bits; one lane a weight row
    ahead: Value  # as many bytes that are read after these 16 rows

    def fetch(self, b: Builder, part: Value, parts: int) -> None:
        """Prefetch one of several parts. All at once would keep the block's own bytes waiting."""
        nbytes = LANES * self.packed.nbytes // parts
        prefetch(b, advance(b, self.ahead, part, nbytes), nbytes)

    def zeros(self) -> Values:
        return [const(V16I, 0)] * len(self.xs.starts)


def splat_at(b: Builder, p: Value, offset: int, type_: Any = I32) -> Value:
    return splat(b, load(b, at(b, p, offset), type_))


def packed_columns(b: Builder, rows: Values, offset: int) -> Values:
    """16 bytes of every row, transposed: 4 vectors of 4 bytes a row."""
    return columns4(b, [load(b, at(b, p, offset), V4I) for p in rows])


def _store(b: Builder, vectors: Values, out: Value, offset: int) -> None:
    for k, value in enumerate(vectors):
        store(b, value, at(b, out, offset + VECTOR * k))


def nibbles(b: Builder, column: Value, high: int) -> Value:
    """The low or the high four bits of each byte."""
    moved = b.lshr(column, const(V16I, 4)) if high else column
    return b.and_(moved, const(V16I, 0x0F0F0F0F))


def _with_top(b: Builder, codes: Value, top: Value, left: int, mask: int) -> Value:
    """Codes of four bits, and above them bits of `top`: of each byte `mask`, once moved left."""
    moved = b.shl(top, const(V16I, left)) if left else top
    return b.or_(codes, b.and_(moved, const(V16I, mask * 0x01010101)))


def _meet(b: Builder, s: Block, sums: Values, codes: Value, xs: Values, offset: int) -> Values:
    """sums + 4 values of each weight row times the 4 at `offset` of each row of activations."""
    w, results = b.bitcast(codes, V64B), []
    for total, x in zip(sums, xs, strict=True):
        value = b.bitcast(splat_at(b, x, offset), V64B)
        results.append(dot(b, total, w, value, s.packed.bits))
    return results


def _add(b: Builder, totals: Values, sums: Values, factors: Values) -> Values:
    """totals + sums * factors, for each row of activations."""
    every = zip(totals, sums, factors, strict=True)
    return [b.add(total, b.mul(value, factor)) for total, value, factor in every]


def _steps(b: Builder, xs: Values, group: int) -> Values:
    """The step of a group of 32 values of each row of activations."""
    return [splat_at(b, x, AT_SCALE32 + 4 * group) for x in xs]


def _pairs(b: Builder, s: Block, pairs: Values) -> Values:
    """Integer sums of minima, int16 [4][2], times the sums of 32 activations."""
    sums, xs = s.zeros(), s.xs(b)
    for g, pair in enumerate(pairs):
        for t, x in enumerate(xs):
            sums[t] = pair_dot(b, sums[t], pair, splat_at(b, x, AT_SUM32 + 4 * g))
    return sums


def _affine_chunk(b: Builder, s: Block, j: Value, shift: Value) -> list[Values]:
    """Dots of the j-th 32 bytes of nibbles with all rows: of the low ones, of the high ones."""
    rows, xs = s.rows.advance(b, j, 32)(b), s.xs.advance(b, j, 64)(b)
    sums, columns = [s.zeros(), s.zeros()], []
    for c in range(8):
        if c % 4 == 0:  # no earlier: 16 sums leave little room in registers
            columns += packed_columns(b, rows, s.packed.nbytes - 128 + 4 * c)
        codes = [nibbles(b, columns[c], h) for h in range(2)]
        if s.packed.bits == 5:
            top = b.lshr(load(b, at(b, s.room, TOPS + VECTOR * c), V16I), shift)
            codes = [_with_top(b, codes[h], top, 4 - h, 0x10) for h in range(2)]
        sums = [_meet(b, s, sums[h], codes[h], xs, 32 * h + 4 * c) for h in range(2)]
    return sums


def _affine_sums(b: Builder, s: Block) -> Values:
    """Integer sums of a superblock of q4_k or q5_k, whose scales int32 [8] are in the room."""

    def body(j: Value, values: Values) -> Values:
        # the shift is carried along, and so not known to be the same in all lanes: that is cheaper
        shift, *totals = values
        s.fetch(b, j, 4)
        sums = _affine_chunk(b, s, j, shift)
        scales, steps = advance(b, s.room, j, 2 * VECTOR), s.xs.advance(b, j, 8)(b)
        for h in range(2):
            scale = load(b, at(b, scales, SCALES + VECTOR * h), V16I)
            factors = [b.mul(scale, step) for step in _steps(b, steps, h)]
            totals = _add(b, totals, sums[h], factors)
        return [b.add(shift, const(V16I, 2)), *totals]

    return count_loop(b, _index(4), [const(V16I, 0), *s.zeros()], body)[1:]


def _affine(b: Builder, s: Block, ys: Values) -> Values:
    """One superblock of q4_k or q5_k: y + dx * (d * I - dmin * M)."""
    rows = s.rows(b)
    ds, *words = packed_columns(b, rows, 0)
    scales, mins = six_bit(b, *words)
    _store(b, [byte(b, scales, g) for g in range(8)], s.room, SCALES)
    if s.packed.bits == 5:
        _store(b, packed_columns(b, rows, 16) + packed_columns(b, rows, 32), s.room, TOPS)
    scaled = _affine_sums(b, s)
    low = _pairs(b, s, byte_pairs(b, mins))
    d, dmin = low_half(b, ds), b.fneg(low_half(b, b.lshr(ds, const(V16I, 16))))
    results = []
    for x, y, total, minimum in zip(s.xs(b), ys, scaled, low, strict=True):
        value = fma(b, b.sitofp(minimum, V16F), dmin, b.fmul(b.sitofp(total, V16F), d))
        results.append(fma(b, value, splat_at(b, x, AT_D, F32), y))
    return results


def _signed_scale(b: Builder, words: Value, h: int, i: int, shift: Value) -> Value:
    """The scale of group 4 * h + shift + i of a half superblock; `words` are its int8 [2][4]."""
    left = b.sub(const(V16I, 24 - 8 * i), b.shl(shift, const(V16I, 3)))
    word = load(b, at(b, words, SCALES + VECTOR * h), V16I)
    return b.ashr(b.shl(word, left), const(V16I, 24))


def _signed_chunk(
    b: Builder, s: Block, j: Value, half: Value, group: Value, shift: Value
) -> list[Values]:
    """The j-th 32 bytes of nibbles times all rows, scaled: low ones; high ones, 64 values on.

    Codes are 32 too large.
    """
    words, tops = (advance(b, s.room, half, VECTOR * n) for n in (2, 8))
    rows = s.rows.advance(b, j, 32)(b)
    columns = packed_columns(b, rows, 0) + packed_columns(b, rows, 16)
    xs, shifts, results = s.xs.advance(b, group, 32)(b), s.xs.advance(b, group, 8)(b), []
    for h in range(2):
        weighed = s.zeros()
        for i in range(2):
            sums = [splat_at(b, x, AT_SHIFT16 + 16 * h + 4 * i) for x in shifts]
            for c in range(4 * i, 4 * i + 4):
                top = b.lshr(load(b, at(b, tops, TOPS + VECTOR * c), V16I), shift)
                codes = _with_top(b, nibbles(b, columns[c], h), top, 4 - 4 * h, 0x30)
                sums = _meet(b, s, sums, codes, xs, 64 * h + 4 * c)
            scale = _signed_scale(b, words, h, i, shift)
            weighed = _add(b, weighed, sums, [scale] * len(sums))
        results.append(weighed)
    return results


def _signed_sums(b: Builder, s: Block) -> Values:
    """Integer sums of a superblock of q6_k, whose scales int8 [4][4] are in the room."""

    def body(j: Value, values: Values) -> Values:
        shift, *totals = values  # 0 or 2: whether j is odd
        s.fetch(b, j, 4)
        half = b.lshr(j, _index(1))
        group = b.add(j, b.shl(half, _index(1)))  # of 32 values: 0, 1, 4, 5
        sums = _signed_chunk(b, s, j, half, group, shift)
        steps = s.xs.advance(b, group, 4)(b)
        for h in range(2):
            totals = _add(b, totals, sums[h], _steps(b, steps, 2 * h))
        return [b.xor(shift, const(V16I, 2)), *totals]

    return count_loop(b, _index(4), [const(V16I, 0), *s.zeros()], body)[1:]


def _signed(b: Builder, s: Block, ys: Values) -> Values:
    """One superblock of q6_k: y + d * dx * I."""
    rows = s.rows(b)
    words = packed_columns(b, rows, 192)
    _store(b, words, s.room, SCALES)
    _store(b, transpose(b, [load(b, at(b, p, 128), V16I) for p in rows]), s.room, TOPS)
    scaled = _signed_sums(b, s)
    d = halves(b, [at(b, p, 208) for p in s.rows(b)])
    return [
        fma(b, b.sitofp(total, V16F), b.fmul(d, splat_at(b, x, AT_D, F32)), y)
        for x, y, total in zip(s.xs(b), ys, scaled, strict=True)
    ]


def _blocks(b: Builder, s: Block, ys: Values) -> Values:
    """One superblock of q8_0: y + d[g] * dx[g] * I[g], group by group."""

    def body(g: Value, totals: Values) -> Values:
        s.fetch(b, g, 8)
        rows, xs, groups = (a.advance(b, g, n)(b) for a, n in ((s.rows, 34), (s.xs, 32), (s.xs, 4)))
        sums = [splat_at(b, p, AT_SHIFT32) for p in groups]
        for i in range(2):
            for c, column in enumerate(packed_columns(b, rows, 2 + 16 * i)):
                codes = b.xor(column, const(V16I, 0x80808080 - (1 << 32)))  # unsigned: + 128
                sums = _meet(b, s, sums, codes, xs, 16 * i + 4 * c)
        d, results = halves(b, rows), []
        for p, value, total in zip(groups, sums, totals, strict=True):
            scale = b.fmul(d, splat_at(b, p, AT_GROUP_D, F32))
            results.append(fma(b, b.sitofp(value, V16F), scale, total))
        return results

    return count_loop(b, _index(8), ys, body)


Superblock = Callable[[Builder, Block, Values], Values]
KINDS: dict[str, Superblock] = {
    "q4_k": _affine, "q5_k": _affine, "q6_k": _signed, "q8_0": _blocks,
}  # fmt: skip


def addresses(b: Builder, start: Value, stride: Value, size: int, count: Value) -> Values:
    """Of `size` rows of activations or results; from the count-th on, it is the last again."""
    last, found = b.sub(count, _index(1)), []
    for t in range(size):
        capped = b.select(b.icmp_unsigned("<", _index(t), last), _index(t), last)
        found.append(opaque(b, advance(b, start, capped, stride)))
    return found


def _tile(
    b: Builder, packed: Packed, superblock: Superblock, size: int, args: Values, room: Value
) -> None:
    """All superblocks of 16 rows of a format; arguments as `make_few` says."""
    wp, row_bytes, xp, x_stride, tokens, op, out_stride, n = args
    rows = [opaque(b, advance(b, wp, _index(r), row_bytes)) for r in range(LANES)]
    records = addresses(b, xp, x_stride, size, tokens)
    following = advance(b, wp, _index(LANES), row_bytes)

    def body(i: Value, ys: Values) -> Values:
        here = Rows(rows, b.mul(i, _index(packed.nbytes)))
        xs = Rows(records, b.mul(i, _index(RECORD)))
        ahead = advance(b, following, i, LANES * packed.nbytes)
        return superblock(b, Block(packed, here, xs, room, ahead), ys)

    ys = count_loop(b, n, [const(V16F, 0.0)] * size, body)
    for y, out in zip(ys, addresses(b, op, out_stride, size, tokens), strict=True):
        store(b, y, out)


def make_few(name: str, format: str, size: int) -> Any:
    """A function: addresses of 16 rows, bytes a row; address of records, their stride; how many
    rows of activations, 1 to `size`, in the time of `size`; address of results, 16 float32 a row
    of activations, their stride; superblocks.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        room = b.ptrtoint(b.alloca(V16I, ROOM), I64)
        _tile(b, FORMATS[format], KINDS[format], size, args, room)

    return vector(name, "pppppppp", emit)


for _format in FORMATS:
    for _size in (2, 4, 6, 8):
        make_few(f"few_{_size}_{_format}", _format, _size)

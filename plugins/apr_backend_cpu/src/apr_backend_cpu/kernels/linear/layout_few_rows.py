"""16 weight rows of a declared layout times a few rows of activations, as `few_rows` for formats.

16 bytes of every row are transposed while they are packed; the levels of the codes that they hold
meet all rows of activations in registers. What is summed, and in which order, is as in `matmul`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import AT_GROUP_D, AT_SHIFT32, LANES, RECORD, VECTOR
from apr_backend_cpu.kernels.linear.formats import Rows, nibble, opaque, packed_columns
from apr_backend_cpu.kernels.linear.layout_one_row import matvec_layout
from apr_backend_cpu.kernels.linear.layout_unpack import look_up, wide_levels
from apr_backend_cpu.kernels.linear.tiles import addresses
from apr_backend_cpu.kernels.source import Builder, helper, vector
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I32,
    I64,
    V16F,
    V64B,
    Value,
    advance,
    at,
    const,
    count_loop,
    dot,
    fma,
    load,
    prefetch,
    splat,
    store,
)
from apr_backend_cpu.kernels.vector.memory import U, words_at
from apr_backend_cpu.layout_constants import BYTES, KIND, LEVELS, OFFSETS, PARAMETERS, SCATTERED

Values = list[Value]


def splat_at(b: Builder, p: Value, offset: int, type_: Any = I32) -> Value:
    """The number at an address, in every lane."""
    return splat(b, load(b, at(b, p, offset), type_))


@dataclass(frozen=True, slots=True)
class Tile:
    """16 weight rows, the numbers of their groups, and the records that they meet."""

    bits: int
    rows: Values  # addresses [16]
    offsets: Value  # address of int64 [runs]
    wide: Value  # the levels
    scales: Value
    minima: Value | None
    records: Values  # addresses [T]
    ahead: Value  # address of the next 16 rows
    stride: Value  # bytes of 16 rows for a run of 32 values


def _levels(b: Builder, tile: Tile, rows: Values) -> list[Values]:
    """Unsigned bytes of 32 values of each row, 4 a vector: [how they lie in a record][..]."""
    if tile.bits == 8:
        columns = packed_columns(b, rows, 0) + packed_columns(b, rows, 16)
        return [[b.add(b.bitcast(c, V64B), tile.wide) for c in columns]]
    columns = packed_columns(b, rows, 0)
    return [
        [look_up(b, tile.wide, nibble(b, b.bitcast(c, V64B), high)) for c in columns]
        for high in range(2)
    ]


def _run(b: Builder, tile: Tile, i: Value, g: Value, ys: Values) -> Values:
    """y + scale * dx * I of the g-th 32 values of the i-th superblock, and then its minimum's."""
    number = b.add(b.shl(i, ir.Constant(I64, 3)), g)
    start = load(b, advance(b, tile.offsets, number, 8), I64)
    rows = Rows(tile.rows, start)(b)
    prefetch(b, b.add(tile.ahead, b.mul(number, tile.stride)), 64 * tile.bits + 64)
    xs = Rows(tile.records, b.mul(i, ir.Constant(I64, RECORD)))
    groups = xs.advance(b, g, 4)(b)
    shifts = [splat_at(b, p, AT_SHIFT32) for p in groups]
    sums = list(shifts)
    if tile.bits == 8:
        here = xs.advance(b, g, 32)
    else:  # 128 values, low nibbles and then high ones, 16 of each run
        quarter = b.add(b.shl(b.lshr(g, ir.Constant(I64, 2)), ir.Constant(I64, 3)),
                        b.and_(g, ir.Constant(I64, 3)))  # fmt: skip
        here = xs.advance(b, quarter, 16)
    values = here(b)
    for part, columns in enumerate(_levels(b, tile, rows)):
        for c, codes in enumerate(columns):
            for t, x in enumerate(values):
                word = b.bitcast(splat_at(b, x, 64 * part + 4 * c), V64B)
                sums[t] = dot(b, sums[t], codes, word)
    scale = load(b, advance(b, tile.scales, number, VECTOR), V16F)
    steps = [splat_at(b, p, AT_GROUP_D, F32) for p in groups]
    ys = [fma(b, b.sitofp(total, V16F), b.fmul(scale, dx), y)
          for total, dx, y in zip(sums, steps, ys, strict=True)]  # fmt: skip
    if tile.minima is None:
        return ys
    low = load(b, advance(b, tile.minima, number, VECTOR), V16F)
    return [fma(b, b.sitofp(shift, V16F), b.fmul(low, dx), y)
            for shift, dx, y in zip(shifts, steps, ys, strict=True)]  # fmt: skip


def _make_few(name: str, bits: int, size: int) -> Any:
    """An intrinsic: addresses of 16 rows, bytes a row; of parameters, of arranged records, their
    stride; how many rows of activations, 1 to `size`; addresses of scales, minima or 0, results,
    16 float32 a row of activations, their stride; superblocks.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, params, xp, x_stride, tokens, scales, minima, op, out_stride, n = args
        rows = [opaque(b, advance(b, wp, ir.Constant(I64, r), row_bytes)) for r in range(LANES)]
        records = addresses(b, xp, x_stride, size, tokens)
        offsets, levels = (load(b, at(b, params, 8 * i), I64) for i in (OFFSETS, LEVELS))
        ahead = advance(b, wp, ir.Constant(I64, LANES), row_bytes)
        stride = b.udiv(b.mul(row_bytes, ir.Constant(I64, LANES // 8)), n)

        def multiply(minima: Value | None) -> None:
            wide = wide_levels(b, levels)
            tile = Tile(bits, rows, offsets, wide, scales, minima, records, ahead, stride)

            def superblock(i: Value, ys: Values) -> Values:
                eight = ir.Constant(I64, 8)
                return count_loop(b, eight, ys, lambda g, ys: _run(b, tile, i, g, ys))

            ys = count_loop(b, n, [const(V16F, 0.0)] * size, superblock)
            for y, out in zip(ys, addresses(b, op, out_stride, size, tokens), strict=True):
                store(b, y, out)

        with b.if_else(b.icmp_unsigned("!=", minima, ir.Constant(I64, 0))) as (low, none):
            with low:
                multiply(minima)
            with none:
                multiply(None)

    return vector(name, "ppppppppppp", emit)


_four_2 = _make_few("layout_few_2_four_bits", 4, 2)
_four_4 = _make_few("layout_few_4_four_bits", 4, 4)
_four_8 = _make_few("layout_few_8_four_bits", 4, 8)
_eight_2 = _make_few("layout_few_2_eight_bits", 8, 2)
_eight_4 = _make_few("layout_few_4_eight_bits", 8, 4)
_eight_8 = _make_few("layout_few_8_eight_bits", 8, 8)


@helper
def _four(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n):
    if tokens > U(4):
        _four_8(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n)
    elif tokens > U(2):
        _four_4(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n)
    else:
        _four_2(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n)


@helper
def _eight(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n):
    if tokens > U(4):
        _eight_8(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n)
    elif tokens > U(2):
        _eight_4(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n)
    else:
        _eight_2(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n)


@helper
def multiply_layout(w, row_bytes, given, xp, xs, tokens, scales, minima, op, os_, n, room):
    """A tile of a weight of the layout at `given`, times any number of rows of arranged records.

    Other arguments are those of `matvec_layout`; xs and os_ are strides.
    """
    kind, t = words_at(given, PARAMETERS)[KIND] % U(SCATTERED), U(0)
    while t < tokens:
        left, x, out = min(U(8), tokens - t), xp + t * xs, op + t * os_
        if left == U(1):
            matvec_layout(w, row_bytes, given, x, scales, minima, out, n, room)
        elif kind == U(BYTES):
            _eight(w, row_bytes, given, x, xs, left, scales, minima, out, os_, n)
        else:
            _four(w, row_bytes, given, x, xs, left, scales, minima, out, os_, n)
        t += left

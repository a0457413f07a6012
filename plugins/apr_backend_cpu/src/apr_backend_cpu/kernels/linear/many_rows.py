"""An unpacked tile of 16 weight rows times several rows of activations: lanes are weight rows.

The tile is unpacked once for all rows of activations. Sums equal `matvec`'s bit for bit: within a
superblock they are integers, and over superblocks they run in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import (
    AT_D,
    AT_GROUP_D,
    AT_SCALE32,
    AT_SHIFT16,
    AT_SHIFT32,
    AT_SUM32,
    RECORD,
    TILE_RECORD,
    TOKENS,
    VECTOR,
)
from apr_backend_cpu.kernels.linear.unpack import AT_D as TILE_D
from apr_backend_cpu.kernels.linear.unpack import AT_DMIN, AT_MINIMA, AT_PAIRS, AT_SCALES
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
    splat,
    store,
)

Values = list[Value]


def _splat_int(b: Builder, p: Value, offset: int) -> Value:
    return splat(b, load(b, at(b, p, offset), I32))


def _splat_float(b: Builder, p: Value, offset: int) -> Value:
    return splat(b, load(b, at(b, p, offset), F32))


def _group(
    b: Builder, w: Value, xs: Values, size: int, bits: int, start: Values | None = None
) -> Values:
    """Dots of a group of `size` values at w (codes) and xs, one for each row of activations."""
    sums = start or [const(V16I, 0)] * len(xs)
    for k in range(size // 4):
        codes = load(b, at(b, w, VECTOR * k), V64B)
        for t, x in enumerate(xs):
            value = b.bitcast(_splat_int(b, x, 4 * k), V64B)
            sums[t] = dot(b, sums[t], codes, value, bits)
    return sums


def _scaled(b: Builder, w: Value, xs: Values, size: int, bits: int) -> Values:
    """Integer sums of a superblock: step of 32 values * (scale of a group * its dot).

    Codes of groups of 16 are 32 too large.
    """
    per_step = 32 // size

    def body(j: Value, totals: Values) -> Values:
        codes, scales = advance(b, w, j, VECTOR * 8), advance(b, w, j, VECTOR * per_step)
        here = [advance(b, x, j, 32) for x in xs]
        starts = [advance(b, x, j, 8) for x in xs] if size == 16 else []
        sums = [const(V16I, 0)] * len(xs)
        for g in range(per_step):
            part = [at(b, x, size * g) for x in here]
            start = [_splat_int(b, x, AT_SHIFT16 + 4 * g) for x in starts] if starts else None
            dots = _group(b, at(b, codes, VECTOR * size // 4 * g), part, size, bits, start)
            scale = load(b, at(b, scales, AT_SCALES + VECTOR * g), V16I)
            sums = [b.add(s, b.mul(d, scale)) for s, d in zip(sums, dots, strict=True)]
        steps = [_splat_int(b, advance(b, x, j, 4), AT_SCALE32) for x in xs]
        return [
            b.add(total, b.mul(s, step)) for total, s, step in zip(totals, sums, steps, strict=True)
        ]

    return count_loop(b, ir.Constant(I64, 8), [const(V16I, 0)] * len(xs), body)


def _pairs(b: Builder, w: Value, xs: Values) -> Values:
    """Integer sums of minima times the sums of 32 activations."""
    sums = [const(V16I, 0)] * len(xs)
    for g in range(4):
        pair = load(b, at(b, w, AT_PAIRS + VECTOR * g), V16I)
        for t, x in enumerate(xs):
            sums[t] = pair_dot(b, sums[t], pair, _splat_int(b, x, AT_SUM32 + 4 * g))
    return sums


def _affine(b: Builder, w: Value, xs: Values, ys: Values, bits: int) -> Values:
    scaled, low = _scaled(b, w, xs, 32, bits), _pairs(b, w, xs)
    d, dmin = (load(b, at(b, w, offset), V16F) for offset in (TILE_D, AT_DMIN))
    results = []
    for x, y, total, minimum in zip(xs, ys, scaled, low, strict=True):
        value = fma(b, b.sitofp(minimum, V16F), dmin, b.fmul(b.sitofp(total, V16F), d))
        results.append(fma(b, value, _splat_float(b, x, AT_D), y))
    return results


def _signed(b: Builder, w: Value, xs: Values, ys: Values, bits: int) -> Values:
    scaled, d = _scaled(b, w, xs, 16, bits), load(b, at(b, w, TILE_D), V16F)
    return [
        fma(b, b.sitofp(total, V16F), b.fmul(d, _splat_float(b, x, AT_D)), y)
        for x, y, total in zip(xs, ys, scaled, strict=True)
    ]


def _blocks(
    b: Builder, w: Value, xs: Values, ys: Values, bits: int, minima: bool = False
) -> Values:
    def body(g: Value, totals: Values) -> Values:
        codes, here = advance(b, w, g, VECTOR * 8), [advance(b, x, g, 32) for x in xs]
        shifts = [_splat_int(b, advance(b, x, g, 4), AT_SHIFT32) for x in xs]
        dots = _group(b, codes, here, 32, bits, list(shifts))
        scales = advance(b, w, g, VECTOR)
        d = load(b, at(b, scales, AT_SCALES), V16F)
        dx = [_splat_float(b, advance(b, x, g, 4), AT_GROUP_D) for x in xs]
        totals = [
            fma(b, b.sitofp(dot_, V16F), b.fmul(d, s), total)
            for dot_, s, total in zip(dots, dx, totals, strict=True)
        ]
        if not minima:
            return totals
        low = load(b, at(b, scales, AT_MINIMA), V16F)
        return [
            fma(b, b.sitofp(shift, V16F), b.fmul(low, s), total)
            for shift, s, total in zip(shifts, dx, totals, strict=True)
        ]

    return count_loop(b, ir.Constant(I64, 8), ys, body)


def _layouts(b: Builder, w: Value, xs: Values, ys: Values, bits: int) -> Values:
    return _blocks(b, w, xs, ys, bits, minima=True)


Superblock = Callable[[Builder, Value, Values, Values, int], Values]


def make_matmul(name: str, superblock: Superblock, bits: int, tokens: int) -> Any:
    """An intrinsic: addresses of a tile, of records and of results, their strides, superblocks.

    Results are 16 float32 a row of activations; strides are in bytes.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        tile, xp, x_stride, op, out_stride, n = args
        rows = [advance(b, xp, ir.Constant(I64, t), x_stride) for t in range(tokens)]

        def body(i: Value, totals: Values) -> Values:
            xs = [advance(b, x, i, RECORD) for x in rows]
            return superblock(b, advance(b, tile, i, TILE_RECORD), xs, totals, bits)

        totals = count_loop(b, n, [const(V16F, 0.0)] * tokens, body)
        for t, total in enumerate(totals):
            store(b, total, advance(b, op, ir.Constant(I64, t), out_stride))

    return vector(name, "pppppp", emit)


KINDS: dict[str, tuple[Superblock, int]] = {
    "q4_k": (_affine, 5), "q5_k": (_affine, 5), "q6_k": (_signed, 6), "q8_0": (_blocks, 8),
    "layout": (_blocks, 8), "layout_with_minima": (_layouts, 8),
}  # fmt: skip
for _kind, (_superblock, _bits) in KINDS.items():
    for _tokens in (TOKENS, 1):
        make_matmul(f"many_{_tokens}_{_kind}", _superblock, _bits, _tokens)

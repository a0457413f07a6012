"""Rows of an 8-bit cache of keys and values: their layout, and writing them.

A row is D int8 codes, then D / 32 float16 scales, one for 32 values each. Values share a scale so
that vectors of 16 codes can be added before scaling. A row is cut into blocks of 256 dims (128, 64
or 32 where D is not a multiple of more). A block has 8 scales (4, 2, 1), each for the same lanes in
all vectors of the block: with 256 dims lanes 0 and 1 are a group, 2 and 3 the next. So value d of a
block belongs to scale d % 16 * scales // 16.
"""

from __future__ import annotations

from llvmlite import ir

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.attention.tiles import LARGEST_HALF
from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import (
    I8,
    I16,
    I32,
    ROUND,
    ROUND_BITS,
    V16F,
    V16I,
    Value,
    const,
)
from apr_backend_cpu.kernels.vector.rows import number

GROUPS = (1, 2, 4, 8)  # in a block
V16B, V16S = (ir.VectorType(t, LANES) for t in (I8, I16))


def groups_of(b: Builder, n: Value) -> Value:
    """Return the groups in a block: the largest power of 2 in n / 2, up to 8.

    A row has n vectors.
    """
    pairs = b.or_(b.lshr(n, number(1)), number(GROUPS[-1]))
    return b.and_(pairs, b.neg(pairs))


def lane_scales(b: Builder, addresses: list[Value], groups: Value, codes: int) -> list[Value]:
    """Load the scales of a block at each address, as 16 lanes of `codes` codes each."""
    done = b.append_basic_block("scales")
    cases = [b.append_basic_block(f"groups.{count}") for count in GROUPS]
    switch = b.switch(groups, cases[-1])
    loaded = []
    for count, case in zip(GROUPS, cases, strict=True):
        if count != GROUPS[-1]:
            switch.add_case(number(count), case)
        b.position_at_end(case)
        lanes = [lane * codes % LANES * count // LANES for lane in range(LANES)]
        halves = [b.read(p, ir.VectorType(I16, count)) for p in addresses]
        wide = [b.from_half(h) for h in halves]
        loaded.append([b.shuffle(w, lanes) for w in wide])
        b.branch(done)
    b.position_at_end(done)
    scales = [b.phi(V16F) for _ in addresses]
    for case, values in zip(cases, loaded, strict=True):
        for phi, value in zip(scales, values, strict=True):
            phi.add_incoming(value, case)
    return scales


def _magnitude(b: Builder, source: Value, n: Value, lanes: Value) -> Value:
    """Return the largest |x| of n vectors in each run of `lanes` lanes; NaN if there is one."""

    def body(i: Value, tops: list[Value]) -> list[Value]:
        bits = b.and_(b.read(b.advance(source, i, 4 * LANES), V16I), const(V16I, 0x7FFFFFFF))
        return [b.select(b.icmp_signed(">", bits, tops[0]), bits, tops[0])]

    top = b.count_loop(n, [const(V16I, 0)], body)[0]  # as bits: NaN is above infinity
    for width in (1, 2, 4, 8):
        other = b.shuffle(top, [lane ^ width for lane in range(LANES)])
        wider = b.select(b.icmp_signed(">", other, top), other, top)
        top = b.select(b.icmp_unsigned(">", lanes, number(width)), wider, top)
    return b.bitcast(top, V16F)


def _round(b: Builder, x: Value, unit: Value, limit: int) -> Value:
    """Return x / unit as integers within +-limit; arbitrary where unit is 0."""
    x = b.fdiv(x, unit)
    for bound, beyond in ((const(V16F, limit), ">"), (const(V16F, -limit), "<")):
        x = b.select(b.fcmp_ordered(beyond, x, bound), bound, x)
    return b.sub(b.bitcast(b.fadd(x, const(V16F, ROUND)), V16I), const(V16I, ROUND_BITS))


def _append_q8(b: Builder, args: tuple[Value, ...]) -> None:
    """Write a row from n times 16 float32. A NaN makes its scale NaN.

    A scale is rounded up where the largest value would otherwise be more than half a step off,
    which happens among subnormals. Values beyond 127 * 65504 are clipped to that.
    """
    source, target, n = args
    groups = groups_of(b, n)
    vectors, lanes = b.shl(groups, number(1)), b.udiv(number(LANES), groups)

    def block(k: Value, values: list[Value]) -> list[Value]:
        first = b.mul(k, vectors)
        begin = b.advance(source, first, 4 * LANES)
        top, most = _magnitude(b, begin, vectors, lanes), const(V16F, 127 * LARGEST_HALF)
        top = b.select(b.fcmp_ordered(">", top, most), most, top)
        scale = b.to_half(b.fdiv(top, const(V16F, 127.0)))
        short = b.fmul(b.from_half(scale), const(V16F, 127.5))
        up = b.zext(b.fcmp_ordered("<", short, top), V16S)
        scale = b.add(scale, up)
        here = b.add(b.add(target, b.mul(n, number(LANES))), first)  # 2 bytes per group
        for lane in range(LANES):
            group = b.udiv(number(lane), lanes)
            one = b.extract_element(scale, ir.Constant(I32, lane))
            b.write(one, b.advance(here, group, 2))
        unit = b.from_half(scale)
        unit = b.select(b.fcmp_ordered("==", unit, const(V16F, 0.0)), const(V16F, 1.0), unit)

        def body(i: Value, values: list[Value]) -> list[Value]:
            x = b.read(b.advance(begin, i, 4 * LANES), V16F)
            codes = b.trunc(_round(b, x, unit, 127), V16B)
            b.write(codes, b.advance(target, b.add(first, i), LANES))
            return values

        return b.count_loop(vectors, values, body)

    b.count_loop(b.udiv(n, vectors), [], block)


append_q8 = vector("append_q8", "ppp", _append_q8)


def _round_q8(b: Builder, args: tuple[Value, ...]) -> None:
    """Write a query of n times 16 float32 as int16, then a float32 factor: 32 * n + 4 bytes."""
    source, target, n = args
    unit = b.fdiv(_magnitude(b, source, n, number(LANES)), const(V16F, 32767.0))
    factor = b.extract_element(unit, ir.Constant(I32, 0))
    b.write(factor, b.advance(target, n, 2 * LANES))
    unit = b.select(b.fcmp_ordered("==", unit, const(V16F, 0.0)), const(V16F, 1.0), unit)

    def body(i: Value, values: list[Value]) -> list[Value]:
        x = b.read(b.advance(source, i, 4 * LANES), V16F)
        b.write(b.trunc(_round(b, x, unit, 32767), V16S), b.advance(target, i, 2 * LANES))
        return values

    b.count_loop(n, [], body)


round_q8 = vector("round_q8", "ppp", _round_q8)

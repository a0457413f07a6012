"""16 weight rows of a declared layout times one row of activations, as `matvec` does for formats.

Codes are used as they lie: 64 bytes of them are 128 values, low nibbles and high ones, and instead
of their order that of the activations is changed, once for many rows of weights. The sums of 32
values are integers; they meet their scales in the order in which `matmul` does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import AT_GROUP_D, AT_SHIFT32, LANES, RECORD, VECTOR
from apr_backend_cpu.kernels.linear.formats import V32B, nibble
from apr_backend_cpu.kernels.linear.layout_unpack import V16B, look_up, wide_levels
from apr_backend_cpu.kernels.linear.one_row import AHEAD
from apr_backend_cpu.kernels.source import Builder, helper, vector
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
    join,
    load,
    prefetch,
    shuffle,
    splat,
    store,
)
from apr_backend_cpu.kernels.vector.lanes import (
    EVEN_QUARTERS,
    EVEN_WORDS,
    HIGH_PAIRS,
    HIGH_WORDS,
    LOW_PAIRS,
    LOW_WORDS,
    ODD_QUARTERS,
    ODD_WORDS,
    gather_quarters,
    mix,
)
from apr_backend_cpu.kernels.vector.memory import U, words_at
from apr_backend_cpu.layout_constants import (
    BYTES,
    HALVES,
    KIND,
    LEVELS,
    OFFSETS,
    PAIRS,
    PARAMETERS,
    SCATTERED,
)

ROW_SUMS = 64  # bytes of a superblock of a row, until 16 rows are there
LAST_ROWS = 3  # of a tile: their prefetches are left to its end, or memory would wait there


def _picks(order: int) -> list[list[int]]:
    """Which of 128 values the low and the high nibbles of 64 bytes are; with 8 bits, two 64s."""
    if order == BYTES:
        return [list(range(64)), list(range(64, 128))]
    if order == PAIRS:
        return [list(range(high, 128, 2)) for high in (0, 1)]
    return [[32 * run + 16 * high + i for run in range(4) for i in range(16)] for high in (0, 1)]


def _make_arrange(name: str, order: int) -> Any:
    """An intrinsic: n records, their activations in the order in which codes meet them.

    Besides these it copies what belongs to 32 values each: sums and scales.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        records, n, out = args

        def body(i: Value, values: list[Value]) -> list[Value]:
            x, target = advance(b, records, i, RECORD), advance(b, out, i, RECORD)
            store(b, load(b, at(b, x, AT_SHIFT32), V64B), at(b, target, AT_SHIFT32))
            for half in (0, 128):
                both = [load(b, at(b, x, half + k), V64B) for k in (0, 64)]
                for k, lanes in enumerate(_picks(order)):
                    picked = shuffle(b, both[0], lanes, both[1])
                    store(b, picked, at(b, target, half + 64 * k))
            return values

        count_loop(b, n, [], body)

    return vector(name, "ppp", emit)


_arrange_pairs = _make_arrange("arrange_pairs", PAIRS)
_arrange_halves = _make_arrange("arrange_halves", HALVES)
_arrange_bytes = _make_arrange("arrange_bytes", BYTES)


@helper
def arrange_activations(given, records, n, out):
    """What products with the layout at `given` want of n records: as many at `out`."""
    kind = words_at(given, PARAMETERS)[KIND] % U(SCATTERED)
    if kind == U(PAIRS):
        _arrange_pairs(records, n, out)
    elif kind == U(HALVES):
        _arrange_halves(records, n, out)
    else:
        _arrange_bytes(records, n, out)


def _joined(b: Builder, row: Value, offsets: Value, first: int, type_: Any, size: int) -> Value:
    """64 bytes of `size` vectors, one a run, from the first-th run on."""
    parts = [
        load(b, b.add(row, load(b, at(b, offsets, 8 * (first + k)), I64)), type_)
        for k in range(size)
    ]
    while len(parts) > 1:
        parts = [join(b, *parts[k : k + 2]) for k in range(0, len(parts), 2)]
    return parts[0]


def _packed(b: Builder, bits: int, scattered: bool, row: Value, offsets: Value, half: int
            ) -> list[Value]:  # fmt: skip
    """The bytes of 128 codes: one vector, or with 8 bits two."""
    count = bits // 4
    if scattered:
        type_ = V16B if bits == 4 else V32B
        size = 4 // count
        return [_joined(b, row, offsets, 4 * half + size * v, type_, size) for v in range(count)]
    p = b.add(row, load(b, at(b, offsets, 32 * half), I64))
    return [load(b, at(b, p, 64 * v), V64B) for v in range(count)]


def _half(b: Builder, bits: int, packed: list[Value], wide: Value, x: Value) -> Value:
    """Products of 128 values, summed in fours and once more: a quarter's lanes are a run's."""
    if bits == 4:
        total = const(V16I, 0)
        for high in (0, 1):
            codes = look_up(b, wide, nibble(b, packed[0], high))
            total = dot(b, total, codes, load(b, at(b, x, 64 * high), V64B))
        return total
    dots = [
        dot(b, const(V16I, 0), b.add(codes, wide), load(b, at(b, x, 64 * v), V64B))
        for v, codes in enumerate(packed)
    ]
    even, odd = (shuffle(b, dots[0], lanes, dots[1]) for lanes in (EVEN_QUARTERS, ODD_QUARTERS))
    return b.add(even, odd)


def _row_sums(b: Builder, halves: list[Value]) -> Value:
    """Two vectors of four quarters, each a run's, as one: a quarter has half sums of two runs."""
    return b.add(*(mix(b, halves[0], halves[1], lanes) for lanes in (LOW_WORDS, HIGH_WORDS)))


def _tile_sums(b: Builder, room: Value) -> list[Value]:
    """The sums of 8 runs, one lane a weight row, from what `_row_sums` left of 16 rows."""
    rows = [load(b, at(b, room, ROW_SUMS * r), V16I) for r in range(LANES)]
    pairs = [
        b.add(*(mix(b, rows[r], rows[r + 1], lanes) for lanes in (LOW_PAIRS, HIGH_PAIRS)))
        for r in range(0, LANES, 2)
    ]  # a quarter has two runs of one row, then of the other
    sums = []
    for lanes in (EVEN_WORDS, ODD_WORDS):
        fours = [mix(b, pairs[k], pairs[k + 1], lanes) for k in range(0, 8, 2)]
        sums += gather_quarters(b, fours)
    return sums


def add_groups(
    b: Builder, sums: list[Value], x: Value, y: Value, scales: list[Value],
    minima: list[Value] | None = None,
) -> Value:  # fmt: skip
    """One superblock: y + scale[g] * dx[g] * I[g] and then the minima's, group by group.

    Codes are 128 too large; minima are for sums of activations times -128.
    """
    for g, (total, scale) in enumerate(zip(sums, scales, strict=True)):
        dx = splat(b, load(b, at(b, x, AT_GROUP_D + 4 * g), F32))
        shift = splat(b, load(b, at(b, x, AT_SHIFT32 + 4 * g), I32))
        y = fma(b, b.sitofp(b.add(total, shift), V16F), b.fmul(scale, dx), y)
        if minima:
            y = fma(b, b.sitofp(shift, V16F), b.fmul(minima[g], dx), y)
    return y


def _make_matvec(name: str, bits: int, scattered: bool) -> Any:
    """An intrinsic: addresses of 16 rows, bytes a row; of parameters, of arranged records, scales,
    minima or 0, and 16 results; superblocks; address of 1024 bytes for each.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, params, xp, scales, minima, op, n, room = args
        offsets = load(b, at(b, params, 8 * OFFSETS), I64)
        wide = wide_levels(b, load(b, at(b, params, 8 * LEVELS), I64))

        def row(r: Value, values: list[Value]) -> list[Value]:
            first, out = advance(b, wp, r, row_bytes), advance(b, room, r, ROW_SUMS)
            early = b.icmp_unsigned("<", r, ir.Constant(I64, LANES - LAST_ROWS))
            ahead = b.select(early, ir.Constant(I64, AHEAD), ir.Constant(I64, 0))

            def superblock(i: Value, values: list[Value]) -> list[Value]:
                where, x = advance(b, offsets, i, 64), advance(b, xp, i, RECORD)
                start = b.add(first, load(b, where, I64))
                prefetch(b, b.add(start, ahead), 32 * bits + 64)
                halves = [
                    _half(b, bits, _packed(b, bits, scattered, first, where, half), wide,
                          at(b, x, 128 * half))
                    for half in (0, 1)
                ]  # fmt: skip
                store(b, _row_sums(b, halves), advance(b, out, i, ROW_SUMS * LANES))
                return values

            return count_loop(b, n, values, superblock)

        last = at(b, advance(b, wp, ir.Constant(I64, LANES - LAST_ROWS), row_bytes), AHEAD)
        share = b.udiv(b.mul(row_bytes, ir.Constant(I64, LAST_ROWS)), n)

        def finish(with_minima: bool) -> None:
            def superblock(i: Value, totals: list[Value]) -> list[Value]:
                prefetch(b, advance(b, last, i, share), LAST_ROWS * 32 * bits + 64)
                sums = _tile_sums(b, advance(b, room, i, ROW_SUMS * LANES))
                tables = (scales, minima) if with_minima else (scales,)
                here = [advance(b, table, i, 8 * VECTOR) for table in tables]
                numbers = [[load(b, at(b, p, VECTOR * g), V16F) for g in range(8)] for p in here]
                return [add_groups(b, sums, advance(b, xp, i, RECORD), totals[0], *numbers)]

            store(b, count_loop(b, n, [const(V16F, 0.0)], superblock)[0], op)

        count_loop(b, ir.Constant(I64, LANES), [], row)
        with b.if_else(b.icmp_unsigned("!=", minima, ir.Constant(I64, 0))) as (low, none):
            with low:
                finish(True)
            with none:
                finish(False)

    return vector(name, "ppppppppp", emit)


_four_bits = _make_matvec("four_bits", 4, False)
_eight_bits = _make_matvec("eight_bits", 8, False)
_four_scattered = _make_matvec("four_scattered", 4, True)
_eight_scattered = _make_matvec("eight_scattered", 8, True)


@helper
def matvec_layout(w, row_bytes, given, xp, scales, minima, op, n, room):
    """A tile of a weight of the layout at `given`, times one row of arranged records.

    `scales` and `minima` are what `expand_numbers` made; `room` is `matvec`'s.
    """
    kind = words_at(given, PARAMETERS)[KIND]
    if kind < U(BYTES):
        _four_bits(w, row_bytes, given, xp, scales, minima, op, n, room)
    elif kind == U(BYTES):
        _eight_bits(w, row_bytes, given, xp, scales, minima, op, n, room)
    elif kind == U(SCATTERED + BYTES):
        _eight_scattered(w, row_bytes, given, xp, scales, minima, op, n, room)
    else:
        _four_scattered(w, row_bytes, given, xp, scales, minima, op, n, room)

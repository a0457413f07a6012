"""The kernel for declared layouts: `scale * level + minimum` over groups (apr_core.layouts).

Levels are unsigned bytes, 128 too large: exact for integers, rounded for a codebook (by at most
1 / 254 of its largest level). Products are then those of q8_0, with a float32 scale for each 32
values. Here is what its three ways of multiplying share: how the numbers of a tile become scales,
how 64 codes become levels, and the tile that many rows of activations meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import LANES, TILE_GROUP, VECTOR
from apr_backend_cpu.kernels.linear.formats import V32B, nibble
from apr_backend_cpu.kernels.linear.tiles import AT_MINIMUM, AT_SCALE
from apr_backend_cpu.kernels.source import Builder, helper, vector
from apr_backend_cpu.kernels.vector.ir import (
    I8,
    I16,
    I64,
    V16F,
    V16I,
    V64B,
    Value,
    advance,
    at,
    const,
    count_loop,
    from_half,
    in_registers,
    intrinsic_call,
    join,
    load,
    prefetch,
    shuffle,
    splat,
    store,
)
from apr_backend_cpu.kernels.vector.lanes import transpose
from apr_backend_cpu.kernels.vector.memory import U, words_at
from apr_backend_cpu.layout_constants import (
    AT_FACTORS,
    AT_NUMBERS,
    BLOCK_STEP,
    BLOCKS,
    BYTES,
    COLUMNS_OF_NUMBERS,
    FACTORS_STEP,
    GROUPS,
    HALF,
    HALVES,
    KIND,
    LEVELS,
    NUMBER_KIND,
    NUMBERS,
    OFFSETS,
    PAIRS,
    PARAMETERS,
    RUNS,
    SCATTERED,
    SIGNED,
    SINGLE,
    TILE_STEP,
    UNSIGNED,
)

V16B = ir.VectorType(I8, 16)
# shuffles of bytes within 16, by the bytes of a register
SHUFFLES = {
    16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}  # fmt: skip
STORED = {UNSIGNED: V16B, SIGNED: V16B, HALF: ir.VectorType(I16, LANES), SINGLE: V16F}
WIDTH = {UNSIGNED: LANES, SIGNED: LANES, HALF: 2 * LANES, SINGLE: 4 * LANES}  # bytes of 16


def _number(b: Builder, kind: int, address: Value) -> Value:
    """16 numbers as float32."""
    value = load(b, address, STORED[kind])
    if kind == UNSIGNED:
        return b.uitofp(value, V16F)
    if kind == SIGNED:
        return b.sitofp(value, V16F)
    return from_half(b, value) if kind == HALF else value


def _expand_block(
    b: Builder, kind: int, runs: int | Value, groups: Value, factor: Value, source: Value,
    ahead: Value, out: Value,
) -> None:  # fmt: skip
    """The numbers of a block, each as often as a group has runs. Runs that are known: no loop."""
    width = WIDTH[kind]
    count = ir.Constant(I64, runs) if isinstance(runs, int) else runs
    a_group = b.mul(count, ir.Constant(I64, VECTOR))

    def group(g: Value, values: list[Value]) -> list[Value]:
        address = advance(b, source, g, width)
        prefetch(b, b.add(address, ahead), 1)
        scale, here = b.fmul(_number(b, kind, address), factor), advance(b, out, g, a_group)

        def run(r: Value, values: list[Value]) -> list[Value]:
            store(b, scale, advance(b, here, r, VECTOR))
            return values

        if isinstance(runs, int):
            for r in range(runs):
                store(b, scale, at(b, here, VECTOR * r))
            return values
        return count_loop(b, count, values, run)

    count_loop(b, groups, [], group)


def _expand(b: Builder, args: tuple[Value, ...]) -> None:
    """The numbers of a tile, times their block's: float32 [runs of 32][16 rows] at `out`.

    Columns of NUMBERS (an address), which tile, blocks a row, groups a block, runs a group.
    """
    columns, tile, blocks, groups, runs, out = args
    get = lambda i: load(b, at(b, columns, 8 * i), I64)  # noqa: E731
    numbers = advance(b, get(AT_NUMBERS), tile, get(TILE_STEP))
    factors = advance(b, get(AT_FACTORS), tile, get(FACTORS_STEP))
    ahead, ahead_factors, step = get(TILE_STEP), get(FACTORS_STEP), get(BLOCK_STEP)
    a_block = b.mul(groups, b.mul(runs, ir.Constant(I64, VECTOR)))

    def expand(kind: int, known: int) -> None:
        a_source = b.mul(groups, ir.Constant(I64, WIDTH[kind]))

        def block(i: Value, values: list[Value]) -> list[Value]:
            address = advance(b, factors, i, step)
            prefetch(b, b.add(address, ahead_factors), 1)
            source, target = advance(b, numbers, i, a_source), advance(b, out, i, a_block)
            _expand_block(b, kind, known or runs, groups, load(b, address, V16F), source,
                          ahead, target)  # fmt: skip
            return values

        count_loop(b, blocks, [], block)

    for kind in STORED:
        with b.if_then(b.icmp_unsigned("==", get(NUMBER_KIND), ir.Constant(I64, kind))):
            _by_count(b, runs, (1, 2, 4), lambda known, kind=kind: expand(kind, known))


expand = vector("expand_numbers", "pppppp", _expand)


def _by_count(
    b: Builder, count: Value, known: tuple[int, ...], body: Callable[[int], None]
) -> None:
    """body(count) where the count is one of those known, else body(0)."""
    if not known:
        body(0)
        return
    is_first = b.icmp_unsigned("==", count, ir.Constant(I64, known[0]))
    with b.if_else(is_first) as (first, other):
        with first:
            body(known[0])
        with other:
            _by_count(b, count, known[1:], body)


@helper
def expand_numbers(given, tile, room):
    """Scales, and minima where there are any, of a tile of a weight: float32 [runs][16] each.

    `given` is the address of the weight's parameters. Returns where the minima are, or 0.
    """
    params = words_at(given, PARAMETERS)
    blocks, groups, runs = params[BLOCKS], params[GROUPS], params[RUNS]
    columns = given + U(8 * NUMBERS)
    expand(columns, tile, blocks, groups, runs, room)
    columns += U(8 * COLUMNS_OF_NUMBERS)
    if words_at(columns, 1)[AT_NUMBERS] == U(0):
        return U(0)
    minima = room + blocks * groups * runs * U(VECTOR)
    expand(columns, tile, blocks, groups, runs, minima)
    return minima


def wide_levels(b: Builder, address: Value) -> Value:
    """The 16 levels, four times over."""
    return shuffle(b, load(b, address, V16B), list(range(16)) * 4)


def look_up(b: Builder, wide: Value, codes: Value) -> Value:
    """The levels of 64 codes below 16."""
    if b.level.dot == "sdot":
        name = "llvm.aarch64.neon.tbl1.v16i8"
    elif b.level.vector in SHUFFLES and b.level.dot:
        name = SHUFFLES[b.level.vector]
    else:
        result = const(V64B, 0)
        for code in range(16):
            level = splat(b, b.extract_element(wide, ir.Constant(I64, code)), 64)
            result = b.select(b.icmp_unsigned("==", codes, const(V64B, code)), level, result)
        return result
    return in_registers(b, lambda w, c: intrinsic_call(b, name, w.type, w, c), wide, codes)


def _four_bit(b: Builder, runs: list[Value], order: str) -> Value:
    """The 64 codes of two runs of 16 bytes."""
    packed = join(b, *(load(b, p, V16B) for p in runs))
    packed = join(b, packed, const(V32B, 0))
    low, high = nibble(b, packed, 0), nibble(b, packed, 1)
    picks = []
    for run in range(2):
        first = [16 * run + i for i in range(16)]
        second = [64 + i for i in first]
        picks += [i for pair in zip(first, second, strict=True) for i in pair] \
            if order == "pairs" else first + second  # fmt: skip
    return shuffle(b, low, picks, high)


def _make_unpack(name: str, bits: int, order: str) -> Any:
    """An intrinsic: 16 rows, bytes a row, tile, superblocks, bytes from a row to what is read
    next, parameters, scales, minima or 0. All are addresses or counts.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, tile, n, ahead, params, scales, minima = args
        get = lambda i: load(b, at(b, params, 8 * i), I64)  # noqa: E731
        offsets, wide = get(OFFSETS), wide_levels(b, get(LEVELS))
        rows = [advance(b, wp, ir.Constant(I64, r), row_bytes) for r in range(LANES)]

        def codes(runs: list[Value]) -> Value:
            if bits == 4:
                return look_up(b, wide, _four_bit(b, runs, order))
            return b.add(join(b, *(load(b, r, V32B) for r in runs)), wide)

        def body(i: Value, values: list[Value]) -> list[Value]:
            out, here = advance(b, tile, i, 8 * TILE_GROUP), advance(b, offsets, i, 64)
            starts = [load(b, at(b, here, 8 * g), I64) for g in range(8)]
            for v in range(4):
                words = []
                for p in rows:
                    runs = [b.add(p, starts[2 * v + k]) for k in range(2)]
                    prefetch(b, b.add(runs[0], ahead), 1)
                    words.append(b.bitcast(codes(runs), V16I))
                for c, column in enumerate(transpose(b, words)):
                    run = TILE_GROUP * (2 * v + c // 8)
                    store(b, column, at(b, out, run + VECTOR * (c % 8)))
            for source, target in ((scales, AT_SCALE), (minima, AT_MINIMUM)):
                with b.if_then(b.icmp_unsigned("!=", source, ir.Constant(I64, 0))):
                    vectors = advance(b, source, i, 8 * VECTOR)
                    for g in range(8):
                        vector = load(b, at(b, vectors, VECTOR * g), V16F)
                        store(b, vector, at(b, out, target + TILE_GROUP * g))
            return values

        count_loop(b, n, [], body)

    return vector(name, "pppppppp", emit)


_pairs = _make_unpack("layout_unpack_pairs", 4, "pairs")
_halves = _make_unpack("layout_unpack_halves", 4, "halves")
_bytes = _make_unpack("layout_unpack_bytes", 8, "pairs")


@helper
def unpack_layout(w, row_bytes, tile, n, given, index, room):
    """The index-th tile of a weight whose layout's parameters are at `given`.

    `w` is the address of its first row; the tile's numbers stand in `room` meanwhile.
    """
    minima = expand_numbers(given, index, room)
    ahead = U(LANES) * row_bytes
    kind = words_at(given, PARAMETERS)[KIND] % U(SCATTERED)
    if kind == U(PAIRS):
        _pairs(w, row_bytes, tile, n, ahead, given, room, minima)
    elif kind == U(HALVES):
        _halves(w, row_bytes, tile, n, ahead, given, room, minima)
    elif kind == U(BYTES):
        _bytes(w, row_bytes, tile, n, ahead, given, room, minima)

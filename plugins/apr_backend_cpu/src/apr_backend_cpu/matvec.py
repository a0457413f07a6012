"""16 weight rows times one row of activations: lanes are positions along the row.

Every weight is read once and used at once. What a superblock sums is an integer, so it does not
matter that `matmul` sums it in another order; the float32 sum over superblocks runs in order there
as here, one lane a weight row. So a row gives the same bits alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_backend_cpu.activations import (
    AT_D,
    AT_GROUP_D,
    AT_SCALE16,
    AT_SCALE32,
    AT_SHIFT32,
    AT_SUM16,
    AT_SUM32,
    RECORD,
)
from apr_backend_cpu.formats import FORMATS, V8I, V32B, Packed, join, six_bit
from apr_backend_cpu.lanes import HIGH_WORDS, LOW_WORDS, Reduction, columns4
from apr_backend_cpu.vector_ir import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    V16F,
    V16I,
    Value,
    advance,
    at,
    const,
    count_loop,
    dot,
    fma,
    load,
    prefetch,
    shuffle,
    splat,
    store,
    weigh,
)

Superblocks = Callable[[ir.IRBuilder, list[Value], Value, list[Value], Value], Value]
V16H = ir.VectorType(I16, LANES)
UNDEFINED16 = ir.Constant(ir.VectorType(I16, LANES), ir.Undefined)


def halves(b: ir.IRBuilder, addresses: list[Value]) -> Value:
    """16 float16 at 16 addresses -> float32 x 16."""
    bits = UNDEFINED16
    for r, address in enumerate(addresses):
        bits = b.insert_element(bits, load(b, address, I16), ir.Constant(I32, r))
    return b.fpext(b.bitcast(bits, ir.VectorType(F16, LANES)), V16F)


def low_half(b: ir.IRBuilder, words: Value) -> Value:
    """float16 in the lower half of each lane -> float32 x 16."""
    return b.fpext(b.bitcast(b.trunc(words, V16H), ir.VectorType(F16, LANES)), V16F)


def byte(b: ir.IRBuilder, words: list[Value], index: int) -> Value:
    """The index-th unsigned byte of vectors of words, as int32."""
    shifted = b.lshr(words[index // 4], const(V16I, index % 4 * 8))
    return b.and_(shifted, const(V16I, 0xFF))


def _weigh(b: ir.IRBuilder, packed: Packed, dots: list[Value], scales: Value) -> Value:
    """Each lane's dot times the scale of its group, summed over the superblock. Integer."""
    a_run = scales.type.count // 8  # scales a run of 32 values
    total = const(V16I, 0)
    for lanes, runs in zip(dots, packed.runs, strict=True):
        groups = [runs[lane // 8] * a_run + lane % 8 * a_run // 8 for lane in range(LANES)]
        total = weigh(b, total, lanes, shuffle(b, scales, groups))
    return total


def _dots(b: ir.IRBuilder, packed: Packed, p: Value, x: list[Value]) -> list[Value]:
    zero = const(V16I, 0)
    return [dot(b, zero, packed.code(b, p, v), x[v], packed.bits) for v in range(4)]


def _words_of_rows(b: ir.IRBuilder, words: list[Value]) -> list[Value]:
    """Two vectors with a lane a row -> for each row the 8 bytes of its two words, as int32 x 8."""
    pairs = [shuffle(b, words[0], lanes, words[1]) for lanes in (LOW_WORDS, HIGH_WORDS)]
    rows = []
    for r in range(LANES):
        first = r // 4 * 4 + r % 2 * 2
        two = shuffle(b, pairs[r % 4 // 2], [first, first + 1])
        rows.append(b.zext(b.bitcast(two, ir.VectorType(I8, 8)), V8I))
    return rows


def _affine(
    b: ir.IRBuilder, packed: Packed, rows: list[Value], x: Value, q: list[Value], y: Value
) -> Value:
    """One superblock of q4_k or q5_k: y + d * dx * I - dmin * dx * M."""
    steps = load(b, at(b, x, AT_SCALE32), V8I)
    ds, *words = columns4(b, [load(b, p, ir.VectorType(I32, 4)) for p in rows])
    scale_words, min_words = six_bit(b, *words)
    scaled = Reduction(b)
    for p, scales in zip(rows, _words_of_rows(b, scale_words), strict=True):
        scaled.push(_weigh(b, packed, _dots(b, packed, p, q), b.mul(scales, steps)))
    low = const(V16I, 0)
    for g in range(8):
        sums = splat(b, load(b, at(b, x, AT_SUM32 + 4 * g), I32))
        low = b.add(low, b.mul(byte(b, min_words, g), sums))
    dx = splat(b, load(b, at(b, x, AT_D), F32))
    d, dmin = low_half(b, ds), low_half(b, b.lshr(ds, const(V16I, 16)))
    y = fma(b, b.sitofp(scaled.whole(), V16F), b.fmul(d, dx), y)
    return fma(b, b.sitofp(low, V16F), b.fmul(b.fneg(dmin), dx), y)


def _signed(
    b: ir.IRBuilder, packed: Packed, rows: list[Value], x: Value, q: list[Value], y: Value
) -> Value:
    """One superblock of q6_k: y + d * dx * I."""
    steps = load(b, at(b, x, AT_SCALE16), V16I)
    sums = b.sext(load(b, at(b, x, AT_SUM16), V16H), V16I)
    sums = b.shl(sums, const(V16I, 5))  # codes are 32 too large
    scaled = Reduction(b)
    for p in rows:
        scales = b.sext(load(b, at(b, p, 192), ir.VectorType(I8, 16)), V16I)
        stepped = b.and_(b.mul(scales, steps), const(V16I, 0xFFFF))  # signed, in the lower half
        weighed = _weigh(b, packed, _dots(b, packed, p, q), stepped)
        scaled.push(b.sub(weighed, b.mul(scales, sums)))
    dx = splat(b, load(b, at(b, x, AT_D), F32))
    d = halves(b, [at(b, p, 208) for p in rows])
    return fma(b, b.sitofp(scaled.whole(), V16F), b.fmul(d, dx), y)


def _blocks(
    b: ir.IRBuilder, packed: Packed, rows: list[Value], x: Value, q: list[Value], y: Value
) -> Value:
    """One superblock of q8_0: y + d[g] * dx[g] * I[g], group by group."""
    sums = [Reduction(b) for _ in range(4)]
    for p in rows:
        for j, lanes in enumerate(_dots(b, packed, p, q)):
            sums[j].push(lanes)
    for j in range(4):
        for k, total in enumerate(sums[j].halves()):
            g = 2 * j + k
            dx = splat(b, load(b, at(b, x, AT_GROUP_D + 4 * g), F32))
            shift = splat(b, load(b, at(b, x, AT_SHIFT32 + 4 * g), I32))
            d = halves(b, [at(b, p, 34 * g) for p in rows])
            y = fma(b, b.sitofp(b.add(total, shift), V16F), b.fmul(d, dx), y)
    return y


KINDS: dict[str, Any] = {"q4_k": _affine, "q5_k": _affine, "q6_k": _signed, "q8_0": _blocks}


def _runs(b: ir.IRBuilder, x: Value, pair: tuple[int, int]) -> Value:
    """Two runs of 32 activations as one vector."""
    return join(b, *(load(b, at(b, x, 32 * run), V32B) for run in pair))


def make_matvec(format: str) -> Any:
    """An intrinsic: addresses of 16 rows, bytes a row, address of records, of 16 results; n.

    n is the number of superblocks.
    """
    packed, superblock = FORMATS[format], KINDS[format]

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        wp, row_bytes, xp, op, n = args
        rows = [advance(b, wp, ir.Constant(I64, r), row_bytes) for r in range(LANES)]

        # 16 rows are too many streams for a processor to foresee: ask for the next 16 in order
        following = advance(b, wp, ir.Constant(I64, LANES), row_bytes)

        def body(i: Value, totals: list[Value]) -> list[Value]:
            prefetch(b, advance(b, following, i, LANES * packed.nbytes), LANES * packed.nbytes)
            here = [advance(b, p, i, packed.nbytes) for p in rows]
            x = advance(b, xp, i, RECORD)
            q = [_runs(b, x, pair) for pair in packed.runs]
            return [superblock(b, packed, here, x, q, totals[0])]

        store(b, count_loop(b, n, [const(V16F, 0.0)], body)[0], op)
        return context.get_dummy_value()

    @intrinsic
    def matvec(typing: Any, wp: Any, row_bytes: Any, xp: Any, op: Any, n: Any) -> Any:
        return types.void(*[types.uintp] * 5), codegen

    return matvec


matvec_q4_k, matvec_q5_k = make_matvec("q4_k"), make_matvec("q5_k")
matvec_q6_k, matvec_q8_0 = make_matvec("q6_k"), make_matvec("q8_0")

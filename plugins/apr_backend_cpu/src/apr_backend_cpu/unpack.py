"""How one superblock of 256 weights of each packed format reads, as vector IR.

Every reader gives the same shape: four vectors of 64 unsigned bytes w, four vectors of 16 scales s
(lane l belongs to bytes 4l..4l+3) and 16 offsets o, such that over the superblock

    sum(weight * x) = sum_j s_j * dot4(w_j, x_j) + sum_g o_g * (sum of the g-th 16 values of x)

Block layouts are GGML's (ggml-common.h: block_q4_K, block_q5_K, block_q6_K, block_q8_0).
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from apr_backend_cpu.vector_ir import (
    F32,
    I8,
    I32,
    V16F,
    V64B,
    Value,
    at,
    const,
    half,
    load,
    shuffle,
    splat,
)

Superblock = tuple[list[Value], list[Value], Value]
Reader = Callable[[ir.IRBuilder, Value], Superblock]
V32B = ir.VectorType(I8, 32)
V8F = ir.VectorType(F32, 8)


def _join(b: ir.IRBuilder, low: Value, high: Value) -> Value:
    """Two vectors, one after the other."""
    return shuffle(b, low, list(range(2 * low.type.count)), high)


def _six_bit_scales(b: ir.IRBuilder, p: Value) -> tuple[Value, Value]:
    """The 8 scales and 8 mins packed in 12 bytes at p, as float32 x 8 each."""
    s0, s1, s2 = (load(b, at(b, p, 4 * i), I32) for i in range(3))
    c = lambda v: ir.Constant(I32, v)  # noqa: E731
    scale_low = b.and_(s0, c(0x3F3F3F3F))
    min_low = b.and_(s1, c(0x3F3F3F3F))
    scale_high = b.or_(b.and_(s2, c(0x0F0F0F0F)), b.lshr(b.and_(s0, c(0xC0C0C0C0)), c(2)))
    min_high = b.or_(
        b.and_(b.lshr(s2, c(4)), c(0x0F0F0F0F)), b.lshr(b.and_(s1, c(0xC0C0C0C0)), c(2))
    )

    def floats(low: Value, high: Value) -> Value:
        pair = b.insert_element(ir.Constant(ir.VectorType(I32, 2), ir.Undefined), low, c(0))
        pair = b.insert_element(pair, high, c(1))
        return b.uitofp(b.bitcast(pair, ir.VectorType(I8, 8)), V8F)

    return floats(scale_low, scale_high), floats(min_low, min_high)


def _scaled_mins(b: ir.IRBuilder, p: Value) -> tuple[list[Value], Value]:
    """Scales and offsets of q4_k and q5_k, whose blocks begin alike: d, dmin, 12 bytes."""
    scales, mins = _six_bit_scales(b, at(b, p, 4))
    scales = b.fmul(scales, splat(b, half(b, p), 8))
    mins = b.fmul(mins, splat(b, b.fneg(half(b, at(b, p, 2))), 8))
    spread = [shuffle(b, scales, [2 * j] * 8 + [2 * j + 1] * 8) for j in range(4)]
    return spread, shuffle(b, mins, [g // 2 for g in range(16)])


def q4_k(b: ir.IRBuilder, p: Value) -> Superblock:
    """144 bytes: d, dmin, 12 bytes of scales, 4 chunks of 32 low then 32 high nibbles."""
    spread, offsets = _scaled_mins(b, p)
    weights = []
    for j in range(4):
        q = load(b, at(b, p, 16 + 32 * j), V32B)
        weights.append(_join(b, b.and_(q, const(V32B, 15)), b.lshr(q, const(V32B, 4))))
    return weights, spread, offsets


def q5_k(b: ir.IRBuilder, p: Value) -> Superblock:
    """176 bytes: as q4_k, with a fifth bit of each value in 32 bytes before the nibbles."""
    spread, offsets = _scaled_mins(b, p)
    bits = load(b, at(b, p, 16), V32B)
    weights = []
    for j in range(4):
        q = load(b, at(b, p, 48 + 32 * j), V32B)
        halves = []
        for k, nibble in enumerate((b.and_(q, const(V32B, 15)), b.lshr(q, const(V32B, 4)))):
            bit = b.and_(b.lshr(bits, const(V32B, 2 * j + k)), const(V32B, 1))
            halves.append(b.or_(nibble, b.shl(bit, const(V32B, 4))))
        weights.append(_join(b, *halves))
    return weights, spread, offsets


def q6_k(b: ir.IRBuilder, p: Value) -> Superblock:
    """210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 int8 scales, d. Values are q - 32."""
    weights = []
    for h in range(2):
        low = load(b, at(b, p, 64 * h), V64B)
        high = load(b, at(b, p, 128 + 32 * h), V32B)
        pairs = [b.lshr(high, const(V32B, 2 * k)) for k in range(4)]
        nibbles = (b.and_(low, const(V64B, 15)), b.lshr(low, const(V64B, 4)))
        for k, nibble in enumerate(nibbles):
            top = b.and_(_join(b, pairs[2 * k], pairs[2 * k + 1]), const(V64B, 3))
            weights.append(b.or_(nibble, b.shl(top, const(V64B, 4))))
    scales = b.sitofp(load(b, at(b, p, 192), ir.VectorType(I8, 16)), V16F)
    scales = b.fmul(scales, splat(b, half(b, at(b, p, 208))))
    spread = [shuffle(b, scales, [4 * j + lane // 4 for lane in range(16)]) for j in range(4)]
    return weights, spread, b.fmul(scales, const(V16F, -32.0))


def q8_0(b: ir.IRBuilder, p: Value) -> Superblock:
    """Eight blocks of 34 bytes: d and 32 int8. Values are stored + 128 - 128 to be unsigned."""
    weights, spread, offsets = [], [], None
    for j in range(4):
        q = [load(b, at(b, p, 34 * (2 * j + k) + 2), V32B) for k in range(2)]
        weights.append(b.xor(_join(b, *q), const(V64B, 0x80)))
        d = [splat(b, half(b, at(b, p, 34 * (2 * j + k))), 8) for k in range(2)]
        spread.append(_join(b, *d))
        quarter = shuffle(b, spread[-1], [0, 0, 8, 8])
        offsets = quarter if offsets is None else _join_uneven(b, offsets, quarter)
    return weights, spread, b.fmul(offsets, const(V16F, -128.0))


def _join_uneven(b: ir.IRBuilder, left: Value, right: Value) -> Value:
    """Append a 4-lane vector to a longer one."""
    n = left.type.count
    padded = shuffle(b, right, [0, 1, 2, 3] + [3] * (n - 4))
    return shuffle(b, left, list(range(n)) + [n + i for i in range(4)], padded)


READERS: dict[str, tuple[Reader, int]] = {  # format -> (reader, bytes a superblock)
    "q4_k": (q4_k, 144),
    "q5_k": (q5_k, 176),
    "q6_k": (q6_k, 210),
    "q8_0": (q8_0, 272),
}

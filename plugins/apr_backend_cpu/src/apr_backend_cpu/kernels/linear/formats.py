"""How a superblock of 256 weights of each packed format reads, as vector IR.

Block layouts are GGML's (ggml-common.h: block_q4_K, block_q5_K, block_q6_K, block_q8_0). A code
function gives the v-th of four vectors of 64 unsigned bytes, each two runs of 32 neighbours, in
whatever order costs least; `runs` says which. What a code is worth:

    q4_k, q5_k   d * scale[g] * code - dmin * min[g]   g: 32 values, both 6-bit integers
    q6_k         d * scale[g] * (code - 32)            g: 16 values, int8
    q8_0         d[g] * (code - 128)                   g: 32 values, float16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from apr_backend_cpu.kernels.source import Builder
from apr_backend_cpu.kernels.vector.ir import I8, I16, I32, V64B, Value, at, const, load, shuffle

V32B = ir.VectorType(I8, 32)
V8I = ir.VectorType(I32, 8)
V32H = ir.VectorType(I16, 32)
Code = Callable[[Builder, Value, int], Value]


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed format: bytes a superblock, bits a code, how to read codes, their runs of 32."""

    name: str
    nbytes: int
    bits: int
    code: Code
    runs: tuple[tuple[int, int], ...]


def join(b: Builder, low: Value, high: Value) -> Value:
    """Two vectors, one after the other."""
    return shuffle(b, low, list(range(2 * low.type.count)), high)


def nibble(b: Builder, packed: Value, high: int) -> Value:
    """The low or the high four bits of each byte."""
    return b.lshr(packed, const(V64B, 4)) if high else b.and_(packed, const(V64B, 15))


def six_bit(b: Builder, s0: Value, s1: Value, s2: Value) -> tuple[list[Value], list[Value]]:
    """8 scales and 8 mins from the 12 bytes of q4_k and q5_k, as two words of 4 bytes each.

    The three words may be vectors: one lane a weight row.
    """
    c = lambda v: const(s0.type, v)  # noqa: E731
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


def _q4_k(b: Builder, p: Value, v: int) -> Value:
    """144 bytes: d, dmin, 12 bytes of scales, 4 chunks of 32 low then 32 high nibbles."""
    return nibble(b, load(b, at(b, p, 16 + v // 2 * 64), V64B), v % 2)


def _q5_k(b: Builder, p: Value, v: int) -> Value:
    """176 bytes: as q4_k, with a fifth bit of each value in 32 bytes before the nibbles."""
    half = load(b, at(b, p, 16), V32B)
    bit = v // 2 * 4 + v % 2
    mask = ir.Constant(V64B, [1 << bit] * 32 + [1 << bit + 2] * 32)
    is_set = b.icmp_unsigned("!=", b.and_(join(b, half, half), mask), const(V64B, 0))
    low = nibble(b, load(b, at(b, p, 48 + v // 2 * 64), V64B), v % 2)
    return b.or_(low, b.select(is_set, const(V64B, 16), const(V64B, 0)))


def _q6_k(b: Builder, p: Value, v: int) -> Value:
    """210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 int8 scales, d."""
    half = load(b, at(b, p, 128 + v // 2 * 32), V32B)
    pairs = b.bitcast(join(b, half, half), V32H)  # shifted as 16 bits: bytes cannot be
    shift = ir.Constant(V32H, [0 if v % 2 else 4] * 16 + [2] * 16)
    top = b.bitcast(b.lshr(pairs, shift) if v % 2 else b.shl(pairs, shift), V64B)
    low = nibble(b, load(b, at(b, p, v // 2 * 64), V64B), v % 2)
    return b.or_(low, b.and_(top, const(V64B, 0x30)))


def _q8_0(b: Builder, p: Value, v: int) -> Value:
    """Eight blocks of 34 bytes: d and 32 int8, which are made unsigned by adding 128."""
    halves = [load(b, at(b, p, 34 * (2 * v + k) + 2), V32B) for k in range(2)]
    return b.xor(join(b, *halves), const(V64B, 0x80))


NATURAL = ((0, 1), (2, 3), (4, 5), (6, 7))
BY_NIBBLE = ((0, 2), (1, 3), (4, 6), (5, 7))  # 64 bytes of low nibbles are two chunks' first halves

FORMATS = {
    f.name: f
    for f in (
        Packed("q4_k", 144, 4, _q4_k, BY_NIBBLE),
        Packed("q5_k", 176, 5, _q5_k, BY_NIBBLE),
        Packed("q6_k", 210, 6, _q6_k, NATURAL),
        Packed("q8_0", 272, 8, _q8_0, NATURAL),
    )
}

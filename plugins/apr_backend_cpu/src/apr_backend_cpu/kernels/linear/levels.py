"""Codes of declared layouts: numbers of 4 or 5 bits, or levels, which are unsigned bytes.

`b.levels` is a layout's table of levels, 64 bytes. See `layouts`.
"""

from __future__ import annotations

from functools import partial

from llvmlite import ir

from apr_backend_cpu.kernels.linear.packed import (
    V32B,
    Chunk,
    bytes_of,
    columns8,
    lazy,
    nibble,
    packed_columns,
    words,
)
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I8, I16, I32, I64, Value, const, vector_of
from apr_backend_cpu.kernels.vector.rows import Rows, number

V8I = vector_of(I32, 8)

# shuffles of bytes within 16, by register size in bytes
SHUFFLES = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}


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


def codes4(b: Builder, p: Value, r: int) -> Value:
    """Read 16 bytes: low nibbles, then high ones."""
    words = b.bitcast(b.shuffle(b.read(p, vector_of(I8, 16)), [*range(16)] * 2), V8I)
    moved = b.lshr(words, ir.Constant(V8I, [0] * 4 + [4] * 4))
    return b.and_(b.bitcast(moved, V32B), const(V32B, 15))


def codes5(b: Builder, p: Value, r: Value) -> Value:
    """Read 16 bytes of nibbles and, r bytes further on, 32 fifth bits."""
    fifth = b.bitcast(b.read(b.add(p, r), I32), vector_of(ir.IntType(1), 32))
    return _with_fifth(b, codes4(b, p, 0), fifth)


def levels4(b: Builder, p: Value, r: int) -> Value:
    """Read what `codes4` reads."""
    return look_up(b, codes4(b, p, r))


def _with_fifth(b: Builder, low: Value, fifth: Value) -> Value:
    """Return codes from their low four bits and whether the fifth is set."""
    return b.or_(low, b.select(fifth, const(low.type, 16), const(low.type, 0)))


def four_codes4(b: Builder, places: list[tuple[Value, Value]]) -> tuple[Value, Value]:
    """Read four blocks' nibbles: all low ones, then all high ones."""
    packed = b.joined([b.read(p, vector_of(I8, 16)) for p, _ in places])
    return nibble(b, packed, 0), nibble(b, packed, 1)


def four_levels4(b: Builder, places: list[tuple[Value, Value]]) -> tuple[Value, Value]:
    """Read what `four_codes4` reads."""
    low, high = four_codes4(b, places)
    return look_up(b, low), look_up(b, high)


def four_codes5(b: Builder, places: list[tuple[Value, Value]]) -> tuple[Value, Value]:
    """Read four blocks' nibbles and fifth bits: first halves, then second ones."""
    halves = []
    for half, low in enumerate(four_codes4(b, places)):
        fifth = number(0)
        for k, (p, r) in enumerate(places):
            some = b.zext(b.read(b.at(b.add(p, r), 2 * half), I16), I64)
            fifth = b.or_(fifth, b.shl(some, number(16 * k)))
        halves.append(_with_fifth(b, low, b.bitcast(fifth, vector_of(ir.IntType(1), 64))))
    return halves[0], halves[1]


def levels8(b: Builder, p: Value, r: int) -> Value:
    """Read 32 bytes."""
    return b.add(b.read(p, V32B), b.shuffle(b.levels, list(range(32))))


def chunk_codes4(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    """Read 16 bytes of every row."""
    columns = [bytes_of(b, c) for c in packed_columns(b, rows(b), 0)]
    return [(number(0), [partial(nibble, b, c, h) for h in (0, 1) for c in columns])]


def chunk_levels4(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    """Read what `chunk_codes4` reads."""
    ((run, codes),) = chunk_codes4(b, rows, workspace, j)
    return [(run, [partial(lambda code: look_up(b, code()), code) for code in codes])]


def chunk_codes5(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    """Read 16 bytes of every row and, j bytes further on, its 32 fifth bits."""
    here = rows(b)
    columns = [bytes_of(b, c) for c in packed_columns(b, here, 0)]
    fifths = bytes_of(b, words(b, [b.add(p, j) for p in here]))

    def code(c: int, h: int) -> Value:
        low, k = nibble(b, columns[c], h), 4 * h + c  # values 4 k to 4 k + 3 of each row
        lanes = [4 * (lane // 4) + k // 2 for lane in range(low.type.count)]
        bits = ir.Constant(low.type, [1 << k % 2 * 4 + lane % 4 for lane in range(len(lanes))])
        fifth = b.and_(b.shuffle(fifths, lanes), bits)
        return _with_fifth(b, low, b.icmp_unsigned("!=", fifth, const(low.type, 0)))

    return [(number(0), [partial(code, c, h) for h in (0, 1) for c in range(4)])]


def chunk_levels8(b: Builder, rows: Rows, workspace: Value, j: Value) -> Chunk:
    """Read 32 bytes of every row."""
    columns = [bytes_of(b, c) for c in columns8(b, rows, number(0), 0)]
    wide = b.shuffle(b.levels, list(range(b.level.vector)))
    return [(number(0), lazy(lambda c: b.add(c, wide), columns))]

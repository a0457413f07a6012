"""The kernel for declared layouts: `scale * level + minimum` over groups (apr_core.layouts).

Blocks are unpacked into tiles as the built-in formats are, and multiplied as q8_0 is: unsigned
bytes, 128 too large, with a float32 scale for each 32 values. Levels are therefore 8-bit integers:
exact for integers, rounded for a codebook (by at most 1 / 254 of its largest level). Scales are
read once, at first use, into float32 [tiles, groups, 16 rows].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from apr_backend_cpu.formats import V32B, join, nibble
from apr_backend_cpu.lanes import transpose
from apr_backend_cpu.unpack import AT_MINIMA, AT_SCALES, TILE_RECORD, VECTOR
from apr_backend_cpu.vector_ir import (
    DOT_MODE,
    I8,
    I64,
    LANES,
    V16F,
    V16I,
    V64B,
    Value,
    advance,
    at,
    const,
    count_loop,
    intrinsic_call,
    load,
    prefetch,
    shuffle,
    splat,
    store,
)
from apr_core.layouts import levels, products

RUN = 32
LARGEST = 127
V16B = ir.VectorType(I8, 16)
# a row of parameters, uint64: see `Layout16`
BLOCK, BLOCK_BYTES, CODES_AT, TABLE, SCALES, MINIMA, GROUP, TILE_BYTES = range(8)


def _lookup(b: ir.IRBuilder, table: Value, codes: Value) -> Value:
    """table[code] for 64 codes below 16."""
    wide = shuffle(b, table, list(range(16)) * 4)
    if DOT_MODE == "vnni":
        return intrinsic_call(b, "llvm.x86.avx512.pshuf.b.512", V64B, wide, codes)
    if DOT_MODE == "avx2":
        halves = [
            intrinsic_call(
                b, "llvm.x86.avx2.pshuf.b", V32B,
                *(shuffle(b, v, list(range(start, start + 32))) for v in (wide, codes)),
            )
            for start in (0, 32)
        ]  # fmt: skip
        return join(b, *halves)
    result = const(V64B, 0)
    for code in range(16):
        level = splat(b, b.extract_element(table, ir.Constant(I64, code)), 64)
        result = b.select(b.icmp_unsigned("==", codes, const(V64B, code)), level, result)
    return result


def _four_bit(b: ir.IRBuilder, runs: list[Value], order: str) -> Value:
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


def make_unpack(bits: int, order: str) -> Any:
    """An intrinsic: 16 rows, bytes a row, tile, superblocks, what is read next, parameters.

    All are addresses or counts; `scales` and `minima` of the parameters are those of this tile.
    """

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        wp, row_bytes, tile, n, ahead, params = args
        get = lambda i: load(b, at(b, params, 8 * i), I64)  # noqa: E731
        block, block_bytes, codes_at, table_at = (get(i) for i in range(4))
        scales, minima, group = (get(i) for i in (SCALES, MINIMA, GROUP))
        table = load(b, table_at, V16B)
        rows = [advance(b, wp, ir.Constant(I64, r), row_bytes) for r in range(LANES)]

        def code_offset(value: Value) -> Value:
            """Bytes from a row's start to the codes of a run."""
            number, inside = b.udiv(value, block), b.urem(value, block)
            inside = b.lshr(inside, ir.Constant(I64, 1)) if bits == 4 else inside
            return b.add(b.add(b.mul(number, block_bytes), codes_at), inside)

        def body(i: Value, values: list[Value]) -> list[Value]:
            out = advance(b, tile, i, TILE_RECORD)
            first = b.mul(i, ir.Constant(I64, 256))
            start = code_offset(first)
            prefetch(b, advance(b, b.add(ahead, start), ir.Constant(I64, 0), 1), 64)
            for v in range(4):
                two = [
                    code_offset(b.add(first, ir.Constant(I64, 64 * v + RUN * k))) for k in range(2)
                ]
                words = []
                for p in rows:
                    runs = [b.add(p, offset) for offset in two]
                    if bits == 4:
                        codes = _lookup(b, table, _four_bit(b, runs, order))
                    else:
                        addend = splat(b, b.extract_element(table, ir.Constant(I64, 0)), 64)
                        codes = b.add(join(b, *(load(b, r, V32B) for r in runs)), addend)
                    words.append(b.bitcast(codes, V16I))
                for c, column in enumerate(transpose(b, words)):
                    store(b, column, at(b, out, VECTOR * (16 * v + c)))
            for g in range(8):
                number = b.udiv(b.add(first, ir.Constant(I64, RUN * g)), group)
                for source, target in ((scales, AT_SCALES), (minima, AT_MINIMA)):
                    vector = load(b, advance(b, source, number, VECTOR), V16F)
                    store(b, vector, at(b, out, target + VECTOR * g))
            return values

        count_loop(b, n, [], body)
        return context.get_dummy_value()

    @intrinsic
    def unpack(
        typing: Any, wp: Any, row_bytes: Any, tile: Any, n: Any, ahead: Any, params: Any
    ) -> Any:
        return types.void(*[types.uintp] * 6), codegen

    return unpack


unpack_pairs, unpack_halves = make_unpack(4, "pairs"), make_unpack(4, "halves")
unpack_bytes = make_unpack(8, "pairs")


class Layout16:
    """What the kernel has to know of one weight; `params` uint64 [8] as above."""

    def __init__(self, w: Any) -> None:
        spec = w.layout
        layout, self.block, self.nbytes = spec.layout, spec.block, spec.nbytes
        self.kind = "bytes" if layout.bits == 8 else layout.order
        raw = w.data.reshape(w.rows, -1, spec.nbytes)
        self._table, unit, added = _table(layout)
        scales = products(layout.scale, layout, raw, spec.block) * unit
        lows = scales * np.float32(added)
        if layout.minimum:
            lows = lows + products(layout.minimum, layout, raw, spec.block)
        self._scales = _by_tile(scales)
        self._minima = _by_tile(lows * np.float32(-1 / 128))  # the kernel has sums times -128
        self.params = np.array(
            [
                spec.block, spec.nbytes, layout.codes, self._table.ctypes.data,
                self._scales.ctypes.data, self._minima.ctypes.data, layout.group,
                self._scales.strides[0],
            ],
            np.uint64,
        )  # fmt: skip


def _table(layout: Any) -> tuple[NDArray[np.uint8], np.float32, int]:
    """Levels as bytes, 128 too large; what a byte's step is worth; steps to add to each value."""
    values = levels(layout).astype(np.float64)
    if layout.bits == 8:  # the byte itself, 128 added where it is signed
        added = 0 if layout.signed else 128
        return np.full(16, 128 - added, np.uint8), np.float32(1), added - layout.zero
    if not layout.codebook:
        return (np.arange(16) + 128).astype(np.uint8), np.float32(1), -layout.zero
    top = np.abs(values).max()
    steps = np.arange(64, LARGEST + 1) / top  # the step that fits the levels best
    errors = [np.abs(np.rint(values * s) / s - values).max() for s in steps]
    best = steps[int(np.argmin(errors))]
    return (np.rint(values * best) + 128).astype(np.uint8), np.float32(1 / best), 0


def _by_tile(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """[rows, groups] -> [tiles, groups, 16], zeros where rows end."""
    rows, groups = numbers.shape
    padded = np.zeros((-(-rows // LANES) * LANES, groups), np.float32)
    padded[:rows] = numbers
    return np.ascontiguousarray(padded.reshape(-1, LANES, groups).swapaxes(1, 2))

"""16 weight rows unpacked into a tile for `matmul`: lanes are rows.

A tile is a record of 6,272 bytes a superblock. Codes are unsigned bytes [64][16 rows][4 values];
after them stands what the kind of format needs, every vector a lane a row:

    affine (q4_k, q5_k)  scales int32 [8], minima int16 [4][2], d, -dmin float32
    signed (q6_k)        scales int32 [16], d float32
    blocks (q8_0)        d float32 [8]
    layouts (generic)    scales float32 [8], minima over -128 float32 [8]
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import LANES, TILE_RECORD, VECTOR
from apr_backend_cpu.kernels.linear.formats import FORMATS, six_bit
from apr_backend_cpu.kernels.linear.one_row import byte, byte_pairs, halves, low_half
from apr_backend_cpu.kernels.source import Builder, vector
from apr_backend_cpu.kernels.vector.ir import (
    I32,
    V16I,
    Value,
    advance,
    at,
    const,
    count_loop,
    load,
    prefetch,
    store,
)
from apr_backend_cpu.kernels.vector.lanes import columns4, transpose

AT_SCALES, AT_PAIRS, AT_D, AT_DMIN = 4096, 5120, 5632, 5696
AT_MINIMA = AT_PAIRS
V4I = ir.VectorType(I32, 4)


def _raw(b: Builder, rows: list[Value], offset: int) -> list[Value]:
    """64 bytes of every row, transposed: 16 vectors of 4 bytes a row."""
    return transpose(b, [load(b, at(b, p, offset), V16I) for p in rows])


def _store_run(b: Builder, out: Value, run: int, columns: list[Value]) -> None:
    """8 vectors of codes: 32 values of each row, the run-th of the superblock."""
    for c, column in enumerate(columns):
        store(b, column, at(b, out, VECTOR * (8 * run + c)))


def _low(b: Builder, column: Value) -> Value:
    return b.and_(column, const(V16I, 0x0F0F0F0F))


def _high(b: Builder, column: Value) -> Value:
    return _low(b, b.lshr(column, const(V16I, 4)))


def _bits(b: Builder, column: Value, first: int, mask: int) -> Value:
    """Bits of every byte from `first` on, moved to bit 4; `mask` says which stay."""
    distance = const(V16I, abs(first - 4))
    moved = b.shl(column, distance) if first < 4 else b.lshr(column, distance)
    return b.and_(moved, const(V16I, mask * 0x01010101))


def _codes_q4_k(b: Builder, rows: list[Value], out: Value) -> None:
    for h in range(2):
        raw = _raw(b, rows, 16 + 64 * h)
        for k in range(2):
            chunk = raw[8 * k : 8 * k + 8]
            _store_run(b, out, 4 * h + 2 * k, [_low(b, c) for c in chunk])
            _store_run(b, out, 4 * h + 2 * k + 1, [_high(b, c) for c in chunk])


def _codes_q5_k(b: Builder, rows: list[Value], out: Value) -> None:
    first = _raw(b, rows, 16)
    fifth = first[:8]
    middle: list[Value] = []
    for j in range(4):
        if j == 1:
            middle = _raw(b, rows, 80)
        chunk = (first[8:], middle[:8], middle[8:])[j] if j < 3 else _raw(b, rows, 112)[8:]
        for k, half in enumerate((_low, _high)):
            codes = [
                b.or_(half(b, c), _bits(b, f, 2 * j + k, 0x10))
                for c, f in zip(chunk, fifth, strict=True)
            ]
            _store_run(b, out, 2 * j + k, codes)


def _codes_q6_k(b: Builder, rows: list[Value], out: Value) -> None:
    tops = _raw(b, rows, 128)
    for h in range(2):
        raw, top = _raw(b, rows, 64 * h), tops[8 * h : 8 * h + 8]
        for k in range(4):  # 32 values each: two of low nibbles, two of high ones
            half, chunk = (_low, _high)[k // 2], raw[8 * (k % 2) : 8 * (k % 2) + 8]
            codes = [
                b.or_(half(b, c), _bits(b, t, 2 * k, 0x30)) for c, t in zip(chunk, top, strict=True)
            ]
            _store_run(b, out, 4 * h + k, codes)


def _codes_q8_0(b: Builder, rows: list[Value], out: Value) -> None:
    packed = FORMATS["q8_0"]
    for v in range(4):
        columns = transpose(b, [b.bitcast(packed.code(b, p, v), V16I) for p in rows])
        _store_run(b, out, 2 * v, columns)


def _affine(b: Builder, rows: list[Value], out: Value) -> None:
    ds, *words = columns4(b, [load(b, p, V4I) for p in rows])
    scales, mins = six_bit(b, *words)
    for g in range(8):
        store(b, byte(b, scales, g), at(b, out, AT_SCALES + VECTOR * g))
    for g, pair in enumerate(byte_pairs(b, mins)):
        store(b, pair, at(b, out, AT_PAIRS + VECTOR * g))
    store(b, low_half(b, ds), at(b, out, AT_D))
    dmin = low_half(b, b.lshr(ds, const(V16I, 16)))
    store(b, b.fneg(dmin), at(b, out, AT_DMIN))


def _signed(b: Builder, rows: list[Value], out: Value) -> None:
    words = columns4(b, [load(b, at(b, p, 192), V4I) for p in rows])
    c = lambda v: const(V16I, v)  # noqa: E731
    scales = [b.ashr(b.shl(words[g // 4], c(24 - g % 4 * 8)), c(24)) for g in range(16)]
    for g, scale in enumerate(scales):
        store(b, scale, at(b, out, AT_SCALES + VECTOR * g))
    store(b, halves(b, [at(b, p, 208) for p in rows]), at(b, out, AT_D))


def _blocks(b: Builder, rows: list[Value], out: Value) -> None:
    for g in range(8):
        d = halves(b, [at(b, p, 34 * g) for p in rows])
        store(b, d, at(b, out, AT_SCALES + VECTOR * g))


PARTS: dict[str, Any] = {
    "q4_k": (_codes_q4_k, _affine),
    "q5_k": (_codes_q5_k, _affine),
    "q6_k": (_codes_q6_k, _signed),
    "q8_0": (_codes_q8_0, _blocks),
}


def make_unpack(name: str, format: str) -> Any:
    """An intrinsic: address of 16 rows, bytes a row, address of the tile, superblocks."""
    nbytes, (codes, scales) = FORMATS[format].nbytes, PARTS[format]

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, tile, n = args
        rows = [advance(b, wp, ir.Constant(row_bytes.type, r), row_bytes) for r in range(LANES)]
        following = advance(b, wp, ir.Constant(row_bytes.type, LANES), row_bytes)

        def body(i: Value, values: list[Value]) -> list[Value]:
            prefetch(b, advance(b, following, i, LANES * nbytes), LANES * nbytes)
            here = [advance(b, p, i, nbytes) for p in rows]
            out = advance(b, tile, i, TILE_RECORD)
            codes(b, here, out)
            scales(b, here, out)
            return values

        count_loop(b, n, [], body)

    return vector(name, "pppp", emit)


for _format in FORMATS:
    make_unpack(f"unpack_{_format}", _format)

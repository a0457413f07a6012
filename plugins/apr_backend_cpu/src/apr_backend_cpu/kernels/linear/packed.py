"""Bytes of packed weights in vectors: nibbles, columns across rows, numbers one row a lane."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I8, I16, I32, Value, const, vector_of
from apr_backend_cpu.kernels.vector.lanes import columns4
from apr_backend_cpu.kernels.vector.rows import Rows, Values

V32B, V4I = ir.VectorType(I8, 32), ir.VectorType(I32, 4)
# Functions that make a vector on demand, as registers are few: 8 for the codes of 32 values.
Codes = list[Callable[[], Value]]
Chunk = list[tuple[Value, Codes]]  # number of a run, and its codes


def nibble(b: Builder, packed: Value, high: int) -> Value:
    """Return the low or the high four bits of each byte."""
    return b.lshr(packed, const(packed.type, 4)) if high else b.and_(packed, const(packed.type, 15))


def packed_columns(b: Builder, rows: Values, offset: int) -> Values:
    """Return 16 bytes of every row, transposed: 4 vectors of 4 bytes per row."""
    return columns4(b, [b.read(b.at(p, offset), V4I) for p in rows])


def columns8(b: Builder, rows: Rows, j: Value, offset: int) -> Values:
    """Return 32 bytes of every row, from j * 32 + offset on."""
    here = rows.advance(b, j, 32)(b)
    return packed_columns(b, here, offset) + packed_columns(b, here, offset + 16)


def nibbles(b: Builder, column: Value, high: int) -> Value:
    """Return the low or the high four bits of each byte of words."""
    moved = b.lshr(column, const(column.type, 4)) if high else column
    return b.and_(moved, const(column.type, 0x0F0F0F0F))


def bytes_of(b: Builder, column: Value) -> Value:
    """Return words as bytes."""
    return b.bitcast(column, vector_of(I8, 4 * column.type.count))


def lazy(function: Callable[[Value], Value], columns: Values) -> Codes:
    """Return functions that make `function(column)` on demand."""
    return [partial(function, column) for column in columns]


def halves(b: Builder, addresses: Values) -> Value:
    """Load a float16 at each address as float32, one per lane."""
    bits = ir.Constant(vector_of(I16, len(addresses)), ir.Undefined)
    for r, address in enumerate(addresses):
        bits = b.insert_element(bits, b.read(address, I16), ir.Constant(I32, r))
    return b.from_half(bits)


def words(b: Builder, addresses: Values) -> Value:
    """Load four bytes at each address, one word per lane."""
    loaded = ir.Constant(vector_of(I32, len(addresses)), ir.Undefined)
    for r, address in enumerate(addresses):
        loaded = b.insert_element(loaded, b.read(address, I32), ir.Constant(I32, r))
    return loaded

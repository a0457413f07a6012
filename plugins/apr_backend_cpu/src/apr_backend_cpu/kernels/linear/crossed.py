"""Dot products of int16 with half as many multiplications (Winograd, 1968).

Four products of codes a and activations x are two products of sums, less terms of only the codes
and only the activations:

    a0 x0 + a1 x1 + a2 x2 + a3 x3
        = (a0 + x2) (a2 + x0) + (a1 + x3) (a3 + x1) - (a0 a2 + a1 a3) - (x0 x2 + x1 x3).

For integers this is exact. Processors can add on more ports than they can multiply on, so it is
faster where no instruction adds up products. The subtracted terms are called cross sums here.

Sums start at the bits of the float32 ROUND, less the codes' cross sum. So they end as the bits of a
float32: ROUND plus the rest of the sum. One subtraction removes ROUND and the activations' cross
sum, exactly, as all these integers are below 2^22.
"""

from __future__ import annotations

from apr_backend_cpu.constants import AT_CROSS, AT_Q16, GROUP, SUPERBLOCK
from apr_backend_cpu.kernels.linear.packed import Codes
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, I16, I32, ROUND_BITS, Value, const, vector_of
from apr_backend_cpu.kernels.vector.lanes import across
from apr_backend_cpu.kernels.vector.rows import Rows, Values


def start_of(b: Builder, columns: Values) -> Value:
    """Return the start of sums with 32 codes of each row: 16 vectors of int16 pairs -> int32."""
    total = const(vector_of(I32, b.lanes), ROUND_BITS)
    for first, second in zip(columns[::2], columns[1::2], strict=True):
        total = b.sub(total, b.add_pairs(first, second))
    return total


def write_cross_sums(b: Builder, record: Value) -> None:
    """Write the cross sums of a record's 8 runs, plus ROUND, into it as float32."""
    dots, kind = [], vector_of(I16, GROUP)
    swapped = [lane ^ 2 for lane in range(GROUP)]
    for run in range(SUPERBLOCK // GROUP):
        x = b.read(b.at(record, AT_Q16 + 2 * GROUP * run), kind)
        dots.append(b.add_pairs(x, b.shuffle(x, swapped)))
    twice = across(b, dots)
    bits = b.add(b.ashr(twice, const(twice.type, 1)), const(twice.type, ROUND_BITS))
    b.write(bits, b.at(record, AT_CROSS))


def crossed_dots(
    b: Builder, codes: list[Codes], starts: Values | None, xs: Rows, g: Value
) -> list[Values]:
    """Return dot products of wide codes with run g of each row of activations, as float32.

    Codes are one or two registers of rows; `starts` are the starting values of sums, if known.
    """
    at_x, at_cross = xs.advance(b, g, 64)(b), xs.advance(b, g, 4)(b)
    starts = starts or [start_of(b, [make() for make in c]) for c in codes]
    totals = [list(starts) for _ in at_x]
    for c in range(0, len(codes[0]), 2):
        columns = [(some[c](), some[c + 1]()) for some in codes]
        for mine, x in zip(totals, at_x, strict=True):
            kind = columns[0][0].type
            low, high = (b.bitcast(b.word(x, AT_Q16 + 4 * k), kind) for k in (c, c + 1))
            for k, (first, second) in enumerate(columns):
                dots = b.add_pairs(b.add(first, high), b.add(second, low))
                mine[k] = b.in_order(b.add(mine[k], dots))
    kind = vector_of(F32, b.lanes)
    crosses = [b.splat(b.read(b.at(p, AT_CROSS), F32), b.lanes) for p in at_cross]
    return [
        [b.fsub(b.bitcast(total, kind), cross) for total in mine]
        for mine, cross in zip(totals, crosses, strict=True)
    ]

"""Declared layouts: `scale * level + minimum` over groups (apr_core.ops.layouts).

Codes of 4 or 5 bits that are numbers are multiplied as they are. Others become levels, unsigned
bytes offset by 128: exact for integers, rounded for a codebook (by at most 1 / 254 of its largest
level). Products are then those of q8_0, with a float32 scale for each 32 values. This module adds
what they need: the numbers of a tile expanded to a scale for each 32 values of a row, and
activations in the order of the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from apr_backend_cpu.constants import AT_CROSS, AT_Q, AT_Q16, LANES, RECORD, VECTOR
from apr_backend_cpu.kernels.linear.activations import row_of_records
from apr_backend_cpu.kernels.linear.crossed import write_cross_sums
from apr_backend_cpu.kernels.source import helper, kernel, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I8, I16, I64, V16F, V64B, Value
from apr_backend_cpu.kernels.vector.memory import U, ints_at, words_at
from apr_backend_cpu.layout_constants import (
    AT_FACTORS,
    AT_NUMBERS,
    BLOCK_STEP,
    BLOCKS,
    COLUMNS_OF_NUMBERS,
    FACTORS_STEP,
    GROUPS,
    HALF,
    IN_PLACE,
    NUMBER_KIND,
    NUMBERS,
    PARAMETERS,
    RUNS,
    SIGNED,
    SINGLE,
    TILE_STEP,
    UNSIGNED,
)

V16B = ir.VectorType(I8, 16)
STORED = {UNSIGNED: V16B, SIGNED: V16B, HALF: ir.VectorType(I16, LANES), SINGLE: V16F}
WIDTH = {UNSIGNED: LANES, SIGNED: LANES, HALF: 2 * LANES, SINGLE: 4 * LANES}  # bytes of 16 numbers


def _number(b: Builder, kind: int, address: Value) -> Value:
    """Load 16 numbers as float32."""
    value = b.read(address, STORED[kind])
    if kind == UNSIGNED:
        return b.uitofp(value, V16F)
    if kind == SIGNED:
        return b.sitofp(value, V16F)
    return b.from_half(value) if kind == HALF else value


def _expand_block(
    b: Builder,
    kind: int,
    runs: int | Value,
    groups: Value,
    factor: Value,
    source: Value,
    ahead: Value,
    out: Value,
) -> None:
    """Repeat each number of a block for every run of its group. No loop for constant runs."""
    width = WIDTH[kind]
    count = ir.Constant(I64, runs) if isinstance(runs, int) else runs
    a_group = b.mul(count, ir.Constant(I64, VECTOR))

    def group(g: Value, values: list[Value]) -> list[Value]:
        address = b.advance(source, g, width)
        b.prefetch(b.add(address, ahead), 1)
        scale, here = b.fmul(_number(b, kind, address), factor), b.advance(out, g, a_group)

        def run(r: Value, values: list[Value]) -> list[Value]:
            b.write(scale, b.advance(here, r, VECTOR))
            return values

        if isinstance(runs, int):
            for r in range(runs):
                b.write(scale, b.at(here, VECTOR * r))
            return values
        return b.count_loop(count, values, run)

    b.count_loop(groups, [], group)


def _expand(b: Builder, args: tuple[Value, ...]) -> None:
    """Write the numbers of a tile times their block's: float32 [runs of 32][16 rows] at `out`.

    Arguments: address of the columns of NUMBERS, tile, blocks per row, groups per block, runs per
    group.
    """
    columns, tile, blocks, groups, runs, out = args
    get = lambda i: b.read(b.at(columns, 8 * i), I64)
    numbers = b.advance(get(AT_NUMBERS), tile, get(TILE_STEP))
    factors = b.advance(get(AT_FACTORS), tile, get(FACTORS_STEP))
    ahead, ahead_factors, step = get(TILE_STEP), get(FACTORS_STEP), get(BLOCK_STEP)
    a_block = b.mul(groups, b.mul(runs, ir.Constant(I64, VECTOR)))

    def expand(kind: int, known: int) -> None:
        a_source = b.mul(groups, ir.Constant(I64, WIDTH[kind]))

        def block(i: Value, values: list[Value]) -> list[Value]:
            address = b.advance(factors, i, step)
            b.prefetch(b.add(address, ahead_factors), 1)
            source, target = b.advance(numbers, i, a_source), b.advance(out, i, a_block)
            _expand_block(
                b, kind, known or runs, groups, b.read(address, V16F), source, ahead, target
            )
            return values

        b.count_loop(blocks, [], block)

    for kind in STORED:
        with b.if_then(b.icmp_unsigned("==", get(NUMBER_KIND), ir.Constant(I64, kind))):
            _by_count(b, runs, (1, 2, 4), partial(expand, kind))


expand = vector("expand_numbers", "pppppp", _expand)


def _by_count(
    b: Builder, count: Value, known: tuple[int, ...], body: Callable[[int], None]
) -> None:
    """Build body(count) where the count is a known one, else body(0)."""
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
def expand_numbers(params, tile, workspace):
    """Expand the scales and any minima of a tile: float32 [runs][16] each; not those in place.

    `params` is the address of the weight's parameters. Returns the address of the minima, or 0.
    """
    words = words_at(params, PARAMETERS)
    blocks, groups, runs = words[BLOCKS], words[GROUPS], words[RUNS]
    columns = params + U(8 * NUMBERS)
    if words_at(columns, NUMBER_KIND + 1)[NUMBER_KIND] == U(IN_PLACE):
        return U(0)
    expand(columns, tile, blocks, groups, runs, workspace)
    columns += U(8 * COLUMNS_OF_NUMBERS)
    if words_at(columns, 1)[AT_NUMBERS] == U(0):
        return U(0)
    minima = workspace + blocks * groups * runs * U(VECTOR)
    expand(columns, tile, blocks, groups, runs, minima)
    return minima


def _arrange(b: Builder, args: tuple[Value, ...]) -> None:
    """Copy n records, with the even values of each run of 32 before the odd ones.

    That is the order of nibbles that hold neighbours. Only the other fields that formats with a
    scale per 32 values read are copied too.
    """
    records, n, out = args
    lanes = [32 * run + 2 * i + odd for run in (0, 1) for odd in (0, 1) for i in range(16)]

    def body(i: Value, values: list[Value]) -> list[Value]:
        x, target = b.advance(records, i, RECORD), b.advance(out, i, RECORD)
        for k in (AT_CROSS, AT_CROSS + 64):
            b.write(b.read(b.at(x, k), V64B), b.at(target, k))
        for at_, kind in ((AT_Q, V64B), (AT_Q16, ir.VectorType(I16, 64))):
            size = kind.element.width // 8
            for k in range(at_, at_ + 256 * size, 64 * size):
                b.write(b.shuffle(b.read(b.at(x, k), kind), lanes), b.at(target, k))
        if b.sums_pairs:
            write_cross_sums(b, target)
        return values

    b.count_loop(n, [], body)


arrange = vector("arrange_records", "ppp", _arrange)


@kernel()
def arrange_records_task(arguments, i, scratch):
    """Arrange a row of records. Arguments: records, superblocks, out."""
    a = ints_at(arguments, 3)
    skip = i * row_of_records(a[1])
    arrange(U(a[0] + skip), U(a[1]), U(a[2] + skip))

"""16 weight rows times several rows of activations: lanes are weight rows.

A few rows of activations, as when eight sequences are decoded at once, meet codes that are
transposed while still packed, and never stored. For many, a tile is unpacked once and its codes are
loaded for each 8 of them. Both sum the same integers over a superblock as `one_row`, and add
superblocks in its order.

An unpacked superblock is its head (see `formats`), then its codes: 8 vectors of 16 rows times 4
values for each run of 32. An unpacked block, of formats without integer scales, is its codes,
then its scale and minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from apr_backend_cpu.constants import (
    AT_CROSS,
    AT_D,
    AT_Q,
    AT_Q16,
    AT_SHIFT,
    AT_STEP32,
    AT_STEP_PAIR,
    RECORD,
    ROWS,
    SIDE_BY_SIDE,
    TILE_GROUP,
    TILE_GROUP_WIDE,
    TILE_GROUP_ZERO,
    TILE_SUPERBLOCK,
    TOKENS,
    VECTOR,
)
from apr_backend_cpu.kernels.linear.blocks import Blocks, add_block, blocks_in, shift_of
from apr_backend_cpu.kernels.linear.crossed import crossed_dots, start_of
from apr_backend_cpu.kernels.linear.formats import FORMATS, HEAD, HEAD_AND_TOPS, SCALES, Format
from apr_backend_cpu.kernels.linear.one_row import finish_superblock, low_sums
from apr_backend_cpu.kernels.linear.packed import Codes
from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.chain import Chain
from apr_backend_cpu.kernels.vector.ir import F32, I8, I16, I32, I64, V16F, Value, const, vector_of
from apr_backend_cpu.kernels.vector.rows import Rows, Values, addresses, number, opaque

CHUNKS = 4
Addition = Callable[[Value], Value]  # y -> y plus a block's contribution
RunStep = Callable[[Value, list[Codes], Values], Values]  # (run, its codes, totals) -> totals


def _codes(b: Builder, format: Format, columns: Codes) -> Codes:
    """Return a run's codes in the form for products: 8 vectors, or 16 of signed int16."""
    if not format.is_wide(b):
        return columns
    zero = const(vector_of(I16, b.level.vector // 2), format.zero)
    return [
        partial(lambda c, first: b.sub(b.wide(c(), first), zero), c, k)
        for c in columns
        for k in (0, 2)
    ]


def _sizes(b: Builder, format: Format) -> tuple[int, int]:
    """Return the bytes of an unpacked block, and of its codes.

    After these come its scale, its minimum and, for wide codes, the starting values of sums, or
    what the code of 0 is.
    """
    if format.is_wide(b):
        return TILE_GROUP_WIDE, TILE_GROUP_WIDE - 3 * VECTOR
    if format.has_zero:
        return TILE_GROUP_ZERO, TILE_GROUP_ZERO - 3 * VECTOR
    return TILE_GROUP, TILE_GROUP - 2 * VECTOR


def _meet(
    b: Builder, chains: list[list[Chain]], codes: list[Codes], xs: Values, offset: int
) -> None:
    """Add products of 4 values of each weight row with those of each row of activations.

    `codes` has one or two registers of weight rows; `chains` one of each per row of activations.
    """
    for c, wanted in enumerate(zip(*codes, strict=True)):
        columns = [make() for make in wanted]
        for mine, x in zip(chains, xs, strict=True):
            values = b.bitcast(b.word(x, offset + 4 * c), columns[0].type)
            for chain, column in zip(mine, columns, strict=True):
                chain.add(column, values)
                chain.pin()


def _steps(b: Builder, xs: Values) -> Values:
    """Return the step of a run for each row of activations, in the form of `pair_of`."""
    if b.sums_pairs:
        kind = vector_of(I16, 2 * b.lanes)
        return [b.bitcast(b.word(x, AT_STEP_PAIR), kind) for x in xs]
    return [b.word(x, AT_STEP32) for x in xs]


def _superblock(
    b: Builder, format: Format, heads: Values, xs: Rows, read: Callable[[Values, RunStep], Values]
) -> list[Addition]:
    """Return the additions of one superblock; `read` gives its runs of codes to a step.

    `heads` has one or two registers of weight rows; results are by row of activations, then
    register.
    """
    per_run, wide = 32 // format.group, len(heads)
    zero = const(vector_of(I32, b.lanes), 0)
    factor_type = vector_of(I16, 2 * b.lanes) if b.sums_pairs else zero.type

    def run(r: Value, codes: list[Codes], totals: Values) -> Values:
        here, at_steps = xs.advance(b, r, 32)(b), xs.advance(b, r, 4)
        scales, size = [b.advance(head, r, VECTOR * per_run) for head in heads], 8 // per_run
        totals = list(totals)
        weighed = [zero] * len(totals)  # without the step, the same for all groups of a run
        for g in range(per_run):
            chains = [[Chain(b, format.bits) for _ in heads] for _ in here]
            _meet(b, chains, [c[size * g : size * g + size] for c in codes], here, 4 * size * g)
            steps = _steps(b, at_steps(b))
            scale = [b.read(b.at(p, SCALES + VECTOR * g), factor_type) for p in scales]
            for n in range(len(totals)):
                chain, factor = chains[n // wide][n % wide], scale[n % wide]
                if b.sums_pairs:
                    totals[n] = chain.scaled(totals[n], b.mul(factor, steps[n // wide]))
                else:
                    weighed[n] = chain.scaled(weighed[n], factor)
        if not b.sums_pairs:
            totals = [
                b.add(total, b.mul(weighed[n], steps[n // wide])) for n, total in enumerate(totals)
            ]
        return totals

    totals = read([zero] * wide * len(xs.starts), run)

    def finish(n: int, y: Value) -> Value:
        x, head = xs(b)[n // wide], heads[n % wide]
        low = low_sums(b, format, head, x)
        dx = b.splat(b.read(b.at(x, AT_D), F32), b.lanes)
        return finish_superblock(b, format, head, totals[n], low, dx, y)

    return [partial(finish, n) for n in range(len(totals))]


def _block(
    b: Builder,
    format: Format,
    codes: list[Codes],
    numbers: list[tuple[Value, Value | None]],
    zero: Value | None,
    xs: Rows,
    g: Value,
    starts: Values | None = None,
) -> list[Addition]:
    """Return the additions of a block. `xs` are the records with run g; see `_superblock`."""
    here, kind = xs.advance(b, g, 4)(b), vector_of(F32, b.lanes)
    if format.is_wide(b):
        totals = crossed_dots(b, codes, starts, xs, g)
    else:
        shifts: list[Value | None] = [None] * len(here)
        if format.zero:
            shifts = [b.splat(shift_of(b, format, b.at(p, AT_SHIFT)), b.lanes) for p in here]
        chains = [[Chain(b, format.bits, shift) for _ in codes] for shift in shifts]
        _meet(b, chains, codes, xs.advance(b, g, 32)(b), AT_Q)
        totals = [[b.sitofp(chain.total(), kind) for chain in some] for some in chains]
    return [
        partial(add_block, b, numbers[k], zero, total, x)
        for x, mine in zip(here, totals, strict=True)
        for k, total in enumerate(mine)
    ]


def _added(sums: list[Addition], ys: Values) -> Values:
    return [add(y) for add, y in zip(sums, ys, strict=True)]


def _of_run(b: Builder, i: Value) -> tuple[Value, Value]:
    """Return the superblock of a run, and the run's number in it."""
    return b.lshr(i, number(3)), b.and_(i, number(7))


def _share(b: Builder, row_bytes: Value, n: Value) -> Value:
    """Return the bytes of `lanes` rows for each block."""
    return b.udiv(b.mul(row_bytes, number(b.lanes)), n)


def make_few(name: str, format: Format, size: int) -> None:
    """Declare a function: 16 weight rows times 1 to `size` rows of activations.

    It takes the time of `size` rows. Arguments: address of 16 rows, bytes per row; address of
    records, their stride; rows of activations; address of results, 16 float32 per row of
    activations, their stride; runs of 32 values. Declared layouts have three more: see `Blocks`.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, xp, x_stride, tokens, op, out_stride, n, *more = args
        blocks, share = Blocks(b, format, tuple(more)), _share(b, row_bytes, n)
        workspace = b.stack(HEAD_AND_TOPS)
        records = addresses(b, xp, x_stride, size, tokens)
        outs = addresses(b, op, out_stride, size, tokens)

        def part(k: Value, values: Values) -> Values:
            start = b.advance(wp, b.mul(k, number(b.lanes)), row_bytes)
            rows = [opaque(b, b.advance(start, number(r), row_bytes)) for r in range(b.lanes)]
            following = b.advance(start, number(ROWS), row_bytes)

            def superblock(i: Value, ys: Values) -> Values:
                here = Rows(rows, b.mul(i, number(format.nbytes)))
                xs = Rows(records, b.mul(i, number(RECORD)))
                nbytes = b.lanes * format.nbytes // CHUNKS
                ahead = b.advance(following, i, b.lanes * format.nbytes)
                assert format.head
                format.head(b, here(b), workspace, False)

                def read(totals: Values, step: RunStep) -> Values:
                    def chunk(j: Value, totals: Values) -> Values:
                        b.prefetch(b.advance(ahead, j, nbytes), nbytes)
                        for r, codes in format.chunk(b, here, workspace, j):
                            totals = step(r, [codes], totals)
                        return totals

                    left = b.sub(n, b.shl(i, number(3)))  # the first two chunks hold runs 0 to 3
                    most = b.icmp_unsigned(">", left, number(4))
                    chunks = b.select(most, number(CHUNKS), number(CHUNKS // 2))
                    return b.count_loop(chunks, totals, chunk)

                return _added(_superblock(b, format, [workspace], xs, read), ys)

            def block(i: Value, ys: Values) -> Values:
                here = Rows(rows, blocks.offset(i))
                i8, g = _of_run(b, i)
                b.prefetch(b.add(following, b.mul(i, share)), b.lanes * format.nbytes)
                ((_, codes),) = format.chunk(b, here, workspace, blocks.fifth(i))
                xs = Rows(records, b.mul(i8, number(RECORD)))
                numbers = blocks.numbers(i, here(b), b.mul(k, number(b.lanes)))
                wide = [_codes(b, format, codes)]
                return _added(_block(b, format, wide, [numbers], blocks.zero, xs, g), ys)

            zeros = [const(vector_of(F32, b.lanes), 0.0)] * size
            body = superblock if format.group else block
            ys = b.count_loop(blocks_in(b, format, n), zeros, body)
            for y, out in zip(ys, outs, strict=True):
                b.write(y, b.advance(out, k, b.level.vector))
            return values

        b.count_loop(number(ROWS // b.lanes), [], part)

    vector(name, "p" * (11 if format.declared else 8), emit)


def make_unpack(name: str, format: Format) -> None:
    """Declare a function: unpack a tile.

    Arguments: address of 16 rows, bytes per row, address of the tile, runs of 32 values. Declared
    layouts have three more: see `Blocks`.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, tile, n, *more = args
        blocks, share = Blocks(b, format, tuple(more)), _share(b, row_bytes, n)
        workspace = b.stack(HEAD_AND_TOPS)

        def part(k: Value, values: Values) -> Values:
            start = b.advance(wp, b.mul(k, number(b.lanes)), row_bytes)
            rows = [opaque(b, b.advance(start, number(r), row_bytes)) for r in range(b.lanes)]
            following, out = (
                b.advance(start, number(ROWS), row_bytes),
                b.advance(tile, k, b.level.vector),
            )

            def put(columns: Iterable[Value], target: Value) -> None:
                for c, column in enumerate(columns):
                    b.write(column, b.at(target, VECTOR * c))

            def superblock(i: Value, values: Values) -> Values:
                here = Rows(rows, b.mul(i, number(format.nbytes)))
                target, nbytes = b.advance(out, i, TILE_SUPERBLOCK), b.lanes * format.nbytes
                b.prefetch(b.advance(following, i, nbytes), nbytes)
                assert format.head
                format.head(b, here(b), workspace, False)
                kind = vector_of(I8, b.level.vector)
                for offset in range(0, HEAD, VECTOR):
                    b.write(b.read(b.at(workspace, offset), kind), b.at(target, offset))

                def chunk(j: Value, values: Values) -> Values:
                    for r, codes in format.chunk(b, here, workspace, j):
                        runs = b.advance(b.at(target, HEAD), r, 8 * VECTOR)
                        put((make() for make in codes), runs)
                    return values

                return b.count_loop(number(CHUNKS), values, chunk)

            def block(i: Value, values: Values) -> Values:
                size, at_scale = _sizes(b, format)
                here, target = Rows(rows, blocks.offset(i)), b.advance(out, i, size)
                b.prefetch(b.add(following, b.mul(i, share)), b.lanes * format.nbytes)
                ((_, codes),) = format.chunk(b, here, workspace, blocks.fifth(i))
                columns = [make() for make in _codes(b, format, codes)]
                put(columns, target)
                if format.is_wide(b):
                    b.write(start_of(b, columns), b.at(target, at_scale + 2 * VECTOR))
                elif blocks.zero is not None:
                    b.write(blocks.zero, b.at(target, at_scale + 2 * VECTOR))
                d, low = blocks.numbers(i, here(b), b.mul(k, number(b.lanes)))
                b.write(d, b.at(target, at_scale))
                if low is not None:
                    b.write(low, b.at(target, at_scale + VECTOR))
                return values

            body = superblock if format.group else block
            return b.count_loop(blocks_in(b, format, n), values, body)

        b.count_loop(number(ROWS // b.lanes), [], part)

    vector(name, "p" * (7 if format.declared else 4), emit)


def _unpacked_codes(b: Builder, format: Format, p: Value) -> Codes:
    if format.is_wide(b):
        kind, count = vector_of(I16, b.level.vector // 2), 16
    else:
        kind, count = vector_of(I8, b.level.vector), 8
    return [partial(lambda c: b.read(b.at(p, VECTOR * c), kind), c) for c in range(count)]


def make_many(name: str, format: Format) -> None:
    """Declare a function: an unpacked tile times 1 to TOKENS rows of activations.

    Arguments: address of the tile; address of records, their stride; rows of activations; address
    of results, 16 float32 per row of activations, their stride; runs of 32 values; address of
    records to prefetch, TOKENS / SIDE_BY_SIDE rows.

    One or two registers of weights meet 8 or 4 rows of activations, then the next 8 or 4.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        tile, xp, x_stride, tokens, op, out_stride, n, ahead = args
        first, last = (AT_CROSS, RECORD) if format.is_wide(b) else (0, AT_Q16)  # bytes read
        nbytes = last - first if format.group else (last - first) // 8
        count, kind = min(2, ROWS // b.lanes), vector_of(F32, b.lanes)
        some, part_bytes = 8 // count, b.level.vector * count
        rows = some // SIDE_BY_SIDE  # rows prefetched with each group
        parts, rounds = (
            number(ROWS // (count * b.lanes)),
            b.udiv(b.add(tokens, number(some - 1)), number(some)),
        )
        records, sums = b.stack(8 * TOKENS), b.stack(VECTOR * TOKENS)
        for t, p in enumerate(addresses(b, xp, x_stride, TOKENS, tokens)):
            b.write(p, b.at(records, 8 * t))
            b.prefetch(b.advance(op, number(t), out_stride), VECTOR)
            b.write(const(V16F, 0.0), b.at(sums, VECTOR * t))

        def superblock(p: Value, xs: Rows, i: Value) -> list[Addition]:
            here = b.advance(p, i, TILE_SUPERBLOCK)
            heads = [b.at(here, b.level.vector * r) for r in range(count)]

            def read(totals: Values, step: RunStep) -> Values:
                def run(r: Value, totals: Values) -> Values:
                    starts = [b.advance(b.at(head, HEAD), r, 8 * VECTOR) for head in heads]
                    return step(r, [_unpacked_codes(b, format, s) for s in starts], totals)

                left = b.sub(n, b.shl(i, number(3)))
                return b.count_loop(b.least(left, number(8)), totals, run)

            return _superblock(b, format, heads, xs, read)

        def block(p: Value, xs: Rows, g: Value, i: Value) -> list[Addition]:
            size, at_scale = _sizes(b, format)
            here = b.advance(p, i, size)
            starts = [b.at(here, b.level.vector * r) for r in range(count)]
            low = lambda s: b.read(b.at(s, at_scale + VECTOR), kind)
            numbers = [
                (b.read(b.at(s, at_scale), kind), low(s) if format.minimum else None)
                for s in starts
            ]
            codes = [_unpacked_codes(b, format, s) for s in starts]
            at_last, begin, zero = at_scale + 2 * VECTOR, None, None
            if format.is_wide(b):
                begin = [b.read(b.at(s, at_last), vector_of(I32, b.lanes)) for s in starts]
            elif format.has_zero:
                zero = b.read(b.at(here, at_last), kind)
            return _block(b, format, codes, numbers, zero, xs, g, begin)

        def each(i: Value, values: Values) -> Values:
            of_record, g = (i, number(0)) if format.group else _of_run(b, i)
            skip = b.mul(of_record, number(RECORD))
            wanted = b.advance(b.at(b.add(ahead, skip), first), g, nbytes)

            def round_(t: Value, values: Values) -> Values:
                here = b.advance(records, t, 8 * some)
                for k in range(rows):
                    row = b.add(b.mul(t, number(rows)), number(k))
                    b.prefetch(b.advance(wanted, row, x_stride), nbytes)
                xs = Rows([b.read(b.at(here, 8 * k), I64) for k in range(some)], skip)

                def part(k: Value, values: Values) -> Values:
                    mine = b.advance(tile, k, part_bytes)
                    workspace = b.advance(b.advance(sums, t, VECTOR * some), k, part_bytes)
                    places = [
                        b.at(workspace, VECTOR * c + b.level.vector * r)
                        for c in range(some)
                        for r in range(count)
                    ]
                    grouped = format.group
                    added = superblock(mine, xs, i) if grouped else block(mine, xs, g, i)
                    for add, p in zip(added, places, strict=True):
                        b.write(add(b.read(p, kind)), p)
                    return values

                return b.count_loop(parts, values, part)

            return b.count_loop(rounds, values, round_)

        def result(t: Value, values: Values) -> Values:
            b.write(b.read(b.advance(sums, t, VECTOR), V16F), b.advance(op, t, out_stride))
            return values

        b.count_loop(blocks_in(b, format, n), [], each)
        b.count_loop(tokens, [], result)

    vector(name, "p" * 8, emit)


FEW_SIZES = (2, 4, 6, 8)
UNPACKED = [
    replace(FORMATS["q8_0"], name=name, minimum=low)
    for name, low in (("levels", False), ("levels_minima", True))
]
for _format in FORMATS.values():
    make_unpack(f"unpack_{_format.name}", _format)
    for _size in FEW_SIZES:
        make_few(f"few_{_size}_{_format.name}", _format, _size)
for _format in (*(f for f in FORMATS.values() if not f.declared or f.has_zero), *UNPACKED):
    make_many(f"many_{_format.name}", _format)

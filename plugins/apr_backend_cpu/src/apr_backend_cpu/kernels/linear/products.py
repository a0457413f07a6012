"""Matrix products with any mix of formats that share one input, in one instruction.

Work is cut into tiles of 16 weight rows. One row of activations streams the weights (`one_row`), a
few meet a tile's packed bytes in registers, more unpack each tile once (`tiles`); all give the
same bits. Which functions these are for a format, its methods say.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import (
    ADDRESS,
    ALL_ROWS,
    BEFORE,
    BIAS,
    BLOCK,
    DECLARED,
    DENSE,
    DENSE_TOKENS,
    FEW,
    FEW_2,
    FEW_4,
    FEW_6,
    FEW_8,
    FIRST_ROW,
    FIRST_TILE,
    KIND,
    LANES,
    MANY_1,
    MANY_4,
    MANY_8,
    METHOD_COLUMNS,
    METHODS,
    ONE,
    PARAMETERS,
    PART_COLUMNS,
    PART_ROWS,
    RECORD,
    ROW_BYTES,
    ROW_ROOM,
    ROWS,
    SIDE_BY_SIDE,
    TILE_BYTES,
    TOKENS,
    UNPACK,
    VECTOR,
)
from apr_backend_cpu.kernels.linear.dense import dense_many
from apr_backend_cpu.kernels.linear.layout_few_rows import multiply_layout
from apr_backend_cpu.kernels.linear.layout_one_row import arrange_activations
from apr_backend_cpu.kernels.linear.layout_unpack import expand_numbers, unpack_layout
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.memory import call, floats_at, ints_at, words_at

U = np.uint64


@helper
def _few(methods, w, row_bytes, xp, xs, tokens, op, os_, blocks, room):
    """A tile of a packed format times fewer than FEW rows of activations."""
    t = U(0)
    while t < tokens:
        left, x, out = min(U(8), tokens - t), xp + t * xs, op + t * os_
        if left == U(1):
            call(methods[ONE], (w, row_bytes, x, out, blocks, room))
        else:
            column = FEW_8 if left > U(6) else FEW_6 if left > U(4) else FEW_4
            column = column if left > U(2) else FEW_2
            call(methods[column], (w, row_bytes, x, xs, left, out, os_, blocks))
        t += left


@helper
def _unpacked(part, methods, index, count, xp, xs, tokens, op, os_, n, blocks, room):
    """`count` tiles in a row, unpacked side by side, so that activations are fetched once."""
    row_bytes, size = part[ROW_BYTES], blocks * methods[TILE_BYTES]
    numbers = room + U(SIDE_BY_SIDE) * size
    for i in range(count):
        number, tile = index + U(i), room + U(i) * size
        w = part[ADDRESS] + number * U(ROWS) * row_bytes
        if methods[KIND] == U(DECLARED):
            number += part[FIRST_ROW] // U(ROWS)
            unpack_layout(w, row_bytes, tile, n, part[PARAMETERS], number, numbers)
        else:
            call(methods[UNPACK], (w, row_bytes, tile, blocks))
    t = U(0)
    while t < tokens:
        some = min(U(TOKENS), tokens - t)
        column = MANY_8 if some > U(4) else MANY_4 if some > U(1) else MANY_1
        for i in range(count):
            tile, out = room + U(i) * size, op + t * os_ + U(i) * U(4 * ROWS)
            call(methods[column], (tile, xp + t * xs, xs, some, out, os_, blocks))
        t += some


@helper
def _layout_tiles(part, index, count, xp, xs, tokens, op, os_, n, room):
    """`count` tiles of a declared layout times a few rows."""
    row_bytes, given = part[ROW_BYTES], part[PARAMETERS]
    arranged = room + n * U(ROW_ROOM)
    numbers = arranged + tokens * xs
    for t in range(tokens):
        arrange_activations(given, xp + U(t) * xs, n, arranged + U(t) * xs)
    for i in range(count):
        number = index + U(i)
        w = part[ADDRESS] + number * U(ROWS) * row_bytes
        minima = expand_numbers(given, number + part[FIRST_ROW] // U(ROWS), numbers)
        multiply_layout(w, row_bytes, given, arranged, xs, tokens, numbers, minima,
                        op + U(i) * U(4 * ROWS), os_, n, room)  # fmt: skip


@helper
def _packed_tiles(part, methods, index, count, xp, xs, tokens, op, os_, n, blocks, room):
    """`count` tiles times all rows: records of n superblocks, weights of so many blocks a row."""
    if tokens >= U(FEW):
        done = U(0)
        while done < count:
            some = min(U(SIDE_BY_SIDE), count - done)
            _unpacked(part, methods, index + done, some, xp, xs, tokens,
                      op + done * U(4 * ROWS), os_, n, blocks, room)  # fmt: skip
            done += some
    elif methods[KIND] == U(DECLARED):
        _layout_tiles(part, index, count, xp, xs, tokens, op, os_, n, room)
    else:
        row_bytes = part[ROW_BYTES]
        for i in range(count):
            w = part[ADDRESS] + (index + U(i)) * U(ROWS) * row_bytes
            _few(methods, w, row_bytes, xp, xs, tokens, op + U(i) * U(4 * ROWS), os_, blocks, room)


@helper
def _dense(methods, w, row_bytes, rows, xp, xs, tokens, op, os_, n, room):
    """Up to 16 rows of floating-point weights times all tokens.

    Activations are rows, or, from FEW on, arranged; `room` is for an unpacked tile and results.
    """
    t = U(0)
    if tokens < U(FEW):
        while t < tokens:
            left = min(U(8), tokens - t)
            column = FEW_8 if left > U(4) else FEW_4 if left > U(2) else FEW_2
            column = column if left > U(1) else ONE
            call(methods[column], (w, row_bytes, rows, xp + t * xs, xs, left, op + t * os_, os_, n))
            t += left
        return
    call(methods[UNPACK], (w, row_bytes, rows, room, n))
    whole = rows == U(ROWS)
    results = room + U(VECTOR * ROWS) * n
    while t < tokens:
        some = min(U(DENSE_TOKENS), tokens - t)
        if whole:
            dense_many(room, xp + t * xs, xs, some, op + t * os_, os_, n)
        else:
            dense_many(room, xp + t * xs, xs, some, results, U(VECTOR), n)
            _copy(results, op + t * os_, os_, np.int64(some), np.int64(rows))
        t += some


@helper
def _copy(source, target, stride, tokens, rows):
    """The first `rows` of 16 results of each token to where they belong."""
    for t in range(tokens):
        given, out = (
            floats_at(source + U(VECTOR * t), rows),
            floats_at(target + U(t) * stride, rows),
        )
        for r in range(rows):
            out[r] = given[r]


@helper
def _add_bias(bias, op, os_, rows, tokens):
    """Results [tokens, rows] at op, plus a bias of each row."""
    added = floats_at(bias, rows)
    for t in range(tokens):
        line = floats_at(op + U(t) * os_, rows)
        for r in range(line.size):
            line[r] = line[r] + added[r]


@helper
def _run(part, index, count, xp, n, dense, tokens, cols, out, room):
    """Tiles of a part, times all rows; returns how many. `room` is for unpacked tiles."""
    row_bytes, methods = part[ROW_BYTES], words_at(part[METHODS], METHOD_COLUMNS)
    first = part[FIRST_ROW] + index * U(ROWS)
    op, os_ = out + U(4) * (tokens * part[BEFORE] + first), U(4) * part[ALL_ROWS]
    left = part[PART_ROWS] - index * U(ROWS)
    rows, done = min(left, U(ROWS)), U(1)
    xs, block = (n | U(1)) * U(RECORD), methods[BLOCK]
    blocks = (cols + block - U(1)) // block
    if methods[KIND] == U(DECLARED):
        blocks = n * U(8)  # whole superblocks are unpacked
    if methods[KIND] == U(DENSE):
        w = part[ADDRESS] + index * U(ROWS) * row_bytes
        _dense(methods, w, row_bytes, rows, dense, U(4) * cols, tokens, op, os_, cols // U(LANES),
               room)  # fmt: skip
    elif left >= U(ROWS):
        done = min(count, left // U(ROWS))
        rows = done * U(ROWS)
        _packed_tiles(part, methods, index, done, xp, xs, tokens, op, os_, n, blocks, room)
    else:
        _packed_tiles(part, methods, index, U(1), xp, xs, tokens, room, U(VECTOR), n, blocks,
                      room + U(VECTOR) * tokens)  # fmt: skip
        _copy(room, op, os_, np.int64(tokens), np.int64(left))
    if part[BIAS] != U(0):
        _add_bias(part[BIAS] + U(4) * first, op, os_, np.int64(rows), np.int64(tokens))
    return np.int64(done)


@kernel()
def product_task(arguments, number, scratch):
    """Some tiles: table of parts, their number, bounds of tasks, records, superblocks, x (for
    floating-point weights), T, K, out."""
    a = ints_at(arguments, 9)
    parts, n = a[1], U(a[4])
    i, last = ints_at(a[2] + 8 * number, 2)
    m = 0
    while i < last:
        size = 8 * PART_COLUMNS
        while m + 1 < parts and i >= ints_at(a[0] + size * (m + 1), PART_COLUMNS)[FIRST_TILE]:
            m += 1
        part = words_at(a[0] + size * m, PART_COLUMNS)
        i += _run(part, U(i) - part[FIRST_TILE], U(last - i), U(a[3]), n, U(a[5]), U(a[6]),
                  U(a[7]), U(a[8]), U(scratch))  # fmt: skip

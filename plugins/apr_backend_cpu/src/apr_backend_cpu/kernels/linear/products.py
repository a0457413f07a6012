"""Matrix products of one input with weights in any mix of formats, in one instruction.

Work is cut into tiles of 16 weight rows. One row of activations streams the weights (`one_row`), a
few meet a tile's packed bytes in registers, more unpack each tile once (`tiles`); all give the
same bits. A format's methods say which functions these are.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import (
    ADDRESS,
    ALL_ROWS,
    ARRANGED,
    BEFORE,
    BIAS,
    BLOCK,
    CACHE_LINE,
    DECLARED,
    DENSE,
    FEW,
    FEW_2,
    FEW_4,
    FEW_6,
    FEW_8,
    FIRST_ROW,
    FIRST_TILE,
    GROUP,
    KIND,
    LANES,
    MANY,
    METHOD_COLUMNS,
    METHODS,
    ONE,
    PARAMETERS,
    PART_COLUMNS,
    PART_ROWS,
    ROW_BYTES,
    ROW_WORKSPACE,
    ROWS,
    SIDE_BY_SIDE,
    TILE_BYTES,
    TOKENS,
    UNPACK,
    VECTOR,
)
from apr_backend_cpu.kernels.linear.activations import row_of_records
from apr_backend_cpu.kernels.linear.dense import dense_many, row_of_floats
from apr_backend_cpu.kernels.linear.layouts import expand_numbers
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.memory import call, floats_at, ints_at, words_at
from apr_backend_cpu.kernels.vector.rows import fetch

U = np.uint64


@helper
def _is_declared(methods):
    return methods[KIND] == U(DECLARED) or methods[KIND] == U(ARRANGED)


@helper
def _few(methods, w, row_bytes, xp, xs, tokens, op, os_, runs, workspace, params, scales, minima):
    """Multiply a tile of a packed format by fewer than FEW rows of activations.

    `params`, `scales` and `minima` are for declared layouts.
    """
    t, declared = U(0), _is_declared(methods)
    while t < tokens:
        left, x, out = min(U(8), tokens - t), xp + t * xs, op + t * os_
        column = FEW_8 if left > U(6) else FEW_6 if left > U(4) else FEW_4
        function = methods[column if left > U(2) else FEW_2]
        if left == U(1) and declared:
            call(methods[ONE], (w, row_bytes, x, out, runs, workspace, params, scales, minima))
        elif left == U(1):
            call(methods[ONE], (w, row_bytes, x, out, runs, workspace))
        elif declared:
            call(function, (w, row_bytes, x, xs, left, out, os_, runs, params, scales, minima))
        else:
            call(function, (w, row_bytes, x, xs, left, out, os_, runs))
        t += left


@helper
def _unpacked(part, methods, index, count, xp, xs, tokens, op, os_, runs, workspace):
    """Multiply `count` consecutive tiles, unpacked side by side to fetch activations once."""
    row_bytes, block = part[ROW_BYTES], methods[BLOCK]
    size = (runs * U(GROUP) + block - U(1)) // block * methods[TILE_BYTES]
    numbers, params = workspace + U(SIDE_BY_SIDE) * size, part[PARAMETERS]
    for i in range(count):
        tile = workspace + U(i) * size
        w = part[ADDRESS] + (index + U(i)) * U(ROWS) * row_bytes
        if _is_declared(methods):
            minima = expand_numbers(params, index + U(i) + part[FIRST_ROW] // U(ROWS), numbers)
            call(methods[UNPACK], (w, row_bytes, tile, runs, params, numbers, minima))
        else:
            call(methods[UNPACK], (w, row_bytes, tile, runs))
    t, ahead = U(0), part[ADDRESS] + (index + U(count)) * U(ROWS) * row_bytes
    calls = (tokens + U(TOKENS - 1)) // U(TOKENS) * U(count)
    lines = U(count * ROWS) * row_bytes // (calls * U(CACHE_LINE)) + U(1)
    while t < tokens:
        some = min(U(TOKENS), tokens - t)
        following = xp + (t + some) * xs if t + some < tokens else xp
        for i in range(count):
            tile, out = workspace + U(i) * size, op + t * os_ + U(i) * U(4 * ROWS)
            fetch(ahead, lines)  # prefetch the next tiles
            ahead += lines * U(CACHE_LINE)
            coming = following + U(i * (TOKENS // SIDE_BY_SIDE)) * xs
            call(methods[MANY], (tile, xp + t * xs, xs, some, out, os_, runs, coming))
        t += some


@helper
def _packed_tiles(part, methods, index, count, xp, xs, tokens, op, os_, runs, workspace):
    """Multiply `count` tiles of `runs` runs of 32 values by all rows of activations."""
    if tokens >= U(FEW):
        done = U(0)
        while done < count:
            some = min(U(SIDE_BY_SIDE), count - done)
            _unpacked(
                part,
                methods,
                index + done,
                some,
                xp,
                xs,
                tokens,
                op + done * U(4 * ROWS),
                os_,
                runs,
                workspace,
            )
            done += some
        return
    row_bytes, params = part[ROW_BYTES], part[PARAMETERS]
    numbers, minima = workspace + (runs + U(7)) // U(8) * U(ROW_WORKSPACE), U(0)
    for i in range(count):
        w, out = part[ADDRESS] + (index + U(i)) * U(ROWS) * row_bytes, op + U(i) * U(4 * ROWS)
        if _is_declared(methods):
            minima = expand_numbers(params, index + U(i) + part[FIRST_ROW] // U(ROWS), numbers)
        _few(
            methods,
            w,
            row_bytes,
            xp,
            xs,
            tokens,
            out,
            os_,
            runs,
            workspace,
            params,
            numbers,
            minima,
        )


@helper
def _dense(methods, w, row_bytes, rows, xp, xs, tokens, op, os_, n, workspace):
    """Multiply up to 16 rows of floating-point weights by all tokens.

    Activations are rows, or, from FEW on, arranged; `workspace` is for an unpacked tile and
    results.
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
    call(methods[UNPACK], (w, row_bytes, rows, workspace, n))
    whole, ahead = rows == U(ROWS), w + rows * row_bytes
    calls = (tokens + U(TOKENS - 1)) // U(TOKENS)
    lines = rows * row_bytes // (calls * U(CACHE_LINE)) + U(1)
    results = workspace + U(VECTOR * ROWS) * (n | U(1))
    while t < tokens:
        some = min(U(TOKENS), tokens - t)
        fetch(ahead, lines)
        ahead += lines * U(CACHE_LINE)
        if whole:
            dense_many(workspace, xp + t * xs, xs, some, op + t * os_, os_, n)
        else:
            dense_many(workspace, xp + t * xs, xs, some, results, U(VECTOR), n)
            _copy(results, op + t * os_, os_, np.int64(some), np.int64(rows))
        t += some


@helper
def _copy(source, target, stride, tokens, rows):
    """Copy the first `rows` of each token's 16 results to their destination."""
    for t in range(tokens):
        results, out = (
            floats_at(source + U(VECTOR * t), rows),
            floats_at(target + U(t) * stride, rows),
        )
        for r in range(rows):
            out[r] = results[r]


@helper
def _add_bias(bias, op, os_, rows, tokens):
    """Add a bias for each row to results [tokens, rows] at op."""
    added = floats_at(bias, rows)
    for t in range(tokens):
        line = floats_at(op + U(t) * os_, rows)
        for r in range(line.size):
            line[r] = line[r] + added[r]


@helper
def run_tiles(part, index, count, xp, arranged, n, dense, tokens, cols, out, workspace):
    """Multiply tiles of a part by all rows; return how many. `workspace` is for unpacked tiles."""
    row_bytes, methods = part[ROW_BYTES], words_at(part[METHODS], METHOD_COLUMNS)
    first = part[FIRST_ROW] + index * U(ROWS)
    op, os_ = out + U(4) * (tokens * part[BEFORE] + first), U(4) * part[ALL_ROWS]
    left = part[PART_ROWS] - index * U(ROWS)
    rows, done = min(left, U(ROWS)), U(1)
    xs, runs = U(row_of_records(np.int64(n))), (cols + U(GROUP - 1)) // U(GROUP)
    x = arranged if methods[KIND] == U(ARRANGED) else xp
    if methods[KIND] == U(DENSE):
        w = part[ADDRESS] + index * U(ROWS) * row_bytes
        xs = U(4) * cols if tokens < U(FEW) else U(row_of_floats(np.int64(cols)))
        _dense(methods, w, row_bytes, rows, dense, xs, tokens, op, os_, cols // U(LANES), workspace)
    elif left >= U(ROWS):
        done = min(count, left // U(ROWS))
        rows = done * U(ROWS)
        _packed_tiles(part, methods, index, done, x, xs, tokens, op, os_, runs, workspace)
    else:
        _packed_tiles(
            part,
            methods,
            index,
            U(1),
            x,
            xs,
            tokens,
            workspace,
            U(VECTOR),
            runs,
            workspace + U(VECTOR) * tokens,
        )
        _copy(workspace, op, os_, np.int64(tokens), np.int64(left))
    if part[BIAS] != U(0):
        _add_bias(part[BIAS] + U(4) * first, op, os_, np.int64(rows), np.int64(tokens))
    return np.int64(done)


@kernel()
def product_task(arguments, number, scratch):
    """Multiply some tiles.

    Arguments: table of parts, their number, bounds of tasks, records, records arranged for declared
    layouts, superblocks, x for floating-point weights, T, K, out.
    """
    a = ints_at(arguments, 10)
    parts, n = a[1], U(a[5])
    i, last = ints_at(a[2] + 8 * number, 2)
    m = 0
    while i < last:
        size = 8 * PART_COLUMNS
        while m + 1 < parts and i >= ints_at(a[0] + size * (m + 1), PART_COLUMNS)[FIRST_TILE]:
            m += 1
        part = words_at(a[0] + size * m, PART_COLUMNS)
        i += run_tiles(
            part,
            U(i) - part[FIRST_TILE],
            U(last - i),
            U(a[3]),
            U(a[4]),
            n,
            U(a[6]),
            U(a[7]),
            U(a[8]),
            U(a[9]),
            U(scratch),
        )

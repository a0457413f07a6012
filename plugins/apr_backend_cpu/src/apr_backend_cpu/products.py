"""Matrix products with any mix of formats that share one input, in one instruction.

Work is cut into tiles of 16 weight rows. One row of activations streams the weights (`matvec`), a
few meet a tile's packed bytes in registers (`few_rows`), more unpack each tile once (`unpack`,
`matmul`); all give the same bits.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.activations import RECORD
from apr_backend_cpu.compiling import serial
from apr_backend_cpu.few_rows import multiply_few
from apr_backend_cpu.float_linear import CODES as FLOAT_CODES
from apr_backend_cpu.float_linear import F32_CODE, float_rows
from apr_backend_cpu.generic import expand_numbers, unpack_layout
from apr_backend_cpu.layout_few import multiply_layout
from apr_backend_cpu.layout_matvec import arrange_activations
from apr_backend_cpu.matmul import (
    TOKENS,
    affine_1,
    affine_8,
    blocks_1,
    blocks_8,
    layouts_1,
    layouts_8,
    signed_1,
    signed_8,
)
from apr_backend_cpu.matvec import MATVEC_ROOM, Q4_K, Q5_K, Q6_K, Q8_0, matvec
from apr_backend_cpu.rows import alive, floats_at, ints_at, words_at
from apr_backend_cpu.unpack import TILE_RECORD, unpack_q4_k, unpack_q5_k, unpack_q6_k, unpack_q8_0

U = np.uint64
ROWS = 16  # of a tile
FEW = 17  # rows of activations from which unpacking pays
SIDE_BY_SIDE = 4  # tiles that are unpacked together
LAYOUT, LAYOUT_WITH_MINIMA = Q8_0 + 1, Q8_0 + 2  # declared layouts, after the formats
CODES = {"q4_k": Q4_K, "q5_k": Q5_K, "q6_k": Q6_K, "q8_0": Q8_0, **FLOAT_CODES}
# Columns of a table of parts, uint64. A part is a matrix up to a whole number of tiles, or what is
# left of it, copied into room for 16 rows. Results of a matrix are [tokens, rows], one by one.
# PARAMETERS is the address of a declared layout's, 0 for formats that are built in.
FIRST_TILE, ADDRESS, ROW_BYTES, PART_ROWS, CODE, BEFORE, FIRST_ROW, ALL_ROWS, PARAMETERS = range(9)
COLUMNS = 9


@serial
def _unpack(code, w, row_bytes, tile, n):  # noqa: ANN001, ANN202
    if code == U(Q4_K):
        unpack_q4_k(w, row_bytes, tile, n)
    elif code == U(Q5_K):
        unpack_q5_k(w, row_bytes, tile, n)
    elif code == U(Q6_K):
        unpack_q6_k(w, row_bytes, tile, n)
    else:
        unpack_q8_0(w, row_bytes, tile, n)


@serial
def _meet(code, tile, xp, xs, tokens, op, os_, n):  # noqa: ANN001, ANN202
    """An unpacked tile times all rows of activations."""
    t = U(0)
    while t < tokens:
        x, out, many = xp + t * xs, op + t * os_, t + U(TOKENS) <= tokens
        if code == U(Q6_K):
            if many:
                signed_8(tile, x, xs, out, os_, n)
            else:
                signed_1(tile, x, xs, out, os_, n)
        elif code == U(Q8_0) or code == U(LAYOUT):
            if many:
                blocks_8(tile, x, xs, out, os_, n)
            else:
                blocks_1(tile, x, xs, out, os_, n)
        elif code == U(LAYOUT_WITH_MINIMA):
            if many:
                layouts_8(tile, x, xs, out, os_, n)
            else:
                layouts_1(tile, x, xs, out, os_, n)
        elif many:
            affine_8(tile, x, xs, out, os_, n)
        else:
            affine_1(tile, x, xs, out, os_, n)
        t += U(TOKENS) if many else U(1)


@serial
def _unpacked(part, index, count, xp, xs, tokens, op, os_, n, room):  # noqa: ANN001, ANN202
    """`count` tiles in a row, unpacked side by side, so that activations are fetched once."""
    code, row_bytes, size = part[CODE], part[ROW_BYTES], n * U(TILE_RECORD)
    numbers = room + U(SIDE_BY_SIDE) * size
    for i in range(count):
        number, tile = index + U(i), room + U(i) * size
        w = part[ADDRESS] + number * U(ROWS) * row_bytes
        if code >= U(LAYOUT):
            number += part[FIRST_ROW] // U(ROWS)
            unpack_layout(w, row_bytes, tile, n, part[PARAMETERS], number, numbers)
        else:
            _unpack(code, w, row_bytes, tile, n)
    t = U(0)
    while t < tokens:
        some = min(U(TOKENS), tokens - t)
        for i in range(count):
            _meet(code, room + U(i) * size, xp + t * xs, xs, some,
                  op + t * os_ + U(i) * U(4 * ROWS), os_, n)  # fmt: skip
        t += some


@serial
def _layout_tiles(part, index, count, xp, xs, tokens, op, os_, n, room):  # noqa: ANN001, ANN202
    """`count` tiles of a declared layout times a few rows."""
    row_bytes, given = part[ROW_BYTES], part[PARAMETERS]
    arranged = room + n * U(MATVEC_ROOM)
    numbers = arranged + tokens * xs
    for t in range(tokens):
        arrange_activations(given, xp + U(t) * xs, n, arranged + U(t) * xs)
    for i in range(count):
        number = index + U(i)
        w = part[ADDRESS] + number * U(ROWS) * row_bytes
        minima = expand_numbers(given, number + part[FIRST_ROW] // U(ROWS), numbers)
        multiply_layout(w, row_bytes, given, arranged, xs, tokens, numbers, minima,
                        op + U(i) * U(4 * ROWS), os_, n, room)  # fmt: skip


@serial
def _packed_tiles(part, index, count, xp, xs, tokens, op, os_, n, room):  # noqa: ANN001, ANN202
    if tokens < U(FEW) and part[CODE] >= U(LAYOUT):
        _layout_tiles(part, index, count, xp, xs, tokens, op, os_, n, room)
        return
    if tokens < U(FEW):
        row_bytes = part[ROW_BYTES]
        for i in range(count):
            w = part[ADDRESS] + (index + U(i)) * U(ROWS) * row_bytes
            out = op + U(i) * U(4 * ROWS)
            if tokens == U(1):
                matvec(part[CODE], w, row_bytes, xp, out, n, room)
            else:
                multiply_few(part[CODE], w, row_bytes, xp, xs, tokens, out, os_, n, room)
        return
    done = U(0)
    while done < count:
        some = min(U(SIDE_BY_SIDE), count - done)
        _unpacked(part, index + done, some, xp, xs, tokens, op + done * U(4 * ROWS), os_, n, room)
        done += some


@serial
def _run(part, index, count, xp, n, dense, tokens, cols, out, room):  # noqa: ANN001, ANN202
    """Tiles of a part, times all rows; returns how many. `room` is for unpacked tiles."""
    row_bytes = part[ROW_BYTES]
    first = tokens * part[BEFORE] + part[FIRST_ROW] + index * U(ROWS)
    op, os_ = out + U(4) * first, U(4) * part[ALL_ROWS]
    left = part[PART_ROWS] - index * U(ROWS)
    whole = min(count, left // U(ROWS))
    if part[CODE] >= U(F32_CODE):
        w = part[ADDRESS] + index * U(ROWS) * row_bytes
        float_rows(part[CODE], w, row_bytes, min(left, U(ROWS)), dense, U(4) * cols, tokens, op,
                   os_, cols // U(16))  # fmt: skip
        return 1
    xs = (n | U(1)) * U(RECORD)
    if whole > U(0):
        _packed_tiles(part, index, whole, xp, xs, tokens, op, os_, n, room)
        return np.int64(whole)
    result = np.empty((np.int64(tokens), ROWS), np.float32)
    _packed_tiles(part, index, U(1), xp, xs, tokens, U(result.ctypes.data), U(4 * ROWS), n, room)
    for t in range(result.shape[0]):
        target = floats_at(op + U(t) * os_, np.int64(left))
        for r in range(target.size):
            target[r] = result[t, r]
    return 1


@serial
def product_task(a, number):  # noqa: ANN001, ANN201
    """Some tiles: table of parts, their number, bounds of tasks, records, superblocks, x, T, K,
    out, bytes of room."""
    parts, n = a[1], U(a[4])
    i, last = ints_at(a[2] + 8 * number, 2)
    room = np.empty(a[9] + 64, np.uint8)
    aligned = (U(room.ctypes.data) + U(63)) // U(64) * U(64)
    m = 0
    while i < last:
        while m + 1 < parts and i >= ints_at(a[0] + 8 * COLUMNS * (m + 1), COLUMNS)[FIRST_TILE]:
            m += 1
        part = words_at(a[0] + 8 * COLUMNS * m, COLUMNS)
        i += _run(part, U(i) - part[FIRST_TILE], U(last - i), U(a[3]), n, U(a[5]), U(a[6]),
                  U(a[7]), U(a[8]), aligned)  # fmt: skip
    alive(room)

"""Products of rows with the matrices of their experts, and what goes with them: choice and sum.

A stack holds the matrices of all experts in tiles of 16 rows. Which rows chose which expert is read
when a task runs, so that a recorded step routes anew each time. The rows of an expert are copied
side by side and meet its tiles as in `products`: a row gives the same bits alone and in any batch.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import (
    ALL_ROWS,
    ARRANGED,
    DENSE,
    FEW,
    GATHERED_AT,
    KIND,
    LANES,
    METHOD_COLUMNS,
    METHODS,
    PART_AT,
    PART_COLUMNS,
    RECORD,
    ROWS,
    SUPERBLOCK,
    TOGETHER,
)
from apr_backend_cpu.kernels.linear.activations import row_of_records
from apr_backend_cpu.kernels.linear.dense import arrange, row_of_floats
from apr_backend_cpu.kernels.linear.products import run_tiles
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.exponential import exp32, sigmoid32
from apr_backend_cpu.kernels.vector.memory import U, floats_at, ints_at, words_at

f32 = np.float32


@kernel()
def route_task(arguments, i, scratch):
    """Choose the experts of a row, the likeliest first, and weigh them.

    Arguments: logits, experts, k, ids, weights. Weights are exp(logit - highest) over their sum.
    """
    a = ints_at(arguments, 5)
    n, k = a[1], a[2]
    logits, ids = floats_at(a[0] + 4 * n * i, n), ints_at(a[3] + 8 * k * i, k)
    weights, left = floats_at(a[4] + 4 * k * i, k), ints_at(scratch, n)
    for e in range(n):
        left[e] = e
    total = f32(0.0)
    for j in range(k):
        best = j
        for c in range(j + 1, n):  # what is left stays in order: of equal ones the lowest comes
            if logits[left[c]] > logits[left[best]]:
                best = c
        chosen = left[best]
        for c in range(best, j, -1):
            left[c] = left[c - 1]
        left[j], ids[j] = chosen, chosen
        weights[j] = exp32(logits[chosen] - logits[ids[0]])
        total += weights[j]
    for j in range(k):
        weights[j] = weights[j] / total


@kernel()
def mix_experts_task(arguments, i, scratch):
    """Add up 256 values of a row's experts by weight, and the shared one's behind its gate.

    Arguments: results of experts, k, size, weights, shared, gate, out.
    """
    a = ints_at(arguments, 7)
    k, size = a[1], a[2]
    blocks = (size + SUPERBLOCK - 1) // SUPERBLOCK
    t, first = i // blocks, i % blocks * SUPERBLOCK
    n = min(size - first, SUPERBLOCK)
    weights, skip = floats_at(a[3] + 4 * k * t, k), 4 * (t * size + first)
    shared, out = floats_at(a[4] + skip, n), floats_at(a[6] + skip, n)
    gate = sigmoid32(floats_at(a[5] + 4 * t, 1)[0])
    for c in range(n):
        out[c] = f32(0.0)
    for j in range(k):
        y, weight = floats_at(a[0] + 4 * ((t * k + j) * size + first), n), weights[j]
        for c in range(n):
            out[c] += weight * y[c]
    for c in range(n):
        out[c] += gate * shared[c]


@helper
def _copy_words(source, target, count):
    """Copy `count` words of 8 bytes."""
    given, copy = words_at(source, count), words_at(target, count)
    for i in range(count):
        copy[i] = given[i]


@helper
def _gather(x, stride, per_row, cols, kind, pairs, target, to_stride):
    """Copy the rows of pairs side by side: records, or floats that are arranged for many rows."""
    for t in range(pairs.size):
        source, to = x + pairs[t] // per_row * stride, target + t * to_stride
        if kind != U(DENSE):
            _copy_words(source, to, (cols + SUPERBLOCK - 1) // SUPERBLOCK * (RECORD // 8))
        elif pairs.size < FEW:
            _copy_words(source, to, cols // 2)
        else:
            arrange(U(source), U(to), U(cols // LANES))


@helper
def _scatter(results, width, out, stride, n, pairs):
    """Copy the first n of each pair's `width` results to their places."""
    for t in range(pairs.size):
        given, to = floats_at(results + 4 * width * t, n), floats_at(out + pairs[t] * stride, n)
        for c in range(n):
            to[c] = given[c]


@helper
def _multiply(a, first, begin, end, pairs, scratch):
    """Multiply tiles [begin, end) of the expert that starts at tile `first` by rows of pairs."""
    part = words_at(scratch + PART_AT, PART_COLUMNS)
    methods = words_at(part[METHODS], METHOD_COLUMNS)
    kind, size, n, cols, count = methods[KIND], a[8], a[11], a[13], pairs.size
    x, stride = a[10] if kind == U(ARRANGED) else a[9], row_of_records(n)
    to_stride = stride
    if kind == U(DENSE):
        x, stride = a[12], 4 * cols
        to_stride = stride if count < FEW else row_of_floats(cols)
    width, target = (end - begin) * ROWS, a[14] + 4 * ROWS * begin
    rows, gathered = x + pairs[0] // a[3] * stride, scratch + GATHERED_AT
    results = gathered + TOGETHER * max(stride, row_of_floats(cols) * (kind == U(DENSE)))
    workspace = results + 4 * width * TOGETHER
    alone = count == 1 and size % ROWS == 0
    if count > 1:
        _gather(x, stride, a[3], cols, kind, pairs, gathered, to_stride)
        rows = gathered
    out = target + 4 * size * pairs[0] if alone else results
    part[ALL_ROWS] = U(width)
    out -= 4 * ROWS * (first + begin)  # run_tiles counts rows from the first expert's
    i = begin
    while i < end:
        i += run_tiles(
            part,
            U(first + i),
            U(end - i),
            U(rows),
            U(rows),
            U(n),
            U(rows),
            U(count),
            U(cols),
            U(out),
            U(workspace),
        )
    if not alone:
        _scatter(results, width, target, 4 * size, min(width, size - ROWS * begin), pairs)


@kernel()
def expert_task(arguments, number, scratch):
    """Multiply some tiles of one expert's matrix by the rows that chose it.

    Arguments: the stack's part, ids, pairs of row and expert, pairs per row of x, experts, whether
    slots are experts or pairs, tasks per slot, tiles of an expert, rows of a result, records,
    records arranged for declared layouts, superblocks, x, K, out.
    """
    a = ints_at(arguments, 15)
    ids, tiles, pieces = ints_at(a[1], a[2]), a[7], a[6]
    slot, piece = number // pieces, number % pieces
    expert, start = slot, 0
    if a[5] == 0:  # a slot is a pair: the first of an expert does all of them
        expert, start = ids[slot], slot
        for i in range(slot):
            if ids[i] == expert:
                return
        if expert < 0 or expert >= a[4]:
            return
    begin, end = tiles * piece // pieces, tiles * (piece + 1) // pieces
    _copy_words(a[0], scratch + PART_AT, PART_COLUMNS)
    count = 0
    for i in range(start, a[2]):
        if ids[i] == expert:
            ints_at(scratch, TOGETHER)[count] = i
            count += 1
        if count == TOGETHER or (i == a[2] - 1 and count > 0):
            _multiply(a, expert * tiles, begin, end, ints_at(scratch, count), scratch)
            count = 0

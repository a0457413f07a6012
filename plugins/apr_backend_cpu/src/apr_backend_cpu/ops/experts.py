"""The ops of a mixture of experts: `route`, `expert_linear` and `mix_experts`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import (
    GATHERED_AT,
    RECORD,
    ROW_BYTES,
    ROW_GAP,
    ROWS,
    SUPERBLOCK,
    TOGETHER,
)
from apr_backend_cpu.ops.linear import TASK_BYTES, Group
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.program import Program, instructions, new, strided

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
SHARE = 8  # tasks per thread, at least, where an expert has many rows


class Stack(Group):
    """The matrices of all experts, [E, rows, cols], each in whole tiles."""

    def __init__(self, w: Any) -> None:
        self.experts: int = w.shape[0]
        self.size: int = w.shape[1]
        self.tiles: int = -(-self.size // ROWS)
        if self.size % ROWS:  # copied, with rows of zeros after each matrix
            data = np.zeros((self.experts, self.tiles * ROWS, w.data.shape[1]), w.data.dtype)
            data[:, : self.size] = w.data.reshape(self.experts, self.size, -1)
            shape = (self.experts, self.tiles * ROWS, w.cols)
            w = replace(w, shape=shape, data=data.reshape(-1, w.data.shape[1]))
        super().__init__((w,), (None,))

    def pieces(self, pairs: int, threads: int) -> int:
        """Return how many tasks share the rows of an expert."""
        if pairs > self.experts:
            return min(self.tiles, math.ceil(SHARE * threads / self.experts))
        return min(self.tiles, math.ceil(self.tiles * ROWS * self.row_bytes / TASK_BYTES))

    @property
    def row_bytes(self) -> int:
        """Bytes from one row of weights to the next."""
        return int(self.table[0, ROW_BYTES])

    def product(self, p: Program, x: Floats, ids: Ids, out: Floats) -> None:
        """Add the product's instructions: x [T or T * k, in], ids [T, k], out [T, k, rows]."""
        (rows, cols), pairs = x.shape, ids.size
        records, n = (p.records(x), -(-cols // SUPERBLOCK)) if self.packed else (None, 0)
        arranged = self._arranged_records(p, records, n) if self.arranged else records
        each, many = self.pieces(pairs, p.threads), pairs > self.experts
        width = ROWS * math.ceil(self.tiles / each)
        row = max(n * RECORD, 4 * cols) + ROW_GAP
        p.keep(self)
        p.add(
            "expert_task",
            (self.experts if many else pairs) * each,
            address(self.table),
            address(ids),
            pairs,
            pairs // rows,
            self.experts,
            many,
            each,
            self.tiles,
            self.size,
            *(0 if r is None else address(r) for r in (records, arranged)),
            n,
            address(x),
            cols,
            address(out),
            scratch=GATHERED_AT + TOGETHER * (row + 4 * width) + self._scratch(TOGETHER, cols, n),
        )


def expert_linear(x: Floats, ids: Ids, w: Any) -> Floats:
    """Return products [T, k, out] of x [T, in] or [T, k, in] and the experts ids [T, k]."""
    stack = w.prepared = w.prepared or Stack(w)
    x = stack.input(strided(x, whole=True).array.reshape(-1, x.shape[-1]))
    ids, out = whole_ids(ids), new((*ids.shape, stack.size))
    with instructions(x, ids, out, stack) as p:
        stack.product(p, x, ids, out)
    return out


def whole_ids(ids: Any) -> Ids:
    """Return contiguous int64, as results of `route` are."""
    if ids.dtype == np.int64 and ids.flags.c_contiguous:
        whole: Ids = ids
        return whole
    return np.ascontiguousarray(ids, np.int64)


def route(logits: Floats, k: int) -> tuple[Ids, Floats]:
    """Return the ids of the k likeliest experts [T, k], and their weights."""
    logits = strided(logits, whole=True).array
    rows, experts = logits.shape
    ids, weights = new((rows, k), np.int64), new((rows, k))
    with instructions(logits, ids, weights) as p:
        p.add(
            "route_task",
            rows,
            address(logits),
            experts,
            k,
            address(ids),
            address(weights),
            scratch=8 * experts,
        )
    return ids, weights


def mix_experts(y: Floats, weights: Floats, shared: Floats, gate: Floats) -> Floats:
    """Return the sum of weights [T, k] * y [T, k, N], plus sigmoid(gate [T, 1]) * shared [T, N]."""
    y, weights = strided(y, whole=True).array, strided(weights, whole=True).array
    shared, gate = strided(shared, whole=True).array, strided(gate, whole=True).array
    out = new(shared.shape)
    rows, size = shared.shape
    with instructions(y, weights, shared, gate, out) as p:
        p.add(
            "mix_experts_task",
            rows * -(-size // SUPERBLOCK),
            address(y),
            weights.shape[1],
            size,
            address(weights),
            address(shared),
            address(gate),
            address(out),
        )
    return out

"""`linear`, `linears`, `mlp` and `embed` of the CPU backend, built on the compiled products."""

from __future__ import annotations

import math
from inspect import unwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import (
    FEW,
    PART_ROWS,
    ROW_BYTES,
    ROW_GAP,
    ROW_WORKSPACE,
    ROWS,
    SIDE_BY_SIDE,
    SUPERBLOCK,
    TILE_GROUP_WIDE,
)
from apr_backend_cpu.native import address as kernel
from apr_backend_cpu.ops.elementwise import add, padded, swiglu
from apr_backend_cpu.ops.formats import BLOCKS, FLOATS, methods
from apr_backend_cpu.ops.layout_tables import LayoutTables
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.program import Program, instructions, new, recorder, strided
from apr_backend_cpu.run.recording import materialize
from apr_core.plugin import plain

Floats = NDArray[np.float32]
TASK_BYTES = 64 << 10  # weights in a task where memory is the limit
WIDTH = 16  # values; rows are padded to whole vectors for weights that are not packed


class Group:
    """Weights multiplied with one input, and the tables that the compiled code needs for them."""

    def __init__(self, weights: tuple[Any, ...], biases: tuple[Floats | None, ...]) -> None:
        self.rows = [w.rows for w in weights]
        self.total = sum(self.rows)
        self.weights, self.biases = weights, biases  # kept, so that their ids are not reused
        self._tails: list[NDArray[Any]] = []
        self._layouts: dict[str, LayoutTables] = {}
        parts: list[list[int]] = []
        tile, before = 0, 0
        for w, bias in zip(weights, biases, strict=True):
            for data, first, rows in self._parts(w):
                parts.append([tile, address(data), data.strides[0], rows, self._methods(w), before,
                              first, w.rows, self._parameters(w),
                              0 if bias is None else address(bias)])  # fmt: skip
                tile += -(-rows // ROWS)
            before += w.rows
        self.table = np.array(parts, np.uint64)
        self.arranged = any(layout.arranged for layout in self._layouts.values())
        self.packed = any(w.format not in FLOATS for w in weights)
        self.dense = any(w.format in FLOATS for w in weights)
        self.padded = any(w.format in FLOATS and w.cols % WIDTH for w in weights)
        self._bounds: dict[tuple[bool, int], NDArray[np.int64]] = {}

    def _methods(self, w: Any) -> int:
        """Return the address of the methods of a weight's format."""
        if _is_known(w):
            return address(methods(w.format))
        layout = self._layout(w)
        return address(methods(layout.codes, layout.arranged))

    def _parameters(self, w: Any) -> int:
        """Return the address of a declared layout's parameters; 0 for a known format."""
        return 0 if _is_known(w) else address(self._layout(w).params)

    def _layout(self, w: Any) -> LayoutTables:
        if w.name not in self._layouts:
            self._layouts[w.name] = LayoutTables(w)
        return self._layouts[w.name]

    def _parts(self, w: Any) -> list[tuple[NDArray[Any], int, int]]:
        """Return (bytes, first row, rows) of a weight: whole tiles in place, the rest copied."""
        left = w.rows % ROWS if w.format not in FLOATS else 0
        whole = w.rows - left
        parts = [(w.data, 0, whole)] if whole else []
        if left:
            tail = np.zeros((ROWS, w.data.shape[1]), w.data.dtype)
            tail[:left] = w.data[whole:]
            self._tails.append(tail)
            parts.append((tail, whole, left))
        return parts

    def bounds(self, few: bool, threads: int) -> NDArray[np.int64]:
        """Return where each task's tiles begin, with the same number of tasks per thread.

        Tasks have about equal bytes for few rows, equal tiles for many.
        """
        bounds = self._bounds.get((few, threads))
        if bounds is None:
            rows, row_bytes = self.table[:, PART_ROWS], self.table[:, ROW_BYTES]
            counts = -(-rows.astype(np.int64) // ROWS)
            size = ROWS * row_bytes if few else np.ones_like(row_bytes)
            done = np.concatenate([[0], np.cumsum(np.repeat(size, counts).astype(np.float64))])
            each = done[-1] / threads / (TASK_BYTES if few else SIDE_BY_SIDE)
            tasks = threads * math.ceil(each)
            bounds = np.searchsorted(done, done[-1] * np.arange(tasks + 1) / tasks).astype(np.int64)
            bounds[0], bounds[-1] = 0, done.size - 1
            self._bounds[few, threads] = bounds
        return bounds

    def __call__(self, x: Floats) -> list[Floats]:
        """Return a product [T, rows] for each weight, from x [T, in]."""
        x = self.input(x)
        tokens = x.shape[0]
        out = new((tokens * self.total,))
        with instructions(x, out, self) as p:
            self.add(p, x, out)
        results, start = [], 0
        for rows in self.rows:
            results.append(out[start : start + tokens * rows].reshape(tokens, rows))
            start += tokens * rows
        return results

    def add(self, p: Program, x: Floats, out: Floats) -> None:
        """Add the product's instructions: x [T, in], out [T * all rows]."""
        tokens, cols = x.shape
        bounds = self.bounds(tokens < FEW, p.threads)
        records, n = (p.records(x), -(-cols // SUPERBLOCK)) if self.packed else (None, 0)
        arranged = self._arranged_records(p, records, n) if self.arranged else records
        dense = self._arranged(p, x) if self.dense and tokens >= FEW else x
        p.keep(self, bounds)
        p.add(
            "product_task",
            len(bounds) - 1,
            address(self.table),
            len(self.table),
            address(bounds),
            *(0 if r is None else address(r) for r in (records, arranged)),
            n,
            address(dense),
            tokens,
            cols,
            address(out),
            scratch=self._scratch(tokens, cols, n),
        )

    def _scratch(self, tokens: int, cols: int, n: int) -> int:
        """Return the bytes of a task: unpacked tiles, or partial sums; results of a last tile."""
        nbytes = n * (SIDE_BY_SIDE * 8 * TILE_GROUP_WIDE if tokens >= FEW else ROW_WORKSPACE)
        if self.dense:
            nbytes = max(nbytes, 4 * ROWS * (cols + WIDTH))
        if self._layouts:
            nbytes += max(layout.workspace_bytes for layout in self._layouts.values())
        return nbytes + 4 * ROWS * tokens

    def _arranged_records(self, p: Program, records: Any, n: int) -> NDArray[np.uint8]:
        """Return records reordered for declared layouts with nibbles of neighbours."""
        arranged = new(records.shape, np.uint8)
        p.keep(arranged)
        p.add("arrange_records_task", len(records), address(records), n, address(arranged))
        return arranged

    def _arranged(self, p: Program, x: Floats) -> Floats:
        """Return x arranged for products of many rows with floating-point weights."""
        arranged = new((x.shape[0], x.shape[1] + ROW_GAP // x.itemsize))
        p.keep(arranged)
        p.add("arrange_task", x.shape[0], address(x), x.strides[0], x.shape[1], address(arranged))
        return arranged

    def input(self, x: Floats) -> Floats:
        """Return contiguous rows, padded with zeros if a weight's rows are."""
        if self.padded:
            return padded(x, -(-x.shape[1] // WIDTH) * WIDTH)
        return strided(x, whole=True).array


def _is_known(w: Any) -> bool:
    """Return whether the weight's format has its own kernels and needs no declared layout."""
    return w.format in BLOCKS


def group(weights: tuple[Any, ...], biases: tuple[Floats | None, ...] = ()) -> Group:
    """Return the group of these weights, made on first use and kept with the first of them."""
    groups = weights[0].prepared
    if groups is None:
        groups = weights[0].prepared = {}
    key = tuple(map(id, (*weights, *biases)))
    group: Group | None = groups.get(key)
    if group is None:
        group = groups[key] = Group(weights, biases or (None,) * len(weights))
    return group


def linear(x: Floats, w: Any) -> Floats:
    """Return x [T, in] times a weight [out, in] -> [T, out]."""
    return group((w,))(x)[0]


def _ours(*ws: Any) -> bool:
    """Return whether this module does all products; another distribution may bring kernels."""
    return all(unwrap(w.linear) is linear for w in ws)


def linears(
    x: Floats, ws: tuple[Any, ...], biases: tuple[Floats | None, ...] | None = None
) -> tuple[Floats, ...]:
    """Return products with one input, which is quantized once, plus any biases."""
    if _ours(*ws):
        return tuple(group(ws, biases or ())(x))
    pairs = zip((w.linear(x, w) for w in ws), biases or (None,) * len(ws), strict=True)
    return tuple(y if bias is None else add(y, bias) for y, bias in pairs)


def mlp(x: Floats, gate: Any, up: Any, down: Any) -> Floats:
    """Return down(silu(gate(x)) * up(x))."""
    if not _ours(gate, up, down):
        return _mlp_in_steps(x, gate, up, down)
    first, second = group((gate, up)), group((down,))
    if not (first.packed and second.packed) or first.padded or second.padded:
        return _mlp_in_steps(x, gate, up, down)
    x = first.input(x)
    tokens = x.shape[0]
    both, out = new((2, tokens, gate.rows)), new((tokens, down.rows))
    with instructions(x, both, out, first, second) as p:
        first.add(p, x, both)
        second.add(p, swiglu(both[0], both[1]), out)
    return out


def _mlp_in_steps(x: Floats, gate: Any, up: Any, down: Any) -> Floats:
    result: Floats = down.linear(swiglu(*linears(x, (gate, up))), down)
    return result


def embed(ids: NDArray[np.int64], w: Any) -> Floats:
    """Return rows of the embedding [T, columns]; only the rows asked for are decoded."""
    if not _is_known(w):
        return _decoded(ids, w)
    recording = recorder()
    if recording is None or ids is not recording.ids:
        materialize()
        ids = np.ascontiguousarray(plain(ids), np.int64)
    out = new((len(ids), w.cols))
    with instructions(ids, out, w.data) as p:
        block, nbytes = BLOCKS[w.format]
        p.add(
            "embed_task",
            len(ids),
            address(ids),
            address(w.data),
            w.data.strides[0],
            w.cols,
            address(out),
            kernel(f"decode_{w.format}"),
            block,
            nbytes,
            scratch=8 * SUPERBLOCK,
        )
    return out


def _decoded(ids: NDArray[np.int64], w: Any) -> Floats:
    """Return rows of a format without kernels, decoded by the format's own decoder."""
    recording = recorder()
    if recording is None or ids is not recording.ids:
        materialize()
        return _rows(plain(ids), w)
    out = new((len(ids), w.cols))
    rows = out.view(np.ndarray)

    def refresh(ids: Any, step: Any) -> None:
        rows[:] = _rows(ids, w)

    recording.program.each_time(refresh)
    return out


def _rows(ids: NDArray[np.int64], w: Any) -> Floats:
    packed = np.ascontiguousarray(w.data[ids]).view(np.uint8)[:, : w.row_bytes]
    decoded: Floats = w.decode(np.ascontiguousarray(packed), w.cols)
    return decoded

"""`linear`, `linears`, `mlp` and `embed` of the CPU backend, in terms of the compiled products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu import products
from apr_backend_cpu.activations import RECORD, SUPERBLOCK
from apr_backend_cpu.elementwise import add, swiglu
from apr_backend_cpu.float_linear import CODES as FLOAT_CODES
from apr_backend_cpu.layout_tables import LayoutTables
from apr_backend_cpu.matvec import MATVEC_ROOM
from apr_backend_cpu.products import (
    CODES,
    FEW,
    LAYOUT,
    LAYOUT_WITH_MINIMA,
    ROWS,
    SIDE_BY_SIDE,
)
from apr_backend_cpu.program import Opcode, Program, instructions, new, recorder, strided
from apr_backend_cpu.recording import plain, settle
from apr_backend_cpu.rows import address
from apr_backend_cpu.unpack import TILE_RECORD

Floats = NDArray[np.float32]
TASK_BYTES = 64 << 10  # weights of a task where memory is the limit
WIDTH = 16  # values; rows of dense activations are whole vectors where a weight is not packed


class Group:
    """Weights that are multiplied with one input: what the compiled code has to know of them."""

    def __init__(self, weights: tuple[Any, ...]) -> None:
        self.rows = [w.rows for w in weights]
        self.total = sum(self.rows)
        self.weights = weights  # so that no other object takes their identity
        self._tails: list[NDArray[Any]] = []
        self._layouts: dict[str, LayoutTables] = {}
        parts: list[list[int]] = []
        tile, before = 0, 0
        for w in weights:
            for data, first, rows in self._parts(w):
                parts.append([tile, address(data), data.strides[0], rows, self._code(w), before,
                              first, w.rows, self._parameters(w)])  # fmt: skip
                tile += -(-rows // ROWS)
            before += w.rows
        self.table = np.array(parts, np.uint64)
        self.packed = any(w.format not in FLOAT_CODES for w in weights)
        self.padded = any(w.format in FLOAT_CODES and w.cols % WIDTH for w in weights)
        self._bounds: dict[bool, NDArray[np.int64]] = {}

    def _code(self, w: Any) -> int:
        """The number of a weight's format in the compiled code."""
        found = CODES.get(w.format)
        if found is None:
            found = LAYOUT_WITH_MINIMA if self._layout(w).has_minima else LAYOUT
        return found

    def _parameters(self, w: Any) -> int:
        """Where the compiled code finds a declared layout; 0 for a format it knows."""
        return 0 if w.format in CODES else address(self._layout(w).params)

    def _layout(self, w: Any) -> LayoutTables:
        if w.name not in self._layouts:
            self._layouts[w.name] = LayoutTables(w)
        return self._layouts[w.name]

    def _parts(self, w: Any) -> list[tuple[NDArray[Any], int, int]]:
        """(bytes, first row, rows) of a weight: whole tiles in place, the rest in a copy."""
        left = w.rows % ROWS if w.format not in FLOAT_CODES else 0
        whole = w.rows - left
        parts = [(w.data, 0, whole)] if whole else []
        if left:
            tail = np.zeros((ROWS, w.data.shape[1]), w.data.dtype)
            tail[:left] = w.data[whole:]
            self._tails.append(tail)
            parts.append((tail, whole, left))
        return parts

    def bounds(self, few: bool) -> NDArray[np.int64]:
        """Where each task's tiles begin: about equal bytes for few rows, equal tiles for many."""
        found = self._bounds.get(few)
        if found is None:
            rows, row_bytes = self.table[:, products.PART_ROWS], self.table[:, products.ROW_BYTES]
            counts = -(-rows.astype(np.int64) // ROWS)
            size = ROWS * row_bytes if few else np.ones_like(row_bytes)
            done = np.concatenate([[0], np.cumsum(np.repeat(size, counts).astype(np.float64))])
            tasks = max(1, round(done[-1] / (TASK_BYTES if few else SIDE_BY_SIDE)))
            found = np.searchsorted(done, done[-1] * np.arange(tasks + 1) / tasks).astype(np.int64)
            found[0], found[-1] = 0, done.size - 1
            self._bounds[few] = found
        return found

    def __call__(self, x: Floats) -> list[Floats]:
        """x [T, in] -> one [T, rows] a weight."""
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
        """The product's instructions: x [T, in], out [T * all rows]."""
        tokens, cols = x.shape
        bounds = self.bounds(tokens < FEW)
        records, n = (p.records(x), -(-cols // SUPERBLOCK)) if self.packed else (None, 0)
        room = n * (SIDE_BY_SIDE * TILE_RECORD if tokens >= FEW else MATVEC_ROOM)
        if self._layouts:
            room += max(layout.room for layout in self._layouts.values())
            room += tokens * (n | 1) * RECORD if tokens < FEW else 0
        p.keep(self, bounds)
        p.add(Opcode.PRODUCT, len(bounds) - 1, address(self.table), len(self.table),
              address(bounds), 0 if records is None else address(records), n, address(x), tokens,
              cols, address(out), room)  # fmt: skip

    def input(self, x: Floats) -> Floats:
        """Contiguous rows, padded with zeros if a weight's rows are."""
        if self.padded:
            settle()
            x = np.pad(plain(x), ((0, 0), (0, -x.shape[1] % WIDTH)))
        return strided(x, whole=True).array


def group(weights: tuple[Any, ...]) -> Group:
    """The group of these weights, made on first use and kept with the first of them."""
    kept = weights[0].prepared
    if kept is None:
        kept = weights[0].prepared = {}
    key = tuple(map(id, weights))
    found: Group | None = kept.get(key)
    if found is None:
        found = kept[key] = Group(weights)
    return found


def linear(x: Floats, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return group((w,))(x)[0]


def _ours(*ws: Any) -> bool:
    """Whether all products are this module's; another distribution may bring a kernel."""
    return all(w.linear is linear for w in ws)


def linears(
    x: Floats, ws: tuple[Any, ...], biases: tuple[Floats | None, ...] | None = None
) -> tuple[Floats, ...]:
    """Products with one input, which is quantized once, and biases."""
    products = group(ws)(x) if _ours(*ws) else [w.linear(x, w) for w in ws]
    pairs = zip(products, biases or (None,) * len(ws), strict=True)
    return tuple(y if bias is None else add(y, bias) for y, bias in pairs)


def mlp(x: Floats, gate: Any, up: Any, down: Any) -> Floats:
    """down(silu(gate(x)) * up(x))."""
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
    """Rows of the embedding in any format: the few rows asked for are decoded."""
    recording = recorder()
    if recording is None or ids is not recording.ids:
        settle()
        return _decoded(plain(ids), w)
    out = new((len(ids), w.cols))
    rows = out.view(np.ndarray)

    def refresh(ids: Any, step: Any) -> None:
        rows[:] = _decoded(ids, w)

    recording.program.each_time(refresh)
    return out


def _decoded(ids: NDArray[np.int64], w: Any) -> Floats:
    rows = w.data[ids]
    if w.decode is None:
        dense: Floats = rows[:, : w.cols].astype(np.float32)
        return dense
    packed = np.ascontiguousarray(rows).view(np.uint8)[:, : w.row_bytes]
    decoded: Floats = w.decode(np.ascontiguousarray(packed), w.cols)
    return decoded

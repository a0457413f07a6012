"""Several products with one input in one launch, over the tiles of matrices of one kind.

A step of one token is some hundred launches, each of which costs about as long as reading one of
the smaller matrices. So products with the same input are launched together. A table on the device,
made once for each group of matrices, says where each tile's planes are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.tiles import pointer, products
from apr_backend_cuda.launching.shapes import SHAPES
from apr_backend_cuda.launching.tuning import launch
from apr_backend_cuda.weights.matrices import Matrix

PLANES = ("codes", "upper", "scales", "minima", "supers", "codebook")  # in the order of the table
FIELDS = 16  # of a tile: addresses of its planes, rows of its matrix, its first row, its output row


@triton.jit
def _scales_at(address, KIND: tl.constexpr):
    """Return a pointer to scales or minima, of the kind's type."""
    if KIND == "q4_k" or KIND == "q5_k":
        scales = pointer(address, tl.uint8)
    elif KIND == "q6_k":
        scales = pointer(address, tl.int8)
    else:
        scales = pointer(address, tl.float32)
    return scales


@triton.jit
def _codes_at(address, KIND: tl.constexpr):
    """Return a pointer to codes, or to whole weights."""
    if KIND == "f32":
        codes = pointer(address, tl.float32)
    elif KIND == "f16":
        codes = pointer(address, tl.float16)
    elif KIND == "bf16":
        codes = pointer(address, tl.bfloat16)
    else:
        codes = pointer(address, tl.uint8)
    return codes


@triton.jit
def _linears(
    x,
    out,
    tokens,
    x_stride,
    all_rows,
    per_part,
    tiles,
    blocks,
    cols,
    groups,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    MINIMA: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    FIELDS: tl.constexpr,
):
    own = tiles + tl.program_id(1) * FIELDS
    codes = _codes_at(tl.load(own), KIND)
    upper = pointer(tl.load(own + 1), tl.uint8)
    scales, minima = _scales_at(tl.load(own + 2), KIND), _scales_at(tl.load(own + 3), KIND)
    supers = pointer(tl.load(own + 4), tl.float16)
    codebook = pointer(tl.load(own + 5), tl.float32)
    rows = tl.load(own + 7) + tl.arange(0, ROWS)
    inside = rows < tl.load(own + 6)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(2)
    sums = products(
        x,
        x_stride,
        token,
        tokens,
        part * per_part,
        tl.minimum((part + 1) * per_part, blocks),
        codes,
        upper,
        scales,
        minima,
        supers,
        codebook,
        rows,
        inside,
        blocks,
        cols,
        groups,
        KIND,
        GROUP,
        ZERO,
        MINIMA,
        ROWS,
        TOKENS,
    )
    place = tl.load(own + 8) + tl.arange(0, ROWS)  # output row among the rows of all matrices
    to = out + (part * tokens + token).to(tl.int64)[None, :] * all_rows + place[:, None]
    tl.store(to, sums, mask=inside[:, None] & (token < tokens)[None, :])


def alike(matrices: Sequence[Matrix]) -> list[list[int]]:
    """Group matrices that can go together: indices, in order, for each kind."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, m in enumerate(matrices):
        shape = m.arguments()
        key = (*(shape[name] for name in ("KIND", "GROUP", "ZERO", "MINIMA", "cols", "groups")),)
        levels = m.extra.get("codebook")
        kinds.setdefault((*key, levels is None), []).append(place)
    return list(kinds.values())


def multiply_together(
    x: torch.Tensor, matrices: Sequence[Matrix], width: int, parts: int, per_part: int
) -> torch.Tensor:
    """Return x [T, in] times matrices [out, in] -> f32 [parts, T, sum of out].

    The matrices are of one kind; tiles are `width` tokens wide.
    """
    tokens, first = x.shape[0], matrices[0]
    candidates = SHAPES.linear_of(max(m.rows for m in matrices))
    height = candidates[0]["ROWS"]
    table = _table(tuple(matrices), height)
    rows = sum(m.rows for m in matrices)
    out = torch.empty((parts, tokens, rows), dtype=torch.float32, device=x.device)
    arguments = {k: v for k, v in first.arguments().items() if k not in PLANES}
    launch(
        _linears,
        "linears",
        f"{first.kind} {width}",
        [each for each in candidates if each["ROWS"] == height],
        lambda _: (triton.cdiv(tokens, width), len(table), parts),
        x,
        out,
        tokens,
        x.stride(0),
        rows,
        per_part,
        table,
        **arguments,
        TOKENS=width,
        FIELDS=FIELDS,
    )
    return out


def _table(matrices: tuple[Matrix, ...], height: int) -> torch.Tensor:
    """Return the tiles of all matrices: i64 [tiles, FIELDS]; kept with the first matrix."""
    key = (height, *map(id, matrices[1:]))
    tables = matrices[0].together
    if key not in tables:
        lines, place = [], 0
        for m in matrices:
            planes = m.arguments()
            addresses = [planes[name].data_ptr() for name in PLANES]
            for first in range(0, m.rows, height):
                line = [*addresses, m.rows, first, place + first]
                lines.append([*line, *[0] * (FIELDS - len(line))])
            place += m.rows
        table = torch.tensor(lines, dtype=torch.int64)
        # keeps the matrices alive, so that their addresses stay valid and their ids are not reused
        tables[key] = table.to(matrices[0].codes.device), matrices[1:]
    return tables[key][0]

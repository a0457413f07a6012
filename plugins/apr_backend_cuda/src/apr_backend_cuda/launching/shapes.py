"""How much work a program of each kernel does. It affects only speed, never a result.

The interpreter runs one program at a time, and an operation in it costs the same at any size, so
there a few large programs are best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import triton

from apr_backend_cuda.probe import interpreted

Candidate = Mapping[str, int]
# Not below 64 rows: there Hopper uses other instructions, which may round differently.
LINEAR: tuple[Candidate, ...] = tuple(
    {"ROWS": rows, "num_warps": warps, "num_stages": stages}
    for rows, warps, stages in ((64, 4, 3), (64, 4, 2), (64, 4, 4), (128, 8, 2), (64, 4, 1))
)
MATMUL: tuple[Candidate, ...] = tuple(
    {
        "ROWS": rows,
        "TOKENS": tokens,
        "K": k,
        "TOGETHER": 8,
        "num_warps": warps,
        "num_stages": stages,
    }
    for rows, tokens, k, warps, stages in (
        (128, 128, 64, 8, 3),
        (128, 256, 64, 8, 3),
        (128, 128, 32, 4, 4),
        (64, 128, 64, 4, 3),
        (128, 64, 32, 4, 3),
    )
)
ATTEND: tuple[Candidate, ...] = tuple(
    {"num_warps": warps, "num_stages": stages}
    for warps, stages in ((4, 3), (8, 3), (8, 2), (4, 2), (8, 1))
)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of tiles, all powers of two."""

    weight_rows: int = 64  # of a product, in choosing its number of parts
    linear: tuple[Candidate, ...] = LINEAR
    least_rows: int = 64  # of a tile of weights, even if the matrix has fewer
    matmul: tuple[Candidate, ...] = MATMUL
    many: int = 257  # from this many tokens, the weight is decoded first
    slab: int = 1 << 26  # values of a weight that are decoded at a time
    shrunk: tuple[int, int] = (8, 1024)  # tokens and values
    tokens: tuple[int, ...] = (16, 32, 64)  # of a product: the smallest that holds all
    attend: tuple[Candidate, ...] = ATTEND
    programs: int = 2 * 132  # that fill the device
    parts: int = 16  # of a weight's columns at most, where its rows are too few to fill it
    stretch: int = 1024  # values of elementwise ops
    rows: int = 4096  # values of row-wise ops
    conv: tuple[int, int] = (16, 128)  # rows and channels
    written: int = 16  # rows of keys and values stored in a state
    queries: Mapping[str, tuple[int, int]] = field(  # rows of attention: for one token, for prompts
        default_factory=lambda: {"f16": (16, 64), "f32": (16, 16)}
    )
    keys: Mapping[str, int] = field(default_factory=lambda: {"f16": 64, "f32": 16})  # at a time
    columns: tuple[int, int] = (32, 32)  # of a delta state: for one token, for prompts
    draws: int = 1  # rows of logits per program
    folded: int = 256  # columns of the table that a row of logits is folded into

    def linear_of(self, rows: int) -> tuple[Candidate, ...]:
        """Return candidates for a matrix with `rows` rows."""
        enough = max(self.least_rows, triton.next_power_of_2(rows))
        return tuple({**each, "ROWS": min(each["ROWS"], enough)} for each in self.linear)


SHAPES = Shapes()
if interpreted():
    SHAPES = Shapes(
        weight_rows=512,
        linear=({"ROWS": 512},),
        attend=({},),
        least_rows=16,
        many=1 << 30,
        tokens=(16, 128),
        programs=1,
        matmul=({"ROWS": 512, "TOKENS": 128, "K": 128, "TOGETHER": 1},),
        shrunk=(128, 1024),
        stretch=1 << 18,
        rows=1 << 18,
        conv=(128, 1024),
        written=2048,
        queries={"f16": (16, 512), "f32": (16, 512)},
        keys={"f16": 64, "f32": 64},
        columns=(256, 256),
        draws=64,
        folded=8192,
    )

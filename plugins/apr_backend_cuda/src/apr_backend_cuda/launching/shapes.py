"""How much a program of each kernel takes on: no result depends on it, only speed.

The interpreter runs a program at a time, and an operation in it costs the same whatever its size:
there, few large programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import triton

from apr_backend_cuda.probe import interpreted

Candidate = Mapping[str, int]
# Not below 64 rows: Hopper would take other instructions for these, which may round otherwise.
LINEAR: tuple[Candidate, ...] = tuple(
    {"ROWS": rows, "num_warps": warps, "num_stages": stages}
    for rows, warps, stages in ((64, 4, 3), (64, 4, 2), (64, 4, 4), (128, 8, 2), (64, 4, 1))
)
MATMUL: tuple[Candidate, ...] = tuple(
    {
        "ROWS": rows, "TOKENS": tokens, "K": k, "TOGETHER": 8, "num_warps": warps,
        "num_stages": stages,
    }
    for rows, tokens, k, warps, stages in (
        (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 32, 4, 4), (64, 128, 64, 4, 3),
        (128, 64, 32, 4, 3),
    )
)  # fmt: skip
ATTEND: tuple[Candidate, ...] = tuple(
    {"num_warps": warps, "num_stages": stages}
    for warps, stages in ((4, 3), (8, 3), (8, 2), (4, 2), (8, 1))
)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of tiles; all are powers of two."""

    weight_rows: int = 64  # of a product, as far as its parts go by them
    linear: tuple[Candidate, ...] = LINEAR
    least_rows: int = 64  # of a tile of weights, where the matrix has fewer
    matmul: tuple[Candidate, ...] = MATMUL
    many: int = 257  # tokens of a product for which the weight is decoded first
    slab: int = 1 << 26  # values of a weight that are decoded at a time
    shrunk: tuple[int, int] = (8, 1024)  # tokens and values
    tokens: tuple[int, ...] = (16, 32, 64)  # of a product: the least that holds all
    attend: tuple[Candidate, ...] = ATTEND
    programs: int = 2 * 132  # that fill the device
    parts: int = 16  # of a weight's columns at most, where its rows are too few for that
    stretch: int = 1024  # values of elementwise ops
    rows: int = 4096  # values of ops that go by rows
    conv: tuple[int, int] = (16, 128)  # rows and channels
    written: int = 16  # rows of keys and values that are put into a state
    queries: Mapping[str, tuple[int, int]] = field(  # rows of attention: one token's, prompts'
        default_factory=lambda: {"f16": (16, 64), "f32": (16, 16)}
    )
    keys: Mapping[str, int] = field(default_factory=lambda: {"f16": 64, "f32": 16})  # at a time
    columns: tuple[int, int] = (32, 32)  # of a delta state: of one token, of prompts
    draws: int = 1  # rows of logits that tokens are taken from
    folded: int = 256  # columns of the table that such a row is folded into

    def linear_of(self, rows: int) -> tuple[Candidate, ...]:
        """Candidates for a matrix of so many rows."""
        enough = max(self.least_rows, triton.next_power_of_2(rows))
        return tuple({**each, "ROWS": min(each["ROWS"], enough)} for each in self.linear)


SHAPES = Shapes()
if interpreted():
    SHAPES = Shapes(
        weight_rows=512, linear=({"ROWS": 512},), attend=({},), least_rows=16, many=1 << 30,
        tokens=(16, 128), programs=1,
        matmul=({"ROWS": 512, "TOKENS": 128, "K": 128, "TOGETHER": 1},), shrunk=(128, 1024),
        stretch=1 << 18, rows=1 << 18, conv=(128, 1024), written=2048,
        queries={"f16": (16, 512), "f32": (16, 512)}, keys={"f16": 64, "f32": 64},
        columns=(256, 256), draws=64, folded=8192,
    )  # fmt: skip

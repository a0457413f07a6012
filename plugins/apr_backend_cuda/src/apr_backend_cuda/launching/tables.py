"""Tuning choices shipped by compute capability, so that a first start times nothing.

They follow from what the compiler reports for each candidate - registers, spills, shared memory -
and have not been timed yet: `APR_CUDA_TUNE=again python -m benchmarks.gpu` times all candidates and
keeps what it finds. With few tokens, reading the weights dominates, so pipelines are deep. With
many, the matrix units do, so tiles are as large as registers allow.
"""

from __future__ import annotations

from collections.abc import Mapping

PACKED = ("q4_k", "q5_k", "q6_k", "bytes", "nibbles", "fives", "codebook")
WHOLE = ("f32", "f16", "bf16")
Choice = Mapping[str, int]
Launch = tuple[int, int]  # warps and stages


def _linear(packed: Mapping[int, Launch], whole: Mapping[int, Launch]) -> dict[str, Choice]:
    """Return choices for products of few tokens, by the tokens per tile."""
    table: dict[str, Choice] = {}
    for kinds, launches in ((PACKED, packed), (WHOLE, whole)):
        for kind in kinds:
            for tokens, (warps, stages) in launches.items():
                sizes = {"ROWS": 64, "num_warps": warps, "num_stages": stages}
                table[f"linear {kind} {tokens}"] = table[f"linears {kind} {tokens}"] = sizes
    return table


def _matmul(large: Choice, small: Choice) -> dict[str, Choice]:
    """Return choices for products of many tokens.

    Two sums at once leave registers for small tiles only.
    """
    return {
        "matmul large whole": large, "matmul small whole": small,
        "matmul large parts": small, "matmul small parts": small,
    }  # fmt: skip


def _tiles(rows: int, tokens: int, k: int, warps: int, stages: int) -> Choice:
    return {
        "ROWS": rows, "TOKENS": tokens, "K": k, "TOGETHER": 8, "num_warps": warps,
        "num_stages": stages,
    }  # fmt: skip


def _attend(wide_stages: int) -> dict[str, Choice]:
    """Return choices for attention, by head size and rows per tile."""
    table: dict[str, Choice] = {}
    for dim in (64, 128, 256):
        table[f"attend {dim} 16"] = {"num_warps": 4, "num_stages": 3}
        table[f"attend {dim} 64"] = {"num_warps": 8, "num_stages": 3 if dim < 256 else wide_stages}
    return table


HOPPER = {
    **_linear({16: (4, 4), 32: (4, 3), 64: (8, 2)}, {16: (4, 2), 32: (4, 2), 64: (8, 2)}),
    **_matmul(_tiles(128, 256, 64, 8, 3), _tiles(128, 128, 64, 8, 4)),
    **_attend(2),
}
ADA = {
    **_linear({16: (4, 3), 32: (8, 2), 64: (8, 1)}, {16: (4, 2), 32: (4, 2), 64: (8, 1)}),
    **_matmul(_tiles(128, 128, 32, 8, 3), _tiles(128, 64, 32, 4, 3)),
    **_attend(1),
}
TABLES: dict[tuple[int, int], dict[str, Choice]] = {(9, 0): HOPPER, (8, 9): ADA}

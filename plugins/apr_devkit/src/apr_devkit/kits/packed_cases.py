"""Cases of products with packed weights: of every format that can be encoded here, and of layouts.

A backend is compared with the product of the decoded weights, so the error of the format itself
does not count. It may round activations to 8 bits where weights have few, which is an NMSE of about
1e-4 a product; a systematic error shows in the gain (`case_runs.difference`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Layout, Numbers
from apr_core.format.values import from_float32, to_float32
from apr_core.ops.binding import BlockLayout, HostMatrix
from apr_core.ops.layouts import decode as decode_layout
from apr_devkit.kits.cases import Call, Matrix, OpCase, normal, uniform
from apr_devkit.kits.core_cases import product_cases, weight

PACKED, PACKED_TWICE = 5e-4, 1.5e-3  # NMSE of one product, and of the three in `mlp`
HALVES = 1e-5  # of float formats: a backend may multiply in half precision
FLOAT_FORMATS = ("f16", "bf16")
MOVED = 1e-10  # `embed` only decodes
NAMES = ("linear", "linears", "embed", "mlp")
Pack = Callable[[Matrix, np.random.Generator, str], Matrix]  # (weight, generator, name)

LEVELS = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
LAYOUTS = {  # name -> (layout, values of a block, bytes of a block)
    "4 bits in pairs, minima": (
        Layout(32, 4, 4, (Numbers(0, "f16"),), (Numbers(2, "f16"),)), 32, 20,
    ),
    "4 bits in halves": (Layout(32, 2, 4, (Numbers(0, "f16"),), order="halves", zero=8), 32, 18),
    "4 bits in large blocks": (Layout(64, 32, 4, (Numbers(0, "f16"),)), 1024, 544),
    "a codebook": (
        Layout(64, 12, 4, (Numbers(0, "u8"), Numbers(8, "f32", True)), codebook=LEVELS), 256, 140,
    ),
    "8 bits, signed": (Layout(128, 4, 8, (Numbers(0, "bf16"),), signed=True), 128, 132),
    "8 bits, minima": (
        Layout(32, 8, 8, (Numbers(0, "f16"),), (Numbers(4, "f16"),), zero=100), 64, 72,
    ),
}  # fmt: skip


def in_format(
    format: str, encode: Callable[[NDArray[np.float32]], NDArray[np.uint8]],
    decode: Callable[[NDArray[np.uint8], int], NDArray[np.float32]],
    layout: BlockLayout | None = None,
) -> Pack:  # fmt: skip
    """Weights encoded by a quantizer."""

    def pack(matrix: Matrix, rng: np.random.Generator, name: str) -> Matrix:
        raw = encode(matrix.values)
        host = HostMatrix(name, format, matrix.values.shape, raw, decode, layout)
        return replace(matrix, values=host.dense(), host=host)

    return pack


def in_floats(format: str) -> Pack:
    """Weights in f16 or bf16."""

    def encode(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        return from_float32(rows, format).reshape(rows.shape[0], -1)

    def decode(raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        return to_float32(raw.reshape(-1), format, (raw.shape[0], cols))

    return in_format(format, encode, decode)


def in_layout(name: str) -> Pack:
    """Random blocks of one of `LAYOUTS`: there is no codec, and no format of that name."""
    layout, block, nbytes = LAYOUTS[name]
    spec = BlockLayout(layout, block, nbytes)
    decode = partial(decode_layout, layout, block, nbytes)

    def pack(matrix: Matrix, rng: np.random.Generator, label: str) -> Matrix:
        rows, cols = matrix.values.shape
        raw = _random_blocks(spec, rng, rows, -(-cols // block))
        host = HostMatrix(label, f"layout of {name}", (rows, cols), raw, decode, spec)
        return replace(matrix, values=host.dense(), host=host)

    return pack


def _random_blocks(
    spec: BlockLayout, rng: np.random.Generator, rows: int, blocks: int
) -> NDArray[np.uint8]:
    """Random codes, scales and minima of about 0.01 and either sign: u8 [rows, row bytes]."""
    layout = spec.layout
    raw = rng.integers(0, 256, (rows, blocks, spec.nbytes), dtype=np.uint8)
    for part in (*layout.scale, *layout.minimum):
        count = 1 if part.per_block else spec.block // layout.group
        # either sign: rows with a common part would all have the rounding of that part
        signs = rng.choice(np.array([-1, 1], np.float32), (rows, blocks, count))
        numbers = signs * uniform(rng, 0.005, 0.02, rows, blocks, count)
        if part.dtype in ("f32", "f16", "bf16"):
            stored = from_float32(numbers, part.dtype).reshape(rows, blocks, -1)
            raw[:, :, part.offset : part.offset + stored.shape[-1]] = stored
    return raw.reshape(rows, -1)


def packed_cases(format: str, pack: Pack, ops: tuple[str, ...] = NAMES) -> list[OpCase]:
    """The core's product cases and wider ones, with weights packed."""
    wide = [
        OpCase("linear", f"[{n}, {cols}] by {rows} rows", partial(_wide, n, cols, rows))
        for n, cols, rows in ((1, 1024, 300), (11, 512, 37), (70, 1280, 64))
    ]
    return [
        OpCase(case.op, f"{case.name}, {format}", partial(_packed, case, pack),
               tolerance(case.op, format))
        for case in (*product_cases(), *wide) if case.op in ops
    ]  # fmt: skip


def tolerance(op: str, format: str) -> float:
    """The NMSE allowed for this op with weights of this format."""
    if op == "embed":
        return MOVED
    if format in FLOAT_FORMATS:
        return HALVES
    return PACKED_TWICE if op == "mlp" else PACKED


def _wide(n: int, cols: int, rows: int, rng: np.random.Generator) -> list[Call]:
    return [(normal(rng, n, cols), weight(rng, rows, cols))]


def _packed(case: OpCase, pack: Pack, rng: np.random.Generator) -> list[Call]:
    def replaced(argument: Any, label: str) -> Any:
        if isinstance(argument, tuple):
            return tuple(replaced(each, f"{label}.{i}") for i, each in enumerate(argument))
        return pack(argument, rng, label) if isinstance(argument, Matrix) else argument

    return [tuple(replaced(a, f"{case.op}.{i}") for i, a in enumerate(call))
            for call in case.make(rng)]  # fmt: skip


def mixed_cases(packs: list[Pack]) -> list[OpCase]:
    """`linears` whose weights are of different formats, every neighbouring three of them."""
    names = [f"{n} rows, formats from number {i + 1} on" for n in (1, 6) for i in range(len(packs))]
    trios = [(n, [packs[(i + k) % len(packs)] for k in range(3)])
             for n in (1, 6) for i in range(len(packs))]  # fmt: skip
    return [
        OpCase("linears", name, partial(_mixed, n, trio), PACKED)
        for name, (n, trio) in zip(names, trios, strict=True)
    ]


def _mixed(n: int, packs: list[Pack], rng: np.random.Generator) -> list[Call]:
    weights = tuple(pack(weight(rng, 33, 512), rng, f"weight {i}") for i, pack in enumerate(packs))
    return [(normal(rng, n, 512), weights)]

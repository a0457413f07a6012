"""Cases of the ops that core defines. Shapes are 1, odd and large; values are what models have.

Tolerances are squared errors, chosen between two precisions. Float32 passes on any device, summed
in any order, with exponentials that are a few of the last bits off: 4096 products added one after
the other have an NMSE of 1e-12, and 1e-9 are allowed (a relative error of 3e-5). Less than float32
fails: factors rounded to the 8 bits of bf16 have an NMSE of 5e-6 or more, to the 11 bits of f16,
or of a matrix unit's shortened float32, 8e-8. So no backend needs a factor of its own, and a gain
needs no check beside these: one that is 0.004% off is too much.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from apr_core.model.state import KVType
from apr_devkit.kits.cases import KV, Call, Matrix, OpCase, Parts, Vector, normal, uniform

KV_TYPES: tuple[KVType, ...] = ("f32", "f16", "q8")
EXACT = 0.0  # values that are only moved
ELEMENTWISE = 1e-10
PRODUCT = 1e-9
KV_TOLERANCE: dict[KVType, float] = {"f32": PRODUCT, "f16": 1e-6, "q8": 5e-4}
EPSILONS = ((1e-6, 1e-3), (1e-5, 1e-3), (1e-3, 1e-2))  # and values of a size that they matter for


def core_cases() -> list[OpCase]:
    """All of them."""
    return [*product_cases(), *norm_cases(), *gate_cases(), *rope_cases(), *attention_cases()]


def product_cases() -> list[OpCase]:
    """`embed`, `linear`, `linears` and `mlp` of dense weights."""
    cases = [
        OpCase("embed", f"{n} of {rows} rows of {cols}", partial(_embed, n, rows, cols), EXACT)
        for n, rows, cols in ((1, 1, 1), (7, 33, 37), (300, 500, 256))
    ]
    cases += [
        OpCase("linear", f"[{n}, {cols}] by {rows} rows", partial(_linear, n, cols, rows), PRODUCT)
        for n, cols, rows in ((1, 1, 1), (3, 37, 5), (1, 300, 257), (65, 320, 129), (2, 4096, 16))
    ]
    cases += [
        OpCase("linears", f"{n} rows{', biases' * biased}", partial(_linears, n, biased), PRODUCT)
        for n in (1, 5, 70) for biased in (False, True)
    ]  # fmt: skip
    return cases + [
        OpCase("mlp", f"[{n}, {cols}], {inner} inside", partial(_mlp, n, cols, inner), PRODUCT)
        for n, cols, inner in ((1, 32, 64), (3, 37, 45), (70, 256, 512))
    ]


def weight(rng: np.random.Generator, rows: int, cols: int) -> Matrix:
    """A matrix whose products have the size of their inputs."""
    return Matrix(normal(rng, rows, cols, scale=cols**-0.5))


def _embed(n: int, rows: int, cols: int, rng: np.random.Generator) -> list[Call]:
    return [(rng.integers(0, rows, n), Matrix(normal(rng, rows, cols), ("embed",)))]


def _linear(n: int, cols: int, rows: int, rng: np.random.Generator) -> list[Call]:
    return [(normal(rng, n, cols), weight(rng, rows, cols))]


def _linears(n: int, biased: bool, rng: np.random.Generator) -> list[Call]:
    call = normal(rng, n, 96), tuple(weight(rng, rows, 96) for rows in (64, 1, 33))
    biases = Vector(normal(rng, 64)), None, Vector(normal(rng, 33))
    return [(*call, biases) if biased else call]


def _mlp(n: int, cols: int, inner: int, rng: np.random.Generator) -> list[Call]:
    gate, up, down = weight(rng, inner, cols), weight(rng, inner, cols), weight(rng, cols, inner)
    return [(normal(rng, n, cols), gate, up, down)]


def norm_cases() -> list[OpCase]:
    """`rms_norm` of rows and of heads, `add_rms_norm`."""
    shapes = ((1, 1), (3, 37), (300, 1024), (1, 2, 64), (5, 3, 33))
    cases = [
        OpCase("rms_norm", f"{shape}, offset {offset}, values of {scale}",
               partial(_norm, shape, offset, scale, 1e-6), ELEMENTWISE)
        for shape in shapes for offset, scale in ((0.0, 1.0), (1.0, 1e-3), (1.0, 1e3))
    ] + [
        OpCase("rms_norm", f"{shape}, eps {eps}, values of {scale}",
               partial(_norm, shape, 0.0, scale, eps), ELEMENTWISE)
        for shape in shapes for eps, scale in EPSILONS
    ]  # fmt: skip
    return cases + [
        OpCase("add_rms_norm", f"{shape}, offset {offset}",
               partial(_add_norm, shape, offset, 1.0, 1e-6), ELEMENTWISE)
        for shape in shapes[:3] for offset in (0.0, 1.0)
    ] + [
        OpCase("add_rms_norm", f"{shape}, eps {eps}, values of {scale}",
               partial(_add_norm, shape, 0.0, scale, eps), ELEMENTWISE)
        for shape in shapes[:3] for eps, scale in EPSILONS
    ]  # fmt: skip


def _norm(
    shape: tuple[int, ...], offset: float, scale: float, eps: float, rng: np.random.Generator
) -> list[Call]:
    w = normal(rng, shape[-1], scale=0.5)
    return [(normal(rng, *shape, scale=scale), Vector(w), eps, offset)]


def _add_norm(
    shape: tuple[int, ...], offset: float, scale: float, eps: float, rng: np.random.Generator
) -> list[Call]:
    w = Vector(normal(rng, shape[-1], scale=0.5))
    x, more = normal(rng, *shape, scale=3 * scale), normal(rng, *shape, scale=scale)
    return [(x, more, w, eps, offset)]


def gate_cases() -> list[OpCase]:
    """`add`, and gates also where an exponential overflows."""
    shapes = ((1, 1), (3, 37), (130, 2048))
    return [
        OpCase("add", f"{shape} and {'a row' if row else 'rows'}", partial(_add, shape, row),
               ELEMENTWISE)
        for shape in shapes for row in (False, True)
    ] + [
        OpCase(op, f"{shape}, values to {top}", partial(_gate, inputs, shape, top), ELEMENTWISE)
        for op, inputs in (("sigmoid", 1), ("silu", 1), ("softplus", 1), ("swiglu", 2))
        for shape in shapes for top in (8.0, 200.0)
    ] + [
        OpCase("sigmoid_gate", f"{shape}", partial(_heads_gate, shape), ELEMENTWISE)
        for shape in ((1, 1, 1), (5, 3, 33), (130, 8, 64))
    ]  # fmt: skip


def _add(shape: tuple[int, int], row: bool, rng: np.random.Generator) -> list[Call]:
    more = Vector(normal(rng, shape[1])) if row else normal(rng, *shape)
    return [(normal(rng, *shape), more)]


def _gate(
    inputs: int, shape: tuple[int, ...], top: float, rng: np.random.Generator
) -> list[Call]:  # fmt: skip
    gate = uniform(rng, -top, top, *shape)
    return [(gate, *(normal(rng, *shape) for _ in range(inputs - 1)))]


def _heads_gate(shape: tuple[int, ...], rng: np.random.Generator) -> list[Call]:
    return [(normal(rng, *shape), uniform(rng, -100.0, 100.0, *shape))]


def rope_cases() -> list[OpCase]:
    """`rope` over whole and partial heads, at early and at late positions."""
    return [
        OpCase("rope", f"{rotary} of {dim} dims, {len(positions)} rows to {positions[-1]}",
               partial(_rope, dim, rotary, positions), ELEMENTWISE)
        for dim, rotary in ((2, 2), (64, 64), (256, 64), (48, 10))
        for positions in ((0,), (1, 2, 3), (0, 1, 7, 4096, 70_000, 262_143))
    ]  # fmt: skip


def _rope(
    dim: int, rotary: int, positions: tuple[int, ...], rng: np.random.Generator
) -> list[Call]:
    exponent = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    inv_freq = (1.0 / np.float32(1e7) ** exponent).astype(np.float32)
    x = normal(rng, len(positions), 3, dim)
    return [(x, np.array(positions, np.int64), Vector(inv_freq))]


STEPS = {  # name -> the steps that come one after the other
    "one token": (Parts((0, 1, 0)),),
    "a prompt, then tokens": (Parts((0, 37, 0)), Parts((0, 1, 37)), Parts((0, 1, 38))),
    "a prompt in chunks": (Parts((0, 64, 0)), Parts((0, 36, 64)), Parts((0, 3, 100))),
    "a ragged batch": (
        Parts((0, 5, 0), (1, 1, 0), (2, 70, 0)),
        Parts((0, 1, 5), (1, 1, 1), (2, 1, 70)),
        Parts((2, 2, 71), (0, 66, 6)),
    ),
}
LONG = {"a long context": (Parts((0, 1100, 0)), Parts((0, 1, 1100)), Parts((0, 5, 1101)))}


def attention_cases(kv_type: KVType = "f32") -> list[OpCase]:
    """`attention` with grouped heads over a cache of this precision."""
    shapes = (((1, 1, 16), STEPS), ((6, 2, 32), STEPS), ((8, 1, 64), STEPS), ((2, 2, 64), LONG))
    return [
        OpCase("attention", f"{name}, {heads} heads over {kv_heads} of {dim}, {kv_type} cache",
               partial(_attention, heads, kv_heads, dim, parts, kv_type), KV_TOLERANCE[kv_type])
        for (heads, kv_heads, dim), steps in shapes for name, parts in steps.items()
        if kv_type != "q8" or dim % 32 == 0
    ]  # fmt: skip


def _attention(
    heads: int, kv_heads: int, dim: int, steps: tuple[Parts, ...], kv_type: KVType,
    rng: np.random.Generator,
) -> list[Call]:  # fmt: skip
    state, calls = KV(kv_heads, dim, kv_type), []
    for step in steps:
        rows = sum(count for _, count, _ in step.parts)
        q = normal(rng, rows, heads, dim, scale=2.0)
        k, v = normal(rng, rows, kv_heads, dim), normal(rng, rows, kv_heads, dim)
        calls.append((q, k, v, state, step, dim**-0.5))
    return calls

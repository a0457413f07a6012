"""Prints a digest of what every kind of kernel gives: `python level_digests.py`.

A line before says for which level, and where its machine code is from; one after, what of a
compiler was imported.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np
from kernel_calls import call, float_weight, largest_bytes, quantized, random_bytes, weight

from apr_backend_cpu import native
from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.constants import (
    AT_D,
    AT_GROUP_D,
    AT_Q,
    AT_SHIFT32,
    AT_STEP,
    AT_STEP32,
    AT_STEP_PAIR,
    AT_SUM16,
    AT_SUM32,
)
from apr_backend_cpu.ops import attention, delta, elementwise, experts, linear
from apr_backend_cpu.ops.formats import FLOATS, PACKED_BLOCKS
from apr_core.declarations import Layout, Numbers
from apr_core.messages import show_with
from apr_core.model.state import KVState, RecurrentState
from apr_core.model.step import make_step
from apr_core.ops.binding import BlockLayout

COLS, ROWS = 512, 33
BATCHES = (1, 2, 3, 5, 8, 9, 18)
FIELDS = (  # of a record: where, and bytes; what is between is never written
    (AT_Q, 256), (AT_SUM16, 32), (AT_SUM32, 16), (AT_STEP, 16), (AT_STEP_PAIR, 32),
    (AT_STEP32, 32), (AT_SHIFT32, 32), (AT_GROUP_D, 32), (AT_D, 4),
)  # fmt: skip
ONE, LOW = (Numbers(250, "u8", True),), (Numbers(251, "i8", True),)
LAYOUTS = (
    Layout(32, 0, 4, ONE),
    Layout(64, 0, 4, ONE, LOW, order="halves", codebook=tuple(float(i * i) for i in range(16))),
    Layout(32, 0, 8, ONE),
    Layout(128, 0, 8, ONE, LOW, signed=True),
    Layout(32, 0, 4, ONE, order="halves", zero=16, high=200),
    Layout(32, 4, 4, (Numbers(0, "f16"),), (Numbers(2, "f16"),), order="halves", high=100),
)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def products(rng):
    x = normal(rng, max(BATCHES), COLS)
    records = quantized(x)
    yield "activations", [records[..., start : start + size] for start, size in FIELDS]
    weights = {
        name: weight(name, ROWS, COLS, random_bytes(rng, name, ROWS, COLS))
        for name in PACKED_BLOCKS
    }
    weights |= {name: float_weight(rng, name, ROWS, COLS)[0] for name in FLOATS}
    for i, layout in enumerate(LAYOUTS):
        for block in (32, 128):
            if block % layout.group == 0:
                raw = rng.integers(0, 256, (ROWS, COLS // block * 255), dtype=np.uint8)
                raw[:, 1::255] &= 0x3F  # float16 that are finite
                raw[:, 3::255] &= 0x3F
                w = weight(f"layout {i} {block}", ROWS, COLS, raw)
                w.name, w.layout = w.format, BlockLayout(layout, block, 255)
                weights[w.name] = w
    top = np.full((18, COLS), 3, np.float32)
    for name in PACKED_BLOCKS:
        w = weight(name, ROWS, COLS, largest_bytes(rng, name, ROWS, COLS))
        many = [linear.linear(sign * top[:rows], w) for rows in BATCHES for sign in (1, -1)]
        yield f"largest {name}", many
    for name, w in weights.items():
        yield f"product {name}", [linear.linear(x[:rows], w) for rows in BATCHES]
        if "layout" not in name:
            yield f"embedding {name}", [linear.embed(np.array([0, 32, 7]), w)]


def fused(rng):
    """Sums that lie next to the middle of two float32: where rounding twice would show."""
    steps = np.array([-3, -2, -1, 0, 1, 2, 3], np.float64) * 2.0**-23
    z, product, sign, scale = np.meshgrid(1 + abs(steps), 1 + steps, (1, -1), (1, 2.0**-124))
    w = np.zeros((z.size, 32), np.float32)
    w[:, 0], w[:, 16] = (z * scale).ravel(), (sign * product * scale * 2.0**-24).ravel()
    x = np.zeros((len(steps), 32), np.float32)
    x[:, 0], x[:, 16] = 1, 1 + steps
    matrix = weight("f32", len(w), 32, w)
    yield "fused", [linear.linear(x[:rows], matrix) for rows in range(1, len(x) + 1)]


def attended(rng):
    heads, kv_heads = 8, 2
    for dtype in Cpu.kv_types:
        for dim, window in ((32, 0), (96, 0), (256, 0), (96, 100)):
            state = KVState(Cpu(2).zeros, kv_heads, dim, dtype, window)
            state.open(0)
            state.open(1)
            outputs, lengths = [], [0, 0]
            for counts in ([300, 5], [1, 1], [6, 1]):
                step = make_step([(s, n, lengths[s]) for s, n in enumerate(counts)])
                rows = sum(counts)
                q, k, v = (normal(rng, rows, n, dim) for n in (heads, kv_heads, kv_heads))
                outputs.append(attention.attention(q, k, v, state, step, dim**-0.5))
                lengths = [a + b for a, b in zip(lengths, counts, strict=True)]
            yield f"attention {dtype} {dim} {window}", outputs


def recurrent(rng):
    for counts in ([1], [70], [1, 9]):
        rows, slots = sum(counts), range(len(counts))
        state = RecurrentState(Cpu(2).zeros, {"delta": (4, 32, 128), "conv": (3, 300)})
        for slot in slots:
            state.open(slot)
        step = make_step([(slot, counts[slot], 0) for slot in slots])
        q, k, v = normal(rng, rows, 2, 32), normal(rng, rows, 2, 32), normal(rng, rows, 4, 128)
        decay = -np.exp(rng.uniform(-8, 2, (rows, 4))).astype(np.float32)
        beta = rng.uniform(0, 1, (rows, 4)).astype(np.float32)
        out = delta.gated_delta(q, k, v, decay, beta, state, step)
        conv = delta.causal_conv1d(normal(rng, rows, 300), normal(rng, 300, 1, 4), state, step)
        kept = [state.get(name, slot) for name in ("delta", "conv") for slot in slots]
        yield f"recurrent {counts}", [out, conv, *kept]


def gates(rng):
    x, y, w = normal(rng, 5, 333), normal(rng, 5, 333), normal(rng, 333)
    yield "norm", [elementwise.rms_norm(x, w, 1e-6, 1.0)]
    yield "add, norm", list(elementwise.add_rms_norm(x, y, w, 1e-6, 0.0))
    yield "swiglu", [elementwise.swiglu(20 * x, y)]
    heads, z = normal(rng, 5, 3, 48), normal(rng, 5, 3, 48)
    yield "gated norm", [elementwise.gated_rms_norm(heads, w[:48], z, 1e-6)]
    yield "sigmoid gate", [elementwise.sigmoid_gate(heads, z)]
    yield "delta gates", list(elementwise.delta_gates(x, y, w, w))
    inv_freq = (1e7 ** -(np.arange(0, 32, 2) / 32)).astype(np.float32)
    yield "rope", [elementwise.rope(heads, np.array([0, 1, 500, 70000, 262143]), inv_freq)]
    wide, out = 30 * normal(rng, 4096), np.empty(4096, np.float32)
    call("sigmoids16", wide, out, 256)
    yield "sigmoids", [out]
    call("softmax_weights", wide, 256, 1.0, 60.0)
    yield "exponentials", [wide]


def mixtures(rng):
    of_floats, _ = float_weight(rng, "f16", 6 * 32, COLS)
    packed = weight("q4_k", 6 * 32, COLS, random_bytes(rng, "q4_k", 6 * 32, COLS))
    for w in (of_floats, packed):
        w.shape = (6, 32, COLS)
        for rows in (1, 3, 60):
            x, logits = normal(rng, rows, COLS), 4 * normal(rng, rows, 6)
            ids, weights = experts.route(logits, 2)
            y = experts.expert_linear(x, ids, w)
            mixed = experts.mix_experts(y, weights, x[:, :32], logits[:, :1])
            yield f"experts {w.format} {rows}", [ids, weights, y, mixed]


def parts():
    """Names and arrays, the same in every process."""
    for number, part in enumerate((products, fused, attended, recurrent, gates, mixtures)):
        yield from part(np.random.default_rng(number))


def main():
    show_with(lambda text, done, total: print(f"notice: {text} {done}/{total}"))
    library = native.library()
    print(f"{library.level.name}: {library.origin}")
    for name, arrays in parts():
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        print(f"{name}: {digest.hexdigest()}")
    print("imported:", *sorted({"numba", "llvmlite"} & set(sys.modules)))


if __name__ == "__main__":
    main()

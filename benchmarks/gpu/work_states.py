"""What kernels are measured on: those that read and write a sequence's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from apr_core.model.state import StateMakers, state_makers
from apr_core.model.step import Step, make_step
from benchmarks.gpu.arithmetic import (
    attention_bytes,
    attention_flops,
    delta_chunk_flops,
    delta_token_flops,
)
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.work import Case, Work, nbytes, values

HALF = 2  # bytes of a number of keys and values
PIECE = 4096  # positions of keys and values that are written at once


def state_cases(bench: Bench) -> Iterator[Case]:
    """Attention and the delta rule, of one token a sequence and of prompts; the convolution."""
    a = bench.amounts
    for context in a.contexts:
        for batch in a.few_rows[: 2 if context > a.contexts[0] else None]:
            yield Case(
                "attention",
                f"1 token at {context}",
                batch,
                partial(_attention, bench, [1] * batch, context - 1),
            )
    for rows in a.many_rows:
        yield Case("attention", "a prompt", rows, partial(_attention, bench, [rows], 0))
    before = a.contexts[-1] - a.many_rows[0]
    if before > 0:
        yield Case(
            "attention",
            f"a chunk after {before}",
            a.many_rows[0],
            partial(_attention, bench, [a.many_rows[0]], before),
        )
    for kernel, make in (("gated_delta", _delta), ("causal_conv1d", _conv)):
        for batch in a.few_rows:
            yield Case(kernel, "1 token", batch, partial(make, bench, [1] * batch))
        for rows in a.many_rows:
            yield Case(kernel, "a prompt", rows, partial(make, bench, [rows]))
    for rows in (a.few_rows[0], a.many_rows[-1]):
        yield Case("delta_gates", "", rows, partial(_gates, bench, rows))


def makers(bench: Bench) -> StateMakers:
    """What makes states, the backend's own where it has them."""
    model = bench.built().model
    return state_makers(model.backend, model.kv_type, model.max_len)


def step_of(bench: Bench, counts: Sequence[int], position: int) -> Step:
    """So many tokens of each of some sequences, all at one position."""
    parts = [(slot, count, position) for slot, count in enumerate(counts)]
    return make_step(parts, bench.built().model.backend.upload)


def opened(state: Any, count: int) -> Any:
    """The state, with so many sequences."""
    for slot in range(count):
        state.open(slot)
    return state


def _attention(bench: Bench, counts: Sequence[int], before: int) -> Work:
    model = bench.built().model
    c, o = model.config, model.ops
    state = opened(makers(bench).kv(c.num_kv_heads, c.head_dim), len(counts))
    scale = c.head_dim**-0.5

    def attend(counts: Sequence[int], position: int) -> Any:
        """Something that attends; the step is laid out once, as for all layers of a forward."""
        rows, step = sum(counts), step_of(bench, counts, position)
        q = values(bench, rows, c.num_heads, c.head_dim)
        k, v = (values(bench, rows, c.num_kv_heads, c.head_dim) for _ in range(2))
        return lambda: o.attention(q, k, v, state, step, scale)

    for start in range(0, before, PIECE):
        attend([min(PIECE, before - start)] * len(counts), start)()
    rows = sum(counts)
    positions = sum(before + count for count in counts)
    moved = attention_bytes(c.num_kv_heads, c.head_dim, positions, HALF)
    moved += 2 * nbytes((rows, c.num_heads, c.head_dim))
    flops = sum(attention_flops(c.num_heads, c.head_dim, n, before) for n in counts)
    return Work(attend(counts, before), moved, flops)


def _recurrent(bench: Bench, count: int) -> Any:
    """The state of a delta net's layer."""
    x = bench.built().model.config.extra
    shape = (x["linear_num_value_heads"], x["linear_key_head_dim"], x["linear_value_head_dim"])
    conv = (x["linear_conv_kernel_dim"] - 1, _channels(x))
    return opened(makers(bench).recurrent(conv=conv, delta=shape), count)


def _channels(x: Any) -> int:
    keys = x["linear_num_key_heads"] * x["linear_key_head_dim"]
    return int(2 * keys + x["linear_num_value_heads"] * x["linear_value_head_dim"])


def _delta(bench: Bench, counts: Sequence[int]) -> Work:
    o, x = bench.built().model.ops, bench.built().model.config.extra
    rows, heads = sum(counts), x["linear_num_value_heads"]
    key_dim, value_dim = x["linear_key_head_dim"], x["linear_value_head_dim"]
    keys, shape = (rows, x["linear_num_key_heads"], key_dim), (rows, heads, value_dim)
    q, k, v = values(bench, *keys), values(bench, *keys), values(bench, *shape)
    decay, beta = -values(bench, rows, heads).abs(), torch.sigmoid(values(bench, rows, heads))
    state, step = _recurrent(bench, len(counts)), step_of(bench, counts, 0)
    moved = nbytes(keys, keys, shape, shape, *[(len(counts), heads, key_dim, value_dim)] * 2)
    if max(counts) == 1:
        flops = rows * delta_token_flops(heads, key_dim, value_dim)
    else:
        flops = delta_chunk_flops(heads, key_dim, value_dim, rows)
    return Work(lambda: o.gated_delta(q, k, v, decay, beta, state, step), moved, flops)


def _conv(bench: Bench, counts: Sequence[int]) -> Work:
    o, x = bench.built().model.ops, bench.built().model.config.extra
    rows, channels, taps = sum(counts), _channels(x), x["linear_conv_kernel_dim"]
    inputs, w = values(bench, rows, channels), values(bench, channels, 1, taps)
    state, step = _recurrent(bench, len(counts)), step_of(bench, counts, 0)
    moved = nbytes(*[(rows, channels)] * 2, *[(len(counts), taps - 1, channels)] * 2, w.shape)
    return Work(lambda: o.causal_conv1d(inputs, w, state, step), moved)


def _gates(bench: Bench, rows: int) -> Work:
    o, heads = (bench.built().model.ops, bench.built().model.config.extra["linear_num_value_heads"])
    a, b = values(bench, rows, heads), values(bench, rows, heads)
    rate, bias = values(bench, heads), values(bench, heads)
    return Work(lambda: o.delta_gates(a, b, rate, bias), nbytes(*[(rows, heads)] * 4))

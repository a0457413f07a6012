"""Prefill: prompts of one sequence, against torch's bfloat16 matrix product.

Operations counted are those of the layers' matrices; the head is multiplied with the last row only.
Those of attention are stated beside them, those of the delta rule are not counted.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from apr_core import Model
from benchmarks.engines import random_tokens
from benchmarks.gpu.arithmetic import attention_flops, matrix_flops, seconds, share
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.table import Column
from benchmarks.gpu.tokens import step
from benchmarks.gpu.weights import Built

COLUMNS = (
    Column("prompt", "prompt"), Column("chunk", "tokens a forward"),
    Column("tok_s", "tok/s", ".0f"), Column("ms", "ms", ".1f"),
    Column("tflops", "matrices, TFLOP/s", ".1f"), Column("of_matmul", "of matmul", ".0%"),
    Column("attention_tflop", "attention, TFLOP", ".2f"),
    Column("of_both", "of matmul with attention", ".0%"), Column("peak_gib", "peak, GiB", ".1f"),
    Column("note", ""),
)  # fmt: skip


def run(bench: Bench) -> None:
    """Print the table."""
    built, a = bench.built(), bench.amounts
    table = bench.report.table("Prefill", COLUMNS)
    bench.report.note(
        f"Prefill: medians of {a.prefills} after one that compiles. Operations are 2 x "
        f"{layer_parameters(built.model) / 1e9:.2f} billion values of matrices in layers x tokens."
    )
    for prompt in a.prompts:
        for chunk in dict.fromkeys(min(prompt, chunk) for chunk in a.chunks):
            keys = {"prompt": prompt, "chunk": chunk}
            bench.attempt(table, keys, partial(_measure, bench, built, prompt, chunk))


def layer_parameters(model: Model) -> int:
    """Values of all matrices that every token of a prompt is multiplied with."""
    return sum(w.rows * w.cols for w in model.matrices()[:-1])  # the last is the head


def prompt_attention_flops(model: Model, tokens: int) -> int:
    """Of all layers that look at every position."""
    config = model.config
    full = sum(kind == "full_attention" for kind in config.layer_types)
    return full * attention_flops(config.num_heads, config.head_dim, tokens)


def _measure(bench: Bench, built: Built, prompt: int, chunk: int) -> dict[str, Any]:
    model = built.model
    bench.check_fits(model, 1, prompt)
    ids = random_tokens(prompt, model.config.vocab_size)
    times = [_read(built, ids, chunk) for _ in range(1 + bench.amounts.prefills)][1:]
    return _row(bench, model, prompt, statistics.median(times))


def _read(built: Built, ids: list[int], chunk: int) -> float:
    """Seconds to read a prompt; each forward ends with a token on the host."""
    model = built.model
    slot = model.new_slot()
    try:
        started = time.perf_counter()
        for i in range(0, len(ids), chunk):
            step(built, [(slot, ids[i : i + chunk])])
        return time.perf_counter() - started
    finally:
        model.free_slot(slot)


def _row(bench: Bench, model: Model, prompt: int, took: float) -> dict[str, Any]:
    rate = bench.machine.matmul_rate
    matrices = matrix_flops(layer_parameters(model), prompt)
    attention = prompt_attention_flops(model, prompt)
    return {
        "tok_s": prompt / took, "ms": 1e3 * took, "tflops": matrices / took / 1e12,
        "of_matmul": share(seconds(matrices, rate), took), "attention_tflop": attention / 1e12,
        "of_both": share(seconds(matrices + attention, rate), took),
    }  # fmt: skip

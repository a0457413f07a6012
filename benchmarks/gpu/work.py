"""What kernels are measured on: products, embeddings, norms, gates, positions, choosing tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch

from apr_core.ops.binding import Weight
from benchmarks.gpu.arithmetic import matrix_flops
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.machine import Run
from benchmarks.gpu.tokens import greedy, nucleus

F32 = 4  # bytes


@dataclass(frozen=True, slots=True)
class Work:
    """Something to run, the bytes it has to move, and the operations that are worth counting."""

    run: Run
    nbytes: int
    flops: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table. `prepare` makes its arrays, when its turn has come."""

    kernel: str
    what: str
    rows: int
    prepare: Callable[[], Work]


def values(bench: Bench, *shape: int) -> torch.Tensor:
    """Random float32 numbers on the device."""
    return torch.randn(shape, device=bench.machine.device)


def nbytes(*shapes: tuple[int, ...]) -> int:
    """Of float32 arrays of these shapes."""
    return sum(F32 * prod(shape) for shape in shapes)


def role(name: str) -> str:
    """`gate_proj` of `model.layers.3.mlp.gate_proj.weight`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def distinct(weights: list[Weight]) -> dict[tuple[str, int, int], Weight]:
    """One matrix of each format and shape, named after its first."""
    matrices: dict[tuple[str, int, int], Weight] = {}
    for w in weights:
        matrices.setdefault((w.format, w.rows, w.cols), w)
    return matrices


def matrix_cases(bench: Bench) -> Iterator[Case]:
    """`linear` for each matrix there is, and the whole feed-forward."""
    model, a = bench.built().model, bench.amounts
    *inside, head = model.matrices()
    for (format, rows, cols), w in distinct([*inside, head]).items():
        counts = a.few_rows if w is head else (*a.few_rows, *a.many_rows)
        for tokens in counts:
            what = f"{role(w.name)} {format} {rows} x {cols}"
            yield Case("linear", what, tokens, partial(_linear, bench, w, tokens))
    gate, up, down = (
        next(w for w in inside if role(w.name) == name)
        for name in ("gate_proj", "up_proj", "down_proj")
    )
    for tokens in (*a.few_rows, *a.many_rows):
        what = f"{gate.format}, {down.format}"
        yield Case("mlp", what, tokens, partial(_mlp, bench, gate, up, down, tokens))


def _linear(bench: Bench, w: Weight, tokens: int) -> Work:
    o, x = bench.built().model.ops, values(bench, tokens, w.cols)
    moved = w.data.nbytes + nbytes((tokens, w.cols), (tokens, w.rows))
    return Work(lambda: o.linear(x, w), moved, matrix_flops(w.rows * w.cols, tokens))


def _mlp(bench: Bench, gate: Weight, up: Weight, down: Weight, tokens: int) -> Work:
    o, x = bench.built().model.ops, values(bench, tokens, gate.cols)
    between = (tokens, gate.rows)  # written and read: both, and their product
    moved = sum(w.data.nbytes for w in (gate, up, down))
    moved += nbytes((tokens, gate.cols), (tokens, down.rows), *[between] * 6)
    flops = matrix_flops(sum(w.rows * w.cols for w in (gate, up, down)), tokens)
    return Work(lambda: o.mlp(x, gate, up, down), moved, flops)


def row_cases(bench: Bench) -> Iterator[Case]:
    """What goes row by row, for the least and the most rows; and choosing tokens."""
    a, config = bench.amounts, bench.built().model.config
    hidden, wide = config.hidden_size, config.intermediate_size
    for rows in (a.few_rows[0], a.few_rows[-1], a.many_rows[-1]):
        for name in ("rms_norm", "add_rms_norm"):
            yield Case(name, f"{hidden}", rows, partial(_norm, bench, name, rows))
        yield Case("gated_rms_norm", _heads(bench), rows, partial(_gated_norm, bench, rows))
        yield Case("swiglu", f"{wide}", rows, partial(_swiglu, bench, rows))
        yield Case(
            "rope", f"{config.num_heads} x {config.head_dim}", rows, partial(_rope, bench, rows)
        )
        yield Case("embed", bench.built().embedding.format, rows, partial(_embed, bench, rows))
    for rows in a.few_rows:
        yield Case("argmax", "torch's, of logits", rows, partial(_argmax, bench, rows))
        for name, metadata in (("likeliest", greedy), ("top-k and top-p", nucleus)):
            yield Case("sample", name, rows, partial(_sample, bench, rows, metadata))


def _norm(bench: Bench, name: str, rows: int) -> Work:
    o, hidden = bench.built().model.ops, bench.built().model.config.hidden_size
    x, y, w = values(bench, rows, hidden), values(bench, rows, hidden), values(bench, hidden)
    if name == "rms_norm":
        return Work(lambda: o.rms_norm(x, w, 1e-6, 1.0), nbytes(*[(rows, hidden)] * 2, (hidden,)))
    moved = nbytes(*[(rows, hidden)] * 4, (hidden,))
    return Work(lambda: o.add_rms_norm(x, y, w, 1e-6, 1.0), moved)


def _heads(bench: Bench) -> str:
    extra = bench.built().model.config.extra
    return f"{extra['linear_num_value_heads']} x {extra['linear_value_head_dim']}"


def _gated_norm(bench: Bench, rows: int) -> Work:
    o, extra = bench.built().model.ops, bench.built().model.config.extra
    shape = (rows, extra["linear_num_value_heads"], extra["linear_value_head_dim"])
    x, z, w = values(bench, *shape), values(bench, *shape), values(bench, shape[-1])
    return Work(lambda: o.gated_rms_norm(x, w, z, 1e-6), nbytes(shape, shape, shape))


def _swiglu(bench: Bench, rows: int) -> Work:
    o, wide = bench.built().model.ops, bench.built().model.config.intermediate_size
    gate, up = values(bench, rows, wide), values(bench, rows, wide)
    return Work(lambda: o.swiglu(gate, up), nbytes(*[(rows, wide)] * 3))


def _rope(bench: Bench, rows: int) -> Work:
    o, config = bench.built().model.ops, bench.built().model.config
    shape = (rows, config.num_heads, config.head_dim)
    x, positions = values(bench, *shape), torch.arange(rows, device=bench.machine.device)
    freq = torch.rand(config.extra["rotary_dim"] // 2, device=bench.machine.device)
    return Work(lambda: o.rope(x, positions, freq), nbytes(shape, shape))


def _embed(bench: Bench, rows: int) -> Work:
    o, w = bench.built().model.ops, bench.built().embedding
    ids = torch.randint(0, w.rows, (rows,), device=bench.machine.device)
    packed = rows * w.data.nbytes // w.rows
    return Work(lambda: o.embed(ids, w), packed + nbytes((rows, w.cols)))


def _argmax(bench: Bench, rows: int) -> Work:
    logits = values(bench, rows, bench.built().model.config.vocab_size)
    return Work(lambda: logits.argmax(-1), nbytes(tuple(logits.shape)))


def _sample(bench: Bench, rows: int, metadata: Callable[[int], Any]) -> Work:
    backend: Any = bench.built().backend
    vocabulary = bench.built().model.config.vocab_size
    logits, sampling = values(bench, rows, vocabulary), [metadata(vocabulary)] * rows
    return Work(lambda: backend.sample(logits, sampling), nbytes((rows, vocabulary)))

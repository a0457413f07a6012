"""The ops of a mixture of experts: choosing experts, products with theirs, and their sum."""

from __future__ import annotations

from collections import Counter
from typing import Any

from apr_core.plugin import Weight, matrix_op, op, sigmoid

Array = Any


@op
def route(xp: Any, logits: Array, k: int) -> tuple[Array, Array]:
    """Return the k likeliest experts of each row, and their weights: ids and float32 [T, k].

    logits [T, E]. Weights are the experts' probabilities (softmax), over the sum of the k. The
    likeliest come first, of equally likely ones the lowest id.
    """
    rows, experts = logits.shape
    ids = xp.argsort(-logits, axis=-1, stable=True)[:, :k]
    at = (ids + xp.arange(rows)[:, None] * experts).reshape(-1)
    top = xp.take(logits.reshape(-1), at, axis=0).reshape(rows, -1)
    weights = xp.exp(top - top[:, :1])
    return ids, weights / xp.sum(weights, axis=-1, keepdims=True)


@matrix_op
def expert_linear(xp: Any, x: Array, ids: Array, w: Weight) -> Array:
    """Multiply rows by the matrices of their experts: x and ids [T, k] -> [T, k, out].

    x is [T, in], multiplied by k matrices each, or [T, k, in]; w is a stack [E, out, in].
    """
    rows, k = ids.shape
    flat = ids.reshape(-1)
    order = xp.argsort(flat, stable=True)  # products of an expert together
    x = xp.take(x.reshape(-1, w.cols), order // k if x.ndim == 2 else order, axis=0)
    matrices, counts = w.data.reshape(*w.shape), Counter(flat.tolist())
    products, start = [], 0
    for expert in sorted(counts):
        stop = start + counts[expert]
        products.append(xp.matmul(x[start:stop], matrices[expert].T))
        start = stop
    whole = xp.concatenate(products, axis=0)
    return xp.take(whole, xp.argsort(order), axis=0).reshape(rows, k, -1)


@op
def mix_experts(xp: Any, y: Array, weights: Array, shared: Array, gate: Array) -> Array:
    """Return sum of weights * y over the experts, plus sigmoid(gate) * shared: [T, N].

    y [T, k, N], weights [T, k], shared [T, N], gate [T, 1].
    """
    return xp.sum(y * weights[:, :, None], axis=1) + sigmoid(xp, gate) * shared

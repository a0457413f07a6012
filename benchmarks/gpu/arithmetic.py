"""What work takes at least: bytes, operations and the seconds they need at a measured rate."""

from __future__ import annotations

CHUNK = 64  # tokens that the chunked delta rule takes at a time


def matrix_flops(parameters: int, tokens: int) -> int:
    """Of products with matrices of so many values in all: a multiplication and an addition each."""
    return 2 * parameters * tokens


def attention_flops(heads: int, head_dim: int, tokens: int, before: int = 0) -> int:
    """Of one layer's causal attention over `tokens` new ones after `before` others.

    Queries times keys and weights times values; a token looks at itself and all before it.
    """
    looked_at = tokens * before + tokens * (tokens + 1) // 2
    return 4 * heads * head_dim * looked_at


def attention_bytes(kv_heads: int, head_dim: int, positions: int, width: int) -> int:
    """Keys and values of so many positions of one layer, in numbers of `width` bytes."""
    return 2 * kv_heads * head_dim * positions * width


def delta_token_flops(heads: int, key_dim: int, value_dim: int) -> int:
    """Of a token of the delta rule: decay, read, write and query a state of each head."""
    return 7 * heads * key_dim * value_dim


def delta_chunk_flops(heads: int, key_dim: int, value_dim: int, tokens: int) -> int:
    """Of `tokens` by the chunked delta rule: the products within chunks, and with the state."""
    within = 2 * CHUNK * (3 * key_dim + 2 * value_dim)  # k k, q k, X k; X v, (q k) v
    with_state = 2 * 3 * key_dim * value_dim  # W S, q S, k v
    return heads * tokens * (within + with_state)


def seconds(amount: float, rate: float) -> float:
    """The least time for an amount at so much a second."""
    return amount / rate


def share(least: float, took: float) -> float:
    """How near to the least possible time something came: 1.0 is there."""
    return least / took

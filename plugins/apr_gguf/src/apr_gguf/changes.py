"""What GGUF stores differently from a checkpoint, and the way back.

Sources: llama.cpp's conversion/{llama,gemma,qwen}.py, and its pull request 19468 for the order of
value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_gguf.architectures import Architecture

Order = NDArray[np.int64]
Floats = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Change:
    """How a tensor in GGUF comes from the checkpoint's.

    `rows` and `columns` are the checkpoint's places of each of GGUF's. `values` are functions of
    float64 there and back. `squeezed`: [n, 1, k] became [n, k].
    """

    rows: Order | None = None
    columns: Order | None = None
    values: tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]] | None = None
    squeezed: bool = False

    def apply(self, x: Floats) -> NDArray[np.float32]:
        """Return a checkpoint's vector, or convolution, as GGUF has it."""
        x = x if self.rows is None else x[self.rows]
        x = x[:, 0] if self.squeezed else x
        with np.errstate(all="ignore"):  # what is not finite is found later, and named
            wide = x.astype(np.float64)
            return (self.values[0](wide) if self.values else wide).astype(np.float32)

    def undo(self, x: NDArray[np.float32]) -> Floats:
        """Return what `apply` turns into the same bits: float32 if that can be, else float64."""
        with np.errstate(all="ignore"):
            wide = self.values[1](x.astype(np.float64)) if self.values else x
            wide = wide[:, None] if self.squeezed else wide
            wide = wide if self.rows is None else wide[np.argsort(self.rows)]
            narrow = wide.astype(np.float32)
        return narrow if np.array_equal(self.apply(narrow), x) else wide


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of heads and their sizes; `linear_*` are those of Qwen3.5's linear attention."""

    queries: int
    keys: int
    size: int
    linear_keys: int = 0
    linear_values: int = 0
    linear_key_size: int = 0
    linear_value_size: int = 0

    @classmethod
    def of(cls, c: Mapping[str, Any]) -> Heads:
        """Read them from a config.json."""
        return cls(
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            c.get("linear_num_key_heads", 0),
            c.get("linear_num_value_heads", 0),
            c.get("linear_key_head_dim", 0),
            c.get("linear_value_head_dim", 0),
        )

    @property
    def usable(self) -> bool:
        """False for numbers that no model has."""
        linear = (
            self.linear_keys,
            self.linear_values,
            self.linear_key_size,
            self.linear_value_size,
        )
        even = min(self.queries, self.keys, self.size) > 0 and self.size % 2 == 0
        return even and (
            not any(linear) or (min(linear) > 0 and self.linear_values % self.linear_keys == 0)
        )


def changes(arch: Architecture, heads: Heads) -> dict[str, Change]:
    """Return what is changed, by GGUF's name without the layer's number."""
    if arch.name == "llama":
        sizes = {"attn_q.weight": heads.queries, "attn_k.weight": heads.keys}
        return {name: Change(rows=pairs(count, heads.size)) for name, count in sizes.items()}
    norms = {b for b in arch.names(1, 1).values() if b.endswith("norm.weight")}
    shifted = {b.removeprefix("blk.0.").removeprefix("blk.1."): PLUS_ONE for b in norms}
    if arch.name == "gemma3":
        return shifted
    return shifted | delta_net(heads) if arch.is_hybrid else {}


def pairs(count: int, size: int) -> Order:
    """Return the order of rows of q or k: halves of a head that rotate together, side by side."""
    at = np.arange(count * size).reshape(count, 2, size // 2)
    return at.swapaxes(1, 2).reshape(-1)


PLUS_ONE = Change(values=(lambda x: x + 1, lambda x: x - 1))


def delta_net(heads: Heads) -> dict[str, Change]:
    """Return the changes of a gated delta net: value heads of one key head are spread out.

    ggml pairs value head j with key head j mod their number, checkpoints with j // their ratio.
    """
    count, size = heads.linear_values, heads.linear_value_size
    one = value_heads(heads, 1)
    rows = value_heads(heads, size)
    before = 2 * heads.linear_keys * heads.linear_key_size
    fused = np.concatenate([np.arange(before), before + rows])
    decay = Change(rows=one, values=(lambda x: -np.exp(x), lambda x: np.log(-x)))
    fixed = {"ssm_norm.weight": Change(), "ssm_a": decay}
    if count == heads.linear_keys:
        return fixed | {"ssm_conv1d.weight": Change(squeezed=True)}
    return fixed | {
        "attn_qkv.weight": Change(rows=fused),
        "attn_gate.weight": Change(rows=rows),
        "ssm_alpha.weight": Change(rows=one),
        "ssm_beta.weight": Change(rows=one),
        "ssm_dt.bias": Change(rows=one),
        "ssm_conv1d.weight": Change(rows=fused, squeezed=True),
        "ssm_out.weight": Change(columns=rows),
    }


def value_heads(heads: Heads, size: int) -> Order:
    """Return the checkpoint's place of rows or columns, of which each value head has `size`."""
    j = np.arange(heads.linear_values)
    ratio = max(heads.linear_values // max(heads.linear_keys, 1), 1)
    order = (j % max(heads.linear_keys, 1)) * ratio + j // max(heads.linear_keys, 1)
    return np.asarray((order[:, None] * size + np.arange(size)).ravel())


def cuts(order: Order | None, block: int) -> bool:
    """Return True if columns in this order do not go by whole blocks."""
    if order is None:
        return False
    starts = order[::block]
    expected = (starts[:, None] + np.arange(block)).ravel()
    return order.size % block != 0 or bool((order != expected).any() or (starts % block).any())


def move_columns(
    raw: NDArray[np.uint8], order: Order, block: int, way_back: bool = False
) -> NDArray[np.uint8]:
    """Return rows of packed blocks [n, bytes] in another order, which cuts none of them."""
    places = order[::block] // block
    cells = raw.reshape(len(raw), places.size, -1)
    moved = cells[:, np.argsort(places) if way_back else places]
    return np.ascontiguousarray(moved).reshape(raw.shape)
